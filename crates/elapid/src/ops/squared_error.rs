//! The loss of a regression.

use super::place::on_cpu;
use crate::autograd::{Var, record};
use crate::{Error, Result, Tensor};

/// Mean of (y - t)² over the targets t; NaN targets are ignored. y and `targets` have the same number of elements.
///
/// # Errors
/// If they differ in length, or y is not on the CPU.
pub fn squared_error(y: &Var, targets: &[f32]) -> Result<Var> {
    on_cpu("squared_error", y)?;
    if y.value().len() != targets.len() {
        return Err(Error::Argument(format!("{} targets for {} values", targets.len(), y.value().len())));
    }
    let values = y.value().contiguous();
    let asked = targets.iter().filter(|target| !target.is_nan()).count().max(1);
    // y - t, 0 where the target is ignored.
    let difference = |(y, t): (&f32, &f32)| if t.is_nan() { 0.0 } else { y - t };
    let mut dy: Vec<f32> = values.as_slice().iter().zip(targets).map(difference).collect();
    let mean = dy.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / asked as f64;
    let kept = y.without_numbers();
    let [mean] = record(&[y], [Tensor::new(vec![mean as f32], &[1])], move |grads, [mean]| {
        let Some(seed) = grads.take(mean)? else { return Ok(()) };
        let scale = 2.0 * seed.to_vec()?[0] / asked as f32;
        dy.iter_mut().for_each(|x| *x *= scale);
        grads.give(&kept, Tensor::new(dy, kept.shape()))
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
        let loss = squared_error(&y, &[0.0, 4.0, -1.0, f32::NAN]).unwrap();
        assert!((loss.value().as_slice()[0] - 5.0 / 3.0).abs() < 1e-6);
        let seed = Tensor::new(vec![1.5], &[1]);
        let mut grads = tape.backward_from(&[(&loss, seed)], &mut ParamGrads::default()).unwrap();
        let dy = grads.take(&y).unwrap().unwrap();
        for (got, want) in dy.as_slice().iter().zip([1.0, -2.0, 0.0, 0.0]) {
            assert!((got - want).abs() < 1e-6, "{dy:?}");
        }
        let nothing = squared_error(&y, &[f32::NAN; 4]).unwrap();
        assert_eq!(nothing.value().as_slice(), [0.0]);
        assert!(squared_error(&y, &[0.0; 3]).is_err());
    }
}
