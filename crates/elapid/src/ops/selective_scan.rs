//! The selective scan.

use elapid_kernels::reuse::List;
use elapid_kernels::{View, selective_scan as kernel};
use kernel::{Args, Dims, Discretisation, Grads, Outputs};

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
    /// Whether a GPU may write the next state into the memory of `initial`, at a length of 1 and without gradients.
    pub in_place: bool,
}

impl ScanArgs {
    fn dims(&self, layout: &Layout) -> Dims {
        Dims { b: layout.b, l: layout.l, d: self.u.value().cols(), n: self.a.value().cols() }
    }

    fn inputs(&self) -> List<&Var> {
        let always = [&self.u, &self.delta, &self.a, &self.b, &self.c, &self.initial];
        let maybe = [&self.delta_bias, &self.skip, &self.z];
        always.into_iter().chain(maybe.into_iter().filter_map(Option::as_ref)).collect()
    }

    fn saved(&self) -> SavedArgs {
        let [u, delta] = [&self.u, &self.delta].map(Var::saved);
        let args = Self { u: self.u.without_numbers(), delta: self.delta.without_numbers(), ..self.clone() };
        SavedArgs { u, delta, args }
    }

    fn as_kernel<'a>(&'a self, layout: &'a Layout) -> Args<View<'a>> {
        Args {
            u: self.u.value().view(),
            delta: self.delta.value().view(),
            delta_bias: self.delta_bias.as_ref().map(|x| x.value().view_flat()),
            softplus: true,
            a: self.a.value().view_flat(),
            b: self.b.value().view(),
            c: self.c.value().view(),
            skip: self.skip.as_ref().map(|x| x.value().view_flat()),
            z: self.z.as_ref().map(|x| x.value().view()),
            initial: Some(self.initial.value().view_flat()),
            segments: layout.view(self.u.value().device()),
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
    let dims = args.dims(layout);
    let recorded = args.inputs().iter().any(|x| x.wants_grad());
    let mut saved = recorded.then(kernel::Saved::new);
    let mut y = Tensor::output(args.u.value().device(), args.u.value().dtype(), args.u.shape())?;
    if dims.l == 1 && !recorded && y.device().copies_on_write() {
        return step(dims, args, layout, y);
    }
    let mut last = state_after(&args.initial, dims.l, args.in_place, recorded)?;
    kernel::forward(dims, args.as_kernel(layout), y.view_mut(), last.view_mut(), saved.as_mut())?;
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
            Want::set(Some(&args.initial)),
        ];
        grads.write(wants, |wanted| {
            let [Some(du), Some(ddelta), ddelta_bias, Some(da), Some(db), Some(dc), dskip, dz, dinitial] = wanted
            else {
                return Ok(());
            };
            let grads = Grads { du, ddelta, ddelta_bias, da, db, dc, dskip, dz, dinitial };
            let outputs = Outputs { y: output.view(), dy: dy.view(), dlast: dlast.as_ref().map(Tensor::view) };
            kernel::backward(dims, args.as_kernel(&layout), &saved, outputs, grads)
        })
    });
    Ok((y, last))
}

/// One position on the CPU, which advances the state in its own memory if nothing else has it.
fn step(dims: Dims, mut args: ScanArgs, layout: &Layout, mut y: Tensor) -> Result<(Var, Var)> {
    let mut state = args.initial.value().clone();
    // The last owner but `state`, if the caller has given its own away.
    args.initial = Tensor::new(Vec::new(), &[0]).into();
    let args = Args { initial: None, ..args.as_kernel(layout) };
    kernel::step(dims, args, state.view_mut(), y.view_mut())?;
    Ok((y.into(), state.into()))
}
