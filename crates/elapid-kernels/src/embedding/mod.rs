//! Looking up rows of a table: y_r = E_{id_r}.
//!
//! Backward: dE_i += the sum of dy_r over r with id_r = i, in the order of r whatever the number of threads.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod naive;
#[cfg(test)]
mod tests;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut};

/// Writes the row of the table of every id.
///
/// `ids` `[m]`, `table` `[v d]`, `y` `[m d]` (=).
///
/// # Errors
/// If shapes differ, or an id is not below `v`; the error has the position and the id.
pub fn forward(ids: &[u32], table: Rows<'_>, y: RowsMut<'_>) -> Result<()> {
    let check = Check("embedding");
    check.shape("y", y.shape(), (ids.len(), table.cols()))?;
    check_ids(ids, table.rows())?;
    cpu::forward(ids, table, y);
    Ok(())
}

/// Adds the gradient of every looked-up row.
///
/// `ids` `[m]`, `dy` `[m d]`, `dtable` `[v d]` (+=).
///
/// # Errors
/// As [`forward`].
pub fn backward(ids: &[u32], dy: Rows<'_>, dtable: RowsMut<'_>) -> Result<()> {
    let check = Check("embedding");
    check.shape("dy", dy.shape(), (ids.len(), dtable.cols()))?;
    check_ids(ids, dtable.rows())?;
    cpu::backward(Isa::best(), ids, dy, dtable);
    Ok(())
}

/// Checks that every id is below `v`.
///
/// # Errors
/// If one is not; the error has the position and the id.
pub fn check_ids(ids: &[u32], v: usize) -> Result<()> {
    let check = Check("embedding");
    match ids.iter().position(|&id| id as usize >= v) {
        None => Ok(()),
        Some(at) => check.that(false, "ids", || format!("ids below {v}"), || format!("{} at position {at}", ids[at])),
    }
}
