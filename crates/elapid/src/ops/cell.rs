//! Recurrent cells.

pub use elapid_kernels::cell::Kind as CellKind;
use elapid_kernels::{View, cell as kernel};
use kernel::{Args, Dims, Grads, Outputs};

use crate::autograd::{Var, Want, record};
use crate::{DType, Layout, Result, Tensor};

/// The inputs of a cell.
#[derive(Debug, Clone)]
pub struct CellArgs {
    /// What it computes.
    pub kind: CellKind,
    /// Blocks of U.
    pub heads: usize,
    /// The gates' inputs, `[b l (gate d)]`.
    pub x: Var,
    /// U, `[(head gate d/heads) d/heads]` in any shape with that last dimension.
    pub recurrent: Var,
    /// Added to U h, `[(gate d)]`.
    pub bias: Option<Var>,
    /// The state before the first position, `[b s d]`.
    pub initial: Var,
}

impl CellArgs {
    fn dims(&self, layout: &Layout) -> Dims {
        let d = self.x.value().cols() / self.kind.gates();
        Dims { b: layout.b, l: layout.l, d, heads: self.heads }
    }

    fn inputs(&self) -> Vec<&Var> {
        [&self.x, &self.recurrent, &self.initial].into_iter().chain(self.bias.as_ref()).collect()
    }

    fn as_kernel<'a>(&'a self, layout: &'a Layout) -> Args<View<'a>> {
        Args {
            kind: self.kind,
            x: self.x.value().view(),
            recurrent: self.recurrent.value().view(),
            bias: self.bias.as_ref().map(|x| x.value().view_flat()),
            initial: Some(self.initial.value().view_flat()),
            segments: layout.view(self.x.value().device()),
        }
    }
}

/// h of every position `[b l d]`, and the state after the last one `[b s d]`; the equations are in
/// [`elapid_kernels::cell`].
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn cell(args: CellArgs, layout: &Layout) -> Result<(Var, Var)> {
    let dims = args.dims(layout);
    let (device, dtype) = (args.x.value().device(), args.x.value().dtype());
    let mut saved = args.inputs().iter().any(|x| x.wants_grad()).then(kernel::Saved::new);
    let mut shape = args.x.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = dims.d;
    let mut y = Tensor::output(device, dtype, &shape)?;
    let mut last = Tensor::output(device, DType::F32, args.initial.shape())?;
    kernel::forward(dims, args.as_kernel(layout), y.view_mut(), last.view_mut(), saved.as_mut())?;
    let Some(saved) = saved else { return Ok((y.into(), last.into())) };
    let (kept, layout, output) = (args.clone(), layout.clone(), y.clone());
    let [y, last] = record(&args.inputs(), [y, last], move |grads, [y, last]| {
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let wants = [
            Want::Set(&kept.x),
            Want::Add(&kept.recurrent),
            Want::add(kept.bias.as_ref()),
            Want::set(Some(&kept.initial)),
        ];
        grads.write(wants, |[dx, drecurrent, dbias, dinitial]| {
            let (Some(dx), Some(drecurrent)) = (dx, drecurrent) else { return Ok(()) };
            let outputs = Outputs { y: output.view(), dy: dy.view(), dlast: dlast.as_ref().map(Tensor::view) };
            let grads = Grads { dx, drecurrent, dbias, dinitial };
            kernel::backward(dims, kept.as_kernel(&layout), &saved, outputs, grads)
        })
    });
    Ok((y, last))
}
