//! Rows of a table.

use elapid_kernels::embedding as kernel;

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// The rows `ids` of `table` `[v d]`, as `[b l d]`.
///
/// # Errors
/// If an id is not in the table.
pub fn embedding(ids: &[u32], table: &Var, (b, l): (usize, usize)) -> Result<Var> {
    let shape = [b, l, table.value().cols()];
    let y = Tensor::filled(&shape, |y| kernel::forward(ids, table.value().rows(), y))?;
    let (kept, ids) = (table.clone(), ids.to_vec());
    let [y] = record(&[table], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y) else { return Ok(()) };
        grads.write([Want::Add(&kept)], |[dtable]| kernel::backward(&ids, dy.rows(), dtable))
    });
    Ok(y)
}
