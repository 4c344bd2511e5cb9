//! The position of each element of a batch in its document: counted from the last reset, or from what its row has read
//! before.
//!
//! With t₀ the last reset at or before t, position(r, t) = t - t₀; without one it is starts(r) + t. Padding counts on.

pub(crate) mod cuda;
mod width;

use crate::cuda::{Buffer, Gpu, Result};
use crate::error::{self, Check};
use crate::reuse::List;
use crate::{Array, Segments};

pub use width::Width;

const CHECK: Check = Check("positions");

/// Positions `[b l]` on the CPU. `starts` `[b]`: what each row has read of its document before; none: nothing.
///
/// # Errors
/// If sizes do not fit.
pub fn on_host(b: usize, l: usize, starts: Option<&[u64]>, segments: &Segments<'_>) -> error::Result<List<u64>> {
    CHECK.len("starts", starts.map_or(b, <[u64]>::len), b)?;
    segments.check(CHECK.0, b, l)?;
    let mut positions = List::with_room(CHECK.product("b l", &[b, l])?);
    for row in 0..b {
        let mut at = starts.map_or(0, |starts| starts[row]);
        for t in 0..l {
            at = if segments.reset(row, t, l) { 0 } else { at };
            positions.push(at);
            at += 1;
        }
    }
    Ok(positions)
}

/// Positions `[b l]` on a GPU, of a format. `starts` as in [`on_host`], or u64 on the GPU, of which a captured graph reads what
/// they are at its launch.
///
/// # Errors
/// If sizes or devices do not fit, or a device failed; while a graph is captured, if a row has read something and `starts` are
/// on the host: the graph would begin there at every launch.
pub fn on_device(
    gpu: Gpu,
    b: usize,
    l: usize,
    starts: Option<Array<'_, u64>>,
    segments: &crate::cuda::Segments<'_>,
    width: Width,
) -> Result<Buffer> {
    let enough = match starts {
        None => true,
        Some(Array::Host(starts)) => starts.len() == b,
        Some(Array::Device(starts)) => starts.bytes() / 8 >= b && starts.gpu() == gpu,
    };
    CHECK.that(enough, "starts", || format!("{b} on {gpu:?}"), || format!("{starts:?}"))?;
    segments.check(CHECK.0, b, l)?;
    let here = segments.gpu().is_none_or(|on| on == gpu);
    CHECK.that(here, "segments", || format!("memory of {gpu:?}"), || format!("memory of {:?}", segments.gpu()))?;
    let zeros = matches!(starts, Some(Array::Host(starts)) if starts.iter().all(|&start| start == 0));
    cuda::forward(gpu, b, l, starts.filter(|_| !zeros), segments, width)
}

/// Positions `[rows]` of u64 on a GPU, each one further, but below `most`.
///
/// # Errors
/// If there are fewer, or the device failed.
pub fn advance(positions: &Buffer, rows: usize, most: u64) -> Result<()> {
    let there = positions.bytes() / 8 >= rows;
    CHECK.that(there, "positions", || format!("{rows} u64"), || format!("{positions:?}"))?;
    cuda::advance(positions, rows, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda;
    use crate::testing::{Random, fault, gpu};

    #[test]
    fn documents_begin_at_resets() {
        let resets = [0, 0, 1, 0, 1, 0, 0, 0];
        let segments = Segments { lengths: None, resets: Some(&resets) };
        assert_eq!(on_host(2, 4, Some(&[7, 100]), &segments).unwrap()[..], [7, 8, 0, 1, 0, 1, 2, 3]);
        assert_eq!(on_host(1, 3, None, &Segments::default()).unwrap()[..], [0, 1, 2]);
        assert_eq!(on_host(2, 3, Some(&[1]), &Segments::default()).unwrap_err().argument, "starts");
    }

    #[test]
    fn a_gpu_counts_alike() {
        let Some(gpu) = gpu() else { return };
        let mut random = Random::new(1);
        for (b, l) in [(0, 3), (1, 1), (3, 37), (2, 1024), (3, 5000)] {
            for (with, often) in [(false, 1), (true, 3), (true, 700)] {
                let resets: Vec<u8> = (0..b * l).map(|_| u8::from(random.below(often) == 0)).collect();
                let starts: Vec<u64> = (0..b).map(|row| if often == 3 { (row as u64) << 33 } else { 0 }).collect();
                let on_gpu = with.then(|| gpu.upload(&resets).unwrap());
                let segments = cuda::Segments { lengths: None, resets: on_gpu.as_ref() };
                let host = Segments { lengths: None, resets: with.then_some(&resets[..]) };
                let want = on_host(b, l, Some(&starts), &host).unwrap();
                let got = on_device(gpu, b, l, Some(Array::Host(&starts)), &segments, Width::U64).unwrap();
                assert_eq!(want[..], gpu.download::<u64>(&got, 0, b * l).unwrap(), "{b} x {l}, {often}");
                let begins = gpu.upload(&starts).unwrap();
                let got = on_device(gpu, b, l, Some(Array::Device(&begins)), &segments, Width::U32).unwrap();
                let want: Vec<u32> = want.iter().map(|&at| at as u32).collect();
                assert_eq!(want, gpu.download::<u32>(&got, 0, b * l).unwrap(), "{b} x {l}, {often}, u32");
            }
        }
        let short = on_device(gpu, 2, 1, Some(Array::Host(&[1])), &cuda::Segments::default(), Width::U64);
        assert_eq!(fault(short).argument, "starts");
        let counts = gpu.upload(&[5u64, 1 << 40, 7]).unwrap();
        advance(&counts, 2, u64::MAX).unwrap();
        assert_eq!(gpu.download::<u64>(&counts, 0, 3).unwrap(), [6, (1 << 40) + 1, 7]);
        advance(&counts, 1, 7).unwrap();
        assert_eq!(gpu.download::<u64>(&counts, 0, 1).unwrap(), [6]);
        assert_eq!(fault(advance(&counts, 4, 9)).argument, "positions");
    }
}
