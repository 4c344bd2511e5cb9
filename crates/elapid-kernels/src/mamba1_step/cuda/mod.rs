//! On a GPU: kernels whose blocks are all resident and synchronise between stages. One is for several rows
//! (`mamba1_step.cu`), and one for a single row, which synchronises half as often (`one_row.cu`).

mod model;
mod one_row;
mod rows;

use std::sync::Arc;

use crate::cuda::{Buffer, Gpu, Held, Result, Unit};
use crate::error::product;
use crate::resident::launch;

use model::{CHECK, matrix, raw_layer, vector};
use one_row::OneRow;
use rows::Rows;

pub use model::{Dims, Layer, Model};

/// The step of a model, to be launched repeatedly.
///
/// It works on the memory that it was made with, and keeps it: the model's, the states' and the tokens'.
#[derive(Debug)]
pub struct Step {
    gpu: Gpu,
    form: Form,
    logits: Buffer,
    kept: Vec<Held>,
}

#[derive(Debug)]
enum Form {
    Rows(Rows),
    OneRow(OneRow),
}

/// Whether a model of these sizes is supported: up to 32 rows that fit into shared memory, in sizes that tensor cores divide
/// evenly.
pub fn suits(gpu: &Gpu, dims: Dims) -> bool {
    let Dims { b, d, ed, n, r, k, v } = dims;
    let whole = d.is_multiple_of(32) && ed.is_multiple_of(32) && r.is_multiple_of(8) && n.is_multiple_of(4);
    let some = [b, d, ed, n, r, k, v].iter().all(|&size| size > 0);
    let all = [&[2, ed, d][..], &[v, d], &[v, b], &[b, ed, n], &[b, ed, k], &[r, ed], &[r, 2, n]];
    let small = all.iter().all(|sizes| i32::try_from(product(sizes)).is_ok());
    whole && some && small && rows::suits(gpu, dims)
}

impl Step {
    /// Prepares the step; `ids` `[b]` u32 holds the tokens to read, and then the chosen ones.
    ///
    /// # Errors
    /// If sizes are not supported (see [`suits`]), shapes or dtypes differ, or there is too little memory.
    pub fn new(gpu: Gpu, dims: Dims, model: &Model<'_>, ids: &Arc<Buffer>) -> Result<Self> {
        let Dims { b, d, v, .. } = dims;
        CHECK.that(
            suits(&gpu, dims),
            "sizes",
            || "sizes that one launch can work on".into(),
            || format!("{dims:?}"),
        )?;
        CHECK.that(ids.bytes() >= 4 * b, "ids", || format!("{b} ids"), || (ids.bytes() / 4).to_string())?;
        for (name, m) in [("embedding", model.embedding), ("head", model.head)] {
            matrix(name, m, (v, d))?;
        }
        vector("norm", model.norm, d)?;
        let layers = model.layers.iter().map(|layer| raw_layer(dims, layer)).collect::<Result<Vec<_>>>()?;
        let logits = gpu.alloc(b * v * 4)?;
        let form = if one_row::suits(&gpu, layers.len(), dims) {
            Form::OneRow(OneRow::new(gpu, dims, model, layers, ids.address(), logits.address())?)
        } else {
            Form::Rows(Rows::new(gpu, dims, model, &layers, ids.address(), logits.address())?)
        };
        let scratch = match &form {
            Form::Rows(rows) => rows.scratch(),
            Form::OneRow(row) => row.scratch(),
        };
        let kept = model.memory().chain(scratch.iter().chain([ids.as_ref(), &logits]).map(Buffer::hold)).collect();
        Ok(Self { gpu, form, logits, kept })
    }

    /// Reads a token of every row, updates the states and chooses the most likely next tokens; does not wait. A row whose
    /// logits are NaN gets the largest u32.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self) -> Result<()> {
        // Its kernels have addresses from before the capture.
        if self.gpu.is_any_capturing() {
            self.kept.iter().for_each(Held::keep_in_capture);
        }
        match &self.form {
            Form::Rows(rows) => rows.launch(&self.gpu, launch(&self.gpu)),
            Form::OneRow(row) => row.launch(&self.gpu, launch(&self.gpu)),
        }
    }

    /// Logits `[b v]` f32 of the last launch.
    pub fn logits(&self) -> &Buffer {
        &self.logits
    }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [rows::units(), one_row::units()].concat()
}
