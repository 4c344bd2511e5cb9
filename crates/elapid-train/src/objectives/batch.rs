//! The arrays of a batch, on the host or on a GPU.

use std::sync::Arc;

use elapid::ops::{Ids, Targets};
use elapid::{DType, Layout, Tensor};
use elapid_kernels::cuda::Buffer;

use crate::{Result, data};

/// The kind of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Token ids.
    U32,
    /// Targets; negative ones are ignored.
    I32,
    /// Real values.
    F32,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        4
    }
}

/// The description of an array in every batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArraySpec {
    /// The kind of its elements.
    pub name: &'static str,
    /// Its elements.
    pub kind: Kind,
    /// Its shape; the first dimension is the rows of the batch.
    pub shape: Vec<usize>,
}

impl ArraySpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One array of a batch.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "as `Kind`")]
pub enum Array {
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
}

impl Array {
    /// The kind of its elements.
    pub fn kind(&self) -> Kind {
        match self {
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U32(x) => x.len(),
            Self::I32(x) => x.len(),
            Self::F32(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The input of one forward pass in training.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Rows.
    pub b: usize,
    /// Positions per row.
    pub l: usize,
    /// `[b l]`: non-zero where the state is reset before that position. `None`: nowhere.
    pub resets: Option<Vec<u8>>,
    /// In the order of [`Objective::arrays`](super::Objective::arrays).
    pub arrays: Vec<Array>,
}

impl Batch {
    /// The layout of its positions.
    pub fn layout(&self) -> Layout {
        Layout { resets: self.resets.clone().map(Into::into), ..Layout::new(self.b, self.l) }
    }

    /// Positions over all rows.
    pub fn positions(&self) -> u64 {
        (self.b * self.l) as u64
    }

    /// Array `i` as token ids; empty if it is of another kind.
    pub fn ids(&self, i: usize) -> &[u32] {
        match self.arrays.get(i) {
            Some(Array::U32(ids)) => ids,
            _ => &[],
        }
    }
}

impl From<data::Batch> for Batch {
    /// Tokens, then targets.
    fn from(batch: data::Batch) -> Self {
        let data::Batch { tokens, targets, resets, b, l, .. } = batch;
        Self { b, l, resets, arrays: vec![Array::U32(tokens), Array::I32(targets)] }
    }
}

/// The arrays of a batch on the model's device.
#[derive(Debug)]
pub struct Inputs<'a> {
    specs: &'a [ArraySpec],
    arrays: Arrays<'a>,
}

#[derive(Debug)]
enum Arrays<'a> {
    Host(&'a [Array]),
    Device(&'a [Arc<Buffer>]),
}

impl<'a> Inputs<'a> {
    /// For a batch on the host.
    pub fn host(specs: &'a [ArraySpec], batch: &'a Batch) -> Self {
        Self { specs, arrays: Arrays::Host(&batch.arrays) }
    }

    /// For buffers on a GPU that hold or will hold a batch.
    pub fn device(specs: &'a [ArraySpec], buffers: &'a [Arc<Buffer>]) -> Self {
        Self { specs, arrays: Arrays::Device(buffers) }
    }

    /// Array `i` as token ids.
    ///
    /// # Errors
    /// If it is of another kind.
    pub fn ids(&self, i: usize) -> Result<Ids<'a>> {
        match self.arrays {
            Arrays::Host(arrays) => match arrays.get(i) {
                Some(Array::U32(ids)) => Ok(ids.into()),
                _ => Err(self.wrong(i, "token ids")),
            },
            Arrays::Device(_) => Ok(Ids::Device(self.buffer(i, Kind::U32, "token ids")?)),
        }
    }

    /// Array `i` as targets.
    ///
    /// # Errors
    /// If it is of another kind.
    pub fn targets(&self, i: usize) -> Result<Targets<'a>> {
        match self.arrays {
            Arrays::Host(arrays) => match arrays.get(i) {
                Some(Array::I32(targets)) => Ok(targets.into()),
                _ => Err(self.wrong(i, "targets")),
            },
            Arrays::Device(_) => Ok(Targets::on_device(self.buffer(i, Kind::I32, "targets")?)),
        }
    }

    /// Array `i` as a tensor of its shape, f32.
    ///
    /// # Errors
    /// If it is of another kind.
    pub fn tensor(&self, i: usize) -> Result<Tensor> {
        let wanted = "real values";
        let spec = self.specs.get(i).ok_or_else(|| self.wrong(i, wanted))?;
        match self.arrays {
            Arrays::Host(arrays) => match arrays.get(i) {
                Some(Array::F32(values)) => Ok(Tensor::new(values.clone(), &spec.shape)),
                _ => Err(self.wrong(i, wanted)),
            },
            Arrays::Device(_) => Ok(Tensor::part_of(self.buffer(i, Kind::F32, wanted)?, 0, DType::F32, &spec.shape)),
        }
    }

    fn buffer(&self, i: usize, kind: Kind, wanted: &str) -> Result<Arc<Buffer>> {
        match (&self.arrays, self.specs.get(i)) {
            (Arrays::Device(buffers), Some(spec)) if spec.kind == kind => {
                buffers.get(i).cloned().ok_or_else(|| self.wrong(i, wanted))
            }
            _ => Err(self.wrong(i, wanted)),
        }
    }

    fn wrong(&self, i: usize, wanted: &str) -> crate::Error {
        let place = if matches!(self.arrays, Arrays::Host(_)) { "the CPU" } else { "a GPU" };
        let got = self.specs.get(i).map_or_else(
            || format!("array {i}, which does not exist"),
            |spec| format!("`{}` of {:?} on {place}", spec.name, spec.kind),
        );
        crate::Error::Argument { argument: "batch", wanted: wanted.to_owned(), got }
    }
}
