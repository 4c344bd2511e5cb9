//! On the CPU: rows are split among threads, and a row is the equation's loop.

use super::{Map, naive};
use crate::parallel::{grain, split};
use crate::{Rows, RowsMut};

/// Elementary steps per element, for splitting work among threads.
const WORK: usize = 16;
/// Minimum steps for waking a thread.
const LEAST: usize = 1 << 16;

pub(super) fn forward(f: Map, x: Rows<'_>, y: RowsMut<'_>) {
    let (m, d) = x.shape();
    split(m, grain(m, d * WORK, LEAST, 1), y, &|from, rows, y| naive::forward(f, x.slice(from, rows), y));
}

pub(super) fn backward(f: Map, x: Rows<'_>, dy: Rows<'_>, dx: RowsMut<'_>) {
    let (m, d) = x.shape();
    split(m, grain(m, d * WORK, LEAST, 1), dx, &|from, rows, dx| {
        naive::backward(f, x.slice(from, rows), dy.slice(from, rows), dx);
    });
}

pub(super) fn glu_forward(f: Map, x: Rows<'_>, z: Rows<'_>, y: RowsMut<'_>) {
    let (m, d) = y.shape();
    split(m, grain(m, d * WORK, LEAST, 1), y, &|from, rows, y| {
        naive::glu_forward(f, x.slice(from, rows), z.slice(from, rows), y);
    });
}

pub(super) fn glu_backward(f: Map, x: Rows<'_>, z: Rows<'_>, dy: Rows<'_>, dx: RowsMut<'_>, dz: RowsMut<'_>) {
    let (m, d) = dy.shape();
    split(m, grain(m, d * WORK, LEAST, 1), (dx, dz), &|from, rows, (dx, dz)| {
        naive::glu_backward(f, x.slice(from, rows), z.slice(from, rows), dy.slice(from, rows), dx, dz);
    });
}

pub(super) fn add_scaled(alpha: f32, a: Rows<'_>, b: Option<(f32, Rows<'_>)>, gamma: f32, y: RowsMut<'_>) {
    let (m, d) = a.shape();
    split(m, grain(m, d, LEAST, 1), y, &|from, rows, y| {
        let b = b.map(|(beta, b)| (beta, b.slice(from, rows)));
        naive::add_scaled(alpha, a.slice(from, rows), b, gamma, y);
    });
}
