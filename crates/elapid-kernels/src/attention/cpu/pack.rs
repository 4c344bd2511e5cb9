//! Keys, values and gradients in the order in which products read them.
//!
//! Two orders: across, `[block][column][key]` with the keys of a block of scores as lanes, and along,
//! `[block of columns][row][column]` with columns as lanes, the last block as many vectors wide as there are left.

use std::ops::Range;

use super::sizes::{TILE, Vectors};
use crate::attention::Stretch;
use crate::attention::keys::Keys;
use crate::reuse::List;

/// Memory whose first element is at a multiple of 64 bytes, so that no vector crosses a cache line.
#[derive(Debug)]
pub(super) struct Scratch {
    data: List<f32>,
    from: usize,
    len: usize,
}

impl Scratch {
    pub(super) fn new(len: usize) -> Self {
        let data = List::of(0.0, len + 16);
        let from = data.as_ptr().align_offset(64).min(16);
        Self { data, from, len }
    }

    pub(super) fn get(&self) -> &[f32] {
        &self.data[self.from..][..self.len]
    }

    pub(super) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.from..][..self.len]
    }
}

/// The keys of tile `k`, none where the position is not there.
pub(super) fn keys_of<'a>(
    stretch: &Stretch,
    k: usize,
    x: Keys<'a>,
) -> impl ExactSizeIterator<Item = Option<&'a [f32]>> {
    keys_at(stretch, k * TILE..stretch.end().min((k + 1) * TILE), x)
}

/// The keys at positions, none where one is not there.
#[inline(always)]
pub(super) fn keys_at<'a>(
    stretch: &Stretch,
    positions: Range<usize>,
    x: Keys<'a>,
) -> impl ExactSizeIterator<Item = Option<&'a [f32]>> {
    positions.map(move |position| stretch.key(position).map(|key| x.row(key)))
}

/// Elements of a tile in the order across.
pub(super) fn across_len(columns: usize) -> usize {
    TILE * columns
}

/// Writes rows in the order across; keys up to the end of the last block that begins are 0.
#[inline(always)]
pub(super) fn across<'a>(
    vectors: Vectors,
    columns: usize,
    mut rows: impl ExactSizeIterator<Item = Option<&'a [f32]>>,
    out: &mut [f32],
) {
    let (keys, missing) = (vectors.keys(), List::of(0.0, columns));
    let blocks = rows.len().div_ceil(keys);
    for block in out.chunks_exact_mut((keys * columns).max(1)).take(blocks) {
        for from in (0..keys).step_by(SOME) {
            let four = [(); SOME].map(|()| rows.next().flatten().unwrap_or(&missing));
            transpose(four, block, keys, from);
        }
    }
}

/// Rows that are transposed together; every block of scores has a multiple of it.
const SOME: usize = 4;

/// block[i][from + j] = rows[j][i], in squares that the compiler turns into shuffles.
#[inline(always)]
fn transpose(rows: [&[f32]; SOME], block: &mut [f32], keys: usize, from: usize) {
    let squares = rows.map(|row| row.as_chunks::<SOME>());
    let mut whole = block.chunks_exact_mut(keys);
    for i in 0..squares[0].0.len() {
        let square = squares.map(|(chunks, _)| chunks[i]);
        for u in 0..SOME {
            let Some(lanes) = whole.next() else { return };
            lanes[from..from + SOME].copy_from_slice(&square.map(|row| row[u]));
        }
    }
    for (u, lanes) in whole.enumerate() {
        lanes[from..from + SOME].copy_from_slice(&squares.map(|(_, tail)| tail[u]));
    }
}

/// Elements of `rows` rows in the order along.
pub(super) fn along_len(vectors: Vectors, columns: usize, rows: usize) -> usize {
    rows * vectors.across(columns) * vectors.lanes
}

/// Writes rows in the order along, of room for `room` rows; missing ones and columns after the last are 0.
#[inline(always)]
pub(super) fn along<'a>(
    vectors: Vectors,
    columns: usize,
    room: usize,
    rows: impl Iterator<Item = Option<&'a [f32]>>,
    out: &mut [f32],
) {
    let wide = vectors.keys();
    for (j, row) in rows.enumerate() {
        for from in (0..columns).step_by(wide) {
            let (used, width) = (wide.min(columns - from), wide.min(padded(vectors, columns) - from));
            let out = &mut out[room * from + j * width..][..width];
            match row {
                Some(row) => {
                    out[..used].copy_from_slice(&row[from..from + used]);
                    out[used..].fill(0.0);
                }
                None => out.fill(0.0),
            }
        }
    }
}

/// Reads row `j` of the order along.
pub(super) fn read_along(vectors: Vectors, columns: usize, room: usize, j: usize, x: &[f32], out: &mut [f32]) {
    let wide = vectors.keys();
    for (from, out) in (0..columns).step_by(wide).zip(out.chunks_mut(wide)) {
        let width = wide.min(padded(vectors, columns) - from);
        out.copy_from_slice(&x[room * from + j * width..][..out.len()]);
    }
}

fn padded(vectors: Vectors, columns: usize) -> usize {
    vectors.across(columns) * vectors.lanes
}
