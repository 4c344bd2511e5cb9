//! Makes a model's parameters one after another: from a seed, from a checkpoint, or only counting them.

use elapid_kernels::packed::Packed;

use super::{Init, Param, ParamId, Params, Traits};
use crate::linear::Linear;
use crate::{Error, Result, Tensor};

/// A request for a parameter.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its full name in a checkpoint.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// How it is initialised in a new model.
    pub init: &'a Init,
}

/// Where parameters come from: drawn from a seed, or read from a checkpoint.
pub type Source<'a> = dyn FnMut(Wanted<'_>) -> Result<Vec<f32>> + 'a;

/// Where parameters in a stored form come from, before the source of numbers is asked; none for those that are numbers.
pub type Packing<'a> = dyn FnMut(Wanted<'_>) -> Result<Option<Packed>> + 'a;

/// Makes parameters under a name prefix, which [`scope`](Self::scope) extends.
pub struct ParamBuilder<'a> {
    params: &'a mut Params,
    /// None: parameters have only shapes and no memory.
    source: Option<&'a mut Source<'a>>,
    packing: Option<&'a mut Packing<'a>>,
    prefix: String,
    /// Whether existing names are reused.
    shared: bool,
    count: u64,
}

/// Whether a linear layer has a bias, and how it is initialised.
#[derive(Debug, Clone)]
pub enum Bias {
    /// None.
    No,
    /// One.
    Yes(Init),
}

impl Bias {
    /// A bias of zeros if `has`.
    pub fn zeros(has: bool) -> Self {
        if has { Self::Yes(Init::Constant(0.0)) } else { Self::No }
    }
}

impl<'a> ParamBuilder<'a> {
    /// A builder that appends to `params` what `source` returns.
    pub fn new(params: &'a mut Params, source: &'a mut Source<'a>) -> Self {
        Self { params, source: Some(source), packing: None, prefix: String::new(), shared: false, count: 0 }
    }

    /// The same, with what may be in a stored form from `packing`.
    #[must_use]
    pub fn packing(self, packing: &'a mut Packing<'a>) -> Self {
        Self { packing: Some(packing), ..self }
    }

    /// A builder that only checks sizes and counts elements, without memory: the values of its parameters cannot be read.
    pub fn counting(params: &'a mut Params) -> Self {
        Self { params, source: None, packing: None, prefix: String::new(), shared: false, count: 0 }
    }

    /// Elements of all parameters made so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Runs `make` with `name` and a dot appended to the prefix of names.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn scope<T>(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = self.prefix.len();
        self.prefix.push_str(name);
        self.prefix.push('.');
        let made = make(self);
        self.prefix.truncate(outer);
        made
    }

    /// Makes a parameter named `name` under the prefix.
    ///
    /// # Errors
    /// If the source has no such parameter, or the sizes multiply beyond what memory can address.
    pub fn param(&mut self, name: &str, shape: &[usize], init: &Init, traits: Traits) -> Result<ParamId> {
        let name = format!("{}{name}", self.prefix);
        let known = if self.shared { self.params.find(&name) } else { None };
        match known {
            None => self.make(name, shape, init, traits),
            Some(id) if self.params.get(id).value.shape() == shape => Ok(id),
            Some(id) => {
                let other = self.params.get(id).value.shape();
                Err(Error::Argument(format!("`{name}` is used with shapes {other:?} and {shape:?}")))
            }
        }
    }

    /// Runs `make` with the prefix `shared.NAME` instead. Parameters are made there once, and reused whenever they are
    /// requested again.
    ///
    /// # Errors
    /// Those of `make`; if a parameter is requested with another shape.
    pub fn shared_scope<T>(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.prefix, format!("shared.{name}."));
        let shared = std::mem::replace(&mut self.shared, true);
        let made = make(self);
        (self.prefix, self.shared) = (outer, shared);
        made
    }

    /// A linear layer `[n k]`: `name.weight` and optionally `name.bias`.
    ///
    /// # Errors
    /// As [`param`](Self::param).
    pub fn linear(&mut self, name: &str, [n, k]: [usize; 2], init: &Init, bias: Bias) -> Result<Linear> {
        let weight = self.param(&format!("{name}.weight"), &[n, k], init, Traits::PROJECTION)?;
        let bias = match bias {
            Bias::No => None,
            Bias::Yes(init) => Some(self.param(&format!("{name}.bias"), &[n], &init, Traits::VECTOR)?),
        };
        Ok(Linear::new(weight, bias))
    }

    fn make(&mut self, name: String, shape: &[usize], init: &Init, traits: Traits) -> Result<ParamId> {
        let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        let total = elements.and_then(|n| self.count.checked_add(n)).filter(|&n| n <= (isize::MAX as u64) / 4);
        self.count = total.ok_or_else(|| {
            Error::Argument(format!("parameter `{name}` of shape {shape:?}: more elements than memory can address; lower d_model, n_layer or the sizes of \
                 the layers"))
        })?;
        let wanted = Wanted { name: &name, shape, init };
        let packed = match &mut self.packing {
            Some(packing) if traits.packs => packing(wanted)?,
            _ => None,
        };
        let value = match &mut self.source {
            _ if packed.is_some() => packed.map_or_else(|| Tensor::outline(shape), Tensor::of_packed),
            None => Tensor::outline(shape),
            Some(source) => {
                let values = source(wanted)?;
                elapid_kernels::os::memory::use_huge_pages(&values);
                Tensor::new(values, shape)
            }
        };
        Ok(self.params.push(Param { name, value, traits, compute: None }))
    }
}
