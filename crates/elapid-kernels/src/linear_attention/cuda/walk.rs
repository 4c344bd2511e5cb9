//! Launches of `walk.cuh`.

use super::raw::{Raw, address};
use crate::cuda::{Buffer, Gpu, Result};
use crate::error::product;
use crate::linear_attention::args::Dims;

/// Positions of a chunk: `CHUNK` of the source.
pub(super) const CHUNK: usize = 64;
pub(super) const WARPS: usize = 4;
pub(super) const THREADS: u32 = 128;
/// Chunks that a block loads or has loaded.
const STAGES: usize = 2;

/// How the walk of states divides its work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walk {
    dims: Dims,
    /// Keys and columns of a block.
    pub(super) keys: usize,
    columns: usize,
    by_key: bool,
    chunks: usize,
}

impl Walk {
    /// For tiles of keys and parts of values, in columns.
    pub(super) fn new(dims: Dims, keys: usize, part: usize, by_key: bool) -> Self {
        Self { dims, keys, columns: part, by_key, chunks: dims.l.div_ceil(CHUNK) }
    }

    pub(super) fn defines(&self) -> [(&'static str, usize); 3] {
        [("WK", self.keys), ("WV", self.columns), ("STAGES", STAGES)]
    }

    /// Bytes of the stages.
    pub(super) fn shared(&self, back: bool) -> u32 {
        let (keys, columns) = (self.keys, self.columns + 8);
        let tiles = CHUNK * (keys + 8) + CHUNK * columns + if back { keys * columns } else { 8 };
        (STAGES * (2 * tiles + if self.by_key { 4 * keys } else { 12 * CHUNK })) as u32
    }

    /// Blocks of a segment of a row: of tiles of keys and pieces of values.
    pub(super) fn shares(&self) -> (usize, usize) {
        (self.dims.k / self.keys, self.dims.v / self.columns)
    }

    fn blocks(&self) -> usize {
        let (tiles, pieces) = self.shares();
        product(&[self.dims.b, self.dims.heads, tiles, pieces])
    }

    /// Segments of a row: several where rows and heads are too few to fill the device, of 8 chunks at least.
    fn segments(&self, gpu: Gpu) -> usize {
        let wanted = (4 * gpu.multiprocessors()).div_ceil(self.blocks());
        if wanted < 3 { 1 } else { wanted.min(self.chunks / 8).max(1) }
    }

    /// The walk of a forward or a backward, with the launch of a kernel.
    pub(super) fn run(
        &self,
        gpu: Gpu,
        back: bool,
        raw: &Raw,
        launch: impl Fn(&'static str, usize, u32, &Raw) -> Result<()>,
    ) -> Result<()> {
        let Dims { b, heads, k, v, .. } = self.dims;
        let segments = self.segments(gpu);
        let (walk, ends, starts) = match back {
            false => ("walk", "walk_ends", "walk_starts"),
            true => ("walk_back", "walk_back_ends", "walk_back_starts"),
        };
        let some = |sizes: &[usize]| -> Result<Option<Buffer>> {
            (segments > 1).then(|| gpu.alloc(product(sizes))).transpose()
        };
        let (states, passes) = (some(&[b, heads, segments, k, v, 4])?, some(&[b, heads, segments, k, 4])?);
        let raw = Raw { ends: address(&states), ends_passes: address(&passes), segments: segments as i32, ..*raw };
        let blocks = self.blocks() * segments;
        if segments > 1 {
            launch(ends, blocks, self.shared(back), &raw)?;
            launch(starts, product(&[b, heads, k, v]).div_ceil(THREADS as usize), 0, &raw)?;
        }
        launch(walk, blocks, self.shared(back), &raw)
    }
}
