//! The scans. All are inclusive unless stated otherwise: position t gets x_0 then … then x_t. All work in place and for any
//! length.

use rayon::prelude::*;

use super::{Element, Ring, Step};

/// Left to right. Work and depth l - 1: the reference.
pub fn sequential<E: Element>(x: &mut [E]) {
    for t in 1..x.len() {
        x[t] = x[t - 1].then(x[t]);
    }
}

/// Doubling distances (Hillis and Steele 1986): after the pass of distance s, position t holds the last 2s elements up to
/// t. Depth log₂ l, work l log₂ l - l + 1: for the lanes of one warp, where idle lanes are free.
pub fn hillis_steele<E: Element>(x: &mut [E]) {
    let mut distance = 1;
    while distance < x.len() {
        let before = x.to_vec(); // all positions of a pass read the pass before
        for t in distance..x.len() {
            x[t] = before[t - distance].then(before[t]);
        }
        distance *= 2;
    }
}

/// Up and down a binary tree (Blelloch 1990, section 1.3): position t gets x_0 then … then x_{t-1}, the first the
/// identity. Returns the whole. Depth 2 log₂ l, work about 2 l; pads to a power of two with identities.
pub fn blelloch_exclusive<E: Element>(x: &mut [E]) -> E {
    let mut tree = x.to_vec();
    tree.resize(x.len().next_power_of_two(), E::identity());
    let len = tree.len();
    let mut half = 1;
    while half < len {
        for right in (2 * half - 1..len).step_by(2 * half) {
            tree[right] = tree[right - half].then(tree[right]);
        }
        half *= 2;
    }
    let whole = std::mem::replace(&mut tree[len - 1], E::identity());
    while half > 1 {
        half /= 2;
        for right in (2 * half - 1..len).step_by(2 * half) {
            // The prefix of both halves goes to the left one; the prefix of the right one is that, followed by the left
            // half.
            let (before, left) = (tree[right], tree[right - half]);
            tree[right - half] = before;
            tree[right] = before.then(left);
        }
    }
    x.copy_from_slice(&tree[..x.len()]);
    whole
}

/// [`blelloch_exclusive`], and one more composition with each position's own element.
pub fn blelloch<E: Element>(x: &mut [E]) {
    let own = x.to_vec();
    blelloch_exclusive(x);
    for (x, own) in x.iter_mut().zip(own) {
        *x = x.then(own);
    }
}

/// Reduce pairs, scan the half as many, fill in the even positions (as `jax.lax.associative_scan`). Depth 2 log₂ l, work
/// about 2 l, no padding.
pub fn odd_even<E: Element>(x: &mut [E]) {
    if x.len() < 2 {
        return;
    }
    let mut pairs: Vec<E> = x.chunks_exact(2).map(|pair| pair[0].then(pair[1])).collect();
    odd_even(&mut pairs);
    for t in 1..x.len() {
        x[t] = if t % 2 == 1 { pairs[t / 2] } else { pairs[t / 2 - 1].then(x[t]) };
    }
}

/// In three phases over chunks of `chunk` elements, in parallel: scan each chunk from the identity, scan the chunks' last
/// elements, and compose the results into each later chunk. Work 2 l + l / chunk. The result does not depend on the number
/// of threads.
///
/// # Panics
/// If `chunk` is 0.
pub fn chunked<E: Element>(x: &mut [E], chunk: usize) {
    x.par_chunks_mut(chunk).for_each(sequential);
    let mut before: Vec<E> = x.chunks(chunk).map(|part| part[part.len() - 1]).collect();
    sequential(&mut before);
    x.par_chunks_mut(chunk).skip(1).zip(&before).for_each(|(part, &before)| {
        for x in part {
            *x = before.then(*x);
        }
    });
}

/// The same scan from the right: position t gets x_{l-1} then … then x_t. It is flip, scan, flip.
pub fn reverse<E: Element>(x: &mut [E], scan: impl FnOnce(&mut [E])) {
    x.reverse();
    scan(x);
    x.reverse();
}

/// Makes a scan start from the state `h` before position 0: b_0 += a_0 h.
pub fn from_state<T: Ring>(x: &mut [Step<T>], h: T) {
    if let Some(first) = x.first_mut() {
        first.b = first.a.times(h).plus(first.b);
    }
}

/// The gradient of the recurrence, itself a scan from the right: g_t = dh_t + a_{t+1}* g_{t+1}, with a* the adjoint and
/// nothing after the end.
///
/// `steps` are those of the forward, `h` its states, `initial` the state before position 0, and `dh` the upstream gradient
/// of each state. Returns the gradients of the steps, da_t = g_t h_{t-1}* and db_t = g_t, and that of `initial`, a_0* g_0.
///
/// # Panics
/// If lengths differ.
pub fn gradient<T: Ring>(
    steps: &[Step<T>],
    h: &[T],
    initial: T,
    dh: &[T],
    scan: impl FnOnce(&mut [Step<T>]),
) -> (Vec<Step<T>>, T) {
    let l = steps.len();
    assert!(h.len() == l && dh.len() == l, "{l} steps, {} states, {} gradients", h.len(), dh.len());
    // The decays are shifted by one: that of the next position carries its gradient here.
    let decay = |t: usize| steps.get(t + 1).map_or(T::zero(), |next| next.a.adjoint());
    let mut g: Vec<Step<T>> = (0..l).map(|t| Step { a: decay(t), b: dh[t] }).collect();
    reverse(&mut g, scan);
    let before = |t: usize| if t == 0 { initial } else { h[t - 1] };
    let grads: Vec<Step<T>> =
        g.iter().enumerate().map(|(t, g)| Step { a: g.b.times(before(t).adjoint()), b: g.b }).collect();
    let dinitial = grads.first().map_or(T::zero(), |first| steps[0].a.adjoint().times(first.b));
    (grads, dinitial)
}
