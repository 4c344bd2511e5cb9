//! Rotary positions.

use std::sync::Arc;

use elapid_kernels::rotate as kernel;
pub use elapid_kernels::rotate::Pairs;
use elapid_kernels::{View, elementwise};

use super::frequencies::Scaling;
use crate::autograd::{Var, record};
use crate::layout::Positions;
use crate::{DType, Device, Error, Layout, Result, Tensor};

/// How rotary positions rotate the columns of a head.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Columns per head.
    pub dim: usize,
    /// Radians per position for each pair; the first `2 frequencies.len()` columns of a head are rotated.
    pub frequencies: Arc<[f64]>,
    /// Which columns make a pair.
    pub pairs: Pairs,
    /// Factor of the rotated columns.
    pub factor: f64,
    /// For each pair the logarithm by which it grows per position; empty is 0 for all.
    pub growth: Arc<[f64]>,
    /// The position at which what has grown is 1.
    pub centre: f64,
    /// Later positions are rotated as this one.
    pub last: u64,
}

impl Rotary {
    /// The frequencies `base^(-2i/columns)`, scaled, for pairs i of the first `columns` columns of a head of `dim`.
    pub fn new(dim: usize, columns: usize, base: f64, scaling: Scaling, pairs: Pairs) -> Self {
        let frequencies = scaling.frequencies(columns, base).into();
        let factor = scaling.attention_factor();
        Self { dim, frequencies, pairs, factor, growth: Arc::new([]), centre: 0.0, last: u64::MAX }
    }

    /// With pairs that shrink with the position, ζ^(t / base) with ζ = (2i / r + 0.4) / 1.4 in pair i of r columns (xPos, Sun
    /// et al. 2022): for queries. Keys grow, by [`inverse_growth`](Self::inverse_growth).
    #[must_use]
    pub fn with_xpos(self, base: f64) -> Self {
        let pairs = self.frequencies.len();
        let zeta = |i: usize| (i as f64 / pairs as f64 + 0.4) / 1.4;
        Self { growth: (0..pairs).map(|i| zeta(i).ln() / base).collect(), ..self }
    }

    /// The same with growth where pairs shrink.
    #[must_use]
    pub fn inverse_growth(self) -> Self {
        Self { growth: self.growth.iter().map(|growth| -growth).collect(), ..self }
    }

    fn args<'a>(&'a self, positions: &'a Positions) -> kernel::Args<'a, View<'a>> {
        let &Self { dim, ref frequencies, pairs, factor, ref growth, centre, last } = self;
        kernel::Args { dim, frequencies, pairs, factor, growth, centre, last, positions: positions.view() }
    }
}

/// x `[b l heads·dim]` with every head rotated by the position in its document.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn rotate(x: &Var, rotary: &Rotary, layout: &Layout) -> Result<Var> {
    let positions = layout.positions_on(x.value().device())?;
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::forward(rotary.args(&positions), false, x.value().view(), y.view_mut())?;
    let (kept, rotary) = (x.without_numbers(), rotary.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::forward(rotary.args(&positions), true, dy.view(), dx))
    });
    Ok(y)
}

/// The first `cols` columns of x `[b l d]` with every head in them rotated as by [`rotate`]; the others stay. For packed
/// projections: queries and keys are rotated at once, in their own memory, and so are their gradients.
///
/// x is used up: on a GPU clones of it, and operations that kept it, would see the rotated values. The output of a linear
/// map is kept by nobody.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn rotate_columns(x: Var, cols: usize, rotary: &Rotary, layout: &Layout) -> Result<Var> {
    if cols > x.value().cols() {
        return Err(Error::Argument(format!("{cols} columns to rotate of {}", x.value().cols())));
    }
    let positions = layout.positions_on(x.value().device())?;
    let (kept, mut y) = (x.without_numbers(), x.value().clone());
    // The only owner now, so that the CPU copies nothing either.
    drop(x);
    kernel::in_place(rotary.args(&positions), false, y.view_mut().columns(0, cols))?;
    let (input, rotary) = (kept.clone(), rotary.clone());
    let [y] = record(&[&input], [y], move |grads, [y]| {
        let Some(mut dy) = grads.take(y)? else { return Ok(()) };
        kernel::in_place(rotary.args(&positions), true, dy.view_mut().columns(0, cols))?;
        grads.give(&kept, dy)
    });
    Ok(y)
}

/// Sines and cosines of positions, `[m d]` (Vaswani et al. 2017, section 3.5): at column 2i the sine of position /
/// 10000^(2i / d), beside it the cosine.
pub fn sinusoids(positions: &[u64], d: usize) -> Vec<f32> {
    let value = |at: u64, column: usize| {
        let angle = at as f64 / 10000_f64.powf((column - column % 2) as f64 / d as f64);
        if column.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    positions.iter().flat_map(|&at| (0..d).map(move |column| value(at, column) as f32)).collect()
}

/// The [`sinusoids`] of the positions of a batch, in the shape, dtype and on the device of `like` `[b l d]`. On a GPU nothing
/// is uploaded: the pairs (0, 1), rotated back by the angles, are (sine, cosine).
pub(crate) fn sinusoids_like(like: &Tensor, layout: &Layout) -> Result<Tensor> {
    let (d, m) = (like.cols(), like.row_count());
    let Device::Cuda(gpu) = like.device() else {
        return Ok(Tensor::new(sinusoids(&layout.document_positions()?, d), like.shape()));
    };
    let positions = layout.positions_on(like.device())?;
    // An odd width has a sine without its cosine at the end.
    let even = d.next_multiple_of(2);
    let frequencies = (0..even / 2).map(|i| 10000_f64.powf(-2.0 * i as f64 / d as f64)).collect();
    let plain = Rotary::new(even, 0, 1.0, Scaling::None, Pairs::Interleaved);
    let rotary = Rotary { frequencies, ..plain };
    let mut pairs = Tensor::zeros_on(like.device(), DType::F32, &[m * even / 2, 2])?;
    elementwise::fill(pairs.view_mut().columns(1, 1), 1.0)?;
    let mut waves = pairs.reshape(&[m, even]);
    drop(pairs);
    kernel::in_place(rotary.args(&positions), true, waves.view_mut())?;
    let mut shaped = Tensor::uninit(gpu, like.dtype(), like.shape())?;
    elapid_kernels::pointwise::add_scaled(1.0, waves.view().columns(0, d), None, shaped.view_mut())?;
    Ok(shaped)
}
