//! The equation as loops.

use half::bf16;

use super::form::{Form, GROUP};
use super::layout::Packed;
use crate::{Float, Rows, RowsMut};

/// The activations as the form of a weight has them: rounded, as wide as before.
///
/// `x` `[m k]`.
pub fn rounded(form: Form, x: Rows<'_>) -> Vec<f32> {
    let mut rounded = x.to_vec();
    match form {
        Form::F32 => {}
        Form::Bf16 => rounded.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        Form::Int8 | Form::Int4 => {
            for group in rounded.chunks_mut(x.cols().max(1)).flat_map(|row| row.chunks_mut(GROUP)) {
                let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let inverse = if (127.0 / largest).is_finite() { 127.0 / largest } else { 0.0 };
                group.iter_mut().for_each(|x| *x = largest / 127.0 * (*x * inverse).round_ties_even());
            }
        }
    }
    rounded
}

/// y = x Ŵᵀ + bias of activations that are [`rounded`].
///
/// # Panics
/// If there is too little memory.
pub fn forward<T: Float>(x: Rows<'_>, w: &Packed, bias: Option<&[f32]>, mut y: RowsMut<'_, T>) {
    let (n, k) = w.shape();
    let mut row = vec![0.0; k];
    for j in 0..n {
        w.read_row(j, &mut row);
        for i in 0..x.rows() {
            let dot: T = x.row(i).iter().zip(&row).map(|(&x, &w)| T::of(x.into()) * T::of(w.into())).sum();
            y.row(i)[j] = dot + bias.map_or(T::zero(), |bias| T::of(bias[j].into()));
        }
    }
}
