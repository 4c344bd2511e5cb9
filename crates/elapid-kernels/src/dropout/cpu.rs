//! On the CPU: rows are split among threads, and the draws of a row are made for 32 elements at a time.
//!
//! ```text
//! for each 32 elements: words of 8 counters, the rounds of Philox on 8 lanes; y = x factor where word >= threshold, else 0
//! ```
//!
//! Departures from naive, with reasons: a counter gives four words, and neighbouring counters go through the rounds together,
//! so that the compiler has lanes for its vectors. Words are integers, so all instruction sets draw alike.

use pulp::{Simd, WithSimd};

use super::mask::{Mask, Unit};
use super::naive;
use crate::parallel::{grain, split};
use crate::{Isa, Rows, RowsMut};

/// Elementary steps per element, for splitting work among threads.
const WORK: usize = 16;
/// Minimum steps for waking a thread.
const LEAST: usize = 1 << 16;
/// Counters that go through the rounds together.
const LANES: usize = 8;
/// Elements that they decide.
const ELEMENTS: usize = 4 * LANES;

pub(super) fn forward(isa: Isa, mask: &Mask, first: u64, x: Rows<'_>, y: RowsMut<'_>) {
    let (m, d) = x.shape();
    split(m, grain(m, d * WORK, LEAST, 1), y, &|from, rows, y| {
        isa.run(Part { mask, first, from, x: x.slice(from, rows), y });
    });
}

/// Rows from row `from` on.
struct Part<'a> {
    mask: &'a Mask,
    first: u64,
    from: usize,
    x: Rows<'a>,
    y: RowsMut<'a>,
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        let Self { mask, first, from, x, .. } = self;
        let (threshold, factor, cols) = (mask.threshold(), mask.factor(), x.cols());
        for r in 0..x.rows() {
            let (sample, t) = (first.wrapping_add(((from + r) / mask.l) as u64), (from + r) % mask.l);
            let (x, y) = (x.row(r), self.y.row(r));
            if mask.unit == Unit::Sample {
                let factor = if naive::word(mask.key, sample, 0) >= threshold { factor } else { 0.0 };
                y.iter_mut().zip(x).for_each(|(y, x)| *y = if factor > 0.0 { factor * x } else { 0.0 });
                continue;
            }
            let mut at = (t * cols) as u64;
            let mut done = 0;
            while done < cols {
                let (words, skipped) = (words(mask.key, sample, at / 4), (at % 4) as usize);
                let count = (ELEMENTS - skipped).min(cols - done);
                let part = y[done..done + count].iter_mut().zip(&x[done..done + count]);
                for ((y, x), word) in part.zip(&words[skipped..skipped + count]) {
                    *y = if *word >= threshold { factor * x } else { 0.0 };
                }
                done += count;
                at += count as u64;
            }
        }
    }
}

/// The words of [`LANES`] counters from `group` on, in order.
#[inline(always)]
fn words(key: u64, sample: u64, group: u64) -> [u32; ELEMENTS] {
    let lanes: [u64; LANES] = std::array::from_fn(|lane| group.wrapping_add(lane as u64));
    let mut c = [
        lanes.map(|g| g as u32),
        lanes.map(|g| (g >> 32) as u32),
        [sample as u32; LANES],
        [(sample >> 32) as u32; LANES],
    ];
    let [mut k0, mut k1] = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let mut next = [[0; LANES]; 4];
        for lane in 0..LANES {
            let (p, q) = (u64::from(c[0][lane]) * 0xd251_1f53, u64::from(c[2][lane]) * 0xcd9e_8d57);
            next[0][lane] = (q >> 32) as u32 ^ c[1][lane] ^ k0;
            next[1][lane] = q as u32;
            next[2][lane] = (p >> 32) as u32 ^ c[3][lane] ^ k1;
            next[3][lane] = p as u32;
        }
        c = next;
        (k0, k1) = (k0.wrapping_add(0x9e37_79b9), k1.wrapping_add(0xbb67_ae85));
    }
    let mut words = [0; ELEMENTS];
    for (lane, words) in words.chunks_exact_mut(4).enumerate() {
        words.iter_mut().enumerate().for_each(|(i, word)| *word = c[i][lane]);
    }
    words
}
