//! The scan as its equations, one channel after another.

use super::args::{LEAST_SQUARE, SHARPNESS};
use super::{Args, Decay, DecayGrads, Dims, Grads, Outputs, RgLru};
use crate::{Float, Rows, RowsMut};

/// A number: its parts; the imaginary one is 0 in a real field.
type Complex<T> = [T; 2];

fn times<T: Float>([a, b]: Complex<T>, [c, d]: Complex<T>) -> Complex<T> {
    [a * c - b * d, a * d + b * c]
}

fn plus<T: Float>([a, b]: Complex<T>, [c, d]: Complex<T>) -> Complex<T> {
    [a + c, b + d]
}

fn conjugate<T: Float>([a, b]: Complex<T>) -> Complex<T> {
    [a, -b]
}

/// Channel `c` of a row.
fn at<T: Float>(row: &[T], c: usize, d: usize) -> Complex<T> {
    [row[c], row.get(c + d).copied().unwrap_or(T::zero())]
}

fn put<T: Float>(row: &mut [T], c: usize, d: usize, value: Complex<T>) {
    row[c] = value[0];
    if let Some(im) = row.get_mut(c + d) {
        *im = value[1];
    }
}

/// One position of a channel: where it is, and whether what comes from the state before counts as 0.
#[derive(Clone, Copy)]
struct At {
    row: usize,
    c: usize,
    d: usize,
    start: bool,
}

/// r, i, a and the factor of i x.
fn gates<T: Float>(gates: &RgLru<Rows<'_, T>>, At { row, c, start, .. }: At) -> [T; 4] {
    let r = gates.recurrence.row(row)[c].sigmoid();
    let i = gates.input.row(row)[c].sigmoid();
    let log = -T::of(SHARPNESS.into()) * r * gates.lambda[c].softplus();
    if start { [r, i, T::zero(), T::one()] } else { [r, i, log.exp(), (-(log + log).exp_m1()).sqrt()] }
}

/// a_t, and what is added to the state.
fn coefficients<T: Float>(args: &Args<Rows<'_, T>>, at_: At) -> [Complex<T>; 2] {
    let At { row, c, d, .. } = at_;
    let x = at(args.x.row(row), c, d);
    match &args.decay {
        Decay::Constant(a) => [at(a, c, d), x],
        Decay::Values(a) => [at(a.row(row), c, d), x],
        Decay::Logs(a) => [[a.row(row)[c].exp(), T::zero()], x],
        Decay::RgLru(of) => {
            let [_, i, a, root] = gates(of, at_);
            [[a, T::zero()], [root * i * x[0], T::zero()]]
        }
    }
}

/// The positions of a row in the order of the recurrence, and for each whether a segment's cut is before it.
fn order<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, b: usize) -> Vec<(usize, bool)> {
    let (l, len) = (dims.l, args.segments.len(b, dims.l));
    let reset = |t: usize| t < len && args.segments.reset(b, t, l);
    match args.reverse {
        false => (0..len).map(|t| (t, reset(t))).collect(),
        true => (0..len).rev().map(|t| (t, reset(t + 1))).collect(),
    }
}

/// Whether nothing passes to `last`.
fn ends_cut<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, b: usize) -> bool {
    args.reverse && args.segments.len(b, dims.l) > 0 && args.segments.reset(b, 0, dims.l)
}

/// Scans: see [`super::forward`].
///
/// # Panics
/// If shapes differ.
pub fn forward<T: Float>(dims: Dims, args: &Args<Rows<'_, T>>, mut h: RowsMut<'_, T>, last: &mut [T]) {
    let (Dims { b, l, d }, columns) = (dims, dims.columns(args));
    h.fill(T::zero());
    for (b, c) in (0..b).flat_map(|b| (0..d).map(move |c| (b, c))) {
        let mut state = args.initial.map_or([T::zero(); 2], |initial| at(&initial[b * columns..][..columns], c, d));
        for (s, (t, cut)) in order(dims, args, b).into_iter().enumerate() {
            let start = cut || s == 0 && args.initial.is_none();
            let [a, x] = coefficients(args, At { row: b * l + t, c, d, start });
            state = if start { x } else { plus(times(a, state), x) };
            put(h.row(b * l + t), c, d, state);
        }
        if ends_cut(dims, args, b) {
            state = [T::zero(); 2];
        }
        put(&mut last[b * columns..][..columns], c, d, state);
    }
}

/// The gradient of [`forward`]: see [`super::backward`].
///
/// # Panics
/// If shapes differ.
// Long: the forms of a differ in what a gradient of a_t becomes.
pub fn backward<T: Float>(
    dims: Dims,
    args: &Args<Rows<'_, T>>,
    outputs: &Outputs<Rows<'_, T>>,
    mut grads: Grads<RowsMut<'_, T>>,
) {
    let (Dims { b, l, d }, columns, zero) = (dims, dims.columns(args), [T::zero(); 2]);
    grads.dx.fill(T::zero());
    match &mut grads.decay {
        Some(DecayGrads::Varying(da)) => da.fill(T::zero()),
        Some(DecayGrads::RgLru { drecurrence, dinput, .. }) => {
            drecurrence.fill(T::zero());
            dinput.fill(T::zero());
        }
        _ => {}
    }
    for (b, c) in (0..b).flat_map(|b| (0..d).map(move |c| (b, c))) {
        let of_state = |states: Option<&[T]>| states.map_or(zero, |states| at(&states[b * columns..][..columns], c, d));
        let order = order(dims, args, b);
        let mut carried = if ends_cut(dims, args, b) { zero } else { of_state(outputs.dlast) };
        for (s, &(t, cut)) in order.iter().enumerate().rev() {
            let row = b * l + t;
            let here = At { row, c, d, start: cut || s == 0 && args.initial.is_none() };
            let before = match s {
                _ if cut => zero,
                0 => of_state(args.initial),
                _ => at(outputs.h.row(b * l + order[s - 1].0), c, d),
            };
            let g = plus(at(outputs.dh.row(row), c, d), carried);
            let [a, _] = coefficients(args, here);
            let da = times(g, conjugate(before));
            carried = if cut { zero } else { times(conjugate(a), g) };
            let Decay::RgLru(of) = &args.decay else {
                put(grads.dx.row(row), c, d, g);
                match &mut grads.decay {
                    Some(DecayGrads::Constant(sum)) => {
                        let new = plus(at(sum, c, d), da);
                        put(sum, c, d, new);
                    }
                    Some(DecayGrads::Varying(out)) => {
                        let of_log = matches!(args.decay, Decay::Logs(_));
                        put(out.row(row), c, d, if of_log { times(a, da) } else { da });
                    }
                    _ => {}
                }
                continue;
            };
            let ([r, i, a, root], x, g) = (gates(of, here), args.x.row(row)[c], g[0]);
            grads.dx.row(row)[c] = g * root * i;
            let Some(DecayGrads::RgLru { drecurrence, dinput, dlambda }) = &mut grads.decay else { continue };
            dinput.row(row)[c] = g * root * x * i * (T::one() - i);
            if here.start {
                continue;
            }
            let square = T::of(4.0) * root * root;
            let slope = -T::of(2.0) * a * a / square.max(T::of(LEAST_SQUARE.into())).sqrt();
            let dlog = da[0] * a + g * i * x * slope;
            let (sharpness, lambda) = (T::of(SHARPNESS.into()), of.lambda[c]);
            drecurrence.row(row)[c] = -sharpness * dlog * lambda.softplus() * r * (T::one() - r);
            dlambda[c] -= sharpness * dlog * r * lambda.sigmoid();
        }
        if let Some(dinitial) = &mut grads.dinitial {
            put(&mut dinitial[b * columns..][..columns], c, d, carried);
        }
    }
}
