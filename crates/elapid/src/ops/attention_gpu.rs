//! Attention on a GPU: a chunk to itself, over earlier positions, and steps that read the cache in place.

use elapid_kernels::View;
use elapid_kernels::attention::{self as kernel, Args, Attention, Batch, Outputs, Saved, Together, paged};
use elapid_kernels::cuda::{Buffer, Gpu, Mat};

use super::documents::shape_of_y;
use crate::autograd::{Var, Want, record};
use crate::state::Cache;
use crate::{Device, Error, Layout, Result, Tensor};

/// As [`attention`](super::attention).
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
    if layout.resets.is_none() && layout.has_resets() {
        return Err(Error::Argument("documents that begin where only a GPU knows, after earlier positions".into()));
    }
    let sources = [past_k.sources(), past_v.sources()].concat();
    let past = sources.iter().map(|source| &source.var);
    if qkv.into_iter().chain(sinks).chain(past).any(|x| x.wants_grad()) {
        return recorded_after_past(gpu, qkv, sinks, (past_k, past_v), sizes, layout);
    }
    after_past(gpu, qkv, sinks, (past_k, past_v), sizes, layout)
}

fn output([q, _, v]: [&Var; 3], sizes: &Attention) -> Result<Tensor> {
    Tensor::output(q.value().device(), q.value().dtype(), &shape_of_y(q, v, sizes))
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
    let mut y = output(qkv, sizes)?;
    if layout.has_lengths() {
        gpu.zero(y.mat_mut())?;
    }
    let [q, k, v] = qkv.map(|x| x.value().mat());
    let l = layout.l;
    for row in 0..layout.b {
        let len = layout.len(row);
        let past = past_of(row, past_k, sizes, gpu)?;
        let [k, v] = [join(past_k, k, row, (past, l), len)?, join(past_v, v, row, (past, l), len)?];
        let resets = resets_of(layout, row, past, gpu)?;
        let segments = elapid_kernels::cuda::Segments { lengths: None, resets: resets.as_ref() };
        let batch = Batch { b: 1, l: len, past, segments };
        let (q, sink_logits) = (q.rows_range(row * l, len), sinks.map(|x| x.value().flat()));
        let args = Args { q, k: k.mat(), v: v.mat(), pages: (), sink_logits, stretches: batch };
        kernel::forward(sizes, args, y.mat_mut().rows_range(row * l, len), None)?;
    }
    Ok(y.into())
}

/// How many earlier positions of a row can be read.
fn past_of(row: usize, past: &Cache, sizes: &Attention, gpu: Gpu) -> Result<usize> {
    let kept = past.kept(row);
    if kept.from > kept.sinks && kept.sinks > 0 && sizes.alibi {
        let op = "ALiBi with sinks over cached positions";
        return Err(Error::Missing { op, device: Device::Cuda(gpu).to_string() });
    }
    Ok(kept.count())
}

/// What can be read of a row's cache, and after it the row's part of a chunk of `l` positions, of which `len` are real.
fn join(cache: &Cache, chunk: Mat<'_>, row: usize, (past, l): (usize, usize), len: usize) -> Result<Tensor> {
    let mut joined = Tensor::uninit(chunk.gpu(), chunk.dtype(), &[past + len, chunk.cols()])?;
    cache.gather(row, joined.mat_mut().rows_range(0, past))?;
    chunk.gpu().copy(chunk.rows_range(row * l, len), joined.mat_mut().rows_range(past, len))?;
    Ok(joined)
}

/// Where documents begin among the earlier positions and the real ones of a row; none if none begins in this chunk.
fn resets_of(layout: &Layout, row: usize, past: usize, gpu: Gpu) -> Result<Option<Buffer>> {
    let Some(resets) = &layout.resets else { return Ok(None) };
    let own = &resets[row * layout.l..row * layout.l + layout.len(row)];
    if own.iter().all(|&reset| reset == 0) {
        return Ok(None);
    }
    let all: Vec<u8> = std::iter::repeat_n(0, past).chain(own.iter().copied()).collect();
    Ok(Some(gpu.upload(&all)?))
}

/// A row's earlier positions and its own, as one sequence.
struct Joined {
    /// Those before the chunk; their queries are 0, and no gradient arrives at their outputs.
    past: usize,
    len: usize,
    qkv: [Tensor; 3],
    y: Tensor,
    resets: Option<Buffer>,
    saved: Saved,
}

fn joined_args<'a>(qkv: &'a [Tensor; 3], resets: Option<&'a Buffer>, sinks: Option<&'a Var>) -> Args<View<'a>> {
    let [q, k, v] = qkv.each_ref().map(Tensor::view);
    let segments = elapid_kernels::cuda::Segments { lengths: None, resets };
    let batch = Batch { b: 1, l: qkv[0].row_count(), past: 0, segments };
    Args { q, k, v, pages: &[], sink_logits: sinks.map(|x| x.value().view_flat()), stretches: Together::Device(batch) }
}

/// As [`after_past`], on a tape: the gradient reaches the earlier positions that are on it too. Each row is one sequence with
/// its past, whose own outputs are recomputed and not used.
// Long: forward and backward of one operation.
fn recorded_after_past(
    gpu: Gpu,
    qkv: [&Var; 3],
    sinks: Option<&Var>,
    (past_k, past_v): (&Cache, &Cache),
    sizes: &Attention,
    layout: &Layout,
) -> Result<Var> {
    let mut y = Tensor::zeros_on(Device::Cuda(gpu), qkv[0].value().dtype(), &shape_of_y(qkv[0], qkv[2], sizes))?;
    let [q, k, v] = qkv.map(|x| x.value().mat());
    let l = layout.l;
    let mut rows = Vec::with_capacity(layout.b);
    for row in 0..layout.b {
        let (len, past) = (layout.len(row), past_of(row, past_k, sizes, gpu)?);
        let mut queries = Tensor::zeros_on(Device::Cuda(gpu), q.dtype(), &[past + len, q.cols()])?;
        gpu.copy(q.rows_range(row * l, len), queries.mat_mut().rows_range(past, len))?;
        let [k, v] = [join(past_k, k, row, (past, l), len)?, join(past_v, v, row, (past, l), len)?];
        let (qkv, resets) = ([queries, k, v], resets_of(layout, row, past, gpu)?);
        let mut all = Tensor::uninit(gpu, q.dtype(), &[past + len, y.cols()])?;
        let mut saved = Saved::new();
        kernel::forward(sizes, joined_args(&qkv, resets.as_ref(), sinks), all.view_mut(), Some(&mut saved))?;
        gpu.copy(all.mat().rows_range(past, len), y.mat_mut().rows_range(row * l, len))?;
        rows.push(Joined { past, len, qkv, y: all, resets, saved });
    }
    let sources = [past_k.sources(), past_v.sources()];
    let inputs: Vec<&Var> = qkv.into_iter().chain(sinks).chain(sources.iter().flatten().map(|of| &of.var)).collect();
    let inputs: Vec<Var> = inputs.into_iter().cloned().collect();
    let (own, sinks, sizes) = (qkv.map(Var::clone), sinks.cloned(), sizes.clone());
    let [y] = record(&inputs.iter().collect::<Vec<_>>(), [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let zeros = |var: &Var| Tensor::zeros_on(var.value().device(), var.value().dtype(), var.shape());
        let mut of_chunk = [zeros(&own[0])?, zeros(&own[1])?, zeros(&own[2])?];
        let mut of_sinks = sinks.as_ref().map(zeros).transpose()?;
        let mut of_past = Vec::with_capacity(2);
        for sources in &sources {
            of_past.push(sources.iter().map(|source| zeros(&source.var)).collect::<Result<Vec<_>>>()?);
        }
        for (row, joined) in rows.iter().enumerate() {
            let &Joined { past, len, .. } = joined;
            let mut padded = Tensor::zeros_on(Device::Cuda(gpu), dy.dtype(), joined.y.shape())?;
            gpu.copy(dy.mat().rows_range(row * l, len), padded.mat_mut().rows_range(past, len))?;
            let like = |x: &Tensor| Tensor::uninit(gpu, x.dtype(), x.shape());
            let mut d = [like(&joined.qkv[0])?, like(&joined.qkv[1])?, like(&joined.qkv[2])?];
            let [dq, dk, dv] = d.each_mut().map(Tensor::view_mut);
            let dsink_logits = of_sinks.as_mut().map(|d| d.mat_mut().into());
            let outputs = Outputs { y: joined.y.view(), dy: padded.view() };
            let d_all = kernel::Grads { dq, dk, dv, dsink_logits };
            let args = joined_args(&joined.qkv, joined.resets.as_ref(), sinks.as_ref());
            kernel::backward(&sizes, args, &joined.saved, outputs, d_all)?;
            for (chunk, d) in of_chunk.iter_mut().zip(&d) {
                gpu.copy(d.mat().rows_range(past, len), chunk.mat_mut().rows_range(row * l, len))?;
            }
            for ((d, sources), of_past) in d[1..].iter().zip(&sources).zip(&mut of_past) {
                for (source, to) in sources.iter().zip(of_past) {
                    let ((first, at, len), l) = (source.rows[row], source.var.shape()[1]);
                    gpu.copy(d.mat().rows_range(first, len), to.mat_mut().rows_range(row * l + at, len))?;
                }
            }
        }
        for (var, d) in own.iter().zip(of_chunk).chain(sinks.iter().zip(of_sinks)) {
            grads.give(var, d)?;
        }
        for (source, d) in sources.iter().flatten().zip(of_past.into_iter().flatten()) {
            grads.give(&source.var, d)?;
        }
        Ok(())
    });
    Ok(y)
}
