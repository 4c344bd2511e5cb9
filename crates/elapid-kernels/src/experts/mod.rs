//! Feed-forwards of experts on sorted positions: each expert's positions lie together, and one product over all groups has
//! y_r = W_e x_r for the rows r of expert e.
//!
//! A *use* i k + j is the j-th expert of position i. [`sort`] orders the uses by expert; [`gather`] writes their positions in that
//! order, [`forward`] multiplies, and [`combine`] adds the results of a position by its weights: y_i = Σ_j w_ij o_ij.
//!
//! Shapes: `m` positions, `k` experts of each, `n` = m k uses, `e` experts, `d` columns in, `rows` columns out.

mod args;
pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
mod order;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::view::Shaped;
use crate::{DType, View, ViewMut};

use args::CHECK;
pub use args::{HostOrder, NOWHERE};
pub use order::{Order, identity, sort};

/// xs `[n d]` (=): the position of each use, in the order of experts; 0 in rows that no use has.
///
/// `x` `[m d]` of the same dtype.
///
/// # Errors
/// If shapes, dtypes or devices differ, or a device failed.
pub fn gather<'a>(order: &Order, x: impl Into<View<'a>>, xs: impl Into<ViewMut<'a>>) -> Result<()> {
    let (x, xs) = (x.into(), xs.into());
    CHECK.matrix("x", &x, (order.positions(), x.shape().1))?;
    CHECK.matrix("xs", &xs, (order.uses(), x.shape().1))?;
    CHECK.dtype("xs", &xs, x.dtype())?;
    match xs {
        ViewMut::Host(xs) => naive::gather(order.host()?, CHECK.host("x", x)?, xs),
        ViewMut::Device(xs) => {
            let gpu = xs.gpu();
            cuda::gather(order.device(gpu)?, CHECK.device("x", x, gpu)?, xs)?;
        }
    }
    Ok(())
}

/// dx `[m d]` (=): the sum over the uses of each position, in the order of its experts.
///
/// `dxs` `[n d]` of the same dtype.
///
/// # Errors
/// As [`gather`].
pub fn gather_backward<'a>(order: &Order, dxs: impl Into<View<'a>>, dx: impl Into<ViewMut<'a>>) -> Result<()> {
    let (dxs, dx) = (dxs.into(), dx.into());
    CHECK.matrix("dxs", &dxs, (order.uses(), dx.shape().1))?;
    CHECK.matrix("dx", &dx, (order.positions(), dx.shape().1))?;
    CHECK.dtype("dx", &dx, dxs.dtype())?;
    match dx {
        ViewMut::Host(dx) => naive::gather_backward(order.host()?, CHECK.host("dxs", dxs)?, dx),
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::gather_backward(order.device(gpu)?, CHECK.device("dxs", dxs, gpu)?, dx)?;
        }
    }
    Ok(())
}

/// y `[m d]` (=): Σ_j weight_ij o_ij over the uses of each position.
///
/// `weights` `[m k]` f32, `o` `[n d]` in the order of experts, of the dtype of y.
///
/// # Errors
/// As [`gather`].
pub fn combine<'a>(
    order: &Order,
    weights: impl Into<View<'a>>,
    o: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (weights, o, y) = (weights.into(), o.into(), y.into());
    check_weights(order, &weights)?;
    CHECK.matrix("o", &o, (order.uses(), y.shape().1))?;
    CHECK.matrix("y", &y, (order.positions(), y.shape().1))?;
    CHECK.dtype("y", &y, o.dtype())?;
    match y {
        ViewMut::Host(y) => {
            naive::combine(order.host()?, CHECK.host("weights", weights)?, CHECK.host("o", o)?, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let (weights, o) = (CHECK.device("weights", weights, gpu)?, CHECK.device("o", o, gpu)?);
            cuda::combine(order.device(gpu)?, weights, o, y)?;
        }
    }
    Ok(())
}

/// The gradients of [`combine`]: `dweights` `[m k]` f32 (=), 0 for a use without a place, and `d_o` `[n d]` (=) of the dtype of y,
/// 0 in rows that no use has.
///
/// # Errors
/// As [`gather`].
pub fn combine_backward<'a>(
    order: &Order,
    (weights, o): (View<'a>, View<'a>),
    dy: impl Into<View<'a>>,
    (dweights, d_o): (ViewMut<'a>, ViewMut<'a>),
) -> Result<()> {
    let dy = dy.into();
    check_weights(order, &weights)?;
    CHECK.matrix("dy", &dy, (order.positions(), o.shape().1))?;
    CHECK.matrix("o", &o, (order.uses(), o.shape().1))?;
    CHECK.matrix("dweights", &dweights, weights.shape())?;
    CHECK.dtype("dweights", &dweights, DType::F32)?;
    CHECK.matrix("do", &d_o, o.shape())?;
    CHECK.dtype("dy", &dy, o.dtype())?;
    CHECK.dtype("do", &d_o, o.dtype())?;
    match d_o {
        ViewMut::Host(d_o) => {
            let (weights, o) = (CHECK.host("weights", weights)?, CHECK.host("o", o)?);
            let (dy, dweights) = (CHECK.host("dy", dy)?, CHECK.host_mut("dweights", dweights)?);
            naive::combine_backward(order.host()?, (weights, o), dy, (dweights, d_o));
        }
        ViewMut::Device(d_o) => {
            let gpu = d_o.gpu();
            let (weights, o) = (CHECK.device("weights", weights, gpu)?, CHECK.device("o", o, gpu)?);
            let (dy, dweights) = (CHECK.device("dy", dy, gpu)?, CHECK.device_mut("dweights", dweights, gpu)?);
            cuda::combine_backward(order.device(gpu)?, (weights, o), dy, (dweights, d_o))?;
        }
    }
    Ok(())
}

fn check_weights(order: &Order, weights: &View<'_>) -> error::Result<()> {
    CHECK.matrix("weights", weights, (order.positions(), order.top_k()))?;
    CHECK.dtype("weights", weights, DType::F32)
}

/// y `[n rows]` (=): W_e x of each expert's rows; rows that no use has are left as they are.
///
/// `x` `[n d]` and `w` `[e·rows d]`, the experts' matrices one below the other, of one dtype, which y has too. With `invariant`
/// an element on the CPU is summed in an order that depends on d alone, else by the fastest product.
///
/// # Errors
/// As [`gather`].
pub fn forward<'a>(
    order: &Order,
    x: impl Into<View<'a>>,
    w: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
    invariant: bool,
) -> Result<()> {
    let (x, w, y) = (x.into(), w.into(), y.into());
    let (d, rows) = (x.shape().1, y.shape().1);
    check_product(order, ("x", x.shape(), x.dtype()), &w, ("y", y.shape(), y.dtype()), (d, rows))?;
    match y {
        ViewMut::Host(y) => {
            cpu::forward(order.host()?, CHECK.host("x", x)?, CHECK.host("w", w)?, y, invariant)?;
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::forward(order.device(gpu)?, CHECK.device("x", x, gpu)?, CHECK.device("w", w, gpu)?, y)?;
        }
    }
    Ok(())
}

/// dx `[n d]` (=): W_eᵀ dy of each expert's rows; rows that no use has are left as they are.
///
/// `dy` `[n rows]`, `w` `[e·rows d]`, all of one dtype.
///
/// # Errors
/// As [`gather`].
pub fn backward_input<'a>(
    order: &Order,
    dy: impl Into<View<'a>>,
    w: impl Into<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (dy, w, dx) = (dy.into(), w.into(), dx.into());
    let (d, rows) = (dx.shape().1, dy.shape().1);
    check_product(order, ("dy", dy.shape(), dy.dtype()), &w, ("dx", dx.shape(), dx.dtype()), (d, rows))?;
    match dx {
        ViewMut::Host(dx) => {
            cpu::backward_input(order.host()?, CHECK.host("dy", dy)?, CHECK.host("w", w)?, dx)?;
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::backward_input(order.device(gpu)?, CHECK.device("dy", dy, gpu)?, CHECK.device("w", w, gpu)?, dx)?;
        }
    }
    Ok(())
}

fn check_product(
    order: &Order,
    (input, from, dtype): (&'static str, (usize, usize), DType),
    w: &View<'_>,
    (output, to, out): (&'static str, (usize, usize), DType),
    (d, rows): (usize, usize),
) -> error::Result<()> {
    let n = order.uses();
    CHECK.shape(input, from, (n, from.1))?;
    CHECK.shape(output, to, (n, to.1))?;
    CHECK.matrix("w", w, (CHECK.product("w", &[order.experts(), rows])?, d))?;
    CHECK.dtype("w", w, dtype)?;
    CHECK.that(out == dtype, output, || dtype.to_string(), || out.to_string())
}

/// dW_e += Σ dyᵀ x over each expert's rows.
///
/// `dy` `[n rows]` and `x` `[n d]` of one dtype, `dw` `[e·rows d]` f32 (+=).
///
/// # Errors
/// As [`gather`].
pub fn backward_weight<'a>(
    order: &Order,
    dy: impl Into<View<'a>>,
    x: impl Into<View<'a>>,
    dw: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (dy, x, dw) = (dy.into(), x.into(), dw.into());
    let (n, rows, d) = (order.uses(), dy.shape().1, x.shape().1);
    CHECK.matrix("dy", &dy, (n, rows))?;
    CHECK.matrix("x", &x, (n, d))?;
    CHECK.dtype("x", &x, dy.dtype())?;
    CHECK.matrix("dw", &dw, (CHECK.product("dw", &[order.experts(), rows])?, d))?;
    CHECK.dtype("dw", &dw, DType::F32)?;
    match dw {
        ViewMut::Host(dw) => cpu::backward_weight(order.host()?, CHECK.host("dy", dy)?, CHECK.host("x", x)?, dw)?,
        ViewMut::Device(dw) => {
            let gpu = dw.gpu();
            cuda::backward_weight(order.device(gpu)?, CHECK.device("dy", dy, gpu)?, CHECK.device("x", x, gpu)?, dw)?;
        }
    }
    Ok(())
}
