//! Mamba-2 in bf16 on a GPU: all layers, the head and the choice of the most likely token in one launch, or of up to 128 rows in
//! three launches a layer.

use std::any::Any;
use std::sync::Arc;

use elapid_kernels::cuda::Buffer;
use elapid_kernels::mamba2_step::cuda as kernel;

use super::step::{FusedStep, plain_ends};
use crate::layers::mamba2::{Mamba2, Sizes};
use crate::lm::LanguageModel;
use crate::ops::GatePlace;
use crate::params::{ParamId, Params};
use crate::state::{LayerState, State};
use crate::{DType, Device, Result};

impl FusedStep for kernel::Step {
    fn launch(&self) -> Result<()> {
        Ok(kernel::Step::launch(self)?)
    }

    fn logits(&self) -> &Buffer {
        kernel::Step::logits(self)
    }

    fn launches(&self) -> u64 {
        kernel::Step::launches(self)
    }
}

/// The fused step of a model whose layers are all Mamba-2 blocks alike, without a gated MLP, biases of the projections, a
/// learned initial state or groups of the norm, in sizes that the kernel supports.
pub(super) fn plan(model: &LanguageModel, state: &State, ids: &Arc<Buffer>) -> Result<Option<Box<dyn FusedStep>>> {
    let (Device::Cuda(gpu), DType::Bf16) = (model.device(), model.dtype()) else { return Ok(None) };
    if !plain_ends(&model.config().stack.model) {
        return Ok(None);
    }
    let (b, v) = (state.rows(), model.config().padded_vocab_size());
    let mut sizes = None;
    let mut layers = Vec::with_capacity(model.stack().sublayers.len());
    for (i, sublayer) in model.stack().sublayers.iter().enumerate() {
        let Some(mamba) = (&*sublayer.layer as &dyn Any).downcast_ref::<Mamba2>() else { return Ok(None) };
        let Some(norm) = sublayer.plain_rms() else { return Ok(None) };
        let Some(dims) = dims(mamba, b, v, state.layer(i)) else { return Ok(None) };
        if *sizes.get_or_insert(dims) != dims {
            return Ok(None);
        }
        let Some(layer) = layer(mamba, model.params(), norm, state.layer(i)) else { return Ok(None) };
        layers.push(layer);
    }
    let Some(dims) = sizes.filter(|&dims| kernel::suits(&gpu, dims)) else { return Ok(None) };
    let Some(norm_f) = model.stack().norm_f.plain_rms() else { return Ok(None) };
    let value = |id| model.params().value(id);
    let whole = kernel::Model {
        layers,
        embedding: value(model.embedding()).mat(),
        norm: value(norm_f).flat(),
        head: value(model.head()).mat(),
        eps: model.config().stack.model.norm_eps,
    };
    Ok(Some(Box::new(kernel::Step::new(gpu, dims, &whole, ids)?)))
}

/// The sizes and settings of one layer, if the kernel supports them.
fn dims(mamba: &Mamba2, b: usize, v: usize, state: &LayerState) -> Option<kernel::Dims> {
    let Sizes { d_model: d, mlp, inner: ed, h, n, g, k, skip_per_channel } = mamba.sizes;
    let gate = match (mamba.norm.weight, mamba.norm.gate) {
        (None, _) => kernel::Gate::Plain,
        (Some(_), GatePlace::Before) => kernel::Gate::BeforeNorm,
        (Some(_), GatePlace::After) => kernel::Gate::AfterNorm,
    };
    let plain = mlp == 0
        && mamba.in_proj.bias().is_none()
        && mamba.out_proj.bias().is_none()
        && mamba.start.is_none()
        && (gate == kernel::Gate::Plain || mamba.norm.groups == 1);
    let (gate_eps, limits, state) = (mamba.norm.eps, mamba.limits, state.fixed(1).ok()?.value().dtype());
    plain.then_some(kernel::Dims { b, d, ed, h, n, g, k, v, skip_per_channel, gate, gate_eps, limits, state })
}

/// The weights and states of one layer.
fn layer<'a>(mamba: &Mamba2, params: &'a Params, norm: ParamId, state: &'a LayerState) -> Option<kernel::Layer<'a>> {
    let (conv_state, ssm_state) = (state.fixed(0).ok()?, state.fixed(1).ok()?);
    let matrix = |id: ParamId| params.value(id).mat();
    let vector = |id: ParamId| params.value(id).flat();
    Some(kernel::Layer {
        norm: vector(norm),
        in_proj: matrix(mamba.in_proj.weight()),
        conv: vector(mamba.conv1d.0),
        conv_bias: mamba.conv1d.1.map(vector),
        dt_bias: vector(mamba.dt_bias),
        a_log: vector(mamba.a_log),
        skip: vector(mamba.d),
        gated_norm: mamba.norm.weight.map(vector),
        out_proj: matrix(mamba.out_proj.weight()),
        conv_state: conv_state.value().flat(),
        ssm_state: ssm_state.value().flat(),
    })
}
