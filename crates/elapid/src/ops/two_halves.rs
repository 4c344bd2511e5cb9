//! Heads of two halves, for scores that depend on the key in one of two ways.

use std::sync::Arc;

use super::place::on_cpu;
use crate::autograd::{Var, record};
use crate::{Error, Result, Tensor};

/// Which halves of a position's heads are filled; the others are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Both.
    Both,
    /// The first, from `a`.
    First,
    /// The second, from `b`.
    Second,
}

/// y `[b l h·2c]` of a and b `[b l h·c]`: every head has the columns of a's head, then those of b's, as `halves` `[b l]` says.
///
/// # Errors
/// If shapes do not fit, or they are not on the CPU.
pub fn two_halves(a: &Var, b: &Var, c: usize, halves: &Arc<[Half]>) -> Result<Var> {
    on_cpu("two_halves", a)?;
    let (rows, cols) = (a.value().row_count(), a.value().cols());
    if a.shape() != b.shape() || halves.len() != rows || c == 0 || !cols.is_multiple_of(c) {
        let got = format!("{:?} and {:?} by {c}, {} halves", a.shape(), b.shape(), halves.len());
        return Err(Error::Argument(format!("two halves of {got}")));
    }
    let mut shape = a.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) *= 2;
    let mut values = vec![0.0; 2 * rows * cols];
    for ((r, half), out) in halves.iter().enumerate().zip(values.chunks_exact_mut((2 * cols).max(1))) {
        let heads = a.value().rows().row(r).chunks_exact(c).zip(b.value().rows().row(r).chunks_exact(c));
        for (out, (a, b)) in out.chunks_exact_mut(2 * c).zip(heads) {
            let (first, second) = out.split_at_mut(c);
            if *half != Half::Second {
                first.copy_from_slice(a);
            }
            if *half != Half::First {
                second.copy_from_slice(b);
            }
        }
    }
    let (first, second, halves) = (a.without_numbers(), b.without_numbers(), halves.clone());
    let [y] = record(&[a, b], [Tensor::new(values, &shape)], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        for (x, at, other) in [(&first, 0, Half::Second), (&second, c, Half::First)] {
            let mut dx = Tensor::zeros(x.shape())?;
            for ((r, half), dx) in halves.iter().enumerate().zip(dx.make_mut().chunks_exact_mut(cols.max(1))) {
                if *half == other {
                    continue;
                }
                for (dx, dy) in dx.chunks_exact_mut(c).zip(dy.rows().row(r).chunks_exact(2 * c)) {
                    dx.copy_from_slice(&dy[at..at + c]);
                }
            }
            grads.give(x, dx)?;
        }
        Ok(())
    });
    Ok(y)
}
