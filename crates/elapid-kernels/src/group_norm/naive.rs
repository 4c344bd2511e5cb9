//! The equations as loops.

use super::{Args, Grads, Place};
use crate::{Float, Rows, RowsMut};

/// û of one group of a row, and rstd.
fn hat<T: Float>(args: &Args<Rows<'_, T>>, r: usize, from: usize, width: usize) -> (Vec<T>, T) {
    let silu = |c: usize| args.z(Place::Before).map_or(T::one(), |z| z.row(r)[c].silu());
    let count = T::of(width as f64);
    let mut u: Vec<T> = (from..from + width).map(|c| args.x.row(r)[c] * silu(c)).collect();
    if args.centred {
        let mean = u.iter().copied().sum::<T>() / count;
        u.iter_mut().for_each(|u| *u -= mean);
    }
    let rstd = (u.iter().map(|&u| u * u).sum::<T>() / count + T::of(args.eps.into())).sqrt().recip();
    u.iter_mut().for_each(|u| *u *= rstd);
    (u, rstd)
}

/// Element of channel `c` of a parameter for all channels or for those of a group.
fn of<T: Float>(parameter: Option<&[T]>, c: usize, absent: T) -> T {
    parameter.map_or(absent, |p| p[c % p.len()])
}

/// Shapes as in [`super::forward`].
pub fn forward<T: Float>(args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>) {
    let width = args.x.cols() / args.groups;
    for (r, group) in (0..args.x.rows()).flat_map(|r| (0..args.groups).map(move |group| (r, group))) {
        let from = group * width;
        for (i, hat) in hat(args, r, from, width).0.into_iter().enumerate() {
            let c = from + i;
            let n = hat * of(args.weight, c, T::one()) + of(args.bias, c, T::zero());
            y.row(r)[c] = n * args.z(Place::After).map_or(T::one(), |z| z.row(r)[c].silu());
        }
    }
}

/// Shapes as in [`super::backward`].
pub fn backward<T: Float>(args: &Args<Rows<'_, T>>, dy: Rows<'_, T>, mut grads: Grads<RowsMut<'_, T>>) {
    let (one, zero) = (T::one(), T::zero());
    let width = args.x.cols() / args.groups;
    let count = T::of(width.max(1) as f64);
    for (r, group) in (0..args.x.rows()).flat_map(|r| (0..args.groups).map(move |group| (r, group))) {
        let from = group * width;
        let (hat, rstd) = hat(args, r, from, width);
        let (x, dy) = (args.x.row(r), dy.row(r));
        let (before, after) = (args.z(Place::Before).map(|z| z.row(r)), args.z(Place::After).map(|z| z.row(r)));
        let dn: Vec<T> = (from..from + width).map(|c| dy[c] * after.map_or(one, |z| z[c].silu())).collect();
        let g: Vec<T> = dn.iter().zip(from..).map(|(&dn, c)| dn * of(args.weight, c, one)).collect();
        let mean_g = if args.centred { g.iter().copied().sum::<T>() / count } else { zero };
        let mean_dot = g.iter().zip(&hat).map(|(&g, &hat)| g * hat).sum::<T>() / count;
        for i in 0..width {
            let c = from + i;
            let du = rstd * (g[i] - mean_g - hat[i] * mean_dot);
            grads.dx.row(r)[c] = du * before.map_or(one, |z| z[c].silu());
            if let Some(dz) = &mut grads.dz {
                let n = hat[i] * of(args.weight, c, one) + of(args.bias, c, zero);
                let through = |z: &[T], factor: T| factor * z[c].dsilu();
                dz.row(r)[c] =
                    before.map_or(zero, |z| through(z, du * x[c])) + after.map_or(zero, |z| through(z, dy[c] * n));
            }
            if let Some(dweight) = &mut grads.dweight {
                let c = c % dweight.len();
                dweight[c] += dn[i] * hat[i];
            }
            if let Some(dbias) = &mut grads.dbias {
                let c = c % dbias.len();
                dbias[c] += dn[i];
            }
        }
    }
}
