//! AdamW with gradient clipping over a model's parameters.

use elapid::params::{ParamGrads, Params};
use elapid_kernels::adamw;

use crate::{Error, Result};

/// What a step does; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Decoupled weight decay, of the parameters that have it.
    pub weight_decay: f32,
    /// Whether every parameter decays, A_log, D, biases and norms too.
    pub decay_all: bool,
    /// Largest norm of all gradients together; longer ones are scaled down. 0: no limit.
    pub clip: f32,
}

impl Default for Options {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, decay_all: false, clip: 1.0 }
    }
}

/// The optimiser's state: two means for every parameter, and the number of steps done.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// What a step does.
    pub options: Options,
    /// Steps done.
    pub step: u64,
    /// Mean of gradients, by parameter.
    pub(crate) m: Vec<Vec<f32>>,
    /// Mean of squared gradients, by parameter.
    pub(crate) v: Vec<Vec<f32>>,
}

impl AdamW {
    /// An optimiser that has done no step.
    pub fn new(params: &Params, options: Options) -> Self {
        let zeros = || params.iter().map(|(_, param)| vec![0.0; param.value.len()]).collect();
        Self { options, step: 0, m: zeros(), v: zeros() }
    }

    /// One step along `grads`; returns their norm before clipping.
    ///
    /// # Errors
    /// If a gradient is not finite; the parameter is named, and nothing was changed.
    pub fn step(&mut self, params: &mut Params, grads: &ParamGrads, lr: f32) -> Result<f64> {
        let norm = grads.iter().map(|(_, g)| adamw::norm_sq(g)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(non_finite(params, grads));
        }
        self.step += 1;
        let Options { beta1, beta2, eps, weight_decay, decay_all, clip } = self.options;
        let clipped = clip > 0.0 && norm > f64::from(clip);
        // As PyTorch's clip_grad_norm_ has it.
        let grad_scale = if clipped { (f64::from(clip) / (norm + 1e-6)) as f32 } else { 1.0 };
        for (((id, param), m), v) in params.iter_mut().zip(&mut self.m).zip(&mut self.v) {
            let Some(g) = grads.get(id) else { continue };
            let weight_decay = if decay_all || param.decay { weight_decay } else { 0.0 };
            let hyper = adamw::Hyper { lr, beta1, beta2, eps, weight_decay, step: self.step, grad_scale };
            adamw::step(&hyper, param.value.make_mut(), g, m, v).map_err(elapid::Error::from)?;
        }
        Ok(norm)
    }
}

fn non_finite(params: &Params, grads: &ParamGrads) -> Error {
    let found = grads.iter().find_map(|(id, g)| Some((id, adamw::first_non_finite(g)?)));
    let (what, place) = match found {
        Some((id, place)) => (format!("the gradient of {}", params.get(id).name), place),
        None => ("the norm of all gradients".to_owned(), 0),
    };
    elapid::Error::NonFinite { what, place }.into()
}
