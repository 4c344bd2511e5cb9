//! Rotary positions.

use elapid_kernels::RowsMut;
use elapid_kernels::rotate as kernel;
pub use elapid_kernels::rotate::Pairs;
use std::sync::Arc;

use super::frequencies::Scaling;
use super::place::on_cpu;
use crate::autograd::{Var, Want, record};
use crate::{Layout, Result, Tensor};

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
}

impl Rotary {
    /// The frequencies `base^(-2i/columns)`, scaled, for pairs i of the first `columns` columns of a head of `dim`.
    pub fn new(dim: usize, columns: usize, base: f64, scaling: Scaling, pairs: Pairs) -> Self {
        let frequencies = scaling.frequencies(columns, base).into();
        Self { dim, frequencies, pairs, factor: scaling.attention_factor() }
    }
}

/// x `[b l heads·dim]` with every head rotated by the position in its document.
///
/// # Errors
/// If shapes do not fit, or x is not on the CPU.
pub fn rotate(x: &Var, rotary: &Rotary, layout: &Layout) -> Result<Var> {
    on_cpu("rotate", x)?;
    let positions: Arc<[u64]> = layout.document_positions()?.into();
    let y = turned(rotary, &positions, false, x.value())?;
    let (kept, rotary) = (x.without_numbers(), rotary.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_rows([Want::Set(&kept)], |[dx]| turn(&rotary, &positions, true, &dy, dx))
    });
    Ok(y)
}

fn turned(rotary: &Rotary, positions: &[u64], inverse: bool, x: &Tensor) -> Result<Tensor> {
    Tensor::filled(x.shape(), |y| turn(rotary, positions, inverse, x, y))
}

fn turn(rotary: &Rotary, positions: &[u64], inverse: bool, x: &Tensor, y: RowsMut<'_>) -> elapid_kernels::Result<()> {
    let &Rotary { dim, ref frequencies, pairs, factor } = rotary;
    kernel::forward(&kernel::Args { dim, frequencies, pairs, factor, positions }, inverse, x.rows(), y)
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
