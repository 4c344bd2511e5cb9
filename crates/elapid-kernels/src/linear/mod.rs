//! The linear map y = x Wᵀ + bias, with W `[n k]` row-major as in PyTorch, and its gradients: dx = dy W (or += for an input
//! with other uses), dW += dyᵀ x, dbias += Σ_rows dy.
//!
//! [`forward`] is for training: the fastest product available. [`forward_invariant`] is for inference: every element is
//! summed in an order that depends only on `k`, so a row alone equals the row in a batch, and prefill equals decoding, bit
//! for bit.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub(crate) mod invariant;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::view::Shaped;
use crate::{DType, Isa, View, ViewMut};

const CHECK: Check = Check("linear");

/// y = x Wᵀ + bias. The order of sums may depend on the shapes, not on the number of threads.
///
/// `x` `[m k]` and `w` `[n k]` of one format, `bias` `[n]` f32, `y` `[m n]` (=) of that format or f32.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(
    x: impl Into<View<'a>>,
    w: impl Into<View<'a>>,
    bias: Option<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (x, w, y) = (x.into(), w.into(), y.into());
    check_forward(&x, &w, bias.as_ref(), &y)?;
    match y {
        ViewMut::Host(y) => {
            let (x, w, bias) = on_host(x, w, bias)?;
            cpu::forward(x, w, bias, y);
            Ok(())
        }
        ViewMut::Device(y) => forward_on_device(x, w, bias, y),
    }
}

/// y = x Wᵀ + bias, on the CPU each element summed in an order that depends on `k` and the instruction set only; on a GPU
/// as [`forward`].
///
/// Shapes and formats as in [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn forward_invariant<'a>(
    x: impl Into<View<'a>>,
    w: impl Into<View<'a>>,
    bias: Option<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (x, w, y) = (x.into(), w.into(), y.into());
    check_forward(&x, &w, bias.as_ref(), &y)?;
    match y {
        ViewMut::Host(y) => {
            let (x, w, bias) = on_host(x, w, bias)?;
            invariant::forward(Isa::best(), x, w, bias, y);
            Ok(())
        }
        ViewMut::Device(y) => forward_on_device(x, w, bias, y),
    }
}

fn check_forward(x: &View<'_>, w: &View<'_>, bias: Option<&View<'_>>, y: &ViewMut<'_>) -> error::Result<()> {
    let ((m, k), (n, _)) = (x.shape(), w.shape());
    CHECK.matrix("w", w, (n, k))?;
    CHECK.dtype("w", w, x.dtype())?;
    if let Some(bias) = bias {
        CHECK.flat("bias", bias, n)?;
    }
    CHECK.matrix("y", y, (m, n))?;
    if y.dtype() == DType::F32 { Ok(()) } else { CHECK.dtype("y", y, x.dtype()) }
}

/// x, w and the bias on the CPU.
type Host<'a> = (crate::Rows<'a>, crate::Rows<'a>, Option<&'a [f32]>);

fn on_host<'a>(x: View<'a>, w: View<'a>, bias: Option<View<'a>>) -> error::Result<Host<'a>> {
    let bias = bias.map(|bias| CHECK.host("bias", bias)).transpose()?;
    Ok((CHECK.host("x", x)?, CHECK.host("w", w)?, bias.map(|bias| bias.as_slice())))
}

fn forward_on_device(x: View<'_>, w: View<'_>, bias: Option<View<'_>>, y: crate::cuda::MatMut<'_>) -> Result<()> {
    let gpu = y.gpu();
    let bias = bias.map(|bias| CHECK.device("bias", bias, gpu)).transpose()?;
    cuda::forward(CHECK.device("x", x, gpu)?, CHECK.device("w", w, gpu)?, bias, y)
}

/// dx = dy W, or dx += dy W if it `adds`.
///
/// `dy` `[m n]` and `w` `[n k]` of one format, `dx` `[m k]` (=, or += rounded once) of that format or f32.
///
/// # Errors
/// As [`forward`].
pub fn backward_input<'a>(
    dy: impl Into<View<'a>>,
    w: impl Into<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
    adds: bool,
) -> Result<()> {
    let (dy, w, dx) = (dy.into(), w.into(), dx.into());
    let ((m, _), (n, k)) = (dy.shape(), w.shape());
    CHECK.matrix("dy", &dy, (m, n))?;
    CHECK.dtype("w", &w, dy.dtype())?;
    CHECK.matrix("dx", &dx, (m, k))?;
    if dx.dtype() != DType::F32 {
        CHECK.dtype("dx", &dx, dy.dtype())?;
    }
    match dx {
        ViewMut::Host(dx) => cpu::backward_input(CHECK.host("dy", dy)?, CHECK.host("w", w)?, dx, adds),
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::backward_input(CHECK.device("dy", dy, gpu)?, CHECK.device("w", w, gpu)?, dx, adds)?;
        }
    }
    Ok(())
}

/// dW += dyᵀ x.
///
/// `dy` `[m n]` and `x` `[m k]` of one format, `dw` `[n k]` (+=) of that format or f32.
///
/// # Errors
/// As [`forward`].
pub fn backward_weight<'a>(dy: impl Into<View<'a>>, x: impl Into<View<'a>>, dw: impl Into<ViewMut<'a>>) -> Result<()> {
    let (dy, x, dw) = (dy.into(), x.into(), dw.into());
    let ((m, k), (n, _)) = (x.shape(), dw.shape());
    CHECK.matrix("dy", &dy, (m, n))?;
    CHECK.dtype("x", &x, dy.dtype())?;
    CHECK.matrix("dw", &dw, (n, k))?;
    if dw.dtype() != DType::F32 {
        CHECK.dtype("dw", &dw, dy.dtype())?;
    }
    match dw {
        ViewMut::Host(dw) => cpu::backward_weight(CHECK.host("dy", dy)?, CHECK.host("x", x)?, dw),
        ViewMut::Device(dw) => {
            let gpu = dw.gpu();
            cuda::backward_weight(CHECK.device("dy", dy, gpu)?, CHECK.device("x", x, gpu)?, dw)?;
        }
    }
    Ok(())
}

/// db += Σ_rows dy.
///
/// `dy` `[m n]`, `db` `[n]` f32 (+=).
///
/// # Errors
/// As [`forward`], or if there is too little memory.
pub fn backward_bias<'a>(dy: impl Into<View<'a>>, db: impl Into<ViewMut<'a>>) -> Result<()> {
    let (dy, db) = (dy.into(), db.into());
    CHECK.flat("db", &db, dy.shape().1)?;
    match db {
        ViewMut::Host(db) => cpu::backward_bias(Isa::best(), CHECK.host("dy", dy)?, db.into_slice()),
        ViewMut::Device(db) => cuda::backward_bias(CHECK.device("dy", dy, db.gpu())?, db)?,
    }
    Ok(())
}
