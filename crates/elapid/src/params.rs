//! Parameters: the numbers that training changes, apart from the structure that uses them.

use std::collections::BTreeMap;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Result, Tensor};

/// Names a parameter of a [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// Its numbers.
    pub value: Tensor,
    /// Whether weight decay applies to it.
    pub decay: bool,
}

/// The parameters of a model, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct Params {
    entries: Vec<Param>,
}

impl Params {
    /// The tensor of a parameter.
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.entries[id.0].value
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

    fn push(&mut self, param: Param) -> ParamId {
        self.entries.push(param);
        ParamId(self.entries.len() - 1)
    }
}

/// Gradients of parameters, summed over backward passes until they are cleared.
#[derive(Debug, Default)]
pub struct ParamGrads {
    sums: BTreeMap<ParamId, Vec<f32>>,
}

impl ParamGrads {
    /// The gradient of a parameter; none if nothing depended on it.
    pub fn get(&self, id: ParamId) -> Option<&[f32]> {
        self.sums.get(&id).map(Vec::as_slice)
    }

    /// All gradients, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &[f32])> {
        self.sums.iter().map(|(&id, sum)| (id, sum.as_slice()))
    }

    /// Sets every gradient to 0 and keeps the memory.
    pub fn zero(&mut self) {
        self.sums.values_mut().for_each(|sum| sum.fill(0.0));
    }

    pub(crate) fn take(&mut self, id: ParamId) -> Option<Vec<f32>> {
        self.sums.remove(&id)
    }

    pub(crate) fn put(&mut self, id: ParamId, sum: Vec<f32>) {
        self.sums.insert(id, sum);
    }

    pub(crate) fn merge(&mut self, other: ParamGrads) {
        for (id, more) in other.sums {
            match self.sums.get_mut(&id) {
                Some(sum) => sum.iter_mut().zip(more).for_each(|(sum, g)| *sum += g),
                None => self.put(id, more),
            }
        }
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
    pub fn numbers(self, name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
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
        (0..count).map(&mut draw).collect()
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
    source: &'a mut Source<'a>,
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
        Self { params, source }
    }

    /// Makes a parameter.
    ///
    /// # Errors
    /// If the source has no such numbers.
    pub fn param(&mut self, name: String, shape: &[usize], init: Init, decay: Decay) -> Result<ParamId> {
        let numbers = (self.source)(Wanted { name: &name, shape, init })?;
        elapid_kernels::use_huge_pages(&numbers);
        let value = Tensor::new(numbers, shape);
        Ok(self.params.push(Param { name, value, decay: decay == Decay::Yes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_have_their_range_and_spread() {
        let uniform = Init::Uniform(0.5).numbers("w", &[10_000], 1);
        assert!(uniform.iter().all(|x| x.abs() <= 0.5) && uniform.iter().any(|x| *x > 0.45));
        let normal = Init::Normal(0.02).numbers("w", &[100, 100], 1);
        let std = (normal.iter().map(|x| x * x).sum::<f32>() / 1e4).sqrt();
        assert!((std - 0.02).abs() < 5e-4, "{std}");
        assert_eq!(
            Init::LogArange.numbers("A_log", &[2, 3], 1),
            [0.0, 2f32.ln(), 3f32.ln(), 0.0, 2f32.ln(), 3f32.ln()]
        );
        let bias = Init::SoftplusInverseLogUniform { min: 1e-3, max: 0.1, floor: 1e-4 }.numbers("b", &[1000], 1);
        assert!(bias.iter().map(|b| b.exp().ln_1p()).all(|dt| (0.99e-3..0.101).contains(&dt)));
    }

    #[test]
    fn numbers_depend_on_seed_and_name_alone() {
        let draw = |name, seed| Init::Uniform(1.0).numbers(name, &[8], seed);
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("b", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
    }
}
