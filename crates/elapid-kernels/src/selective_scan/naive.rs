//! The selective scan as its equations, one element after another.

use super::{Args, Dims, Discretisation, Grads};
use crate::{Float, Rows, RowsMut};

/// Ā, and κ of B̄ = κ B, for one Δ and one A.
fn discretise<T: Float>(rule: Discretisation, delta: T, a: T) -> (T, T) {
    let x = delta * a;
    let half = T::of(0.5) * x;
    match rule {
        Discretisation::ExpEuler => (x.exp(), delta),
        Discretisation::Zoh => (x.exp(), if x == T::zero() { delta } else { x.exp_m1() / a }),
        Discretisation::Bilinear => ((T::one() + half) / (T::one() - half), delta / (T::one() - half)),
    }
}

/// The derivatives of Ā and κ with respect to Δ, and then with respect to A.
fn derivatives<T: Float>(rule: Discretisation, delta: T, a: T) -> ((T, T), (T, T)) {
    let x = delta * a;
    match rule {
        Discretisation::ExpEuler => ((a * x.exp(), T::one()), (delta * x.exp(), T::zero())),
        Discretisation::Zoh => {
            // d/dA expm1(ΔA)/A = Δ² Σ_j j x^(j-1) / (j+1)!, the closed form cancels near 0.
            let mut term = T::of(0.5);
            let series = (1..20).map(|j| {
                let this = term * T::of(f64::from(j));
                term *= x / T::of(f64::from(j + 2));
                this
            });
            let da = if x.abs() < T::of(0.5) {
                delta * delta * series.sum()
            } else {
                (delta * x.exp() - x.exp_m1() / a) / a
            };
            ((a * x.exp(), x.exp()), (delta * x.exp(), da))
        }
        Discretisation::Bilinear => {
            let r = (T::one() - T::of(0.5) * x).recip();
            ((a * r * r, r * r), (delta * r * r, T::of(0.5) * (delta * r).powi(2)))
        }
    }
}

/// Δ at one place, and the derivative of it with respect to `delta`.
fn step_size<T: Float>(args: &Args<Rows<'_, T>>, row: usize, d: usize) -> (T, T) {
    let x = args.delta.row(row)[d] + args.delta_bias.map_or(T::zero(), |bias| bias[d]);
    if !args.softplus { (x, T::one()) } else { (x.softplus(), if x > T::of(20.0) { T::one() } else { x.sigmoid() }) }
}

/// Scans: see [`super::forward`].
///
/// # Panics
/// If shapes differ.
pub fn forward<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, mut y: RowsMut<'_, T>, last: &mut [T]) {
    let Dims { b, l, d, n } = dims;
    y.fill(T::zero());
    for (i, h) in last.chunks_exact_mut(n).enumerate().take(b * d) {
        let (b, d) = (i / d, i % d);
        h.fill(T::zero());
        if let Some(initial) = args.initial {
            h.copy_from_slice(&initial[i * n..][..n]);
        }
        for t in 0..args.segments.len(b, l) {
            if args.segments.reset(b, t, l) {
                h.fill(T::zero());
            }
            let row = b * l + t;
            let u = args.u.row(row)[d];
            let (delta, _) = step_size(args, row, d);
            let mut out = T::zero();
            for (n, h) in h.iter_mut().enumerate() {
                let (decay, drive) = discretise(args.rule, delta, args.a[i % dims.d * dims.n + n]);
                *h = decay * *h + drive * args.b.row(row)[n] * u;
                out += args.c.row(row)[n] * *h;
            }
            out += args.skip.map_or(T::zero(), |skip| skip[d] * u);
            y.row(row)[d] = out * args.z.map_or(T::one(), |z| z.row(row)[d].silu());
        }
    }
}

/// The gradient of [`forward`]: see [`super::backward`]. Keeps all states of a channel.
///
/// # Panics
/// If shapes differ.
// Long: the derivation of `docs/math/selective_scan.md` in its order.
pub fn backward<T: Float>(
    dims: Dims,
    args: &Args<Rows<'_, T>>,
    dy: Rows<'_, T>,
    dlast: Option<&[T]>,
    mut grads: Grads<RowsMut<'_, T>>,
) {
    let Dims { b, l, d, n } = dims;
    let zero = T::zero();
    for out in [&mut grads.du, &mut grads.ddelta, &mut grads.db, &mut grads.dc].into_iter().chain(&mut grads.dz) {
        out.fill(zero);
    }
    for i in 0..b * d {
        let (b, d) = (i / d, i % d);
        let len = args.segments.len(b, l);
        // Every state, and for each of them the previous state: 0 after a reset.
        let mut h = args.initial.map_or(vec![zero; n], |initial| initial[i * n..][..n].to_vec());
        let mut before = Vec::with_capacity(len);
        let mut after = Vec::with_capacity(len);
        for t in 0..len {
            if args.segments.reset(b, t, l) {
                h.fill(zero);
            }
            before.push(h.clone());
            let (delta, _) = step_size(args, b * l + t, d);
            for (n, h) in h.iter_mut().enumerate() {
                let (decay, drive) = discretise(args.rule, delta, args.a[d * dims.n + n]);
                *h = decay * *h + drive * args.b.row(b * l + t)[n] * args.u.row(b * l + t)[d];
            }
            after.push(h.clone());
        }
        let mut dh = dlast.map_or(vec![zero; n], |dlast| dlast[i * n..][..n].to_vec());
        for t in (0..len).rev() {
            let row = b * l + t;
            let (u, dy, (delta, dsoftplus)) = (args.u.row(row)[d], dy.row(row)[d], step_size(args, row, d));
            let skip = args.skip.map_or(zero, |skip| skip[d]);
            let out = (0..n).map(|n| args.c.row(row)[n] * after[t][n]).sum::<T>() + skip * u;
            let g = dy * args.z.map_or(T::one(), |z| z.row(row)[d].silu());
            if let (Some(z), Some(dz)) = (args.z, &mut grads.dz) {
                dz.row(row)[d] = dy * out * z.row(row)[d].dsilu();
            }
            let (mut du, mut ddelta) = (skip * g, zero);
            for n in 0..n {
                let (a, b_tn) = (args.a[d * dims.n + n], args.b.row(row)[n]);
                let (decay, drive) = discretise(args.rule, delta, a);
                let ((decay_delta, drive_delta), (decay_a, drive_a)) = derivatives(args.rule, delta, a);
                dh[n] += args.c.row(row)[n] * g;
                grads.dc.row(row)[n] += g * after[t][n];
                grads.db.row(row)[n] += dh[n] * drive * u;
                du += dh[n] * drive * b_tn;
                ddelta += dh[n] * (decay_delta * before[t][n] + drive_delta * b_tn * u);
                grads.da[d * dims.n + n] += dh[n] * (decay_a * before[t][n] + drive_a * b_tn * u);
                dh[n] *= if args.segments.reset(b, t, l) { zero } else { decay };
            }
            grads.du.row(row)[d] = du;
            grads.ddelta.row(row)[d] = ddelta * dsoftplus;
            if let Some(ddelta_bias) = &mut grads.ddelta_bias {
                ddelta_bias[d] += ddelta * dsoftplus;
            }
            if let Some(dskip) = &mut grads.dskip {
                dskip[d] += g * u;
            }
        }
        if let Some(dinitial) = &mut grads.dinitial {
            dinitial[i * n..][..n].copy_from_slice(&dh);
        }
    }
}
