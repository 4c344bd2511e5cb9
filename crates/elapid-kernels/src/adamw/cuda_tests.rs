//! On a GPU, against the f64 oracle.

use super::*;
use crate::testing::{Random, err_ratio, gpu, median, wide};

// Long: one optimiser, step after step, then gradients that are broken.
#[test]
fn steps_clip_and_leave_broken_gradients_alone() {
    let Some(gpu) = gpu() else { return };
    let (count, mut random) = (256 * 37, Random::new(1));
    let (mut w, mut m, mut v) = (wide(&random.normal(count)), vec![0.0f64; count], vec![0.0f64; count]);
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let decay: Vec<u8> = (0..count / 256).map(|i| u8::from(i % 3 == 0)).collect();
    let factors: Vec<f32> = (0..count / 256).map(|i| [1.0, 0.25, 0.0, 3.0][i % 4]).collect();
    let gfactors = gpu.upload(&factors).unwrap();
    let [gw, gm, gv] = [&w, &m, &v].map(|x| gpu.upload(&narrow(x)).unwrap());
    let (copy, gdecay) = (gpu.alloc(2 * count).unwrap(), gpu.upload(&decay).unwrap());
    let (hyper, norm) = (gpu.alloc(32).unwrap(), gpu.alloc(8).unwrap());
    for step in 1..=5u64 {
        let g = random.normal(count);
        let gg = gpu.upload(&g).unwrap();
        let (lr, beta1, beta2, eps, weight_decay, clip) =
            (1e-2, 0.9, 0.95, 1e-8, 0.1, if step % 2 == 0 { 1.0 } else { 0.0 });
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        gpu.write(&hyper, 0, &[lr, beta1, beta2, eps, weight_decay, clip, correction(beta1), correction(beta2)])
            .unwrap();
        super::cuda::norm(&gpu, &gg, count, &norm).unwrap();
        let flat = super::cuda::Flat {
            w: &gw,
            g: &gg,
            m: &gm,
            v: &gv,
            copy: Some(&copy),
            decay: &gdecay,
            factors: Some(&gfactors),
            count,
        };
        super::cuda::step(&gpu, flat, &hyper, &norm).unwrap();
        let length = norm_sq(&g).sqrt();
        let scale = if clip > 0.0 && length > 1.0 { (1.0 / (length + 1e-6)) as f32 } else { 1.0 };
        for (i, &decays) in decay.iter().enumerate() {
            let part = 256 * i..256 * (i + 1);
            let weight_decay = if decays == 1 { weight_decay } else { 0.0 };
            let hyper = Hyper { lr: lr * factors[i], beta1, beta2, eps, weight_decay, step, grad_scale: scale };
            naive::step(&hyper, &mut w[part.clone()], &wide(&g[part.clone()]), &mut m[part.clone()], &mut v[part]);
        }
        let got: Vec<f32> = gpu.download(&norm, 0, 2).unwrap();
        assert!((f64::from(got[0]) - length).abs() < 1e-5 * length && got[1] == 1.0);
    }
    for (want, got) in [(&w, &gw), (&m, &gm), (&v, &gv)] {
        let error = err_ratio(want, &gpu.download::<f32>(got, 0, count).unwrap());
        assert!(error <= 1e-5, "{error:e}");
    }
    let before: Vec<f32> = gpu.download(&gw, 0, count).unwrap();
    let halves: Vec<u16> = gpu.download(&copy, 0, count).unwrap();
    assert!(before.iter().zip(&halves).all(|(&x, &bits)| half::bf16::from_f32(x).to_bits() == bits));
    for broken in [f32::NAN, f32::INFINITY] {
        let mut g = random.normal(count);
        g[7000] = broken;
        let gg = gpu.upload(&g).unwrap();
        super::cuda::norm(&gpu, &gg, count, &norm).unwrap();
        let flat =
            super::cuda::Flat { w: &gw, g: &gg, m: &gm, v: &gv, copy: None, decay: &gdecay, factors: None, count };
        super::cuda::step(&gpu, flat, &hyper, &norm).unwrap();
        assert_eq!(gpu.download::<f32>(&norm, 1, 1).unwrap(), [0.0]);
    }
    assert_eq!(before, gpu.download::<f32>(&gw, 0, count).unwrap());
}

#[test]
#[ignore = "a measurement"]
fn bench() {
    let Some(gpu) = gpu() else { return };
    let count = 130_000_128 / 256 * 256;
    let x = vec![0.01f32; count];
    let [w, g, m, v] = [(); 4].map(|()| gpu.upload(&x).unwrap());
    let (copy, decay) = (gpu.alloc(2 * count).unwrap(), gpu.upload(&vec![1u8; count / 256]).unwrap());
    let hyper = gpu.upload(&[1e-3f32, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.5, 0.5]).unwrap();
    let norm = gpu.alloc(8).unwrap();
    let run = || {
        super::cuda::norm(&gpu, &g, count, &norm)?;
        let flat =
            super::cuda::Flat { w: &w, g: &g, m: &m, v: &v, copy: Some(&copy), decay: &decay, factors: None, count };
        super::cuda::step(&gpu, flat, &hyper, &norm)
    };
    run().unwrap();
    let ms = median(gpu.time(10, run).unwrap());
    println!("adamw of 130 M with norm: {ms:.3} ms, {:.0} GB/s", 34.0 * count as f32 / ms / 1e6);
}
