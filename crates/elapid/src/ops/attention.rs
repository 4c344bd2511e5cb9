//! Causal attention over a chunk and the cached past.

use std::ops::Range;

use elapid_kernels::attention::{self as kernel, Args, Outputs, Saved, Stretch};
pub use elapid_kernels::attention::{Attention, Mask};
use elapid_kernels::{Rows, RowsMut};

use super::attention_gpu::on_gpu;
use super::cached_attention::cached_attention;
use super::documents::{Document, documents, shape_of_y};
use crate::autograd::{Var, record};
use crate::state::{Cache, Source};
use crate::{Device, Error, Layout, Result, Tensor};

/// y `[b l heads·dv]` of q `[b l heads·dk]`, k `[b l kv_heads·dk]`, v `[b l kv_heads·dv]`, and the keys and values of earlier
/// positions: the caches before this chunk was pushed.
///
/// `sink_logits` `[heads]` take part in the sums of the softmaxes and in nothing else. A position sees those of its own document that [`Attention::mask`] says, which the caches must keep.
///
/// # Errors
/// If shapes do not fit, the mask sees more than what the caches keep, or a gradient is asked for on a GPU over what caches hold.
// Long: keys from three sources.
pub fn attention(
    q: &Var,
    k: &Var,
    v: &Var,
    sink_logits: Option<&Var>,
    (past_k, past_v): (&Cache, &Cache),
    sizes: &Attention,
    layout: &Layout,
) -> Result<Var> {
    check_kept(&sizes.mask, past_k)?;
    if q.value().device() != Device::Cpu {
        return on_gpu([q, k, v], sink_logits, (past_k, past_v), sizes, layout);
    }
    let recorded = [q, k, v].into_iter().chain(sink_logits).any(|x| x.wants_grad())
        || !past_k.is_settled()
        || !past_v.is_settled();
    if !recorded {
        return Ok(cached_attention([q, k, v], sink_logits, (past_k, past_v), sizes, layout)?.into());
    }
    let keys = Keys::of(layout, past_k)?;
    let (all_k, all_v) = (keys.gather(past_k, k), keys.gather(past_v, v));
    let (kv_k, kv_v) = (k.value().cols(), v.value().cols());
    let args = Args {
        q: q.value().rows(),
        k: Rows::new(&all_k, kv_k),
        v: Rows::new(&all_v, kv_v),
        sink_logits: sink_logits.map(|x| x.value().as_slice()),
        pages: &[],
        stretches: &keys.stretches,
    };
    let y = Tensor::filled(&shape_of_y(q, v, sizes), |y| kernel::forward(sizes, args, y, None))?;
    let sources = [past_k.sources(), past_v.sources()];
    let mut inputs = vec![q, k, v];
    inputs.extend(sink_logits);
    inputs.extend(sources.iter().flatten().map(|source| &source.var));
    let saved = inputs
        .iter()
        .any(|x| x.wants_grad())
        .then(|| (q.clone(), k.clone(), v.clone(), sink_logits.cloned(), sources.clone()));
    let Some((q, k, v, sink_logits, sources)) = saved else { return Ok(y.into()) };
    let inputs: Vec<Var> = inputs.into_iter().cloned().collect();
    let sizes = sizes.clone();
    let [y] = record(&inputs.iter().collect::<Vec<_>>(), [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let mut dq = Tensor::zeros(q.shape())?;
        let (mut dk, mut dv) = (vec![0.0; all_k.len()], vec![0.0; all_v.len()]);
        let mut dsinks = sink_logits.as_ref().map(|x| Tensor::zeros(x.shape())).transpose()?;
        let outputs = kernel::Grads {
            dq: RowsMut::new(dq.make_mut(), q.value().cols()),
            dk: RowsMut::new(&mut dk, kv_k),
            dv: RowsMut::new(&mut dv, kv_v),
            dsink_logits: dsinks.as_mut().map(Tensor::make_mut),
        };
        let args = Args {
            q: q.value().rows(),
            k: Rows::new(&all_k, kv_k),
            v: Rows::new(&all_v, kv_v),
            sink_logits: sink_logits.as_ref().map(|x| x.value().as_slice()),
            pages: &[],
            stretches: &keys.stretches,
        };
        let dy = dy.rows();
        kernel::backward(&sizes, args, &Saved::new(), Outputs { y: dy, dy }, outputs)?;
        grads.give(&q, dq)?;
        if let (Some(sink_logits), Some(dsinks)) = (&sink_logits, dsinks) {
            grads.give(sink_logits, dsinks)?;
        }
        for ((chunk, d), sources) in [(&k, &dk), (&v, &dv)].into_iter().zip(&sources) {
            grads.give(chunk, keys.of_chunk(chunk.shape(), d))?;
            for source in sources.iter().filter(|source| source.var.wants_grad()) {
                grads.give(&source.var, keys.of_source(source, d)?)?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// The cache must keep what the mask sees.
fn check_kept(mask: &Mask, past: &Cache) -> Result<()> {
    let kept = past.spec();
    let enough = mask.reach().is_some_and(|reach| reach <= kept.window && mask.sinks <= kept.sinks);
    if kept.window == 0 || enough {
        return Ok(());
    }
    Err(Error::Argument(format!("{mask:?} over a cache that keeps {}", kept.window)))
}

/// All keys of a batch, row after row: the cached ones, then those of the chunk.
struct Keys {
    stretches: Vec<Stretch>,
    /// For each row: the offset of its past among all keys, and its length.
    past: Vec<Range<usize>>,
    l: usize,
}

impl Keys {
    fn of(layout: &Layout, past: &Cache) -> Result<Self> {
        let (l, mut at) = (layout.l, 0);
        let (mut stretches, mut ranges) = (Vec::new(), Vec::with_capacity(layout.b));
        for (row, documents) in documents(layout, past)?.into_iter().enumerate() {
            let kept = past.kept(row);
            let chunk = at + kept.count();
            for Document { positions, continues } in documents {
                let first = if continues { at } else { chunk + positions.start };
                let queries = row * l + positions.start..row * l + positions.end;
                // Keys of earlier calls may lack positions between the first ones and the window.
                let (sinks, gap) = if first < chunk { (kept.sinks, kept.from - kept.sinks) } else { (0, 0) };
                let offset = chunk + positions.start - first;
                stretches.push(Stretch { sinks, gap, ..Stretch::whole(queries, first..chunk + positions.end, offset) });
            }
            ranges.push(at..chunk);
            at = chunk + l;
        }
        Ok(Self { stretches, past: ranges, l })
    }

    /// All keys `[n cols]`.
    fn gather(&self, past: &Cache, chunk: &Var) -> Vec<f32> {
        let cols = chunk.value().cols();
        let groups = past.spec().groups;
        let dim = cols / groups.max(1);
        let total = self.past.last().map_or(0, |range| range.end + self.l);
        let mut all = vec![0.0; total * cols];
        let rows = chunk.value().rows();
        for (row, range) in self.past.iter().enumerate() {
            let mut one = vec![0.0; range.len() * dim];
            for group in 0..groups {
                past.read(row, group, &mut one);
                for (at, values) in range.clone().zip(one.chunks_exact(dim.max(1))) {
                    all[at * cols + group * dim..][..dim].copy_from_slice(values);
                }
            }
            for t in 0..self.l {
                all[(range.end + t) * cols..][..cols].copy_from_slice(rows.row(row * self.l + t));
            }
        }
        all
    }

    /// The part of a gradient of all keys that belongs to the chunk.
    fn of_chunk(&self, shape: &[usize], d: &[f32]) -> Tensor {
        let cols = shape.last().copied().unwrap_or(1);
        let part = |range: &Range<usize>| d[range.end * cols..(range.end + self.l) * cols].iter().copied();
        Tensor::new(self.past.iter().flat_map(part).collect(), shape)
    }

    /// The part that belongs to an earlier chunk.
    fn of_source(&self, source: &Source, d: &[f32]) -> Result<Tensor> {
        let shape = source.var.shape();
        let (l, cols) = (shape[1], shape[2]);
        let mut out = Tensor::zeros(shape)?;
        let values = out.make_mut();
        for (row, &(first, at, len)) in source.rows.iter().enumerate() {
            let from = (self.past[row].start + first) * cols;
            values[(row * l + at) * cols..][..len * cols].copy_from_slice(&d[from..from + len * cols]);
        }
        Ok(out)
    }
}
