//! Elementwise functions: y = β f(α x), y = β f(α x) z of two halves, y = α a + β b, y = x + c. Arithmetic is f32 in every
//! format; a result is rounded once.
//!
//! A result depends only on its own elements, whatever the shape and the number of threads.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
mod function;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::Check;
use crate::view::Shaped;
use crate::{View, ViewMut};

pub use function::{Function, Map};

const CHECK: Check = Check("pointwise");

/// y (=) = β f(α x), both `[m d]` of one format.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(f: impl Into<Map>, x: impl Into<View<'a>>, y: impl Into<ViewMut<'a>>) -> Result<()> {
    let (f, x, y) = (f.into(), x.into(), y.into());
    CHECK.matrix("y", &y, x.shape())?;
    CHECK.dtype("y", &y, x.dtype())?;
    match y {
        ViewMut::Host(y) => cpu::forward(f, CHECK.host("x", x)?, y),
        ViewMut::Device(y) => cuda::forward(f, CHECK.device("x", x, y.gpu())?, y)?,
    }
    Ok(())
}

/// dx (=) = α β f'(α x) dy, all `[m d]` of one format.
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    f: impl Into<Map>,
    x: impl Into<View<'a>>,
    dy: impl Into<View<'a>>,
    dx: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (f, x, dy, dx) = (f.into(), x.into(), dy.into(), dx.into());
    CHECK.matrix("dy", &dy, x.shape())?;
    CHECK.dtype("dy", &dy, x.dtype())?;
    CHECK.matrix("dx", &dx, x.shape())?;
    CHECK.dtype("dx", &dx, x.dtype())?;
    match dx {
        ViewMut::Host(dx) => cpu::backward(f, CHECK.host("x", x)?, CHECK.host("dy", dy)?, dx),
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            cuda::backward(f, CHECK.device("x", x, gpu)?, CHECK.device("dy", dy, gpu)?, dx)?;
        }
    }
    Ok(())
}

/// y (=) = β f(α x) z, all `[m d]` of one format: gated linear units (Shazeer 2020).
///
/// # Errors
/// As [`forward`].
pub fn glu_forward<'a>(
    f: impl Into<Map>,
    x: impl Into<View<'a>>,
    z: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (f, x, z, y) = (f.into(), x.into(), z.into(), y.into());
    like("z", &z, &x)?;
    like("y", &y, &x)?;
    match y {
        ViewMut::Host(y) => cpu::glu_forward(f, CHECK.host("x", x)?, CHECK.host("z", z)?, y),
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::glu_forward(f, CHECK.device("x", x, gpu)?, CHECK.device("z", z, gpu)?, y)?;
        }
    }
    Ok(())
}

/// dx (=) and dz (=) of [`glu_forward`], from x, z and dy, all `[m d]` of one format.
///
/// # Errors
/// As [`forward`].
pub fn glu_backward<'a>(
    f: impl Into<Map>,
    [x, z]: [View<'a>; 2],
    dy: impl Into<View<'a>>,
    [dx, dz]: [ViewMut<'a>; 2],
) -> Result<()> {
    let (f, dy) = (f.into(), dy.into());
    like("z", &z, &x)?;
    like("dy", &dy, &x)?;
    like("dx", &dx, &x)?;
    like("dz", &dz, &x)?;
    match dx {
        ViewMut::Host(dx) => {
            let (x, z, dy) = (CHECK.host("x", x)?, CHECK.host("z", z)?, CHECK.host("dy", dy)?);
            cpu::glu_backward(f, x, z, dy, dx, CHECK.host_mut("dz", dz)?);
        }
        ViewMut::Device(dx) => {
            let gpu = dx.gpu();
            let on = |name, m| CHECK.device(name, m, gpu);
            cuda::glu_backward(f, [on("x", x)?, on("z", z)?, on("dy", dy)?], dx, CHECK.device_mut("dz", dz, gpu)?)?;
        }
    }
    Ok(())
}

/// A matrix of the shape and format of another.
fn like(name: &'static str, m: &impl Shaped, x: &View<'_>) -> crate::error::Result<()> {
    CHECK.matrix(name, m, x.shape())?;
    CHECK.dtype(name, m, x.dtype())
}

/// y (=) = α a + β b, all `[m d]` of any formats; without b, α a. If α and β are 1 it is exactly the plain sum, rounded to
/// the format of y. Without b and with α = 1 it converts.
///
/// # Errors
/// If shapes or devices differ, or a device failed.
pub fn add_scaled<'a>(
    alpha: f32,
    a: impl Into<View<'a>>,
    b: Option<(f32, View<'a>)>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    sum(alpha, a.into(), b, 0.0, y.into())
}

/// y (=) = x + c, both `[m d]` of any formats.
///
/// # Errors
/// As [`add_scaled`].
pub fn add_constant<'a>(x: impl Into<View<'a>>, c: f32, y: impl Into<ViewMut<'a>>) -> Result<()> {
    sum(1.0, x.into(), None, c, y.into())
}

fn sum(alpha: f32, a: View<'_>, b: Option<(f32, View<'_>)>, gamma: f32, y: ViewMut<'_>) -> Result<()> {
    CHECK.matrix("y", &y, a.shape())?;
    if let Some((_, b)) = &b {
        CHECK.matrix("b", b, a.shape())?;
    }
    match y {
        ViewMut::Host(y) => {
            let b = b.map(|(beta, b)| Ok::<_, crate::Error>((beta, CHECK.host("b", b)?))).transpose()?;
            cpu::add_scaled(alpha, CHECK.host("a", a)?, b, gamma, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let b = b.map(|(beta, b)| Ok::<_, crate::Error>((beta, CHECK.device("b", b, gpu)?))).transpose()?;
            cuda::add_scaled(alpha, CHECK.device("a", a, gpu)?, b, gamma, y)?;
        }
    }
    Ok(())
}
