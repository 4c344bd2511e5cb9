//! The linear recurrence with a diagonal matrix.

use elapid_kernels::{View, diagonal_scan as kernel};
pub use kernel::Field;
use kernel::{Args, DecayGrads, Dims, Grads, Outputs};

use super::place::state_after;
use crate::autograd::{Var, Want, record};
use crate::{Layout, Result, Tensor};

/// The factors of the state.
#[derive(Debug, Clone)]
pub enum Factors {
    /// One for all positions, `[p·d]` with p parts of a channel.
    Constant(Var),
    /// The logarithms, `[b l d]`, real.
    Logs(Var),
    /// The gates of an RG-LRU, `[b l d]` of r and of i before the sigmoid, and Λ `[d]`.
    RgLru(Box<[Var; 3]>),
}

/// The inputs of a scan.
#[derive(Debug, Clone)]
pub struct DiagonalScanArgs {
    /// Real or complex channels.
    pub field: Field,
    /// `[b l p·d]`; of complex channels all real parts, then all imaginary ones.
    pub x: Var,
    /// What the state is multiplied by.
    pub factors: Factors,
    /// The state before the first position, `[b p·d]`.
    pub initial: Var,
    /// Whether time runs backwards.
    pub reverse: bool,
    /// Whether a GPU may write the next state into the memory of `initial`, at a length of 1 and without gradients.
    pub in_place: bool,
}

impl Factors {
    fn vars(&self) -> Vec<&Var> {
        match self {
            Self::Constant(x) | Self::Logs(x) => vec![x],
            Self::RgLru(gates) => gates.iter().collect(),
        }
    }

    fn view(&self) -> kernel::Decay<View<'_>> {
        match self {
            Self::Constant(x) => kernel::Decay::Constant(x.value().view_flat()),
            Self::Logs(x) => kernel::Decay::Logs(x.value().view()),
            Self::RgLru(gates) => {
                let [recurrence, input, lambda] = &**gates;
                let (recurrence, input) = (recurrence.value().view(), input.value().view());
                kernel::Decay::RgLru(kernel::RgLru { recurrence, input, lambda: lambda.value().view_flat() })
            }
        }
    }
}

impl DiagonalScanArgs {
    fn view<'a>(&'a self, layout: &'a Layout) -> Args<View<'a>> {
        Args {
            field: self.field,
            x: self.x.value().view(),
            decay: self.factors.view(),
            initial: Some(self.initial.value().view_flat()),
            segments: layout.view(self.x.value().device()),
            reverse: self.reverse,
        }
    }
}

/// h_t = a_t h_{t-1} + x_t of every channel, see [`elapid_kernels::diagonal_scan`].
///
/// Returns h `[b l p·d]` and the state behind each row.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn diagonal_scan(args: DiagonalScanArgs, layout: &Layout) -> Result<(Var, Var)> {
    let dims = Dims { b: layout.b, l: layout.l, d: args.x.value().cols() / args.field.parts() };
    let mut inputs = args.factors.vars();
    inputs.extend([&args.x, &args.initial]);
    let recorded = inputs.iter().any(|x| x.wants_grad());
    let mut h = Tensor::output(args.x.value().device(), args.x.value().dtype(), args.x.shape())?;
    let mut last = state_after(&args.initial, dims.l, args.in_place, recorded)?;
    kernel::forward(dims, args.view(layout), h.view_mut(), last.view_mut())?;
    let (kept, layout, output) = (args.clone(), layout.clone(), h.clone());
    let [h, last] = record(&inputs, [h, last], move |grads, [h, last]| {
        let dlast = grads.take(last)?;
        let dh = grads.take_or_zeros(h)?;
        let [one, two, three] = match &kept.factors {
            Factors::Constant(x) => [Want::add(Some(x)), Want::Nothing, Want::Nothing],
            Factors::Logs(x) => [Want::set(Some(x)), Want::Nothing, Want::Nothing],
            Factors::RgLru(gates) => {
                let [recurrence, input, lambda] = &**gates;
                [Want::Set(recurrence), Want::Set(input), Want::Add(lambda)]
            }
        };
        let wants = [Want::Set(&kept.x), Want::set(Some(&kept.initial)), one, two, three];
        grads.write(wants, |[dx, dinitial, one, two, three]| {
            let Some(dx) = dx else { return Ok(()) };
            let decay = match (&kept.factors, one, two, three) {
                (Factors::Constant(_), Some(d), ..) => Some(DecayGrads::Constant(d)),
                (Factors::Logs(_), Some(d), ..) => Some(DecayGrads::Varying(d)),
                (Factors::RgLru(_), Some(drecurrence), Some(dinput), Some(dlambda)) => {
                    Some(DecayGrads::RgLru { drecurrence, dinput, dlambda })
                }
                _ => None,
            };
            let outputs = Outputs { h: output.view(), dh: dh.view(), dlast: dlast.as_ref().map(Tensor::view_flat) };
            kernel::backward(dims, kept.view(&layout), outputs, Grads { dx, decay, dinitial })
        })
    });
    Ok((h, last))
}
