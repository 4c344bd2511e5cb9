//! Step sizes and decays of Mamba-2.

use elapid_kernels::{DType, View, step_sizes as kernel};
use kernel::{Args, Grads};

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// Δ = softplus(x + bias) between limits, and ΔA with A = -exp(`a_log`), both `[.. h]` in f32, of x `[.. h]`.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn step_sizes(x: &Var, bias: &Var, a_log: &Var, limits: (f32, f32)) -> Result<(Var, Var)> {
    fn args<'a>(x: &'a Var, bias: &'a Var, a_log: &'a Var, limits: (f32, f32)) -> Args<View<'a>> {
        Args { x: x.value().view(), bias: bias.value().view_flat(), a_log: a_log.value().view_flat(), limits }
    }
    let output = || Tensor::output(x.value().device(), DType::F32, x.shape());
    let (mut delta, mut decay) = (output()?, output()?);
    kernel::forward(args(x, bias, a_log, limits), delta.view_mut(), decay.view_mut())?;
    let (kept, bias_kept, a_log_kept) = (x.clone(), bias.clone(), a_log.clone());
    let [delta, decay] = record(&[x, bias, a_log], [delta, decay], move |grads, [delta, decay]| {
        let (ddelta, ddecay) = (grads.take_or_zeros(delta)?, grads.take_or_zeros(decay)?);
        let wants = [Want::Set(&kept), Want::add(Some(&bias_kept)), Want::add(Some(&a_log_kept))];
        grads.write(wants, |[dx, dbias, da_log]| {
            let Some(dx) = dx else { return Ok(()) };
            let args = args(&kept, &bias_kept, &a_log_kept, limits);
            kernel::backward(args, ddelta.view(), ddecay.view(), Grads { dx, dbias, da_log })
        })
    });
    Ok((delta, decay))
}
