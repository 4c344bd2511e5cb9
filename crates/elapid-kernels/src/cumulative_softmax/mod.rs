//! Part of a softmax over rows, column by column: y = Σ_{1 ≤ m ≤ i} softmax(p)_m of p `[rows d]`. With a row for each layer, it is
//! layer i's lower bound of the forget gates of HGRN (Qin et al. 2023, arXiv 2311.04823, section 3.2): 0 in layer 0, and not falling
//! from layer to layer.
//!
//! With s = softmax(p), dp_m += s_m dy (\[1 ≤ m ≤ i\] - y).

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::view::Shaped;
use crate::{Isa, View, ViewMut};

const CHECK: Check = Check("cumulative_softmax");

/// y `[1 d]` (=) of p `[rows d]` and a row i, all f32.
///
/// # Errors
/// If there is no such row; if shapes or devices differ, or a device failed.
pub fn forward<'a>(i: usize, p: impl Into<View<'a>>, y: impl Into<ViewMut<'a>>) -> Result<()> {
    let (p, y) = (p.into(), y.into());
    check(i, &p, &y)?;
    match y {
        ViewMut::Host(y) => cpu::forward(Isa::best(), i, CHECK.host("p", p)?, y.into_slice()),
        ViewMut::Device(y) => cuda::forward(i, CHECK.device("p", p, y.gpu())?, y)?,
    }
    Ok(())
}

/// dp `[rows d]` (+=) of dy `[1 d]`.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    i: usize,
    p: impl Into<View<'a>>,
    dy: impl Into<View<'a>>,
    dp: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (p, dy, dp) = (p.into(), dy.into(), dp.into());
    check(i, &p, &dy)?;
    CHECK.matrix("dp", &dp, p.shape())?;
    CHECK.dtype("dp", &dp, p.dtype())?;
    match dp {
        ViewMut::Host(dp) => naive::backward(i, CHECK.host("p", p)?, CHECK.host("dy", dy)?.as_slice(), dp),
        ViewMut::Device(dp) => {
            let gpu = dp.gpu();
            cuda::backward(i, CHECK.device("p", p, gpu)?, CHECK.device("dy", dy, gpu)?, dp)?;
        }
    }
    Ok(())
}

fn check(i: usize, p: &View<'_>, y: &impl Shaped) -> error::Result<()> {
    let (rows, d) = p.shape();
    CHECK.that(i < rows, "i", || format!("a row below {rows}"), || i.to_string())?;
    CHECK.dtype("p", p, crate::DType::F32)?;
    CHECK.flat("y", y, d)
}
