//! On a GPU: a block counts a row.

use super::width::Width;
use crate::Array;
use crate::cuda::{Buffer, Define, Gpu, Launch, Result, Segments, Source, Unit};
use crate::error::product;

static SOURCE: Source = Source { name: "positions", text: include_str!("positions.cu") };
const THREADS: u32 = 1024;

#[derive(Clone, Copy)]
#[repr(C)]
struct Raw {
    starts: u64,
    resets: u64,
    positions: u64,
    l: i64,
}

pub(super) fn forward(
    gpu: Gpu,
    b: usize,
    l: usize,
    starts: Option<Array<'_, u64>>,
    segments: &Segments<'_>,
    width: Width,
) -> Result<Buffer> {
    let bytes = match width {
        Width::Begins => 1,
        Width::U32 => 4,
        Width::U64 => 8,
    };
    let positions = gpu.alloc(product(&[b, l, bytes]))?;
    if b * l == 0 {
        return Ok(positions);
    }
    let uploaded;
    let starts = match starts {
        None => None,
        Some(Array::Device(starts)) => Some(starts),
        Some(Array::Host(starts)) => {
            uploaded = gpu.upload(starts)?;
            Some(&uploaded)
        }
    };
    let args = Raw {
        starts: starts.map_or(0, Buffer::address),
        resets: segments.resets_address(),
        positions: positions.address(),
        l: l as i64,
    };
    let kernel = gpu.kernel(&SOURCE, "count", &defines(width))?;
    // SAFETY: `Raw` is laid out as in the source; `super` has checked the sizes of starts and resets, and `positions` has
    // room for all.
    unsafe { kernel.launch(Launch::linear(b, THREADS), &args)? };
    Ok(positions)
}

/// `Advance` of the source.
#[derive(Clone, Copy)]
#[repr(C)]
struct Advance {
    positions: u64,
    rows: i64,
    most: u64,
}

pub(super) fn advance(positions: &Buffer, rows: usize, most: u64) -> Result<()> {
    let kernel = positions.gpu().kernel(&SOURCE, "advance", &defines(Width::U64))?;
    let args = Advance { positions: positions.address(), rows: rows as i64, most };
    // SAFETY: `Advance` is laid out as in the source; `super` has checked that all are there.
    unsafe { kernel.launch(Launch::linear(rows.div_ceil(THREADS as usize), THREADS), &args) }
}

fn defines(width: Width) -> [Define; 2] {
    let (name, begins) = match width {
        Width::Begins => ("u8", 1),
        Width::U32 => ("u32", 0),
        Width::U64 => ("u64", 0),
    };
    [Define::new("P", name), Define::new("BEGINS", begins)]
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    let unit = |width| Unit { source: &SOURCE, entries: &["count", "advance"], defines: defines(width).to_vec() };
    [Width::U32, Width::U64, Width::Begins].map(unit).to_vec()
}
