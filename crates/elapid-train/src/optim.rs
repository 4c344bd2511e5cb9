//! AdamW with gradient clipping over a model's parameters.

use std::sync::Arc;

use elapid::params::{Flat, Param, ParamGrads, Params};
use elapid::{DType, Device, Tensor};
use elapid_kernels::adamw;
use elapid_kernels::cuda::{Buffer, Gpu};

use crate::{Error, Result};

/// Settings of the optimiser; each step gets its learning rate separately.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Decoupled weight decay, for the parameters that have it.
    pub weight_decay: f32,
    /// Whether every parameter decays, including A_log, D, biases and norms.
    pub decay_all: bool,
    /// Largest global norm of the gradients; larger ones are scaled down. 0: no limit.
    pub clip: f32,
}

impl Default for Options {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, decay_all: false, clip: 1.0 }
    }
}

/// The optimiser's state: two moments per parameter, and the number of steps done.
#[derive(Debug)]
pub struct AdamW {
    /// The settings.
    pub options: Options,
    /// Steps done.
    pub step: u64,
    means: Means,
}

/// Means of gradients and of squared gradients.
#[derive(Debug)]
enum Means {
    /// By parameter.
    Cpu { m: Vec<Vec<f32>>, v: Vec<Vec<f32>> },
    /// One array, laid out as the parameters.
    Cuda(OnDevice),
}

#[derive(Debug)]
struct OnDevice {
    gpu: Gpu,
    m: Arc<Buffer>,
    v: Arc<Buffer>,
    /// One byte per [`Flat::CHUNK`] values: whether they decay.
    decay: Buffer,
    /// One factor of the learning rate for as many, if any is not 1.
    factors: Option<Buffer>,
    hyper: Buffer,
    /// The norm of the gradients, and 1 if it is finite.
    norm: Arc<Buffer>,
    /// Where the means of each parameter start; none if it is not trained.
    offsets: Vec<Option<usize>>,
    lens: Vec<usize>,
}

impl AdamW {
    /// An optimiser that has done no step.
    ///
    /// # Errors
    /// If a device has too little memory.
    pub fn new(params: &Params, options: Options) -> Result<Self> {
        let means = match (params.device(), params.flat()) {
            (Device::Cuda(gpu), Some(flat)) => Means::Cuda(OnDevice::new(gpu, params, flat, &options)?),
            _ => {
                let zeros = || -> elapid::Result<Vec<Vec<f32>>> {
                    params.iter().map(|(_, param)| Ok(elapid_kernels::zeros(param.value.len())?)).collect()
                };
                Means::Cpu { m: zeros()?, v: zeros()? }
            }
        };
        Ok(Self { options, step: 0, means })
    }

    /// Takes one step with `grads` and returns their norm before clipping. On a GPU this waits; [`enqueue`](Self::enqueue)
    /// does not.
    ///
    /// # Errors
    /// If a gradient is not finite; the error names the parameter, and nothing was changed.
    pub fn step(&mut self, params: &mut Params, grads: &ParamGrads, lr: f32) -> Result<f64> {
        if let Means::Cuda(device) = &self.means {
            let (gpu, norm) = (device.gpu, device.norm.clone());
            self.enqueue(params, grads, lr)?;
            let found: Vec<f32> = gpu.download(&norm, 0, 2).map_err(elapid::Error::from)?;
            return if found[1] == 1.0 { Ok(f64::from(found[0])) } else { Err(non_finite(params, grads)) };
        }
        self.step_cpu(params, grads, lr)
    }

    /// Submits one step with `grads` to a GPU, without waiting. If the norm of the gradients is not finite, nothing is
    /// changed, and [`norm`](Self::norm) reports it.
    ///
    /// # Errors
    /// If the parameters or gradients are not those of a model in training on a GPU.
    pub fn enqueue(&mut self, params: &Params, grads: &ParamGrads, lr: f32) -> Result<()> {
        let (Means::Cuda(device), Some(flat), Some(g)) = (&self.means, params.flat(), grads.flat()) else {
            return Err(elapid::Error::Argument("wanted parameters and gradients on a GPU".into()).into());
        };
        self.step += 1;
        let Options { beta1, beta2, eps, weight_decay, clip, .. } = self.options;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.step as f64)) as f32;
        let hyper = [lr, beta1, beta2, eps, weight_decay, clip, correction(beta1), correction(beta2)];
        device.step(flat, g, &hyper).map_err(|error| elapid::Error::from(error).into())
    }

    /// On a GPU: the norm of the last step's gradients before clipping, and 1 if it was finite, else 0; `[2]`, f32.
    pub fn norm(&self) -> Option<&Arc<Buffer>> {
        match &self.means {
            Means::Cpu { .. } => None,
            Means::Cuda(device) => Some(&device.norm),
        }
    }

    /// On a GPU: both means, laid out as the parameters.
    pub(crate) fn means_on_device(&self) -> Option<[&Arc<Buffer>; 2]> {
        match &self.means {
            Means::Cpu { .. } => None,
            Means::Cuda(device) => Some([&device.m, &device.v]),
        }
    }

    /// Both means of every parameter.
    ///
    /// # Errors
    /// If a device failed.
    pub(crate) fn means(&self) -> Result<Vec<[Vec<f32>; 2]>> {
        match &self.means {
            Means::Cpu { m, v } => Ok(m.iter().zip(v).map(|(m, v)| [m.clone(), v.clone()]).collect()),
            Means::Cuda(device) => (device.offsets.iter().zip(&device.lens))
                .map(|(&at, &len)| {
                    let Some(at) = at else { return Ok([vec![0.0; len], vec![0.0; len]]) };
                    let part = |buffer: &Buffer| device.gpu.download(buffer, at, len).map_err(elapid::Error::from);
                    Ok([part(&device.m)?, part(&device.v)?])
                })
                .collect(),
        }
    }

    /// Sets both means of the parameter at `index`.
    ///
    /// # Errors
    /// If a device failed.
    pub(crate) fn set_means(&mut self, index: usize, means: [Vec<f32>; 2]) -> elapid::Result<()> {
        match &mut self.means {
            Means::Cpu { m, v } => [m[index], v[index]] = means,
            Means::Cuda(device) => {
                let Some(at) = device.offsets[index] else { return Ok(()) };
                for (buffer, mean) in [&device.m, &device.v].into_iter().zip(&means) {
                    device.gpu.write(buffer, at, mean)?;
                }
            }
        }
        Ok(())
    }

    fn step_cpu(&mut self, params: &mut Params, grads: &ParamGrads, lr: f32) -> Result<f64> {
        let Means::Cpu { m, v } = &mut self.means else { unreachable!("a GPU's step was taken before") };
        let norm = grads.iter().map(|(_, g)| adamw::norm_sq(g.as_slice())).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(non_finite(params, grads));
        }
        self.step += 1;
        let Options { beta1, beta2, eps, weight_decay, decay_all, clip } = self.options;
        let clipped = clip > 0.0 && norm > f64::from(clip);
        // As PyTorch's clip_grad_norm_ does.
        let grad_scale = if clipped { (f64::from(clip) / (norm + 1e-6)) as f32 } else { 1.0 };
        for (((id, param), m), v) in params.iter_mut().zip(m).zip(v) {
            // Rather than to trust that what is frozen has no gradient.
            let Some(g) = grads.get(id).filter(|_| param.traits.trainable) else { continue };
            let weight_decay = if decay_all || param.traits.decay { weight_decay } else { 0.0 };
            let lr = lr * param.traits.lr;
            let hyper = adamw::Hyper { lr, beta1, beta2, eps, weight_decay, step: self.step, grad_scale };
            adamw::step(&hyper, param.value.make_mut(), g.as_slice(), m, v).map_err(elapid::Error::from)?;
        }
        Ok(norm)
    }
}

impl OnDevice {
    fn new(gpu: Gpu, params: &Params, flat: &Flat, options: &Options) -> elapid::Result<Self> {
        let zeros = || -> elapid::Result<Arc<Buffer>> {
            Ok(Tensor::zeros_on(Device::Cuda(gpu), DType::F32, &[flat.trained])?.buffer().0.clone())
        };
        let chunks = flat.trained / Flat::CHUNK;
        let (mut decay, mut factors) = (vec![0u8; chunks], vec![1.0f32; chunks]);
        for ((_, param), &from) in params.iter().zip(&flat.offsets).filter(|((_, param), _)| param.traits.trainable) {
            let part = from / Flat::CHUNK..(from + param.value.len()).div_ceil(Flat::CHUNK);
            decay[part.clone()].fill(u8::from(options.decay_all || param.traits.decay));
            factors[part].fill(param.traits.lr);
        }
        let plain = factors.iter().all(|factor| *factor == 1.0);
        let place = |((_, param), &at): ((_, &Param), &usize)| param.traits.trainable.then_some(at);
        Ok(Self {
            gpu,
            m: zeros()?,
            v: zeros()?,
            decay: gpu.upload(&decay)?,
            factors: if plain { None } else { Some(gpu.upload(&factors)?) },
            hyper: gpu.alloc(8 * size_of::<f32>())?,
            norm: Arc::new(gpu.upload(&[0.0f32, 1.0])?),
            offsets: params.iter().zip(&flat.offsets).map(place).collect(),
            lens: params.iter().map(|(_, param)| param.value.len()).collect(),
        })
    }

    fn step(&self, flat: &Flat, g: &Buffer, hyper: &[f32; 8]) -> elapid_kernels::cuda::Result<()> {
        self.gpu.write(&self.hyper, 0, hyper)?;
        adamw::cuda::norm(&self.gpu, g, flat.trained, &self.norm)?;
        let arrays = adamw::cuda::Flat {
            w: &flat.values,
            g,
            m: &self.m,
            v: &self.v,
            copy: flat.copy.as_deref(),
            decay: &self.decay,
            factors: self.factors.as_ref(),
            count: flat.trained,
        };
        adamw::cuda::step(&self.gpu, arrays, &self.hyper, &self.norm)
    }
}

/// The error for gradients whose norm is not finite.
pub(crate) fn non_finite(params: &Params, grads: &ParamGrads) -> Error {
    let broken = |g: &Tensor| g.to_vec().ok().and_then(|g| adamw::first_non_finite(&g));
    let found = grads.iter().find_map(|(id, g)| Some((id, broken(g)?)));
    let (what, place) = match found {
        Some((id, place)) => (format!("the gradient of {}", params.get(id).name), place),
        None => ("the norm of all gradients".to_owned(), 0),
    };
    elapid::Error::NonFinite { what, place }.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use elapid::autograd::Tape;
    use elapid::{LanguageModel, Layout};

    use super::*;

    /// One step of a small model; the parameters before and after by name.
    fn stepped(change: impl Fn(&mut elapid::params::Param)) -> Vec<(String, Vec<f32>, Vec<f32>)> {
        let mut model = elapid::embedded::model().unwrap();
        model.params_mut().iter_mut().for_each(|(_, param)| change(param));
        let tape = Arc::new(Tape::new());
        let cx = model.training(&tape, Layout::new(1, 4));
        let state = model.zero_state(1).unwrap();
        let (loss, _) = model.loss(&cx, &[5, 6, 7, 8], &[6, 7, 8, 9], &state, false).unwrap();
        let mut grads = ParamGrads::of(model.params()).unwrap();
        tape.backward(&[(&loss.mean, 1.0)], &mut grads, &mut |_| Ok(())).unwrap();
        drop(cx);
        let values = |model: &LanguageModel| -> Vec<(String, Vec<f32>)> {
            model.params().iter().map(|(_, param)| (param.name.clone(), param.value.to_vec().unwrap())).collect()
        };
        let before = values(&model);
        let mut optimiser = AdamW::new(model.params(), Options { weight_decay: 0.0, ..Options::default() }).unwrap();
        optimiser.step(model.params_mut(), &grads, 1e-3).unwrap();
        before.into_iter().zip(values(&model)).map(|((name, before), (_, after))| (name, before, after)).collect()
    }

    #[test]
    fn a_parameter_has_a_factor_of_the_learning_rate_or_is_not_trained() {
        let plain = stepped(|_| ());
        let moved =
            |before: &[f32], after: &[f32]| -> f32 { before.iter().zip(after).map(|(b, a)| (b - a).abs()).sum() };
        assert!(plain.iter().all(|(_, before, after)| moved(before, after) > 0.0));
        let changed = stepped(|param| match &*param.name {
            name if name.ends_with(".A_log") => param.traits.lr = 0.5,
            name if name.ends_with("norm_f.weight") => param.traits.trainable = false,
            _ => {}
        });
        for ((name, before, after), (_, _, usual)) in changed.iter().zip(&plain) {
            let (got, whole) = (moved(before, after), moved(before, usual));
            match &**name {
                name if name.ends_with(".A_log") => assert!((got - 0.5 * whole).abs() < 0.01 * whole, "{name}"),
                name if name.ends_with("norm_f.weight") => assert_eq!(got, 0.0),
                name => assert!((got - whole).abs() < 0.01 * whole, "{name} {got} {whole}"),
            }
        }
    }
}
