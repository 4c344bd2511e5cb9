//! How mixers are put together: a pre-norm residual block.

use std::sync::Arc;

use crate::Result;
use crate::autograd::{Var, checkpoint};
use crate::mixer::{Cx, Mixer};
use crate::ops::add_norm;
use crate::params::ParamId;

/// r ← r + x, then x ← mixer(RMSNorm(r)): the sum that closes a block is the first thing the next one does.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) norm: ParamId,
    pub(crate) eps: f32,
    pub(crate) mixer: Arc<dyn Mixer>,
}

/// The two streams between blocks: the last mixer's output, and the sum of all before it.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) hidden: Var,
    pub(crate) residual: Option<Var>,
}

impl Block {
    pub(crate) fn forward(&self, cx: &Cx, stream: &Stream, state: &[Var]) -> Result<(Stream, Vec<Var>)> {
        let (x, residual) = add_norm(&stream.hidden, stream.residual.as_ref(), &cx.param(self.norm), self.eps)?;
        let (hidden, state) = self.mixer.forward(cx, &x, state)?;
        Ok((Stream { hidden, residual: Some(residual) }, state))
    }

    /// [`forward`](Self::forward), with everything between the streams computed again on the way back.
    pub(crate) fn forward_checkpointed(&self, cx: &Cx, stream: &Stream, state: &[Var]) -> Result<(Stream, Vec<Var>)> {
        let (block, cx) = (self.clone(), cx.clone());
        let mut inputs = vec![stream.hidden.clone()];
        inputs.extend(stream.residual.clone());
        inputs.extend(state.iter().cloned());
        let has_residual = stream.residual.is_some();
        let mut outputs = checkpoint(&inputs, move |tape, inputs| {
            let mut inputs = inputs.into_iter();
            let stream = Stream {
                hidden: inputs.next().ok_or_else(|| crate::Error::Argument("a block without input".into()))?,
                residual: if has_residual { inputs.next() } else { None },
            };
            let state: Vec<Var> = inputs.collect();
            let (stream, state) = block.forward(&cx.on(tape), &stream, &state)?;
            Ok([stream.hidden].into_iter().chain(stream.residual).chain(state).collect())
        })?
        .into_iter();
        let hidden = outputs.next().ok_or_else(|| crate::Error::Argument("a block without output".into()))?;
        Ok((Stream { hidden, residual: outputs.next() }, outputs.collect()))
    }
}
