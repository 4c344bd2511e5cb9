//! Dropout (Srivastava et al. 2014) and stochastic depth (Huang et al. 2016, arXiv 1603.09382): y = x / (1 - p) with
//! probability 1 - p, else 0, for each element or for each sample of a batch.
//!
//! Which elements are kept depends on the key, the number of the sample and the place in it, and on nothing else: not on the
//! device, the threads, the rows beside it, or the order of calls. A draw is a word of Philox4x32-10 (Salmon et al. 2011),
//!
//! - word(i) = Philox(counter (i / 4, sample), key)[i mod 4], i the place of an element in its sample, or 0 for a sample,
//! - an element is kept where word(i) >= p 2³².
//!
//! The gradient is the same function of dy: it needs neither x nor the draws.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
mod mask;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::Check;
use crate::view::Shaped;
use crate::{Array, Isa, View, ViewMut};

pub use mask::{Mask, Unit, key};

const CHECK: Check = Check("dropout");

/// y `[m d]` (=) of x `[m d]`, both of one format; rows `i l..(i + 1) l` are sample `first + i`. `first` has one element.
///
/// # Errors
/// If shapes, formats or devices differ, the rate is not in [0, 1), `l` is 0, or a device failed.
pub fn forward<'a>(
    mask: &Mask,
    first: Array<'a, u64>,
    x: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (x, y) = (x.into(), y.into());
    CHECK.that((0.0..1.0).contains(&mask.rate), "rate", || "0 to less than 1".into(), || mask.rate.to_string())?;
    CHECK.that(mask.l >= 1, "l", || "at least 1".into(), || "0".into())?;
    CHECK.len("first", first.len(), 1)?;
    CHECK.matrix("y", &y, x.shape())?;
    CHECK.dtype("y", &y, x.dtype())?;
    match y {
        ViewMut::Host(y) => {
            let first = CHECK.host_array("first", first)?[0];
            cpu::forward(Isa::best(), mask, first, CHECK.host("x", x)?, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::forward(mask, CHECK.device_array("first", first, gpu)?, CHECK.device("x", x, gpu)?, y)?;
        }
    }
    Ok(())
}

/// dx `[m d]` (=) of dy `[m d]`: [`forward`] of dy.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    mask: &Mask,
    first: Array<'a, u64>,
    dy: impl Into<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
) -> Result<()> {
    forward(mask, first, dy, dx)
}
