//! What tests of this crate and of the crates above share: error measures, gradient checks, deterministic random
//! numbers and outputs that start poisoned. No part of the library proper uses it.

use crate::{Rows, RowsMut};

/// RMS of the error over RMS of the reference. Infinity where `got` has another length, or a NaN or infinity.
///
/// A reference of zeros gives the RMS of the error itself.
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

/// How far `gradient` is from the central differences of `f` at `at`: an [`err_ratio_f64`].
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

/// The same numbers in `f64`.
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

    /// A matrix of the given values, for outputs that are added to.
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

/// Bit patterns, for comparisons that tell 0 from -0 and NaN from NaN.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
