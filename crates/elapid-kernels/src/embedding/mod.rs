//! Looking up rows of a table: y_r = E_{id_r}.
//!
//! Backward: dE_i += the sum of dy_r over r with id_r = i, in the order of r whatever the number of threads.

mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error::{self, Check};
use crate::view::Shaped;
use crate::{Array, DType, Isa, View, ViewMut};

const CHECK: Check = Check("embedding");

/// Writes the row of the table of every id.
///
/// `ids` `[m]`, `table` `[v d]`, `y` `[m d]` (=) of the format of the table. On a GPU the row of an id that is not in the
/// table is NaN: who puts ids there checks them first, by [`check_ids`].
///
/// # Errors
/// If shapes, formats or devices differ, on the CPU if an id is not below `v` (the error has the position and the id), or
/// if a device failed.
pub fn forward<'a>(
    ids: impl Into<Array<'a, u32>>,
    table: impl Into<View<'a>>,
    y: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (ids, table, y) = (ids.into(), table.into(), y.into());
    CHECK.matrix("y", &y, (ids.len(), table.shape().1))?;
    CHECK.dtype("y", &y, table.dtype())?;
    match y {
        ViewMut::Host(y) => {
            let (ids, table) = (CHECK.host_array("ids", ids)?, CHECK.host("table", table)?);
            check_ids(ids, table.rows())?;
            cpu::forward(ids, table, y);
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::forward(CHECK.device_array("ids", ids, gpu)?, CHECK.device("table", table, gpu)?, y)?;
        }
    }
    Ok(())
}

/// Adds the gradient of every looked-up row.
///
/// `ids` `[m]`, `dy` `[m d]`, `dtable` `[v d]` f32 (+=). On a GPU ids that are not in the table are left out.
///
/// # Errors
/// As [`forward`], or if there is too little memory.
pub fn backward<'a>(
    ids: impl Into<Array<'a, u32>>,
    dy: impl Into<View<'a>>,
    dtable: impl Into<ViewMut<'a>>,
) -> Result<()> {
    let (ids, dy, dtable) = (ids.into(), dy.into(), dtable.into());
    CHECK.matrix("dy", &dy, (ids.len(), dtable.shape().1))?;
    CHECK.dtype("dtable", &dtable, DType::F32)?;
    match dtable {
        ViewMut::Host(dtable) => {
            let (ids, dy) = (CHECK.host_array("ids", ids)?, CHECK.host("dy", dy)?);
            check_ids(ids, dtable.rows())?;
            cpu::backward(Isa::best(), ids, dy, dtable);
        }
        ViewMut::Device(dtable) => {
            let gpu = dtable.gpu();
            cuda::backward(CHECK.device_array("ids", ids, gpu)?, CHECK.device("dy", dy, gpu)?, dtable)?;
        }
    }
    Ok(())
}

/// Checks that every id is below `v`.
///
/// # Errors
/// If one is not; the error has the position and the id.
pub fn check_ids(ids: &[u32], v: usize) -> error::Result<()> {
    match ids.iter().position(|&id| id as usize >= v) {
        None => Ok(()),
        Some(at) => CHECK.that(false, "ids", || format!("ids below {v}"), || format!("{} at position {at}", ids[at])),
    }
}
