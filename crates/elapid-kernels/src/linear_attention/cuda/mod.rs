//! On a GPU: bf16 on tensor cores, with keys to 128 and a decay of the head, or none (`tensor_forward.cu`, `tensor_backward.cu`), or with
//! any keys, decays and options (`keyed_forward.cu`, `keyed_backward.cu`) if values have a multiple of 16 columns; everything else by the
//! recurrence (`plain.cu`), which has any sizes.

mod keyed;
mod plain;
mod raw;
mod tensor;
mod walk;

use super::args::{Args, CHECK, Dims, Grads, Outputs};
use crate::DType;
use crate::cuda::{Buffer, Gpu, Mat, MatMut, Result, Unit};
use crate::error::product;

use raw::{Raw, Special, address};
use tensor::Form;

/// What the forward leaves for the backward.
#[derive(Debug)]
pub(in crate::linear_attention) struct Saved {
    kept: Kept,
    made_for: (Dims, bool),
    gpu: Gpu,
}

#[derive(Debug)]
enum Kept {
    Tensor(tensor::Saved),
    Keyed(keyed::Saved),
    Plain {
        /// States between segments; none where they are not needed.
        states: Option<Buffer>,
        /// `[b h l]` f32: what the normaliser divides by.
        divisors: Option<Buffer>,
    },
}

impl Saved {
    pub(super) fn bytes(&self) -> usize {
        match &self.kept {
            Kept::Tensor(saved) => saved.bytes(),
            Kept::Keyed(saved) => saved.bytes(),
            Kept::Plain { states, divisors } => [states, divisors].into_iter().flatten().map(Buffer::bytes).sum(),
        }
    }

    pub(super) fn made_for(&self) -> Dims {
        self.made_for.0
    }

    /// Whether a forward of these sizes left it, on this device.
    pub(super) fn is_for(&self, dims: Dims, normalised: bool, gpu: Gpu) -> bool {
        self.made_for == (dims, normalised) && self.gpu == gpu
    }
}

pub(super) fn forward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    y: MatMut<'_>,
    last: MatMut<'_>,
    keep: bool,
) -> Result<Option<Saved>> {
    let (gpu, special) = (y.gpu(), Special::new(args));
    let raw = Raw { y: y.raw(), last: last.address(), ..Raw::new(dims, args)? };
    // One position is less work for the recurrence.
    let tensor = y.as_mat().is_aligned() && (keep || dims.l > 1);
    let (form, keyed) = (Form::new(dims, args).filter(|_| tensor), keyed::Form::new(dims, args).filter(|_| tensor));
    let kept = match (form, keyed) {
        (Some(form), _) => Kept::Tensor(form.forward(gpu, raw)?),
        (_, Some(form)) => Kept::Keyed(form.forward(gpu, raw)?),
        _ => {
            let states = (keep && special.decay.0 > 0).then(|| plain::states(gpu, dims, special)).transpose()?;
            let divisors = (keep && special.normalised).then(|| plain::divisors(gpu, dims)).transpose()?;
            let raw = Raw { states: address(&states), divisors: address(&divisors), ..raw };
            plain::forward(gpu, dims, special, raw)?;
            Kept::Plain { states, divisors }
        }
    };
    Ok(keep.then_some(Saved { kept, made_for: (dims, special.normalised), gpu }))
}

pub(super) fn step(dims: Dims, args: &Args<Mat<'_>>, state: MatMut<'_>, y: MatMut<'_>) -> Result<()> {
    let (gpu, special) = (y.gpu(), Special::new(args));
    let raw = Raw { y: y.raw(), last: state.address(), initial: state.address(), ..Raw::new(dims, args)? };
    if !special.normalised {
        return plain::step(gpu, dims, special, raw);
    }
    // Every warp reads the normaliser's column, and one writes it.
    let len = state.as_mat().len();
    let before = gpu.alloc(product(&[len, 4]))?;
    gpu.copy(state.as_mat().flat(), before.mat_mut(1, len, DType::F32))?;
    plain::forward(gpu, dims, special, Raw { initial: before.address(), ..raw })
}

pub(super) fn backward(
    dims: Dims,
    args: &Args<Mat<'_>>,
    saved: &Saved,
    outputs: &Outputs<Mat<'_>>,
    grads: Grads<MatMut<'_>>,
) -> Result<()> {
    let special = Special::new(args);
    let raw = Raw::new(dims, args)?.with_gradients(outputs, &grads);
    let aligned = |written: &[Mat<'_>]| outputs.dy.is_aligned() && written.iter().all(Mat::is_aligned);
    let others = || CHECK.fault("saved", "rows at multiples of 16 bytes, as in the forward".into(), "others".into());
    match &saved.kept {
        Kept::Tensor(kept) => {
            let aligned = aligned(&[grads.dq.as_mat(), grads.dk.as_mat(), grads.dv.as_mat()]);
            let form = Form::new(dims, args).filter(|_| aligned).ok_or_else(others)?;
            form.backward(saved.gpu, raw, kept)
        }
        Kept::Keyed(kept) => {
            let form = keyed::Form::new(dims, args).filter(|_| aligned(&[grads.dv.as_mat()])).ok_or_else(others)?;
            form.backward(saved.gpu, raw, kept)
        }
        Kept::Plain { states, divisors } => {
            let raw = Raw { states: address(states), divisors: address(divisors), ..raw };
            let known = states.is_some() || special.decay.0 == 0;
            CHECK.that(known, "saved", || "what a forward with a decay left".into(), || "that of none".into())?;
            plain::backward(saved.gpu, dims, special, raw)
        }
    }
}

/// Specialisations of every kernel.
pub(crate) fn units() -> Vec<Unit> {
    [plain::units(), tensor::units(), keyed::units()].concat()
}
