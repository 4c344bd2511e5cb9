//! Keys, values and gradients in the order in which products read them.
//!
//! Two orders: across, `[block][column][key]` with the keys of a block of scores as lanes, and along,
//! `[block of columns][row][column]` with columns as lanes, the last block as many vectors wide as there are left.

use super::{Stretch, TILE, Vectors};
use crate::Rows;

/// Memory whose first element is at a multiple of 64 bytes, so that no vector crosses a cache line.
#[derive(Debug)]
pub(super) struct Scratch {
    data: Vec<f32>,
    from: usize,
    len: usize,
}

impl Scratch {
    pub(super) fn new(len: usize) -> Self {
        let data = vec![0.0; len + 16];
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

/// Rows of the keys of tile `k`, none where the position is not there.
pub(super) fn keys_of<'a>(
    stretch: &Stretch,
    k: usize,
    x: Rows<'a>,
) -> impl ExactSizeIterator<Item = Option<&'a [f32]>> {
    let to = stretch.end().min((k + 1) * TILE);
    (k * TILE..to).map(move |position| stretch.row(position).map(|row| x.row(row)))
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
    rows: impl Iterator<Item = Option<&'a [f32]>>,
    out: &mut [f32],
) {
    let keys = vectors.keys();
    let mut count = 0;
    for (j, row) in rows.enumerate() {
        let block = &mut out[j / keys * keys * columns..][..keys * columns];
        put(row, block, keys, j % keys);
        count = j + 1;
    }
    for j in count..count.next_multiple_of(keys) {
        put(None, &mut out[j / keys * keys * columns..][..keys * columns], keys, j % keys);
    }
}

#[inline(always)]
fn put(row: Option<&[f32]>, block: &mut [f32], keys: usize, lane: usize) {
    let lanes = block.chunks_exact_mut(keys);
    match row {
        Some(row) => lanes.zip(row).for_each(|(lanes, &x)| lanes[lane] = x),
        None => lanes.for_each(|lanes| lanes[lane] = 0.0),
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
