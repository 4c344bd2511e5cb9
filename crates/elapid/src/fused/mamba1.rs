//! Mamba-1 in bf16 on a GPU: all layers, the head and the choice of the most likely token in one launch.

use std::any::Any;
use std::sync::Arc;

use elapid_kernels::cuda::Buffer;
use elapid_kernels::mamba1_step::cuda as kernel;
use elapid_kernels::selective_scan::Discretisation;

use super::step::{FusedStep, plain_ends};
use crate::layers::mamba1::{Mamba1, Source};
use crate::lm::LanguageModel;
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
        1
    }
}

/// The fused step of a model whose layers are all Mamba-1 blocks in the published form, in sizes that the kernel supports.
pub(super) fn plan(model: &LanguageModel, state: &State, ids: &Arc<Buffer>) -> Result<Option<Box<dyn FusedStep>>> {
    let (Device::Cuda(gpu), DType::Bf16) = (model.device(), model.dtype()) else { return Ok(None) };
    if !plain_ends(&model.config().stack.model) {
        return Ok(None);
    }
    let (b, v) = (state.rows(), model.config().padded_vocab_size());
    let mut sizes = None;
    let mut layers = Vec::with_capacity(model.stack().sublayers.len());
    for (i, sublayer) in model.stack().sublayers.iter().enumerate() {
        let Some(mamba) = (&*sublayer.layer as &dyn Any).downcast_ref::<Mamba1>() else { return Ok(None) };
        let Some(norm) = sublayer.plain_rms() else { return Ok(None) };
        let Some((own, layer)) = layer(mamba, model.params(), norm, state.layer(i)) else { return Ok(None) };
        let own = kernel::Dims { b, v, ..own };
        if *sizes.get_or_insert(own) != own {
            return Ok(None);
        }
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

/// The weights and states of one layer, if the kernel supports it; the sizes lack batch and vocabulary.
fn layer<'a>(
    mamba: &Mamba1,
    params: &'a Params,
    norm: ParamId,
    state: &'a LayerState,
) -> Option<(kernel::Dims, kernel::Layer<'a>)> {
    let plain = mamba.rule == Discretisation::ExpEuler
        && mamba.in_proj.bias().is_none()
        && mamba.out_proj.bias().is_none()
        && mamba.gate
        && mamba.inner_norm.is_none()
        && matches!((mamba.b, mamba.c), (Source::Columns(_), Source::Columns(_)));
    let (true, Some(x_proj), Some(dt_proj)) = (plain, &mamba.x_proj, &mamba.dt_proj) else { return None };
    let (conv_state, ssm_state) = (state.fixed(0).ok()?, state.fixed(1).ok()?);
    let matrix = |id: ParamId| params.value(id).mat();
    let vector = |id: ParamId| params.value(id).flat();
    let layer = kernel::Layer {
        norm: vector(norm),
        in_proj: matrix(mamba.in_proj.weight()),
        conv: vector(mamba.conv1d.0),
        conv_bias: mamba.conv1d.1.map(vector),
        x_proj: matrix(x_proj.weight()),
        dt_proj: matrix(dt_proj.weight()),
        dt_bias: vector(mamba.dt_bias),
        a_log: vector(mamba.a_log),
        skip: vector(mamba.d),
        out_proj: matrix(mamba.out_proj.weight()),
        conv_state: conv_state.value().flat(),
        ssm_state: ssm_state.value().flat(),
    };
    let dims = kernel::Dims {
        b: 0,
        d: mamba.d_model,
        ed: mamba.d_inner,
        n: mamba.d_state,
        r: mamba.dt_rank,
        k: mamba.d_conv,
        v: 0,
    };
    Some((dims, layer))
}
