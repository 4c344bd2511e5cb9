//! y = -exp(x), elementwise; A = -exp(A_log) stays negative (Mamba, section 3.6). dx += y dy.

mod cpu;
pub(crate) mod cuda;
pub mod naive;

use crate::cuda::Result;
use crate::error::Check;
use crate::{Isa, View, ViewMut};

const CHECK: Check = Check("neg_exp");

/// y (=) from x, of one shape, both f32 without gaps.
///
/// # Errors
/// If shapes or devices differ, or a device failed.
pub fn forward<'a>(x: impl Into<View<'a>>, y: impl Into<ViewMut<'a>>) -> Result<()> {
    let (x, y) = (x.into(), y.into());
    CHECK.matrix("y", &y, x.shape())?;
    let len = x.shape().0 * x.shape().1;
    CHECK.flat("x", &x, len)?;
    CHECK.flat("y", &y, len)?;
    match y {
        ViewMut::Host(y) => cpu::forward(Isa::best(), CHECK.host("x", x)?.as_slice(), y.into_slice()),
        ViewMut::Device(y) => cuda::forward(CHECK.device("x", x, y.gpu())?, y)?,
    }
    Ok(())
}

/// dx (+=) from the output y and its gradient dy, all f32 without gaps.
///
/// # Errors
/// If shapes or devices differ, or a device failed.
pub fn backward<'a>(y: impl Into<View<'a>>, dy: impl Into<View<'a>>, dx: impl Into<ViewMut<'a>>) -> Result<()> {
    let (y, dy, dx) = (y.into(), dy.into(), dx.into());
    let len = y.shape().0 * y.shape().1;
    CHECK.flat("y", &y, len)?;
    CHECK.flat("dy", &dy, len)?;
    CHECK.flat("dx", &dx, len)?;
    match dx {
        ViewMut::Host(dx) => {
            naive::backward(CHECK.host("y", y)?.as_slice(), CHECK.host("dy", dy)?.as_slice(), dx.into_slice());
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::backward(CHECK.device("y", y, gpu)?, CHECK.device("dy", dy, gpu)?, dx)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::{OnDevice, Random, central_difference, err_ratio, fault, gpu, wide};

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

    #[test]
    fn a_gpu_agrees_with_the_oracle() {
        let Some(gpu) = gpu() else { return };
        let mut random = Random::new(3);
        for len in [0, 1, 255, 100_003] {
            let (x, dy) = (random.normal(len), random.normal(len));
            let (mut y, mut dx) = (vec![0.0; len], vec![0.5; len]);
            naive::forward(&wide(&x), &mut y);
            naive::backward(&y, &wide(&dy), &mut dx);
            let [on_x, on_dy] = [&x, &dy].map(|x| OnDevice::of(gpu, x, len, 0, DType::F32));
            let on_y = OnDevice::poisoned(gpu, usize::from(len > 0), len, 0, DType::F32);
            let on_dx = OnDevice::of(gpu, &vec![0.5; len], len, 0, DType::F32);
            forward(on_x.mat(), on_y.mat_mut()).unwrap();
            backward(on_y.mat(), on_dy.mat(), on_dx.mat_mut()).unwrap();
            assert!(err_ratio(&y, &on_y.values()) < 1e-6 && err_ratio(&dx, &on_dx.values()) < 1e-6, "{len}");
        }
        let on_gpu = OnDevice::of(gpu, &[1.0], 1, 0, DType::F32);
        let elsewhere = fault(forward(on_gpu.mat(), &mut [0.0]));
        assert_eq!((elsewhere.argument, elsewhere.wanted.as_str()), ("x", "memory of the CPU"));
    }
}
