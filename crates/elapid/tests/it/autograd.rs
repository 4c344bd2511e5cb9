//! The tape itself.

use std::sync::Arc;

use elapid::Tensor;
use elapid::autograd::{Tape, Var};
use elapid::ops::{add_norm, linear, neg_exp};
use elapid::params::ParamGrads;

use crate::close;

fn counted(shape: &[usize], scale: f32) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::new((0..count).map(|i| ((i * 37 % 23) as f32 - 11.0) * scale).collect(), shape)
}

/// d⟨f(x), g⟩/dx by central differences.
fn differences(x: &Tensor, g: &Tensor, f: impl Fn(&Var) -> Var) -> Vec<f32> {
    let step = 1e-2;
    (0..x.len())
        .map(|i| {
            let at = |delta: f32| {
                let mut moved = x.clone();
                moved.make_mut()[i] += delta;
                let y = f(&moved.into()).value().contiguous();
                y.as_slice().iter().zip(g.as_slice()).map(|(y, g)| f64::from(y * g)).sum::<f64>()
            };
            ((at(step) - at(-step)) / f64::from(2.0 * step)) as f32
        })
        .collect()
}

/// A function that uses its input twice, in column slices and whole.
fn tangled(x: &Var) -> Var {
    let weight: Var = counted(&[3, 2], 0.1).into();
    let left = linear(&x.columns(0, 2), &weight, None).unwrap();
    let right = linear(&x.columns(2, 2), &weight, None).unwrap();
    let (_, sum) = add_norm(&left, Some(&right), &Tensor::new(vec![1.0; 3], &[3]).into(), 1e-5).unwrap();
    let back: Var = counted(&[4, 3], 0.2).into();
    let (normed, _) =
        add_norm(&linear(&sum, &back, None).unwrap(), Some(x), &Tensor::new(vec![0.5; 4], &[4]).into(), 1e-5).unwrap();
    normed
}

#[test]
fn slices_and_repeated_uses_share_a_gradient() {
    let (x, g) = (counted(&[3, 4], 0.15), counted(&[3, 4], 0.07));
    let tape = Tape::new();
    let leaf = tape.leaf(x.clone());
    let y = tangled(&leaf);
    let mut grads = tape.backward_from(&[(&y, g.clone())], &mut ParamGrads::default()).unwrap();
    let got = grads.take(&leaf).unwrap();
    let want = differences(&x, &g, tangled);
    let worst = want.iter().zip(got.as_slice()).map(|(w, g)| (w - g).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3, "{worst}: {want:?} {got:?}");
}

#[test]
fn the_same_variable_twice() {
    let tape = Tape::new();
    let leaf = tape.leaf(counted(&[2, 3], 0.3));
    let (_, sum) = add_norm(&leaf, Some(&leaf), &Tensor::new(vec![1.0; 3], &[3]).into(), 1e-5).unwrap();
    let ones = Tensor::new(vec![1.0; 6], &[2, 3]);
    let mut grads = tape.backward_from(&[(&sum, ones)], &mut ParamGrads::default()).unwrap();
    close("d(x + x)", &[2.0; 6], grads.take(&leaf).unwrap().as_slice());
}

#[test]
fn unused_columns_have_gradient_zero() {
    let tape = Tape::new();
    let leaf = tape.leaf(counted(&[2, 5], 0.3));
    let y = linear(&leaf.columns(1, 2), &Tensor::new(vec![1.0, 1.0], &[1, 2]).into(), None).unwrap();
    let ones = Tensor::new(vec![1.0; 2], &[2, 1]);
    let mut grads = tape.backward_from(&[(&y, ones)], &mut ParamGrads::default()).unwrap();
    assert_eq!(grads.take(&leaf).unwrap().as_slice(), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn what_nothing_depends_on_is_not_run() {
    let tape = Arc::new(Tape::new());
    let leaf = tape.leaf(counted(&[1, 2], 0.3));
    let _unused = neg_exp(&leaf).unwrap();
    let y = neg_exp(&leaf).unwrap();
    let seed = Tensor::new(vec![1.0, 1.0], &[1, 2]);
    let mut grads = tape.backward_from(&[(&y, seed)], &mut ParamGrads::default()).unwrap();
    close("d -exp", y.value().as_slice(), grads.take(&leaf).unwrap().as_slice());
}

#[test]
fn constants_record_nothing() {
    let x: Var = counted(&[2, 2], 1.0).into();
    assert!(!linear(&x, &x, None).unwrap().wants_grad());
    let tape = Tape::new();
    assert!(!tape.leaf(counted(&[1], 1.0)).detach().wants_grad());
}
