//! The loss of a regression.

use elapid_kernels::squared_error as kernel;

use crate::autograd::{Var, record};
use crate::{DType, Result, Tensor};

/// Mean of (y - t)² over the targets t; NaN targets are ignored. y and `targets` have the same number of elements; targets
/// on another device are moved.
///
/// # Errors
/// If they differ in length; if a device failed, or has too little memory.
pub fn squared_error(y: &Var, targets: &Tensor) -> Result<Var> {
    let device = y.value().device();
    let targets = targets.to(device, DType::F32)?;
    let mut mean = Tensor::output(device, DType::F32, &[1])?;
    let mut count = Tensor::output(device, DType::F32, &[1])?;
    kernel::forward(y.value().view(), targets.view_flat(), mean.view_mut(), count.view_mut())?;
    let kept = y.clone();
    let [mean] = record(&[y], [mean], move |grads, [mean]| {
        let Some(seed) = grads.take_seed(mean)? else { return Ok(()) };
        let scale = seed.to_vec()?[0];
        grads.set_by(&kept, |dy| {
            kernel::backward(kept.value().view(), targets.view_flat(), count.view_flat(), scale, dy)
        })
    });
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use crate::params::ParamGrads;

    #[test]
    fn the_mean_is_over_what_is_asked_and_so_is_the_gradient() {
        let tape = Tape::new();
        let y = tape.leaf(Tensor::new(vec![1.0, 2.0, -1.0, 7.0], &[2, 2]));
        let loss = squared_error(&y, &Tensor::new(vec![0.0, 4.0, -1.0, f32::NAN], &[4])).unwrap();
        assert!((loss.value().as_slice()[0] - 5.0 / 3.0).abs() < 1e-6);
        let seed = Tensor::new(vec![1.5], &[1]);
        let mut grads = tape.backward_from(&[(&loss, seed)], &mut ParamGrads::default()).unwrap();
        let dy = grads.take(&y).unwrap().unwrap();
        for (got, want) in dy.as_slice().iter().zip([1.0, -2.0, 0.0, 0.0]) {
            assert!((got - want).abs() < 1e-6, "{dy:?}");
        }
        let nothing = squared_error(&y, &Tensor::new(vec![f32::NAN; 4], &[4])).unwrap();
        assert_eq!(nothing.value().as_slice(), [0.0]);
        assert!(squared_error(&y, &Tensor::new(vec![0.0; 3], &[3])).is_err());
    }
}
