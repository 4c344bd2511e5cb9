//! Parameters: the values that training changes, separate from the structure that uses them.

mod builder;
mod init;

use std::collections::BTreeMap;
use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu};

pub use builder::{Bias, ParamBuilder, Source, Wanted};
pub use init::{Draw, Init};

use crate::{DType, Device, Result, Tensor};

/// Names a parameter of a [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its values; on a GPU the f32 ones that training changes.
    pub value: Tensor,
    /// How it is read, stored and trained.
    pub traits: Traits,
    /// What operations read where it is not `value`: a copy in the dtype of activations.
    compute: Option<Tensor>,
}

/// What operations do with a parameter: decides its dtype in memory and in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight of matrix products: read in the dtype of activations.
    Matrix,
    /// A table of rows that are looked up (or, tied, multiplied by): as a matrix.
    Table,
    /// Norms, biases, convolution taps: read in f32, saved in the dtype asked for.
    Vector,
    /// What a recurrence is sensitive to (`A_log`, `D`): f32 in memory and in every file.
    Precise,
    /// Saved with the model, never trained.
    Buffer,
}

/// How a parameter is read, stored and trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// What operations do with it.
    pub role: Role,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// Factor of the learning rate.
    pub lr: f32,
    /// Whether it is trained: a parameter that is not has no gradient and no optimiser state.
    pub trainable: bool,
}

impl Traits {
    /// A matrix, with weight decay.
    pub const MATRIX: Self = Self { role: Role::Matrix, decay: true, lr: 1.0, trainable: true };
    /// A table, with weight decay.
    pub const TABLE: Self = Self { role: Role::Table, ..Self::MATRIX };
    /// Read in f32, with weight decay: taps of a convolution.
    pub const TAPS: Self = Self { role: Role::Vector, ..Self::MATRIX };
    /// A norm or a bias, without weight decay.
    pub const VECTOR: Self = Self { role: Role::Vector, decay: false, ..Self::MATRIX };
    /// f32 everywhere, without weight decay.
    pub const PRECISE: Self = Self { role: Role::Precise, ..Self::VECTOR };
    /// Never trained.
    pub const BUFFER: Self = Self { role: Role::Buffer, trainable: false, ..Self::VECTOR };
}

impl Param {
    /// Whether operations read it in the dtype of activations; all others are read in f32.
    fn is_matrix(&self) -> bool {
        matches!(self.traits.role, Role::Matrix | Role::Table)
    }

    /// What operations read.
    pub fn compute(&self) -> &Tensor {
        self.compute.as_ref().unwrap_or(&self.value)
    }
}

/// The parameters of a model, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct Params {
    entries: Vec<Param>,
    flat: Option<Flat>,
    dtype: DType,
}

/// Parameters on a GPU that are trained: one after another in one array, so that one launch updates all.
#[derive(Debug, Clone)]
pub struct Flat {
    /// The f32 numbers, each parameter padded to a multiple of [`Flat::CHUNK`].
    pub values: Arc<Buffer>,
    /// The same in bf16, if operations read that.
    pub copy: Option<Arc<Buffer>>,
    /// Where each parameter starts.
    pub offsets: Vec<usize>,
    /// Numbers, with padding.
    pub len: usize,
}

impl Flat {
    /// A parameter starts at a multiple of this.
    pub const CHUNK: usize = 256;
}

impl Params {
    /// The tensor that operations read.
    pub fn value(&self, id: ParamId) -> &Tensor {
        self.entries[id.0].compute()
    }

    /// All parameters with their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.entries.iter().enumerate().map(|(i, param)| (ParamId(i), param))
    }

    /// All parameters with their ids, to change.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (ParamId, &mut Param)> {
        self.entries.iter_mut().enumerate().map(|(i, param)| (ParamId(i), param))
    }

    /// Number of numbers.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|param| param.value.len()).sum()
    }

    /// A parameter by its name in a checkpoint.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.entries.iter().position(|param| param.name == name).map(ParamId)
    }

    /// The parameter of an id.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.entries[id.0]
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.entries.first().map_or(Device::Cpu, |param| param.value.device())
    }

    /// The format of activations that they are read for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How they lie on a GPU; none on the processor, and none without f32 numbers to train.
    pub fn flat(&self) -> Option<&Flat> {
        self.flat.as_ref()
    }

    /// The same parameters on a device, for activations of a format. With `trained`, a GPU keeps f32 numbers to
    /// change beside the copies that operations read; without, those copies alone.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn to(&self, device: Device, dtype: DType, trained: bool) -> Result<Self> {
        let mut moved = Self { entries: Vec::with_capacity(self.entries.len()), flat: None, dtype };
        match device {
            Device::Cpu => {
                moved.dtype = DType::F32;
                for param in &self.entries {
                    let value = param.value.to(Device::Cpu, DType::F32)?;
                    moved.entries.push(Param { value, compute: None, ..param.clone() });
                }
            }
            Device::Cuda(_) if !trained => {
                for param in &self.entries {
                    let dtype = if param.is_matrix() { dtype } else { DType::F32 };
                    moved.entries.push(Param { value: param.value.to(device, dtype)?, compute: None, ..param.clone() });
                }
            }
            Device::Cuda(gpu) => moved.lay_flat(&self.entries, gpu)?,
        }
        Ok(moved)
    }

    fn lay_flat(&mut self, entries: &[Param], gpu: Gpu) -> Result<()> {
        let (mut offsets, mut len) = (Vec::with_capacity(entries.len()), 0usize);
        for param in entries {
            offsets.push(len);
            len += param.value.len().next_multiple_of(Flat::CHUNK);
        }
        let zeros = |dtype| Tensor::zeros_on(Device::Cuda(gpu), dtype, &[len]);
        let values = zeros(DType::F32)?.buffer().0.clone();
        let copy = match self.dtype {
            DType::F32 => None,
            DType::Bf16 => Some(zeros(DType::Bf16)?.buffer().0.clone()),
        };
        for (param, &offset) in entries.iter().zip(&offsets) {
            let shape = param.value.shape();
            gpu.write(&values, offset, &param.value.to_vec()?)?;
            let value = Tensor::part_of(values.clone(), offset, DType::F32, shape);
            let compute = match &copy {
                Some(copy) if param.is_matrix() => {
                    let mut part = Tensor::part_of(copy.clone(), offset, DType::Bf16, shape);
                    elapid_kernels::cuda::elementwise::convert(&gpu, value.mat(), part.mat_mut())?;
                    Some(part)
                }
                _ => None,
            };
            self.entries.push(Param { value, compute, ..param.clone() });
        }
        self.flat = Some(Flat { values, copy, offsets, len });
        Ok(())
    }

    fn push(&mut self, param: Param) -> ParamId {
        self.entries.push(param);
        ParamId(self.entries.len() - 1)
    }
}

/// Gradients of parameters, summed over backward passes until they are cleared.
#[derive(Debug, Default)]
pub struct ParamGrads {
    sums: BTreeMap<ParamId, Tensor>,
    /// On a GPU, the memory of all of them, laid out as [`Flat`].
    flat: Option<Arc<Buffer>>,
}

impl ParamGrads {
    /// Zeros for every parameter of a model that is trained on a GPU; on the processor they are made when they come.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn of(params: &Params) -> Result<Self> {
        let Some(flat) = params.flat() else { return Ok(Self::default()) };
        let zeros = Tensor::zeros_on(params.device(), DType::F32, &[flat.len])?;
        let buffer = zeros.buffer().0.clone();
        let sums = params
            .iter()
            .zip(&flat.offsets)
            .map(|((id, param), &at)| (id, Tensor::part_of(buffer.clone(), at, DType::F32, param.value.shape())))
            .collect();
        Ok(Self { sums, flat: Some(buffer) })
    }

    /// The gradient of a parameter; none if nothing depended on it.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.sums.get(&id)
    }

    /// All gradients, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.sums.iter().map(|(&id, sum)| (id, sum))
    }

    /// All gradients, by id, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Tensor)> {
        self.sums.iter_mut().map(|(&id, sum)| (id, sum))
    }

    /// The memory of all of them on a GPU.
    pub fn flat(&self) -> Option<&Arc<Buffer>> {
        self.flat.as_ref()
    }

    /// Sets every gradient to 0 and keeps the memory.
    ///
    /// # Errors
    /// If a device failed.
    pub fn zero(&mut self) -> Result<()> {
        if let Some(flat) = &self.flat {
            let len = flat.bytes() / DType::F32.bytes();
            return Ok(flat.gpu().zero(flat.mat_mut(1, len, DType::F32))?);
        }
        for sum in self.sums.values_mut() {
            match sum.gpu() {
                Some(gpu) => gpu.zero(sum.mat_mut())?,
                None => sum.make_mut().fill(0.0),
            }
        }
        Ok(())
    }

    /// The same memory under another name, if it is a GPU's; else nothing yet.
    pub(crate) fn alias(&self) -> Self {
        match &self.flat {
            Some(flat) => Self { sums: self.sums.clone(), flat: Some(flat.clone()) },
            None => Self::default(),
        }
    }

    pub(crate) fn take(&mut self, id: ParamId) -> Option<Tensor> {
        self.sums.remove(&id)
    }

    pub(crate) fn put(&mut self, id: ParamId, sum: Tensor) {
        let sum = match self.sums.get(&id) {
            Some(before) => sum.reshape(before.shape()),
            None => sum,
        };
        self.sums.insert(id, sum);
    }

    pub(crate) fn merge(&mut self, other: ParamGrads) -> Result<()> {
        if self.flat.is_some() {
            // Both names stand for the same memory: it was added there.
            return Ok(());
        }
        for (id, more) in other.sums {
            let Some(sum) = self.sums.get_mut(&id) else {
                self.put(id, more);
                continue;
            };
            match more.gpu() {
                Some(gpu) => elapid_kernels::cuda::elementwise::add(&gpu, more.mat(), sum.mat_mut())?,
                None => sum.make_mut().iter_mut().zip(more.as_slice()).for_each(|(sum, g)| *sum += g),
            }
        }
        Ok(())
    }
}
