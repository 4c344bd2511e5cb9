//! Arguments of the rotation.

use crate::cuda::{Gpu, Mat};
use crate::error::{self, Check};
use crate::view::Matrix;
use crate::{Rows, View};

pub(super) const CHECK: Check = Check("rotate");

/// Which columns of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Column i and column i + r/2 (GPT-NeoX, Llama in `transformers`).
    Halves,
    /// Columns 2i and 2i + 1 (the paper, GPT-J).
    Interleaved,
}

/// Arguments of the rotation.
#[derive(Debug, Clone, Copy)]
pub struct Args<'f, V: Matrix> {
    /// Columns per head; columns after the last whole head are an error.
    pub dim: usize,
    /// Radians per position for each pair, on the CPU whatever the device; the first `2 frequencies.len()` columns of a
    /// head are rotated, the others copied.
    pub frequencies: &'f [f64],
    /// Which columns make a pair.
    pub pairs: Pairs,
    /// What rotated columns are multiplied by.
    pub factor: f64,
    /// For each pair the logarithm by which it grows from position to position, beside the rotation; empty is 0 for all.
    pub growth: &'f [f64],
    /// The position at which what has grown is 1.
    pub centre: f64,
    /// Later positions are rotated as this one.
    pub last: u64,
    /// The position of each row, `[m]`.
    pub positions: V::Array<u64>,
}

impl<'f, V: Matrix> Args<'f, V> {
    /// The same, with positions in another form.
    pub fn at<W: Matrix>(&self, positions: W::Array<u64>) -> Args<'f, W> {
        let Self { dim, frequencies, pairs, factor, growth, centre, last, .. } = *self;
        Args { dim, frequencies, pairs, factor, growth, centre, last, positions }
    }
}

impl<'f, 'a> Args<'f, View<'a>> {
    pub(super) fn host(&self) -> error::Result<Args<'f, Rows<'a>>> {
        Ok(self.at(CHECK.host_array("positions", self.positions)?))
    }

    pub(super) fn device(&self, gpu: Gpu) -> error::Result<Args<'f, Mat<'a>>> {
        Ok(self.at(CHECK.device_array("positions", self.positions, gpu)?))
    }
}

impl<'f, 'a> From<Args<'f, Rows<'a>>> for Args<'f, View<'a>> {
    fn from(args: Args<'f, Rows<'a>>) -> Self {
        args.at(args.positions.into())
    }
}

impl<'f, 'a> From<Args<'f, Mat<'a>>> for Args<'f, View<'a>> {
    fn from(args: Args<'f, Mat<'a>>) -> Self {
        args.at(args.positions.into())
    }
}
