//! Dropout and stochastic depth.

use std::sync::Arc;

use elapid_kernels::cuda::Buffer;
pub use elapid_kernels::dropout::Unit;
use elapid_kernels::{Array, dropout as kernel};
use kernel::Mask;

use crate::autograd::{Var, record};
use crate::{Result, Tensor};

/// What random numbers of a batch follow from: a sample is dropped alike in whatever batch, on whatever device it is trained, and
/// when a segment is recomputed.
#[derive(Debug, Clone)]
pub struct Seeds {
    /// The seed of the run.
    pub seed: u64,
    /// The number of the batch's first row among all rows of the run.
    pub first: First,
}

/// The number of a batch's first row.
#[derive(Debug, Clone)]
pub enum First {
    /// For operations on the CPU.
    Host(u64),
    /// One u64 on a GPU, which a captured graph reads at every launch.
    Device(Arc<Buffer>),
}

impl First {
    fn view(&self) -> Array<'_, u64> {
        match self {
            Self::Host(number) => Array::Host(std::slice::from_ref(number)),
            Self::Device(number) => Array::Device(number),
        }
    }
}

/// x `[b l d]` of which elements, or whole rows of the batch, are 0 with probability `rate`, and the others divided by 1 - `rate`.
/// `place` tells the uses of one pass apart.
///
/// # Errors
/// If the rate is not in [0, 1), or the number is not on the device of x; if a device failed, or has too little memory.
pub fn dropout(x: &Var, seeds: &Seeds, place: u64, rate: f32, unit: Unit, l: usize) -> Result<Var> {
    let mask = Mask { key: kernel::key(seeds.seed, place), rate, l: l.max(1), unit };
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::forward(&mask, seeds.first.view(), x.value().view(), y.view_mut())?;
    let (kept, first) = (x.without_numbers(), seeds.first.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::backward(&mask, first.view(), dy.view(), dx))
    });
    Ok(y)
}
