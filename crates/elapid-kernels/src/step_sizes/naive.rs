//! The equations as loops. Also what the CPU runs: a number for each head and position.

use super::args::Args;
use crate::float::Float;
use crate::{Rows, RowsMut};

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(args: Args<Rows<'_, T>>, mut delta: RowsMut<'_, T>, mut decay: RowsMut<'_, T>) {
    let (low, high) = (T::of(args.limits.0.into()), T::of(args.limits.1.into()));
    for r in 0..args.x.rows() {
        let (delta, decay) = (delta.row(r), decay.row(r));
        for (i, &x) in args.x.row(r).iter().enumerate() {
            delta[i] = (x + args.bias[i]).softplus().max(low).min(high);
            decay[i] = -args.a_log[i].exp() * delta[i];
        }
    }
}

/// Shapes as in [`super::backward`]. Where a limit holds, x has no gradient.
pub fn backward<T: Float>(
    args: Args<Rows<'_, T>>,
    ddelta: Rows<'_, T>,
    ddecay: Rows<'_, T>,
    mut dx: RowsMut<'_, T>,
    mut dbias: Option<&mut [T]>,
    mut da_log: Option<&mut [T]>,
) {
    let (low, high) = (T::of(args.limits.0.into()), T::of(args.limits.1.into()));
    for r in 0..args.x.rows() {
        let (ddelta, ddecay, dx) = (ddelta.row(r), ddecay.row(r), dx.row(r));
        for (i, &x) in args.x.row(r).iter().enumerate() {
            let (x, a) = (x + args.bias[i], -args.a_log[i].exp());
            let free = x.softplus();
            let inside = free >= low && free <= high;
            let delta = free.max(low).min(high);
            let d = (ddelta[i] + a * ddecay[i]) * x.sigmoid();
            dx[i] = if inside { d } else { T::zero() };
            if let Some(dbias) = &mut dbias {
                dbias[i] += dx[i];
            }
            if let Some(da_log) = &mut da_log {
                da_log[i] += a * delta * ddecay[i];
            }
        }
    }
}
