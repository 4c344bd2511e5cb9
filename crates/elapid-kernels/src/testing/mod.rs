//! Shared by the tests of this crate and of the crates above: error measures, gradient checks, deterministic random numbers,
//! and poisoned outputs. The library itself does not use it.

mod allocations;
mod terms;

pub use allocations::{CountingAllocator, allocations};
pub use terms::{Terms, err_ratio_of_terms, error_of_terms, terms};

use crate::{Rows, RowsMut};

/// RMS of the error over RMS of the reference. Infinity where `got` has another length, or a NaN or infinity.
///
/// For a reference of zeros, the RMS of the error itself.
pub fn err_ratio(want: &[f64], got: &[f32]) -> f64 {
    if want.len() != got.len() || got.iter().any(|g| !g.is_finite()) {
        return f64::INFINITY;
    }
    let got: Vec<f64> = got.iter().map(|&g| f64::from(g)).collect();
    err_ratio_f64(want, &got)
}

/// [`err_ratio`] between two vectors of `f64`.
pub fn err_ratio_f64(want: &[f64], got: &[f64]) -> f64 {
    if want.len() != got.len() || got.iter().any(|g| !g.is_finite()) {
        return f64::INFINITY;
    }
    let error: f64 = want.iter().zip(got).map(|(w, g)| (w - g).powi(2)).sum();
    let reference: f64 = want.iter().map(|w| w * w).sum();
    if reference > 0.0 { (error / reference).sqrt() } else { (error / want.len().max(1) as f64).sqrt() }
}

/// The gradient of `f` at `at` by central differences with step `h`: (f(x + h) - f(x - h)) / 2h for each element.
pub fn numeric_gradient(f: impl Fn(&[f64]) -> f64, at: &[f64], h: f64) -> Vec<f64> {
    let mut x = at.to_vec();
    (0..at.len())
        .map(|i| {
            x[i] = at[i] + h;
            let above = f(&x);
            x[i] = at[i] - h;
            let below = f(&x);
            x[i] = at[i];
            (above - below) / (2.0 * h)
        })
        .collect()
}

/// The error of `gradient` against the central differences of `f` at `at`: an [`err_ratio_f64`].
///
/// The differences are taken at steps `h` and `2h` and extrapolated, so that their error is of order h⁴.
pub fn central_difference(f: impl Fn(&[f64]) -> f64, at: &[f64], gradient: &[f64]) -> f64 {
    let h = 1e-3;
    let near = numeric_gradient(&f, at, h);
    let far = numeric_gradient(&f, at, 2.0 * h);
    let want: Vec<f64> = near.iter().zip(&far).map(|(n, f)| (4.0 * n - f) / 3.0).collect();
    err_ratio_f64(&want, gradient)
}

/// A deterministic generator (splitmix64): the same seed gives the same numbers everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `0..n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal number (Box and Muller).
    pub fn gauss(&mut self) -> f64 {
        let (u, v) = (1.0 - self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    /// `n` standard normal numbers.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gauss() as f32).collect()
    }

    /// `n` numbers in `[low, high)`.
    pub fn uniform(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| low + (high - low) * self.unit() as f32).collect()
    }
}

/// The same values in `f64`.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// An output that starts as NaN, with `gap` canaries before, between and after its rows.
///
/// A kernel that leaves a hole fails [`err_ratio`]; one that writes outside its rows fails [`Poisoned::values`].
#[derive(Debug)]
pub struct Poisoned {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    gap: usize,
}

const CANARY: u32 = 0x7fc0_dead;

impl Poisoned {
    /// A matrix of NaN.
    pub fn new(rows: usize, cols: usize, gap: usize) -> Self {
        let mut data = vec![f32::from_bits(CANARY); gap + rows * (cols + gap)];
        for r in 0..rows {
            data[gap + r * (cols + gap)..][..cols].fill(f32::NAN);
        }
        Self { data, rows, cols, gap }
    }

    /// A matrix of the given values, for accumulated outputs.
    pub fn with(values: &[f32], cols: usize, gap: usize) -> Self {
        let mut new = Self::new(values.len().checked_div(cols).unwrap_or(0), cols, gap);
        new.rows_mut().copy_from(Rows::new(values, cols));
        new
    }

    /// The matrix, to be written.
    pub fn rows_mut(&mut self) -> RowsMut<'_> {
        let Self { rows, cols, gap, .. } = *self;
        RowsMut::strided(&mut self.data[gap..], rows, cols, cols + gap).expect("the buffer was made for this shape")
    }

    /// The elements without gaps.
    ///
    /// # Panics
    /// If a canary has changed.
    pub fn values(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for (i, x) in self.data.iter().enumerate() {
            let inside = i >= self.gap && (i - self.gap) % (self.cols + self.gap) < self.cols;
            if inside {
                values.push(*x);
            } else {
                assert_eq!(x.to_bits(), CANARY, "a kernel wrote outside its output, at {i}");
            }
        }
        values
    }
}

/// Runs `f` on a pool of `threads` threads.
pub fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads").install(f)
}

/// Bit patterns, for comparisons that distinguish 0 from -0, and NaNs from each other.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The argument at fault when an operation refuses one.
///
/// # Panics
/// If it does not.
pub fn fault<R>(result: crate::cuda::Result<R>) -> crate::Error {
    match result {
        Err(crate::cuda::Error::Argument(fault)) => fault,
        Err(other) => panic!("not the fault of an argument: {other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

/// [`fault`]'s argument; none if the operation accepts all.
pub fn argument_of<R>(result: crate::cuda::Result<R>) -> Option<&'static str> {
    if result.is_ok() { None } else { Some(fault(result).argument) }
}

/// The first GPU; none where there is none, then the test is [not run](not_run). With `ELAPID_REQUIRE_GPU` set, a missing
/// one fails it.
///
/// # Panics
/// If a GPU is required and there is none.
pub fn gpu() -> Option<crate::cuda::Gpu> {
    match crate::cuda::Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("ELAPID_REQUIRE_GPU").is_none(), "a GPU is required: {error}");
            not_run("GPU", &error.to_string());
            None
        }
    }
}

/// Records that the test of this thread is not run for lack of something: appends a line `LACK<tab>TEST` to the file
/// `ELAPID_NOT_RUN`, which the gate counts.
///
/// # Panics
/// If the file cannot be written.
pub fn not_run(lack: &str, reason: &str) {
    eprintln!("not run for lack of {lack}: {reason}");
    let Some(path) = std::env::var_os("ELAPID_NOT_RUN") else { return };
    let program = std::env::args().next().unwrap_or_default();
    let program = std::path::Path::new(&program).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    // A single write, so that lines of tests that end at the same time do not mix.
    let line = format!("{lack}\t{program} {test}\n");
    file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes())).expect("the list of tests not run");
}

/// A strided matrix on a GPU inside a larger one; the gaps between its rows must stay unchanged.
#[derive(Debug)]
pub struct OnDevice {
    gpu: crate::cuda::Gpu,
    buffer: crate::cuda::Buffer,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: crate::DType,
}

/// Fill of the gaps and of unwritten elements: NaNs of an unusual pattern.
const GUARD: u16 = 0x7fc5;

impl OnDevice {
    /// An unwritten matrix with gaps of `gap` elements between rows.
    ///
    /// # Panics
    /// If the device fails.
    pub fn poisoned(gpu: crate::cuda::Gpu, rows: usize, cols: usize, gap: usize, dtype: crate::DType) -> Self {
        let stride = cols + gap;
        let words = rows * stride * dtype.bytes() / 2 + 64;
        let buffer = gpu.upload(&vec![GUARD; words]).expect("memory");
        Self { gpu, buffer, rows, cols, stride, dtype }
    }

    /// A matrix of these values, rounded to the dtype.
    ///
    /// # Panics
    /// If the device fails.
    pub fn of(gpu: crate::cuda::Gpu, data: &[f32], cols: usize, gap: usize, dtype: crate::DType) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        let made = Self::poisoned(gpu, rows, cols, gap, dtype);
        let mut words = vec![GUARD; made.buffer.bytes() / 2];
        for (r, row) in data.chunks_exact(cols.max(1)).enumerate() {
            for (c, &x) in row.iter().enumerate() {
                let at = r * made.stride + c;
                match dtype {
                    crate::DType::Bf16 => words[at] = half::bf16::from_f32(x).to_bits(),
                    crate::DType::F32 => {
                        (words[2 * at], words[2 * at + 1]) = (x.to_bits() as u16, (x.to_bits() >> 16) as u16);
                    }
                }
            }
        }
        gpu.write(&made.buffer, 0, &words).expect("memory");
        made
    }

    /// To read.
    pub fn mat(&self) -> crate::cuda::Mat<'_> {
        crate::cuda::Mat::new(&self.buffer, 0, (self.rows, self.cols), self.stride, self.dtype)
    }

    /// To write.
    pub fn mat_mut(&self) -> crate::cuda::MatMut<'_> {
        crate::cuda::MatMut::new(&self.buffer, 0, (self.rows, self.cols), self.stride, self.dtype)
    }

    /// The values.
    ///
    /// # Panics
    /// If something outside was written.
    pub fn values(&self) -> Vec<f32> {
        let words: Vec<u16> = self.gpu.download(&self.buffer, 0, self.buffer.bytes() / 2).expect("the device");
        let per = self.dtype.bytes() / 2;
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for (at, word) in words.chunks(per).enumerate() {
            let (r, c) = (at / self.stride.max(1), at % self.stride.max(1));
            if r < self.rows && c < self.cols && self.stride > 0 {
                values.push(match word {
                    [bits] => half::bf16::from_bits(*bits).to_f32(),
                    [low, high] => f32::from_bits(u32::from(*high) << 16 | u32::from(*low)),
                    _ => unreachable!("numbers of one or two words"),
                });
            } else {
                assert!(word.iter().all(|&word| word == GUARD), "written outside, at row {r}, column {c}");
            }
        }
        values
    }
}

/// Values rounded to a dtype.
pub fn rounded(x: &[f32], dtype: crate::DType) -> Vec<f32> {
    match dtype {
        crate::DType::F32 => x.to_vec(),
        crate::DType::Bf16 => x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect(),
    }
}

/// The median.
pub fn median(mut x: Vec<f32>) -> f32 {
    x.sort_by(f32::total_cmp);
    x[x.len() / 2]
}
