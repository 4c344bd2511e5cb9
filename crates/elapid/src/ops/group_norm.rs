//! Normalisation of groups of channels, with a gate.

use elapid_kernels::reuse::List;
use elapid_kernels::{View, group_norm as kernel};
pub use kernel::Place as GatePlace;
use kernel::{Args, Gate, Grads};

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// What a norm of groups is.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// Multiplies by silu(z), `[.. d]`, before or after the norm.
    pub gate: Option<(Var, GatePlace)>,
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Whether the mean of a group is subtracted.
    pub centred: bool,
    /// `[d]`, or `[d/groups]` for all groups; none is 1.
    pub weight: Option<Var>,
    /// As the weight; none is 0.
    pub bias: Option<Var>,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl GroupNorm {
    fn args<'a>(&'a self, x: &'a Var) -> Args<View<'a>> {
        Args {
            x: x.value().view(),
            gate: self.gate.as_ref().map(|(z, place)| Gate { z: z.value().view(), place: *place }),
            groups: self.groups,
            centred: self.centred,
            weight: self.weight.as_ref().map(|x| x.value().view_flat()),
            bias: self.bias.as_ref().map(|x| x.value().view_flat()),
            eps: self.eps,
        }
    }
}

/// The norm of each group of x `[.. d]`.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn group_norm(x: &Var, norm: GroupNorm) -> Result<Var> {
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), x.shape())?;
    kernel::forward(norm.args(x), y.view_mut())?;
    let (x, inputs) = (x.clone(), norm.clone());
    let z = inputs.gate.as_ref().map(|(z, _)| z);
    let inputs: List<&Var> = [&x].into_iter().chain(z).chain(&inputs.weight).chain(&inputs.bias).collect();
    let kept = x.clone();
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let z = norm.gate.as_ref().map(|(z, _)| z);
        let wants = [Want::Set(&kept), Want::set(z), Want::add(norm.weight.as_ref()), Want::add(norm.bias.as_ref())];
        grads.write(wants, |[dx, dz, dweight, dbias]| {
            let Some(dx) = dx else { return Ok(()) };
            kernel::backward(norm.args(&kept), dy.view(), Grads { dx, dz, dweight, dbias })
        })
    });
    Ok(y)
}
