//! The limits of a GPU, with which benchmarks compare their results.
//!
//! Medians of repeated runs on pseudo-random values, by events on the device. If memory is short, less is copied and smaller
//! matrices are multiplied.

use super::{Buffer, Error, Gpu, Result};
use crate::{DType, linear};

/// Warm-up runs and measured runs.
const WARM_UP: usize = 3;
const RUNS: usize = 11;

/// Bytes per second, read plus written, of copying one part of the memory to another, 2 GiB per copy.
///
/// # Errors
/// If the device failed, or has too little memory.
pub fn copy(gpu: Gpu) -> Result<f64> {
    let limit = shrinking(1 << 28, 1 << 24, |count| {
        let from = repeated(gpu, &numbers(), count, DType::F32)?;
        let to = gpu.alloc(from.bytes())?;
        let ms = median(gpu, || gpu.copy(from.mat(1, count, DType::F32), to.mat_mut(1, count, DType::F32)))?;
        Ok(2.0 * from.bytes() as f64 / (1e-3 * ms))
    })?;
    gpu.trim()?;
    Ok(limit)
}

/// Floating-point operations per second of a product of two 8192 x 8192 matrices of a dtype, by [`linear`].
///
/// # Errors
/// If the device failed, or has too little memory.
pub fn matmul(gpu: Gpu, dtype: DType) -> Result<f64> {
    let limit = shrinking(8192, 1024, |n| {
        let (x, w) = (repeated(gpu, &numbers(), n * n, dtype)?, repeated(gpu, &numbers()[n / 3..], n * n, dtype)?);
        let y = gpu.alloc(x.bytes())?;
        let product = || linear::cuda::forward(x.mat(n, n, dtype), w.mat(n, n, dtype), None, y.mat_mut(n, n, dtype));
        Ok(2.0 * (n as f64).powi(3) / (1e-3 * median(gpu, product)?))
    })?;
    gpu.trim()?;
    Ok(limit)
}

/// `count` values in new memory: `numbers` repeated, rounded to the dtype.
///
/// # Errors
/// If there is too little memory.
pub fn repeated(gpu: Gpu, numbers: &[f32], count: usize, dtype: DType) -> Result<Buffer> {
    let buffer = gpu.alloc(count * dtype.bytes())?;
    let numbers = &numbers[..numbers.len().min(count)];
    match dtype {
        DType::F32 => gpu.write(&buffer, 0, numbers)?,
        DType::Bf16 => {
            let rounded: Vec<u16> = numbers.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
            gpu.write(&buffer, 0, &rounded)?;
        }
    }
    let mut done = numbers.len();
    while done > 0 && done < count {
        let more = done.min(count - done);
        gpu.copy(buffer.mat(1, more, dtype), buffer.mat_mut(1, count, dtype).columns(done, more))?;
        done += more;
    }
    Ok(buffer)
}

/// About a million values in -1..1 without a pattern in their digits.
fn numbers() -> Vec<f32> {
    let digits = |i: u32| i.wrapping_mul(0x9e37_79b1) ^ i.wrapping_mul(0x85eb_ca77).rotate_left(13);
    // A prime, so that rows of a matrix do not repeat each other.
    (0..1_048_573).map(|i| (digits(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// `f` of the first size among `from`, `from / 2`, … that fits into memory; the error if even `least` is too large.
fn shrinking(from: usize, least: usize, f: impl Fn(usize) -> Result<f64>) -> Result<f64> {
    let mut size = from;
    loop {
        match f(size) {
            Err(Error::Memory { .. }) if size / 2 >= least => size /= 2,
            done => return done,
        }
    }
}

fn median(gpu: Gpu, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    gpu.time(WARM_UP, &mut f)?;
    let mut times = gpu.time(RUNS, f)?;
    times.sort_by(f32::total_cmp);
    Ok(f64::from(times[times.len() / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_rates() {
        let Some(gpu) = crate::testing::gpu() else { return };
        assert!(copy(gpu).unwrap() > 1e10);
        assert!(matmul(gpu, DType::F32).unwrap() > 1e11);
        assert!(matmul(gpu, DType::Bf16).unwrap() > 1e11);
    }

    #[test]
    fn numbers_repeat() {
        let Some(gpu) = crate::testing::gpu() else { return };
        for (of, count) in [(7, 0), (7, 3), (7, 7), (5, 24), (3, 100), (1, 9)] {
            let numbers: Vec<f32> = (0..of).map(|i| i as f32).collect();
            let want: Vec<f32> = (0..count).map(|i| (i % of) as f32).collect();
            let buffer = repeated(gpu, &numbers, count, DType::F32).unwrap();
            assert_eq!(gpu.download::<f32>(&buffer, 0, count).unwrap(), want);
            let buffer = repeated(gpu, &numbers, count, DType::Bf16).unwrap();
            let bits: Vec<u16> = want.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
            assert_eq!(gpu.download::<u16>(&buffer, 0, count).unwrap(), bits);
        }
    }

    #[test]
    fn numbers_are_spread() {
        let numbers = numbers();
        let mean = |f: fn(f32) -> f32| numbers.iter().map(|&x| f64::from(f(x))).sum::<f64>() / numbers.len() as f64;
        assert!(numbers.iter().all(|x| (-1.0..1.0).contains(x)));
        assert!(mean(|x| x).abs() < 0.01 && (mean(|x| x * x) - 1.0 / 3.0).abs() < 0.01);
    }

    #[test]
    fn less_is_tried_where_memory_is_short() {
        let memory = |wanted| Error::Memory { wanted, used: 0, free: 0, total: 0 };
        assert_eq!(shrinking(64, 4, |n| if n > 10 { Err(memory(n)) } else { Ok(n as f64) }).unwrap(), 8.0);
        assert!(matches!(shrinking(64, 16, |n| Err(memory(n))), Err(Error::Memory { wanted: 16, .. })));
    }
}
