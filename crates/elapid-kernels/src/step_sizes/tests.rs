use super::*;
use crate::testing::{Random, central_difference, fault, wide};
use crate::{Rows, RowsMut};

#[test]
fn gradients_are_difference_quotients() {
    let (m, h) = (7, 3);
    let mut random = Random::new(1);
    let packed = wide(&random.normal((m + 2) * h));
    let [ddelta, ddecay] = [(); 2].map(|()| wide(&random.normal(m * h)));
    // Some step sizes are at each limit.
    for limits in [(0.0, f32::INFINITY), (0.4, 1.1)] {
        let args = |packed: &[f64]| -> (Vec<f64>, Vec<f64>, Vec<f64>) {
            let (x, rest) = packed.split_at(m * h);
            (x.to_vec(), rest[..h].to_vec(), rest[h..].to_vec())
        };
        let loss = |packed: &[f64]| {
            let (x, bias, a_log) = args(packed);
            let args = Args { x: Rows::new(&x, h), bias: &bias[..], a_log: &a_log[..], limits };
            let (mut delta, mut decay) = (vec![0.0; m * h], vec![0.0; m * h]);
            naive::forward(args, RowsMut::new(&mut delta, h), RowsMut::new(&mut decay, h));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            dot(&delta, &ddelta) + dot(&decay, &ddecay)
        };
        let (x, bias, a_log) = args(&packed);
        let args = Args { x: Rows::new(&x, h), bias: &bias[..], a_log: &a_log[..], limits };
        let mut d = vec![0.0; packed.len()];
        let (dx, rest) = d.split_at_mut(m * h);
        let (dbias, da_log) = rest.split_at_mut(h);
        let (ddelta, ddecay) = (Rows::new(&ddelta, h), Rows::new(&ddecay, h));
        naive::backward(args, ddelta, ddecay, RowsMut::new(dx, h), Some(dbias), Some(da_log));
        assert!(central_difference(loss, &packed, &d) < 1e-7, "{limits:?}");
    }
}

#[test]
fn shapes_are_checked() {
    let (x, zeros) = ([0.5_f32; 6], [0.0_f32; 3]);
    let (mut delta, mut decay) = ([0.0; 6], [0.0; 6]);
    let mut run = |biases: usize, limits, cols: usize| {
        let (x, bias, a_log) = (Rows::new(&x, 3).into(), (&zeros[..biases]).into(), (&zeros[..]).into());
        let args = Args { x, bias, a_log, limits };
        forward(args, RowsMut::new(&mut delta, cols), RowsMut::new(&mut decay, 3))
    };
    assert_eq!(fault(run(2, (0.0, 1.0), 3)).argument, "bias");
    assert_eq!(fault(run(3, (0.0, 1.0), 2)).argument, "delta");
    assert_eq!(fault(run(3, (1.0, 0.5), 3)).argument, "limits");
    run(3, (0.0, 1.0), 3).unwrap();
    assert!(delta.iter().zip(x).all(|(d, x)| (d - x.exp().ln_1p()).abs() < 1e-6));
    assert!(decay.iter().zip(delta).all(|(a, d)| *a == -d));
}
