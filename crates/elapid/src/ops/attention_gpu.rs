//! Attention on a GPU: a chunk to itself, over earlier positions, and steps that read the cache in place.

use elapid_kernels::View;
use elapid_kernels::attention::{self as kernel, Args, Attention, Batch, Outputs, Saved, Together, paged};
use elapid_kernels::cuda::Gpu;

use crate::autograd::{Var, Want, record};
use crate::state::Cache;
use crate::{Device, Error, Layout, Result, Tensor};

/// As [`attention`](super::attention); on a tape without earlier positions.
pub(super) fn on_gpu(
    qkv: [&Var; 3],
    sinks: Option<&Var>,
    (past_k, past_v): (&Cache, &Cache),
    sizes: &Attention,
    layout: &Layout,
) -> Result<Var> {
    if let (Some((place, keys)), Some((_, values))) = (past_k.in_place(), past_v.in_place()) {
        let [q, k, v] = qkv.map(|x| x.value().mat());
        let y = output(qkv, sizes)?;
        let sinks = sinks.map(|x| x.value().flat());
        place.with([*keys, *values], |past| paged::step(sizes, [q, k, v], sinks, past, y.clone().mat_mut()))?;
        return Ok(y.into());
    }
    if past_k.is_empty() && past_v.is_empty() {
        return without_past(qkv, sinks, sizes, layout);
    }
    let Device::Cuda(gpu) = qkv[0].value().device() else {
        return Err(Error::Argument("attention on a GPU of values elsewhere".into()));
    };
    if qkv.into_iter().chain(sinks).any(|x| x.wants_grad()) {
        return Err(Error::Missing {
            op: "the gradient of attention over cached positions",
            device: Device::Cuda(gpu).to_string(),
        });
    }
    after_past(gpu, qkv, sinks, (past_k, past_v), sizes, layout)
}

fn output([q, _, v]: [&Var; 3], sizes: &Attention) -> Result<Tensor> {
    let mut shape = q.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = sizes.heads * v.value().cols() / sizes.kv_heads.max(1);
    Tensor::output(q.value().device(), q.value().dtype(), &shape)
}

/// Of a chunk to itself.
fn without_past(qkv: [&Var; 3], sinks: Option<&Var>, sizes: &Attention, layout: &Layout) -> Result<Var> {
    let inputs: Vec<&Var> = qkv.into_iter().chain(sinks).collect();
    let recorded = inputs.iter().any(|x| x.wants_grad());
    let mut saved = recorded.then(Saved::new);
    let mut y = output(qkv, sizes)?;
    kernel::forward(sizes, args(qkv, sinks, layout), y.view_mut(), saved.as_mut())?;
    let Some(saved) = saved else { return Ok(y.into()) };
    let (own, sinks) = (qkv.map(Var::clone), sinks.cloned());
    let (sizes, layout, output) = (sizes.clone(), layout.clone(), y.clone());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let [q, k, v] = &own;
        let wants = [Want::Set(q), Want::Set(k), Want::Set(v), Want::add(sinks.as_ref())];
        grads.write(wants, |matrices| {
            let [Some(dq), Some(dk), Some(dv), dsink_logits] = matrices else { return Ok(()) };
            let outputs = Outputs { y: output.view(), dy: dy.view() };
            let args = args([q, k, v], sinks.as_ref(), &layout);
            kernel::backward(&sizes, args, &saved, outputs, kernel::Grads { dq, dk, dv, dsink_logits })
        })
    });
    Ok(y)
}

fn args<'a>(qkv: [&'a Var; 3], sinks: Option<&'a Var>, layout: &'a Layout) -> Args<View<'a>> {
    let [q, k, v] = qkv.map(|x| x.value().view());
    let batch = Batch { b: layout.b, l: layout.l, past: 0, segments: layout.device_segments() };
    Args { q, k, v, pages: &[], sink_logits: sinks.map(|x| x.value().view_flat()), stretches: Together::Device(batch) }
}

/// Of a chunk to earlier positions and itself, row by row: what can be read of a row's cache and its part of the chunk lie one
/// after the other then. Positions that the window has passed are left out, which changes no distance inside it.
fn after_past(
    gpu: Gpu,
    qkv: [&Var; 3],
    sinks: Option<&Var>,
    (past_k, past_v): (&Cache, &Cache),
    sizes: &Attention,
    layout: &Layout,
) -> Result<Var> {
    if layout.resets.is_none() && layout.has_resets() {
        return Err(Error::Argument("documents that begin where only a GPU knows, after earlier positions".into()));
    }
    let mut y = output(qkv, sizes)?;
    if layout.has_lengths() {
        gpu.zero(y.mat_mut())?;
    }
    let [q, k, v] = qkv.map(|x| x.value().mat());
    let l = layout.l;
    for row in 0..layout.b {
        let (len, kept) = (layout.len(row), past_k.kept(row));
        let past = kept.count();
        if kept.from > kept.sinks && kept.sinks > 0 && sizes.alibi {
            let op = "ALiBi with sinks over cached positions";
            return Err(Error::Missing { op, device: Device::Cuda(gpu).to_string() });
        }
        let mut all = Vec::with_capacity(2);
        for (cache, chunk) in [(past_k, k), (past_v, v)] {
            let mut joined = Tensor::uninit(gpu, q.dtype(), &[past + len, chunk.cols()])?;
            cache.gather(row, joined.mat_mut().rows_range(0, past))?;
            gpu.copy(chunk.rows_range(row * l, len), joined.mat_mut().rows_range(past, len))?;
            all.push(joined);
        }
        let resets = match &layout.resets {
            Some(resets) if (0..len).any(|t| resets[row * l + t] != 0) => {
                let own = resets[row * l..row * l + len].iter().copied();
                Some(gpu.upload(&vec![0; past].into_iter().chain(own).collect::<Vec<u8>>())?)
            }
            _ => None,
        };
        let segments = elapid_kernels::cuda::Segments { lengths: None, resets: resets.as_ref() };
        let batch = Batch { b: 1, l: len, past, segments };
        let (k, v, sink_logits) = (all[0].mat(), all[1].mat(), sinks.map(|x| x.value().flat()));
        let args = Args { q: q.rows_range(row * l, len), k, v, pages: (), sink_logits, stretches: batch };
        kernel::forward(sizes, args, y.mat_mut().rows_range(row * l, len), None)?;
    }
    Ok(y.into())
}
