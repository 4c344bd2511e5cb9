//! Heads of two halves, for scores that depend on the key in one of two ways.

use elapid_kernels::two_halves as kernel;
use kernel::Halves as Raw;

use crate::autograd::{Var, record};
use crate::layout::{Layout, Positions};
use crate::{Device, Error, Result, Tensor};

/// Which halves rows have.
#[derive(Debug, Clone)]
pub struct Halves {
    /// Columns of a half.
    c: usize,
    /// Positions in documents of keys, and the first that has the first half; none: both halves are there.
    keys: Option<(Positions, u64)>,
}

impl Halves {
    /// Both, of `c` columns each: those of queries.
    pub fn both(c: usize) -> Self {
        Self { c, keys: None }
    }

    /// The second before position `border` of a document, the first from there on: those of keys.
    ///
    /// # Errors
    /// If resets are on another device, or the device failed.
    pub fn of_keys(c: usize, border: u64, layout: &Layout, device: Device) -> Result<Self> {
        Ok(Self { c, keys: Some((layout.positions_on(device)?, border)) })
    }

    fn view(&self) -> Raw<'_> {
        let border = self.keys.as_ref().map_or(0, |(_, border)| *border);
        Raw { c: self.c, positions: self.keys.as_ref().map(|(positions, _)| positions.view()), border }
    }
}

/// y `[b l h·2c]` of a and b `[b l h·c]`: every head has the columns of a's head, then those of b's, or zeros, as `halves` says.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn two_halves(a: &Var, b: &Var, halves: &Halves) -> Result<Var> {
    if a.shape() != b.shape() {
        return Err(Error::Argument(format!("two halves of {:?} and {:?}", a.shape(), b.shape())));
    }
    let mut shape = a.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) *= 2;
    let mut y = Tensor::output(a.value().device(), a.value().dtype(), &shape)?;
    kernel::forward(&halves.view(), a.value().view(), b.value().view(), y.view_mut())?;
    let (first, second, halves) = (a.without_numbers(), b.without_numbers(), halves.clone());
    let [y] = record(&[a, b], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        // Where both are one variable, its gradient is the sum.
        let (mut da, mut db) = (
            Tensor::output(dy.device(), dy.dtype(), first.shape())?,
            Tensor::output(dy.device(), dy.dtype(), second.shape())?,
        );
        kernel::backward(&halves.view(), dy.view(), da.view_mut(), db.view_mut())?;
        grads.give(&first, da)?;
        grads.give(&second, db)
    });
    Ok(y)
}
