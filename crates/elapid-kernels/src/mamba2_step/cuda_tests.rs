//! Against the operations' loops, one after another in f64.

use std::sync::Arc;

use super::cuda::{Dims, Gate, Layer, Model, Step, suits};
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded, wide};
use crate::{DType, Rows, RowsMut, linear};

/// The parameters of a layer in f64, and its state.
struct Reference {
    norm: Vec<f64>,
    in_proj: Vec<f64>,
    conv: Vec<f64>,
    conv_bias: Vec<f64>,
    dt_bias: Vec<f64>,
    a_log: Vec<f64>,
    skip: Vec<f64>,
    gated_norm: Vec<f64>,
    out_proj: Vec<f64>,
    conv_state: Vec<f64>,
    ssm_state: Vec<f64>,
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut y = vec![0.0; m * n];
    linear::naive::forward(Rows::new(x, k), Rows::new(w, k), None, RowsMut::new(&mut y, n));
    y
}

fn norm(x: &[f64], w: &[f64], d: usize, eps: f64) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks(d) {
        let scale = (row.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt().recip();
        y.extend(row.iter().zip(w).map(|(x, w)| x * scale * w));
    }
    y
}

impl Reference {
    /// silu(conv(x B C)) of row `m`, whose window moves on.
    fn convolved(&mut self, dims: &Dims, m: usize, packed: &[f64]) -> Vec<f64> {
        let (ed, k) = (dims.ed, dims.k);
        let all = ed + 2 * dims.g * dims.n;
        let mut u = vec![0.0; all];
        for c in 0..all {
            let window = |j: usize| (m * (k - 1) + j) * all + c;
            let now = packed[ed + c];
            let mut sum = self.conv_bias[c] + self.conv[c * k + k - 1] * now;
            for j in 0..k - 1 {
                sum += self.conv[c * k + j] * self.conv_state[window(j)];
                self.conv_state[window(j)] = if j + 2 < k { self.conv_state[window(j + 1)] } else { now };
            }
            u[c] = silu(sum);
        }
        u
    }

    fn forward(&mut self, dims: &Dims, residual: &mut [f64]) {
        let Dims { b, d, ed, h, n, g, gate, gate_eps, limits, .. } = *dims;
        let (p, rows) = (ed / h, 2 * ed + 2 * g * n + h);
        let packed = product(&norm(residual, &self.norm, d, 1e-5), &self.in_proj, d);
        let mut y = vec![0.0; b * ed];
        for m in 0..b {
            let packed = &packed[m * rows..][..rows];
            let u = self.convolved(dims, m, packed);
            for c in 0..ed {
                let head = c / p;
                let of = &u[ed + head / (h / g) * n..];
                let raw = packed[rows - h + head] + self.dt_bias[head];
                let dt = raw.exp().ln_1p().clamp(f64::from(limits.0), f64::from(limits.1));
                let mut sum = self.skip[if dims.skip_per_channel { c } else { head }] * u[c];
                for j in 0..n {
                    let s = &mut self.ssm_state[((m * h + head) * n + j) * p + c % p];
                    *s = (-dt * self.a_log[head].exp()).exp() * *s + dt * of[j] * u[c];
                    sum += of[g * n + j] * *s;
                }
                y[m * ed + c] = sum;
            }
            let gates: Vec<f64> = packed[..ed].iter().map(|&z| silu(z)).collect();
            let y = &mut y[m * ed..][..ed];
            let by = |y: &mut [f64]| y.iter_mut().zip(&gates).for_each(|(y, gate)| *y *= gate);
            if gate != Gate::AfterNorm {
                by(y);
            }
            if gate != Gate::Plain {
                y.copy_from_slice(&norm(y, &self.gated_norm, ed, f64::from(gate_eps)));
            }
            if gate == Gate::AfterNorm {
                by(y);
            }
        }
        for (x, y) in residual.iter_mut().zip(product(&y, &self.out_proj, ed)) {
            *x += y;
        }
    }
}

/// A layer on the device beside its reference.
struct Both {
    reference: Reference,
    device: [OnDevice; 11],
}

fn layer(gpu: crate::cuda::Gpu, dims: &Dims, random: &mut Random) -> Both {
    let Dims { b, d, ed, h, n, g, k, .. } = *dims;
    let (rows, all) = (2 * ed + 2 * g * n + h, ed + 2 * g * n);
    let mut numbers =
        |len: usize, size: f32, mean: f32| -> Vec<f32> { random.normal(len).iter().map(|x| mean + size * x).collect() };
    let fan = |inputs: usize| (inputs as f32).powf(-0.5);
    let weight = |x: Vec<f32>, cols: usize| {
        let x = rounded(&x, DType::Bf16);
        (OnDevice::of(gpu, &x, cols, 0, DType::Bf16), wide(&x))
    };
    let vector = |x: Vec<f32>| (OnDevice::of(gpu, &x, x.len().max(1), 0, DType::F32), wide(&x));
    let parts = [
        vector(numbers(d, 0.2, 1.0)),
        weight(numbers(rows * d, fan(d), 0.0), d),
        vector(numbers(all * k, 0.5, 0.0)),
        vector(numbers(all, 0.3, 0.0)),
        vector(numbers(h, 0.5, -2.0)),
        vector(numbers(h, 0.5, 0.0)),
        vector(numbers(if dims.skip_per_channel { ed } else { h }, 0.5, 1.0)),
        vector(numbers(ed, 0.2, 1.0)),
        weight(numbers(d * ed, fan(ed), 0.0), ed),
        vector(numbers(b * (k - 1) * all, 1.0, 0.0)),
        {
            let x = rounded(&numbers(b * ed * n, 1.0, 0.0), dims.state);
            (OnDevice::of(gpu, &x, x.len(), 0, dims.state), wide(&x))
        },
    ];
    let [norm, in_proj, conv, conv_bias, dt_bias, a_log, skip, gated_norm, out_proj, conv_state, ssm_state] =
        parts.each_ref().map(|(_, wide)| wide.clone());
    let reference =
        Reference { norm, in_proj, conv, conv_bias, dt_bias, a_log, skip, gated_norm, out_proj, conv_state, ssm_state };
    let device = parts.map(|(device, _)| device);
    Both { reference, device }
}

fn check(gpu: crate::cuda::Gpu, count: usize, dims: Dims) {
    let Dims { b, d, v, .. } = dims;
    assert!(suits(&gpu, dims), "{dims:?}");
    let mut random = Random::new(1);
    let mut all: Vec<Both> = (0..count).map(|_| layer(gpu, &dims, &mut random)).collect();
    let mut weight = |len: usize, size: f32| {
        let x: Vec<f32> = random.normal(len).iter().map(|x| size * x).collect();
        let x = rounded(&x, DType::Bf16);
        (OnDevice::of(gpu, &x, d, 0, DType::Bf16), wide(&x))
    };
    let (embedding, embedding64) = weight(v * d, 1.0);
    let (head, head64) = weight(v * d, (d as f32).powf(-0.5));
    let ones: Vec<f32> = (0..d).map(|i| 0.5 + (i % 3) as f32).collect();
    let (norm_f, norm_f64) = (OnDevice::of(gpu, &ones, d, 0, DType::F32), wide(&ones));
    let layers = all
        .iter()
        .map(|Both { device: of, .. }| Layer {
            norm: of[0].mat(),
            in_proj: of[1].mat(),
            conv: of[2].mat(),
            conv_bias: Some(of[3].mat()),
            dt_bias: of[4].mat(),
            a_log: of[5].mat(),
            skip: of[6].mat(),
            gated_norm: (dims.gate != Gate::Plain).then(|| of[7].mat()),
            out_proj: of[8].mat(),
            conv_state: of[9].mat(),
            ssm_state: of[10].mat(),
        })
        .collect();
    let model = Model { layers, embedding: embedding.mat(), norm: norm_f.mat(), head: head.mat(), eps: 1e-5 };
    let mut tokens: Vec<u32> = (0..b).map(|m| ((m * 7919 + 3) % v) as u32).collect();
    let ids = Arc::new(gpu.upload(&tokens).unwrap());
    let step = Step::new(gpu, dims, &model, &ids).unwrap();
    for position in 0..3 {
        let mut residual: Vec<f64> =
            tokens.iter().flat_map(|&id| embedding64[id as usize * d..][..d].to_vec()).collect();
        all.iter_mut().for_each(|layer| layer.reference.forward(&dims, &mut residual));
        let want = product(&norm(&residual, &norm_f64, d, 1e-5), &head64, d);
        step.launch().unwrap();
        let got: Vec<f32> = gpu.download(step.logits(), 0, b * v).unwrap();
        let near = |name: &str, want: &[f64], got: &[f32]| {
            let error = err_ratio(want, got);
            assert!(error < 2e-2, "{name} at {position} of {dims:?}: {error:e}");
        };
        for (i, Both { reference, device }) in all.iter().enumerate() {
            near(&format!("conv state {i}"), &reference.conv_state, &device[9].values());
            near(&format!("ssm state {i}"), &reference.ssm_state, &device[10].values());
        }
        near("logits", &want, &got);
        tokens = gpu.download(&ids, 0, b).unwrap();
        for (row, &id) in got.chunks(v).zip(&tokens) {
            let best = (0..v).fold(0, |best, j| if row[j] > row[best] { j } else { best });
            assert_eq!(id as usize, best);
        }
    }
}

fn dims(b: usize, [d, ed, h, n, g, k, v]: [usize; 7], gate: Gate) -> Dims {
    let (gate_eps, limits) = (1e-5, (0.0, f32::INFINITY));
    Dims { b, d, ed, h, n, g, k, v, skip_per_channel: false, gate, gate_eps, limits, state: DType::F32 }
}

#[test]
fn one_row_agrees_with_the_operations() {
    let Some(gpu) = gpu() else { return };
    for (count, sizes, gate) in [
        (3, [768, 1536, 24, 128, 1, 4, 5001], Gate::BeforeNorm),
        (2, [2048, 4096, 64, 128, 1, 4, 301], Gate::BeforeNorm),
        (2, [64, 128, 8, 16, 2, 4, 50], Gate::AfterNorm),
        (1, [2560, 5120, 80, 128, 1, 2, 97], Gate::BeforeNorm),
        (5, [96, 192, 48, 7, 4, 1, 33], Gate::Plain),
        (2, [1056, 8192, 32, 64, 8, 3, 97], Gate::BeforeNorm),
    ] {
        check(gpu, count, dims(1, sizes, gate));
    }
    let plain = dims(1, [256, 512, 8, 64, 1, 4, 97], Gate::BeforeNorm);
    check(gpu, 2, Dims { skip_per_channel: true, limits: (0.1, 0.2), ..plain });
}

#[test]
fn many_rows_agree_with_the_operations() {
    let Some(gpu) = gpu() else { return };
    for (count, b, sizes, gate) in [
        (2, 64, [768, 1536, 24, 128, 1, 4, 501], Gate::BeforeNorm),
        (2, 128, [256, 512, 8, 128, 1, 4, 301], Gate::BeforeNorm),
        (1, 100, [2048, 4096, 64, 16, 1, 4, 97], Gate::BeforeNorm),
        (3, 5, [64, 128, 8, 16, 2, 4, 50], Gate::AfterNorm),
        (2, 33, [96, 192, 48, 6, 4, 1, 33], Gate::Plain),
    ] {
        check(gpu, count, dims(b, sizes, gate));
    }
    assert!(
        !suits(&gpu, dims(17, [72, 144, 4, 10, 1, 3, 97], Gate::BeforeNorm)),
        "heads of 36 channels are not supported"
    );
    let plain = dims(40, [256, 512, 8, 64, 1, 4, 97], Gate::BeforeNorm);
    check(gpu, 2, Dims { skip_per_channel: true, limits: (0.1, 0.2), ..plain });
    // States rounded after each step.
    check(gpu, 2, Dims { state: DType::Bf16, ..dims(64, [768, 1536, 24, 128, 1, 4, 97], Gate::BeforeNorm) });
    check(gpu, 2, Dims { state: DType::Bf16, ..dims(1, [256, 512, 8, 64, 1, 4, 97], Gate::BeforeNorm) });
}
