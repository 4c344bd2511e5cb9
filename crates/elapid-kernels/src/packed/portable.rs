//! Tiles as plain loops over the rows of a panel.

use super::form::{Form, GROUP, PANEL};
use super::input::Row;
use super::layout::read_scale;
use super::tile::{Sums, Tile};

pub(super) struct F32;

impl Tile for F32 {
    const PANELS: usize = 2;

    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        for (x, sums) in x.iter().zip(sums) {
            for (w, sums) in w.iter().zip(sums) {
                for (&x, values) in x.x.iter().zip(w.as_chunks::<{ 4 * PANEL }>().0) {
                    for (sum, &w) in sums.iter_mut().zip(values.as_chunks::<4>().0) {
                        *sum += x * f32::from_le_bytes(w);
                    }
                }
            }
        }
    }
}

pub(super) struct Bf16;

impl Tile for Bf16 {
    const PANELS: usize = 2;

    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        for (x, sums) in x.iter().zip(sums) {
            for (w, sums) in w.iter().zip(sums) {
                for (&x, values) in x.words.iter().zip(w.as_chunks::<{ 4 * PANEL }>().0) {
                    let (low, high) = halves(x);
                    for (sum, &w) in sums.iter_mut().zip(values.as_chunks::<4>().0) {
                        let (w_low, w_high) = halves(u32::from_le_bytes(w));
                        *sum += low * w_low + high * w_high;
                    }
                }
            }
        }
    }
}

/// The two values of a pair.
fn halves(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}

pub(super) struct Int8;

impl Tile for Int8 {
    const PANELS: usize = 2;

    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        each(x, w, sums, Form::Int8, |x, sum, values| {
            let mut dots = [-128 * sum; PANEL];
            for (x, four) in x.iter().zip(values.as_chunks::<{ 4 * PANEL }>().0) {
                add(&mut dots, *x, four, |w| w);
            }
            dots
        });
    }
}

pub(super) struct Int4;

impl Tile for Int4 {
    const PANELS: usize = 2;

    unsafe fn tile<const M: usize, const N: usize>(x: [Row<'_>; M], w: [&[u8]; N], sums: &mut Sums<M, N>) {
        each(x, w, sums, Form::Int4, |x, sum, values| {
            let mut dots = [-8 * sum; PANEL];
            for (i, four) in values.as_chunks::<{ 4 * PANEL }>().0.iter().enumerate() {
                add(&mut dots, x[i], four, |w| w & 15);
                add(&mut dots, x[i + 4], four, |w| w >> 4);
            }
            dots
        });
    }
}

/// Adds the products of four integers of x and of each row.
fn add(dots: &mut [i32; PANEL], x: u32, four: &[u8; 4 * PANEL], integer: impl Fn(u8) -> u8) {
    let x = x.to_le_bytes().map(|x| i32::from(x as i8));
    for (dot, w) in dots.iter_mut().zip(four.as_chunks::<4>().0) {
        *dot += (0..4).map(|i| x[i] * i32::from(integer(w[i]))).sum::<i32>();
    }
}

fn each<const M: usize, const N: usize>(
    x: [Row<'_>; M],
    w: [&[u8]; N],
    sums: &mut Sums<M, N>,
    form: Form,
    group: impl Fn(&[u32], i32, &[u8]) -> [i32; PANEL],
) {
    for (x, sums) in x.iter().zip(sums) {
        for (w, sums) in w.iter().zip(sums) {
            let (values, scales) = w.split_at(form.values_bytes(x.x.len()));
            let bytes = form.values_bytes(GROUP);
            for (g, (values, words)) in values.chunks_exact(bytes).zip(x.words.chunks_exact(GROUP / 4)).enumerate() {
                let dots = group(words, x.sums[g], values);
                for (r, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                    *sum = (dot as f32).mul_add(read_scale(scales, g, r) * x.scales[g], *sum);
                }
            }
        }
    }
}
