//! Parameters: the numbers that training changes, apart from the structure that uses them.

use std::collections::BTreeMap;
use std::sync::Arc;

use elapid_kernels::cuda::{Buffer, Gpu};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{DType, Device, Result, Tensor};

/// Names a parameter of a [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its numbers; on a GPU the f32 ones that training changes.
    pub value: Tensor,
    /// Whether weight decay applies to it.
    pub decay: bool,
    /// What operations read where it is not `value`: a copy in the format of activations.
    compute: Option<Tensor>,
}

impl Param {
    /// Whether it is a weight of matrix products: those are read in the format of activations, all others in f32.
    fn is_matrix(&self) -> bool {
        self.decay && self.value.shape().len() == 2
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

/// How a new parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// The same number everywhere.
    Constant(f32),
    /// Uniform in ±bound.
    Uniform(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// ln 1, ln 2, … ln n in every row: A_log, so that A_n = -n (S4D-real).
    LogArange,
    /// softplus⁻¹(Δ) with Δ log-uniform in `min..max`, at least `floor`: the bias of dt_proj.
    SoftplusInverseLogUniform {
        /// Smallest Δ.
        min: f32,
        /// Largest Δ.
        max: f32,
        /// Δ is raised to this.
        floor: f32,
    },
}

impl Init {
    /// The numbers of a parameter. They depend on the seed and the name alone, so that a model's other parameters do
    /// not change when one is added.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn numbers(self, name: &str, shape: &[usize], seed: u64) -> Result<Vec<f32>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
        let count: usize = shape.iter().product();
        let n = shape.last().copied().unwrap_or(1);
        let mut draw = |i: usize| match self {
            Init::Constant(value) => value,
            Init::Uniform(bound) => (rng.random::<f32>() * 2.0 - 1.0) * bound,
            Init::Normal(std) => normal(&mut rng) * std,
            Init::LogArange => ((i % n + 1) as f32).ln(),
            Init::SoftplusInverseLogUniform { min, max, floor } => {
                let dt = (rng.random::<f32>() * (max.ln() - min.ln()) + min.ln()).exp().max(floor);
                dt + (-(-dt).exp_m1()).ln()
            }
        };
        let mut numbers = elapid_kernels::with_room(count)?;
        numbers.extend((0..count).map(&mut draw));
        Ok(numbers)
    }
}

/// One number of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

/// What a part of a model says of a parameter it needs.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its full name in a checkpoint.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// How it starts in a new model.
    pub init: Init,
}

/// Where parameters come from: drawn from a seed, or read from a checkpoint.
pub type Source<'a> = dyn FnMut(Wanted<'_>) -> Result<Vec<f32>> + 'a;

/// Makes a model's parameters, one after another, from where their numbers come from.
pub struct ParamBuilder<'a> {
    params: &'a mut Params,
    /// None: parameters have shapes alone.
    source: Option<&'a mut Source<'a>>,
}

/// Whether weight decay applies to a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// It does: matrices.
    Yes,
    /// It does not: A_log, D, biases, norms.
    No,
}

impl<'a> ParamBuilder<'a> {
    /// A builder that appends to `params`.
    pub fn new(params: &'a mut Params, source: &'a mut Source<'a>) -> Self {
        Self { params, source: Some(source) }
    }

    /// A builder that appends parameters without numbers.
    pub(crate) fn outline(params: &'a mut Params) -> Self {
        Self { params, source: None }
    }

    /// Makes a parameter.
    ///
    /// # Errors
    /// If the source has no such numbers.
    pub fn param(&mut self, name: String, shape: &[usize], init: Init, decay: Decay) -> Result<ParamId> {
        let value = match &mut self.source {
            None => Tensor::outline(shape),
            Some(source) => {
                let numbers = source(Wanted { name: &name, shape, init })?;
                elapid_kernels::use_huge_pages(&numbers);
                Tensor::new(numbers, shape)
            }
        };
        Ok(self.params.push(Param { name, value, decay: decay == Decay::Yes, compute: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_have_their_range_and_spread() {
        let uniform = Init::Uniform(0.5).numbers("w", &[10_000], 1).unwrap();
        assert!(uniform.iter().all(|x| x.abs() <= 0.5) && uniform.iter().any(|x| *x > 0.45));
        let normal = Init::Normal(0.02).numbers("w", &[100, 100], 1).unwrap();
        let std = (normal.iter().map(|x| x * x).sum::<f32>() / 1e4).sqrt();
        assert!((std - 0.02).abs() < 5e-4, "{std}");
        assert_eq!(
            Init::LogArange.numbers("A_log", &[2, 3], 1).unwrap(),
            [0.0, 2f32.ln(), 3f32.ln(), 0.0, 2f32.ln(), 3f32.ln()]
        );
        let bias =
            Init::SoftplusInverseLogUniform { min: 1e-3, max: 0.1, floor: 1e-4 }.numbers("b", &[1000], 1).unwrap();
        assert!(bias.iter().map(|b| b.exp().ln_1p()).all(|dt| (0.99e-3..0.101).contains(&dt)));
    }

    #[test]
    fn numbers_depend_on_seed_and_name_alone() {
        let draw = |name, seed| Init::Uniform(1.0).numbers(name, &[8], seed).unwrap();
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("b", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
    }
}
