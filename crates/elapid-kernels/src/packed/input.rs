//! Activations as a form of weights needs them.

use pulp::{Simd, WithSimd};

use super::form::{Form, GROUP};
use crate::parallel::{self, Each};
use crate::{Isa, Rows};

/// Minimum number of values for using several threads.
const LEAST: usize = 1 << 15;

/// Memory for rounded activations, used again by the next product of this thread.
#[derive(Default)]
pub(super) struct Room {
    /// Pairs of bf16, or four integers of 8 bits, the first in the lowest bits: `[m words]`.
    words: Vec<u32>,
    /// `[m groups]`.
    scales: Vec<f32>,
    /// Sums of the integers, `[m groups]`.
    sums: Vec<i32>,
}

/// Activations `[m k]`, rounded.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: Rows<'a>,
    words: &'a [u32],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// One row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) x: &'a [f32],
    pub(super) words: &'a [u32],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [i32],
}

impl<'a> Input<'a> {
    pub(super) fn new(isa: Isa, form: Form, x: Rows<'a>, room: &'a mut Room) -> Self {
        let (m, k) = x.shape();
        let groups = form.groups(k);
        let words = match form {
            Form::F32 => 0,
            Form::Bf16 => k.div_ceil(2),
            Form::Int8 | Form::Int4 => groups * (GROUP / 4),
        };
        room.words.resize(m * words, 0);
        room.scales.resize(m * groups, 0.0);
        room.sums.resize(m * groups, 0);
        let all = (&mut room.words[..m * words], &mut room.scales[..m * groups], &mut room.sums[..m * groups]);
        let parts = (Each(all.0, words), Each(all.1, groups), Each(all.2, groups));
        if words > 0 {
            let grain = parallel::grain(m, k, LEAST, 1);
            parallel::split(m, grain, parts, &|from, count, (Each(words, _), Each(scales, _), Each(sums, _))| {
                let x = x.slice(from, count);
                match form {
                    Form::F32 => {}
                    Form::Bf16 => isa.run(Pairs { x, words }),
                    Form::Int8 | Form::Int4 => {
                        isa.run(Integers { x, groups, words, scales, sums });
                    }
                }
            });
        }
        Self { x, words: &room.words[..m * words], scales: &room.scales[..m * groups], sums: &room.sums[..m * groups] }
    }

    pub(super) fn row(&self, i: usize) -> Row<'a> {
        fn part<T>(all: &[T], i: usize, m: usize) -> &[T] {
            let width = all.len() / m;
            &all[i * width..][..width]
        }
        let m = self.x.rows();
        Row {
            x: self.x.row(i),
            words: part(self.words, i, m),
            scales: part(self.scales, i, m),
            sums: part(self.sums, i, m),
        }
    }
}

struct Pairs<'a> {
    x: Rows<'a>,
    words: &'a mut [u32],
}

impl WithSimd for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let words = self.x.cols().div_ceil(2);
        for (i, row) in self.words.chunks_exact_mut(words).enumerate() {
            let (pairs, last) = self.x.row(i).as_chunks::<2>();
            for (word, &[low, high]) in row.iter_mut().zip(pairs) {
                *word = u32::from(bits(low)) | u32::from(bits(high)) << 16;
            }
            if let (Some(word), [low]) = (row.last_mut(), last) {
                *word = u32::from(bits(*low));
            }
        }
    }
}

/// The nearest bf16, ties to even; written out for the compiler to vectorise.
#[inline(always)]
fn bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { (bits >> 16 | 0x40) as u16 } else { nearest as u16 }
}

struct Integers<'a> {
    x: Rows<'a>,
    groups: usize,
    words: &'a mut [u32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl WithSimd for Integers<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let words = self.words.as_chunks_mut::<{ GROUP / 4 }>().0;
        let mut outputs = words.iter_mut().zip(self.scales).zip(self.sums);
        for i in 0..self.x.rows() {
            let (whole, last) = self.x.row(i).as_chunks::<GROUP>();
            let mut padded = [0.0; GROUP];
            padded[..last.len()].copy_from_slice(last);
            let groups = whole.iter().chain((whole.len() < self.groups).then_some(&padded));
            for (group, ((words, scale), sum)) in groups.zip(&mut outputs) {
                (*scale, *sum) = integers(group, words);
            }
        }
    }
}

/// Rounds one group; its scale, NaN if a value is not finite, and the sum of the integers. Values that are too small for the
/// inverse of their scale are zeros.
#[inline(always)]
fn integers(group: &[f32; GROUP], words: &mut [u32; GROUP / 4]) -> (f32, i32) {
    /// Adding it to a small number leaves the nearest integer, ties to even, in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    let (mut largest, mut poison) = ([0.0_f32; 8], [0.0_f32; 8]);
    for eight in group.as_chunks::<8>().0 {
        for i in 0..8 {
            let x = eight[i].abs();
            largest[i] = if x > largest[i] { x } else { largest[i] };
            poison[i] += eight[i] * 0.0;
        }
    }
    let (largest, poison) = (largest.into_iter().fold(0.0, f32::max), poison.iter().sum::<f32>());
    let inverse = 127.0 / largest;
    if poison.is_nan() || !inverse.is_finite() {
        *words = [0; GROUP / 4];
        return (poison, 0);
    }
    let mut integers = [0i8; GROUP];
    let mut sum = 0;
    for (integer, x) in integers.iter_mut().zip(group) {
        let nearest = (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
        *integer = nearest as i8;
        sum += nearest;
    }
    for (word, four) in words.iter_mut().zip(integers.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(four.map(|q| q as u8));
    }
    (largest / 127.0, sum)
}
