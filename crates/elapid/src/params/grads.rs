//! The gradients of all parameters.

use std::collections::BTreeMap;
use std::sync::Arc;

use elapid_kernels::cuda::Buffer;

use super::param::ParamId;
use super::set::Params;
use crate::{DType, Result, Tensor};

/// Gradients of parameters, summed over backward passes until they are cleared.
#[derive(Debug, Default)]
pub struct ParamGrads {
    sums: BTreeMap<ParamId, Tensor>,
    /// On a GPU, the array of all of them, laid out as [`Flat`].
    flat: Option<Arc<Buffer>>,
}

impl ParamGrads {
    /// Zeros for every parameter that is trained of a model on a GPU; on the CPU they are made when they come.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn of(params: &Params) -> Result<Self> {
        let Some(flat) = params.flat() else { return Ok(Self::default()) };
        let zeros = Tensor::zeros_on(params.device(), DType::F32, &[flat.trained])?;
        let buffer = zeros.buffer().0.clone();
        let sums = params
            .iter()
            .zip(&flat.offsets)
            .filter(|((_, param), _)| param.traits.trainable)
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

    /// All gradients, by id, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParamId, &mut Tensor)> {
        self.sums.iter_mut().map(|(&id, sum)| (id, sum))
    }

    /// The array of all of them on a GPU.
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

    /// Another handle to the same memory, if it is on a GPU; else empty gradients.
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
            // Both handles share the same memory, so it was already added.
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
