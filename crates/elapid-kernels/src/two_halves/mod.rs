//! Heads of two halves, for scores that depend on the key in one of two ways: head h of y has the columns of a's head, then those
//! of b's, or zeros in one of the places.
//!
//! Without positions both halves are there: a query. With them a row is a key: before position `border` of its document it has
//! the second half, from there on the first.

pub(crate) mod cuda;
mod halves;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::parallel::{grain, split};
use crate::view::Shaped;
use crate::{Array, View, ViewMut};

pub use halves::Halves;

const CHECK: Check = Check("two_halves");

/// y `[m h·2c]` (=) of a and b `[m h·c]`, all of one format.
///
/// # Errors
/// If shapes, formats or devices differ, or a device failed.
pub fn forward<'a>(
    halves: &Halves<'a>,
    a: impl Into<View<'a>>,
    b: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (a, b, y) = (a.into(), b.into(), y.into());
    check(halves, &a, &b, &y)?;
    match y {
        ViewMut::Host(y) => {
            let (a, b) = (CHECK.host("a", a)?, CHECK.host("b", b)?);
            let positions = halves.positions.map(|x| CHECK.host_array("positions", x)).transpose()?;
            let (m, d) = y.shape();
            split(m, grain(m, d, 1 << 16, 1), y, &|from, rows, y| {
                let positions = positions.map(|positions| &positions[from..from + rows]);
                naive::forward(halves.c, positions, halves.border, a.slice(from, rows), b.slice(from, rows), y);
            });
            Ok(())
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            let positions = halves.positions.map(|x| CHECK.device_array("positions", x, gpu)).transpose()?;
            let (a, b) = (CHECK.device("a", a, gpu)?, CHECK.device("b", b, gpu)?);
            cuda::run("forward", halves, positions, a, b, y.as_mat())
        }
    }
}

/// da and db (=) of dy, shapes as in [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward<'a>(
    halves: &Halves<'a>,
    dy: impl Into<View<'a>>,
    da: impl Into<ViewMut<'a>>,
    db: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (dy, da, db) = (dy.into(), da.into(), db.into());
    check(halves, &da, &db, &dy)?;
    match (da, db) {
        (ViewMut::Host(da), ViewMut::Host(db)) => {
            let dy = CHECK.host("dy", dy)?;
            let positions = halves.positions.map(|x| CHECK.host_array("positions", x)).transpose()?;
            let (m, d) = dy.shape();
            split(m, grain(m, d, 1 << 16, 1), (da, db), &|from, rows, (da, db)| {
                let positions = positions.map(|positions| &positions[from..from + rows]);
                naive::backward(halves.c, positions, halves.border, dy.slice(from, rows), da, db);
            });
            Ok(())
        }
        (ViewMut::Device(da), db) => {
            let gpu = da.gpu();
            let positions = halves.positions.map(|x| CHECK.device_array("positions", x, gpu)).transpose()?;
            let db = CHECK.device_mut("db", db, gpu)?;
            cuda::run("backward", halves, positions, da.as_mat(), db.as_mat(), CHECK.device("dy", dy, gpu)?)
        }
        (ViewMut::Host(_), ViewMut::Device(db)) => Ok(CHECK.wrong_place("db", None, Some(db.gpu()))?),
    }
}

fn check(halves: &Halves<'_>, a: &impl Shaped, b: &impl Shaped, y: &impl Shaped) -> error::Result<()> {
    let (m, cols) = a.shape();
    let whole = halves.c > 0 && cols.is_multiple_of(halves.c);
    CHECK.that(whole, "a", || format!("heads of {} columns", halves.c), || cols.to_string())?;
    CHECK.matrix("b", b, (m, cols))?;
    CHECK.dtype("b", b, a.dtype())?;
    CHECK.matrix("y", y, (m, 2 * cols))?;
    CHECK.dtype("y", y, a.dtype())?;
    match halves.positions {
        // On a GPU there may be more memory than positions.
        Some(Array::Host(positions)) => CHECK.len("positions", positions.len(), m),
        Some(Array::Device(buffer)) => {
            let enough = buffer.bytes() / 8 >= m;
            CHECK.that(enough, "positions", || format!("{m} positions"), || format!("{} bytes", buffer.bytes()))
        }
        None => Ok(()),
    }
}
