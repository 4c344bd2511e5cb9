//! On a GPU: one row in one launch, by a kernel whose blocks are all resident and synchronise between stages (`one_row.cu`), and
//! several rows in three launches a layer.

mod model;
mod one_row;
mod rows;

use std::sync::Arc;

use crate::cuda::{Buffer, Gpu, Held, Result, Unit};

use model::{CHECK, matrix, vector};
use one_row::OneRow;
use rows::Rows;

pub use model::{Dims, Gate, Layer, Model};

/// The step of a model, to be launched repeatedly.
///
/// It works on the memory that it was made with, and keeps it: the model's, the states' and the token's.
#[derive(Debug)]
pub struct Step {
    gpu: Gpu,
    form: Form,
    logits: Buffer,
    kept: Vec<Held>,
}

#[derive(Debug)]
enum Form {
    OneRow(OneRow),
    Rows(Rows),
}

/// Whether a model of these sizes is supported: one row that fits into shared memory and registers, or up to 128 rows.
pub fn suits(gpu: &Gpu, dims: Dims) -> bool {
    dims.is_whole() && (one_row::suits(gpu, dims) || rows::suits(dims))
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
        let logits = gpu.alloc(b * v * 4)?;
        let ends = [ids.as_ref(), &logits].map(Buffer::hold);
        let form = if one_row::suits(&gpu, dims) {
            Form::OneRow(OneRow::new(gpu, dims, model, ids.address(), logits.address())?)
        } else {
            let kept = model.memory().chain(ends.clone());
            Form::Rows(Rows::new(gpu, dims, model, (ids, logits.address()), kept)?)
        };
        let scratch = match &form {
            Form::OneRow(row) => row.scratch(),
            Form::Rows(rows) => rows.scratch(),
        };
        let kept = model.memory().chain(ends).chain(scratch.iter().map(Buffer::hold)).collect();
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
            Form::OneRow(row) => row.launch(&self.gpu),
            Form::Rows(rows) => rows.launch(),
        }
    }

    /// Kernels that a step launches.
    pub fn launches(&self) -> u64 {
        match &self.form {
            Form::OneRow(_) => 1,
            Form::Rows(rows) => rows.launches(),
        }
    }

    /// Logits `[b v]` f32 of the last launch.
    pub fn logits(&self) -> &Buffer {
        &self.logits
    }
}

/// Every specialisation.
pub(crate) fn units() -> Vec<Unit> {
    [one_row::units(), rows::units()].concat()
}
