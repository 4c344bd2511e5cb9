//! Elementwise functions and sums.

use elapid_kernels::pointwise as kernel;
pub use elapid_kernels::pointwise::Function;

use super::place::on_cpu;
use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// y = f(x), element by element.
///
/// # Errors
/// If x is not on the CPU.
pub fn map(f: Function, x: &Var) -> Result<Var> {
    on_cpu("pointwise", x)?;
    let y = Tensor::filled(x.shape(), |y| kernel::forward(f, x.value().rows(), y))?;
    let kept = x.clone();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_rows([Want::Set(&kept)], |[dx]| kernel::backward(f, kept.value().rows(), dy.rows(), dx))
    });
    Ok(y)
}

/// y `[.. d]` = f(x) z of xz `[.. 2d]`, its first half x and its second z.
///
/// # Errors
/// If the last dimension is odd, or xz is not on the CPU.
pub fn glu(f: Function, xz: &Var) -> Result<Var> {
    on_cpu("pointwise", xz)?;
    let mut shape = xz.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) /= 2;
    let y = Tensor::filled(&shape, |y| kernel::glu_forward(f, xz.value().rows(), y))?;
    let kept = xz.clone();
    let [y] = record(&[xz], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_rows([Want::Set(&kept)], |[dxz]| kernel::glu_backward(f, kept.value().rows(), dy.rows(), dxz))
    });
    Ok(y)
}

/// y = α a + β b of two tensors of one shape.
///
/// # Errors
/// If shapes differ, or they are not on the CPU.
pub fn add_scaled(a: &Var, alpha: f32, b: &Var, beta: f32) -> Result<Var> {
    on_cpu("pointwise", a)?;
    let y =
        Tensor::filled(a.shape(), |y| kernel::add_scaled(alpha, a.value().rows(), Some((beta, b.value().rows())), y))?;
    let (first, second) = (a.without_numbers(), b.without_numbers());
    let [y] = record(&[a, b], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_rows([Want::Set(&first)], |[da]| kernel::add_scaled(alpha, dy.rows(), None, da))?;
        grads.write_rows([Want::Set(&second)], |[db]| kernel::add_scaled(beta, dy.rows(), None, db))
    });
    Ok(y)
}

/// y = x + c.
///
/// # Errors
/// If x is not on the CPU.
pub fn add_constant(x: &Var, c: f32) -> Result<Var> {
    on_cpu("pointwise", x)?;
    let values = x.value().rows().to_vec().into_iter().map(|x| x + c).collect();
    let kept = x.without_numbers();
    let [y] = record(&[x], [Tensor::new(values, x.shape())], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.give(&kept, dy)
    });
    Ok(y)
}

/// y = α x; x itself if α is 1.
///
/// # Errors
/// If α is not 1 and x is not on the CPU.
pub fn scaled(x: &Var, alpha: f32) -> Result<Var> {
    if alpha == 1.0 {
        return Ok(x.clone());
    }
    on_cpu("pointwise", x)?;
    let y = Tensor::filled(x.shape(), |y| kernel::add_scaled(alpha, x.value().rows(), None, y))?;
    let kept = x.without_numbers();
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write_rows([Want::Set(&kept)], |[dx]| kernel::add_scaled(alpha, dy.rows(), None, dx))
    });
    Ok(y)
}

/// y = c tanh(x / c) (Gemma 2, arXiv 2408.00118, section 2); x itself if c is 0.
///
/// # Errors
/// If c is not 0 and x is not on the CPU.
pub fn soft_cap(x: &Var, c: f32) -> Result<Var> {
    if c == 0.0 { Ok(x.clone()) } else { scaled(&map(Function::Tanh, &scaled(x, 1.0 / c)?)?, c) }
}
