//! Linear attention with decay.

use elapid_kernels::reuse::List;
use elapid_kernels::{View, linear_attention as kernel};
use kernel::{Args, Dims, Grads, Outputs, Saved};

use super::place::state_after;
use crate::autograd::{Var, Want, record};
use crate::{Layout, Result, Tensor};

/// What the state is multiplied by at each position, as a logarithm.
#[derive(Debug, Clone)]
pub enum Decay {
    /// Nothing.
    None,
    /// A constant of each head, `[h]`.
    Head(Var),
    /// A value of each head and position, `[b l h]` in f32.
    HeadVarying(Var),
    /// A constant of each row of the state, `[h k]`.
    Key(Var),
    /// A value of each row of the state and position, `[b l h·k]`.
    KeyVarying(Var),
}

/// The inputs of linear attention.
#[derive(Debug, Clone)]
pub struct LinearAttentionArgs {
    /// `[b l g·k]`.
    pub q: Var,
    /// `[b l g·k]`.
    pub k: Var,
    /// `[b l h·v]`.
    pub v: Var,
    /// Heads of q and k, g.
    pub groups: usize,
    /// Heads of v, h.
    pub heads: usize,
    /// Factor of the products of queries.
    pub scale: f32,
    /// The decay.
    pub decay: Decay,
    /// The weight of what a position writes, `[b l h]` in f32.
    pub write: Option<Var>,
    /// With it a position reads the state before it, and its own write times this, `[h k]`.
    pub bonus: Option<Var>,
    /// The weight of v in the output, `[h]` or `[h·v]`.
    pub skip: Option<Var>,
    /// ε of the normaliser.
    pub normaliser: Option<f32>,
    /// The state before the first position, `[b h k v]`, with a normaliser `[b h k v+1]`.
    pub initial: Var,
    /// Whether a GPU may write the next state into the memory of `initial`, at a length of 1 and without gradients.
    pub in_place: bool,
}

impl Decay {
    fn var(&self) -> Option<&Var> {
        match self {
            Self::None => None,
            Self::Head(x) | Self::HeadVarying(x) | Self::Key(x) | Self::KeyVarying(x) => Some(x),
        }
    }

    fn view(&self) -> kernel::Decay<View<'_>> {
        match self {
            Self::None => kernel::Decay::None,
            Self::Head(x) => kernel::Decay::Head(x.value().view_flat()),
            Self::HeadVarying(x) => kernel::Decay::HeadVarying(x.value().view()),
            Self::Key(x) => kernel::Decay::Key(x.value().view_flat()),
            Self::KeyVarying(x) => kernel::Decay::KeyVarying(x.value().view()),
        }
    }

    /// Wants of the gradient of a varying decay, and of a constant one.
    fn wants(&self) -> [Want<'_>; 2] {
        match self {
            Self::None => [Want::Nothing, Want::Nothing],
            Self::HeadVarying(x) | Self::KeyVarying(x) => [Want::set(Some(x)), Want::Nothing],
            Self::Head(x) | Self::Key(x) => [Want::Nothing, Want::add(Some(x))],
        }
    }
}

impl LinearAttentionArgs {
    fn dims(&self, layout: &Layout) -> Dims {
        let (groups, heads) = (self.groups, self.heads);
        let (k, v) = (self.q.value().cols() / groups.max(1), self.v.value().cols() / heads.max(1));
        Dims { b: layout.b, l: layout.l, groups, heads, k, v }
    }

    fn inputs(&self) -> List<&Var> {
        let maybe = [self.decay.var(), self.write.as_ref(), self.bonus.as_ref(), self.skip.as_ref()];
        [&self.q, &self.k, &self.v, &self.initial].into_iter().chain(maybe.into_iter().flatten()).collect()
    }

    fn view<'a>(&'a self, layout: &'a Layout) -> Args<View<'a>> {
        Args {
            q: self.q.value().view(),
            k: self.k.value().view(),
            v: self.v.value().view(),
            scale: self.scale,
            decay: self.decay.view(),
            write: self.write.as_ref().map(|x| x.value().view()),
            bonus: self.bonus.as_ref().map(|x| x.value().view_flat()),
            skip: self.skip.as_ref().map(|x| x.value().view_flat()),
            normaliser: self.normaliser,
            initial: Some(self.initial.value().view_flat()),
            segments: layout.view(self.q.value().device()),
        }
    }
}

/// S_t = diag(g_t) S_{t-1} + w_t k_t v_tᵀ, y_t = scale S_tᵀ q_t + skip v_t, for each head; see
/// [`elapid_kernels::linear_attention`] for the bonus and the normaliser.
///
/// Returns y `[b l h·v]` and the state after the last position.
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn linear_attention(args: LinearAttentionArgs, layout: &Layout) -> Result<(Var, Var)> {
    let dims = args.dims(layout);
    let recorded = args.inputs().iter().any(|x| x.wants_grad());
    let mut y = Tensor::output(args.v.value().device(), args.v.value().dtype(), args.v.shape())?;
    if dims.l == 1 && !recorded && !layout.has_resets() {
        return step(dims, args, layout, y);
    }
    let mut saved = recorded.then(Saved::new);
    let mut last = state_after(&args.initial, dims.l, args.in_place, recorded)?;
    kernel::forward(dims, args.view(layout), y.view_mut(), last.view_mut(), saved.as_mut())?;
    let Some(saved) = saved else { return Ok((y.into(), last.into())) };
    let (layout, output, inputs) = (layout.clone(), y.clone(), args.clone());
    let [y, last] = record(&inputs.inputs(), [y, last], move |grads, [y, last]| {
        let dlast = grads.take(last)?;
        let dy = grads.take_or_zeros(y)?;
        let [varying, constant] = args.decay.wants();
        let wants = [
            Want::Set(&args.q),
            Want::Set(&args.k),
            Want::Set(&args.v),
            varying,
            constant,
            Want::set(args.write.as_ref()),
            Want::add(args.bonus.as_ref()),
            Want::add(args.skip.as_ref()),
            Want::set(Some(&args.initial)),
        ];
        grads.write(wants, |wanted| {
            let [Some(dq), Some(dk), Some(dv), ddecay, ddecay_constant, dwrite, dbonus, dskip, dinitial] = wanted
            else {
                return Ok(());
            };
            let grads = Grads { dq, dk, dv, ddecay, ddecay_constant, dwrite, dbonus, dskip, dinitial };
            let outputs = Outputs { y: output.view(), dy: dy.view(), dlast: dlast.as_ref().map(Tensor::view_flat) };
            kernel::backward(dims, args.view(&layout), &saved, outputs, grads)
        })
    });
    Ok((y, last))
}

/// One position, which advances the state in its own memory if nothing else has it.
fn step(dims: Dims, mut args: LinearAttentionArgs, layout: &Layout, mut y: Tensor) -> Result<(Var, Var)> {
    let before = args.initial.value().clone();
    let mut state = match before.device().copies_on_write() || args.in_place {
        true => before,
        false => {
            let mut state = Tensor::output(before.device(), before.dtype(), before.shape())?;
            elapid_kernels::pointwise::add_scaled(1.0, before.view(), None, state.view_mut())?;
            state
        }
    };
    // The last owner but `state`, if the caller has given its own away.
    args.initial = Tensor::new(Vec::new(), &[0]).into();
    let args = Args { initial: None, ..args.view(layout) };
    kernel::step(dims, args, state.view_mut(), y.view_mut())?;
    Ok((y.into(), state.into()))
}
