//! The equations as loops. What moves rows is also what the CPU runs; products are in `cpu.rs`.

use super::args::{HostOrder, NOWHERE};
use crate::float::Float;
use crate::{Rows, RowsMut};

/// xs (=).
pub fn gather<T: Float>(order: &HostOrder, x: Rows<'_, T>, mut xs: RowsMut<'_, T>) {
    for (r, &at) in order.uses.iter().enumerate() {
        match at {
            NOWHERE => xs.row(r).fill(T::zero()),
            at => xs.row(r).copy_from_slice(x.row(at as usize / order.k)),
        }
    }
}

/// dx (=).
pub fn gather_backward<T: Float>(order: &HostOrder, dxs: Rows<'_, T>, mut dx: RowsMut<'_, T>) {
    for (i, places) in order.places.chunks(order.k).enumerate() {
        let dx = dx.row(i);
        dx.fill(T::zero());
        for &r in places.iter().filter(|r| **r != NOWHERE) {
            dx.iter_mut().zip(dxs.row(r as usize)).for_each(|(dx, &d)| *dx += d);
        }
    }
}

/// y (=).
pub fn combine<T: Float>(order: &HostOrder, weights: Rows<'_, T>, o: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    for (i, places) in order.places.chunks(order.k).enumerate() {
        let y = y.row(i);
        y.fill(T::zero());
        for (&r, &weight) in places.iter().zip(weights.row(i)).filter(|(r, _)| **r != NOWHERE) {
            y.iter_mut().zip(o.row(r as usize)).for_each(|(y, &o)| *y += weight * o);
        }
    }
}

/// dweights and do (=).
pub fn combine_backward<T: Float>(
    order: &HostOrder,
    (weights, o): (Rows<'_, T>, Rows<'_, T>),
    dy: Rows<'_, T>,
    (mut dweights, mut d_o): (RowsMut<'_, T>, RowsMut<'_, T>),
) {
    for (r, _) in order.uses.iter().enumerate().filter(|(_, at)| **at == NOWHERE) {
        d_o.row(r).fill(T::zero());
    }
    for (i, places) in order.places.chunks(order.k).enumerate() {
        for (j, &r) in places.iter().enumerate() {
            if r == NOWHERE {
                dweights.row(i)[j] = T::zero();
                continue;
            }
            let (r, weight) = (r as usize, weights.row(i)[j]);
            dweights.row(i)[j] = dy.row(i).iter().zip(o.row(r)).map(|(&dy, &o)| dy * o).sum();
            d_o.row(r).iter_mut().zip(dy.row(i)).for_each(|(d, &dy)| *d = weight * dy);
        }
    }
}

/// y (=) = W_e x.
pub fn forward<T: Float>(order: &HostOrder, x: Rows<'_, T>, w: Rows<'_, T>, mut y: RowsMut<'_, T>) {
    let rows = y.cols();
    for (e, group) in order.groups() {
        for r in group {
            for (o, y) in y.row(r).iter_mut().enumerate() {
                *y = x.row(r).iter().zip(w.row(e * rows + o)).map(|(&x, &w)| x * w).sum();
            }
        }
    }
}

/// dx (=) = W_eᵀ dy.
pub fn backward_input<T: Float>(order: &HostOrder, dy: Rows<'_, T>, w: Rows<'_, T>, mut dx: RowsMut<'_, T>) {
    let rows = dy.cols();
    for (e, group) in order.groups() {
        for r in group {
            let dx = dx.row(r);
            dx.fill(T::zero());
            for (o, &dy) in dy.row(r).iter().enumerate() {
                dx.iter_mut().zip(w.row(e * rows + o)).for_each(|(dx, &w)| *dx += dy * w);
            }
        }
    }
}

/// dW_e += dyᵀ x.
pub fn backward_weight<T: Float>(order: &HostOrder, dy: Rows<'_, T>, x: Rows<'_, T>, mut dw: RowsMut<'_, T>) {
    let rows = dy.cols();
    for (e, group) in order.groups() {
        for r in group {
            for (o, &dy) in dy.row(r).iter().enumerate() {
                dw.row(e * rows + o).iter_mut().zip(x.row(r)).for_each(|(dw, &x)| *dw += dy * x);
            }
        }
    }
}
