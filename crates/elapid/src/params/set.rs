//! All parameters of a model.

use std::collections::HashMap;
use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu};
use elapid_kernels::packed::{Form, Packed, Rounding};
use elapid_kernels::{OutOfMemory, Rows};

use super::param::{Param, ParamId};
use crate::{DType, Device, Result, Tensor};

/// The parameters of a model, in order of creation.
#[derive(Debug, Clone, Default)]
pub struct Params {
    entries: Vec<Param>,
    flat: Option<Flat>,
    dtype: DType,
}

/// Parameters in training on a GPU, in one array, so that one launch updates all.
#[derive(Debug, Clone)]
pub struct Flat {
    /// The f32 values, each parameter padded to a multiple of [`Flat::CHUNK`].
    pub values: Arc<Buffer>,
    /// The same in bf16, if operations read that.
    pub copy: Option<Arc<Buffer>>,
    /// Where each parameter starts: those that are trained in their order, then the others.
    pub offsets: Vec<usize>,
    /// Numbers that are trained, with padding. Gradients and the optimiser's means are laid out as these.
    pub trained: usize,
    /// All numbers, with padding.
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

    /// All parameters with their ids, mutable.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (ParamId, &mut Param)> {
        self.entries.iter_mut().enumerate().map(|(i, param)| (ParamId(i), param))
    }

    /// Number of values.
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

    /// The parameter of an id, mutable.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.entries[id.0]
    }

    /// Their device.
    pub fn device(&self) -> Device {
        self.entries.first().map_or(Device::Cpu, |param| param.value.device())
    }

    /// The dtype of activations that they are used with.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How they lie on a GPU; none on the CPU, and none without f32 numbers to train.
    pub fn flat(&self) -> Option<&Flat> {
        self.flat.as_ref()
    }

    /// The same parameters on a device, for activations of a dtype. With `trained`, a GPU keeps f32 values to train besides
    /// the copies that operations read; without, only those copies.
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

    /// The same parameters on the CPU, those that may be in another form in this one. For [`Rounding::Least`] the columns of
    /// some have `weights`.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn packed(&self, form: Form, weights: &HashMap<ParamId, Vec<f32>>) -> Result<Self> {
        let mut packed = self.to(Device::Cpu, DType::F32, false)?;
        for (i, param) in packed.entries.iter_mut().enumerate().filter(|(_, param)| param.traits.packs) {
            let shape = param.value.shape().to_vec();
            let numbers = Tensor::new(param.value.to_vec()?, &shape);
            let weights = weights.get(&ParamId(i)).map(Vec::as_slice);
            param.value = Tensor::of_packed(pack(form, numbers.rows(), weights)?);
        }
        Ok(packed)
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|param| param.compute().bytes() as u64).sum()
    }

    fn lay_flat(&mut self, entries: &[Param], gpu: Gpu) -> Result<()> {
        let (mut offsets, mut len) = (vec![0; entries.len()], 0usize);
        let mut place = |trainable: bool| {
            for (param, offset) in
                entries.iter().zip(&mut offsets).filter(|(param, _)| param.traits.trainable == trainable)
            {
                *offset = len;
                len += param.value.len().next_multiple_of(Flat::CHUNK);
            }
            len
        };
        let (trained, len) = (place(true), place(false));
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
        self.flat = Some(Flat { values, copy, offsets, trained, len });
        Ok(())
    }

    pub(super) fn push(&mut self, param: Param) -> ParamId {
        self.entries.push(param);
        ParamId(self.entries.len() - 1)
    }
}

/// A weight of a model in a form; with the mean squares of the columns that it is multiplied by, if they are known.
///
/// # Errors
/// If there is too little memory.
pub(crate) fn pack(form: Form, weight: Rows<'_>, squares: Option<&[f32]>) -> Result<Packed, OutOfMemory> {
    // Without them the search for a scale gains nothing (`docs/weights.md`).
    Packed::new(form, weight, squares.map_or(Rounding::Largest, |squares| Rounding::Least(Some(squares))))
}
