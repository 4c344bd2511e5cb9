//! The selective scan.

use elapid_kernels::cuda::Gpu;
use elapid_kernels::selective_scan as kernel;
use kernel::{Args, Dims, Discretisation};

use super::place::state_after;
use crate::autograd::{Saved, Var, Want, record};
use crate::{Layout, Result, Tensor};

/// The inputs of a selective scan; shapes as in Mamba, algorithm 2.
#[derive(Debug, Clone)]
pub struct ScanArgs {
    /// The input, `[b l d]`.
    pub u: Var,
    /// Δ before its bias and the softplus, `[b l d]`.
    pub delta: Var,
    /// Added to Δ before the softplus, `[d]`.
    pub delta_bias: Option<Var>,
    /// A, negative, `[d n]`.
    pub a: Var,
    /// B, `[b l n]`.
    pub b: Var,
    /// C, `[b l n]`.
    pub c: Var,
    /// D, `[d]`: the skip connection around the state.
    pub skip: Option<Var>,
    /// The gate, `[b l d]`: y is multiplied by silu(z).
    pub z: Option<Var>,
    /// The state before the first position, `[b d n]`.
    pub initial: Var,
    /// The discretisation.
    pub rule: Discretisation,
    /// Whether a GPU may update `initial` in place, at a length of 1 and without gradients.
    pub in_place: bool,
}

impl ScanArgs {
    fn dims(&self, layout: &Layout) -> Dims {
        Dims { b: layout.b, l: layout.l, d: self.u.value().cols(), n: self.a.value().cols() }
    }

    fn inputs(&self) -> Vec<&Var> {
        let always = [&self.u, &self.delta, &self.a, &self.b, &self.c, &self.initial];
        let maybe = [&self.delta_bias, &self.skip, &self.z];
        always.into_iter().chain(maybe.into_iter().filter_map(Option::as_ref)).collect()
    }

    fn saved(&self) -> SavedArgs {
        let [u, delta] = [&self.u, &self.delta].map(Var::saved);
        let args = Self { u: self.u.without_numbers(), delta: self.delta.without_numbers(), ..self.clone() };
        SavedArgs { u, delta, args }
    }

    fn as_device_kernel<'a>(&'a self, layout: &'a Layout) -> kernel::cuda::Args<'a> {
        kernel::cuda::Args {
            u: self.u.value().mat(),
            delta: self.delta.value().mat(),
            delta_bias: self.delta_bias.as_ref().map(|x| x.value().flat()),
            softplus: true,
            a: self.a.value().mat(),
            b: self.b.value().mat(),
            c: self.c.value().mat(),
            skip: self.skip.as_ref().map(|x| x.value().flat()),
            z: self.z.as_ref().map(|x| x.value().mat()),
            initial: Some(self.initial.value().mat()),
            segments: layout.device_segments(),
            rule: self.rule,
        }
    }

    fn as_kernel<'a>(&'a self, layout: &'a Layout) -> Args<'a> {
        Args {
            u: self.u.value().rows(),
            delta: self.delta.value().rows(),
            delta_bias: self.delta_bias.as_ref().map(|x| x.value().as_slice()),
            softplus: true,
            a: self.a.value().as_slice(),
            b: self.b.value().rows(),
            c: self.c.value().rows(),
            skip: self.skip.as_ref().map(|x| x.value().as_slice()),
            z: self.z.as_ref().map(|x| x.value().rows()),
            initial: Some(self.initial.value().as_slice()),
            segments: layout.segments(),
            rule: self.rule,
        }
    }
}

/// The inputs of the backward; the two that may be recomputed are separate.
struct SavedArgs {
    u: Saved,
    delta: Saved,
    args: ScanArgs,
}

impl SavedArgs {
    fn recall(self) -> Result<ScanArgs> {
        Ok(ScanArgs { u: self.u.recall()?, delta: self.delta.recall()?, ..self.args })
    }
}

/// h_t = Ā_t h_{t-1} + B̄_t u_t, y_t = (C_t h_t + D u_t) silu(z_t) (Mamba, equations 2a and 2b, with the gate fused).
///
/// Returns y `[b l d]` and the state after the last position `[b d n]`.
///
/// # Errors
/// If shapes do not fit.
pub fn selective_scan(args: ScanArgs, layout: &Layout) -> Result<(Var, Var)> {
    match args.u.value().gpu() {
        None => on_cpu(args, layout),
        Some(gpu) => on_cuda(gpu, args, layout),
    }
}

fn on_cuda(gpu: Gpu, args: ScanArgs, layout: &Layout) -> Result<(Var, Var)> {
    let dims = args.dims(layout);
    let recorded = args.inputs().iter().any(|x| x.wants_grad());
    let mut saved = None;
    let mut y = Tensor::uninit(gpu, args.u.value().dtype(), args.u.shape())?;
    let mut last = state_after(&args.initial, dims.l, args.in_place, recorded)?;
    let keep = recorded.then_some(&mut saved);
    kernel::cuda::forward(&gpu, dims, &args.as_device_kernel(layout), y.mat_mut(), last.mat_mut(), keep)?;
    let Some(saved) = saved else { return Ok((y.into(), last.into())) };
    let (kept, layout, output) = (args.saved(), layout.clone(), y.clone());
    let [y, last] = record(&args.inputs(), [y, last], move |grads, [y, last]| {
        let args = kept.recall()?;
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let wants = [
            Want::Set(&args.u),
            Want::Set(&args.delta),
            Want::add(args.delta_bias.as_ref()),
            Want::Add(&args.a),
            Want::Set(&args.b),
            Want::Set(&args.c),
            Want::add(args.skip.as_ref()),
            Want::set(args.z.as_ref()),
            Want::set(args.initial.wants_grad().then_some(&args.initial)),
        ];
        grads.write_cuda(wants, |wanted| {
            let [Some(du), Some(ddelta), ddelta_bias, Some(da), Some(db), Some(dc), dskip, dz, dinitial] = wanted
            else {
                return Ok(());
            };
            let grads = kernel::cuda::Grads { du, ddelta, ddelta_bias, da, db, dc, dskip, dz, dinitial };
            let outputs =
                kernel::cuda::Outputs { y: output.mat(), dy: dy.mat(), dlast: dlast.as_ref().map(Tensor::mat) };
            kernel::cuda::backward(&gpu, dims, &args.as_device_kernel(&layout), &saved, outputs, grads)
        })
    });
    Ok((y, last))
}

fn on_cpu(args: ScanArgs, layout: &Layout) -> Result<(Var, Var)> {
    let dims = args.dims(layout);
    let recorded = args.inputs().iter().any(|x| x.wants_grad());
    let mut saved = recorded.then(kernel::Saved::new);
    let mut last = elapid_kernels::zeros(args.initial.value().len())?;
    let y = Tensor::filled(args.u.shape(), |y| {
        kernel::forward(dims, &args.as_kernel(layout), y, &mut last, saved.as_mut())
    })?;
    let last = Tensor::new(last, args.initial.shape());
    let Some(saved) = saved else { return Ok((y.into(), last.into())) };
    let (kept, layout) = (args.saved(), layout.clone());
    let [y, last] = record(&args.inputs(), [y, last], move |grads, [y, last]| {
        let args = kept.recall()?;
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let wants = [
            Want::Set(&args.u),
            Want::Set(&args.delta),
            Want::add(args.delta_bias.as_ref()),
            Want::Add(&args.a),
            Want::Set(&args.b),
            Want::Set(&args.c),
            Want::add(args.skip.as_ref()),
            Want::set(args.z.as_ref()),
            Want::Set(&args.initial),
        ];
        grads.write_rows(wants, |[du, ddelta, ddelta_bias, da, db, dc, dskip, dz, dinitial]| {
            let grads = kernel::Grads {
                du,
                ddelta,
                ddelta_bias: args.delta_bias.is_some().then(|| ddelta_bias.into_slice()),
                da: da.into_slice(),
                db,
                dc,
                dskip: args.skip.is_some().then(|| dskip.into_slice()),
                dz: args.z.is_some().then_some(dz),
                dinitial: args.initial.wants_grad().then(|| dinitial.into_slice()),
            };
            let dlast = dlast.as_ref().map(Tensor::as_slice);
            kernel::backward(dims, &args.as_kernel(&layout), &saved, dy.rows(), dlast, grads)
        })
    });
    Ok((y, last))
}
