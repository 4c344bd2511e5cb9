//! y = -exp(x), elementwise; A = -exp(A_log) stays negative (Mamba, section 3.6). dx += y dy.

mod cpu;
pub mod cuda;
pub mod naive;

use crate::Isa;
use crate::error::{Check, Result};

/// y (=) from x, of one length.
///
/// # Errors
/// If lengths differ.
pub fn forward(x: &[f32], y: &mut [f32]) -> Result<()> {
    Check("neg_exp").len("y", y.len(), x.len())?;
    cpu::forward(Isa::best(), x, y);
    Ok(())
}

/// dx (+=) from the output y and its gradient dy.
///
/// # Errors
/// If lengths differ.
pub fn backward(y: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<()> {
    let check = Check("neg_exp");
    check.len("dy", dy.len(), y.len())?;
    check.len("dx", dx.len(), y.len())?;
    naive::backward(y, dy, dx);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, central_difference, err_ratio, wide};

    #[test]
    fn naive_gradient_is_a_difference_quotient() {
        let mut random = Random::new(1);
        let (x, dy) = (wide(&random.normal(17)), wide(&random.normal(17)));
        let value = |x: &[f64]| {
            let mut y = vec![0.0; x.len()];
            naive::forward(x, &mut y);
            y
        };
        let mut dx = vec![0.0; 17];
        naive::backward(&value(&x), &dy, &mut dx);
        let loss = |x: &[f64]| value(x).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        assert!(central_difference(loss, &x, &dx) < 1e-7);
    }

    #[test]
    fn fast_is_naive() {
        let mut random = Random::new(2);
        for len in [0, 1, 15, 16, 33, 100_003] {
            let x: Vec<f32> = random.normal(len).iter().map(|x| 4.0 * x).collect();
            let mut want = vec![0.0; len];
            naive::forward(&wide(&x), &mut want);
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; len];
                cpu::forward(isa, &x, &mut y);
                assert!(err_ratio(&want, &y) < 1e-6, "{} {len}", isa.name());
            }
        }
        assert!(forward(&[1.0], &mut []).is_err());
    }
}
