//! Elementwise functions and sums.

use elapid_kernels::pointwise as kernel;
pub use elapid_kernels::pointwise::{Function, Map};

use crate::autograd::{Var, Want, record};
use crate::{DType, Result, Tensor};

/// y = β f(α x), element by element; a [`Function`] has factors of 1.
///
/// # Errors
/// If a device failed, or has too little memory.
pub fn map(f: impl Into<Map>, x: &Var) -> Result<Var> {
    let f = f.into();
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::forward(f, x.value().view(), y.view_mut())?;
    let kept = x.clone();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::backward(f, kept.value().view(), dy.view(), dx))
    });
    Ok(y)
}

/// y `[.. d]` = β f(α x) z of xz `[.. 2d]`, its first half x and its second z; a [`Function`] has factors of 1.
///
/// # Errors
/// If the last dimension is odd; if a device failed, or has too little memory.
pub fn glu(f: impl Into<Map>, xz: &Var) -> Result<Var> {
    let d = xz.value().cols() / 2;
    gated(f, &xz.columns(0, d), &xz.columns(d, xz.value().cols() - d))
}

/// y = β f(α x) z, element by element; a [`Function`] has factors of 1.
///
/// # Errors
/// If shapes differ; if a device failed, or has too little memory.
pub fn gated(f: impl Into<Map>, x: &Var, z: &Var) -> Result<Var> {
    let f = f.into();
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::glu_forward(f, x.value().view(), z.value().view(), y.view_mut())?;
    let (x, z) = (x.clone(), z.clone());
    let [y] = record(&[&x.clone(), &z.clone()], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write([Want::Set(&x), Want::Set(&z)], |matrices| {
            let [Some(dx), Some(dz)] = matrices else { return Ok(()) };
            kernel::glu_backward(f, [x.value().view(), z.value().view()], dy.view(), [dx, dz])
        })
    });
    Ok(y)
}

/// y = α a + β b of two tensors of one shape, in the format of a.
///
/// # Errors
/// If shapes differ; if a device failed, or has too little memory.
pub fn add_scaled(a: &Var, alpha: f32, b: &Var, beta: f32) -> Result<Var> {
    let mut y = Tensor::output(a.value().device(), a.value().dtype(), a.shape())?;
    kernel::add_scaled(alpha, a.value().view(), Some((beta, b.value().view())), y.view_mut())?;
    let (first, second) = (a.without_numbers(), b.without_numbers());
    let [y] = record(&[a, b], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&second, |db| kernel::add_scaled(beta, dy.view(), None, db))?;
        match alpha {
            1.0 => grads.give(&first, dy),
            _ => grads.set_by(&first, |da| kernel::add_scaled(alpha, dy.view(), None, da)),
        }
    });
    Ok(y)
}

/// y = x + c.
///
/// # Errors
/// If a device failed, or has too little memory.
pub fn add_constant(x: &Var, c: f32) -> Result<Var> {
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::add_constant(x.value().view(), c, y.view_mut())?;
    let kept = x.without_numbers();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.give(&kept, dy)
    });
    Ok(y)
}

/// y = α x; x itself if α is 1.
///
/// # Errors
/// If a device failed, or has too little memory.
pub fn scaled(x: &Var, alpha: f32) -> Result<Var> {
    if alpha == 1.0 { Ok(x.clone()) } else { times(x, alpha, x.value().dtype()) }
}

/// x in another format, as its gradient is in that of x; x itself if it has it.
///
/// # Errors
/// If a device failed, or has too little memory.
pub(crate) fn cast(x: &Var, dtype: DType) -> Result<Var> {
    if x.value().dtype() == dtype { Ok(x.clone()) } else { times(x, 1.0, dtype) }
}

/// The same values without gaps between rows, for another shape than a column slice can have.
///
/// # Errors
/// If a device failed, or has too little memory.
pub fn contiguous(x: &Var) -> Result<Var> {
    if x.value().is_contiguous() { Ok(x.clone()) } else { times(x, 1.0, x.value().dtype()) }
}

fn times(x: &Var, alpha: f32, dtype: DType) -> Result<Var> {
    let mut y = Tensor::output(x.value().device(), dtype, x.shape())?;
    kernel::add_scaled(alpha, x.value().view(), None, y.view_mut())?;
    let kept = x.without_numbers();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::add_scaled(alpha, dy.view(), None, dx))
    });
    Ok(y)
}

/// y = c tanh(x / c) (Gemma 2, arXiv 2408.00118, section 2); x itself if c is 0.
///
/// # Errors
/// If a device failed, or has too little memory.
pub fn soft_cap(x: &Var, c: f32) -> Result<Var> {
    if c == 0.0 { Ok(x.clone()) } else { map(Map { f: Function::Tanh, alpha: 1.0 / c, beta: c }, x) }
}
