//! Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1): y_t = Σ_s softmax_s(scale q_t k_s) v_s over
//! the keys s that position t sees ([`Mask`]).
//!
//! A head may have a learned logit, which takes part in the softmax's sum and nothing else: p_s = exp(x_s) / (exp(sink) +
//! Σ exp(x)), as gpt-oss has it (the learned form of the sinks of Xiao et al. 2024). Its gradient is -Σ p_sink (dy y).
//!
//! On the CPU a batch is divided into [`Stretch`]es: runs of queries of one document with all keys of the document up to the
//! last query, those of earlier calls first, which may be in [`Page`]s. A query's result depends only on its keys in the order of
//! their positions, so any split of a document gives the same bits. Values must be finite. On a GPU it is a [`Batch`] of rows, and
//! a decoding step reads pages ([`paged`]).

mod args;
mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod cuda_tests;
mod keys;
pub mod naive;
pub mod paged;
mod saved;
#[cfg(test)]
mod tests;

use crate::cuda::Result;
use crate::error;
use crate::reuse::List;
use crate::view::Shaped;
use crate::{Isa, View, ViewMut};

use args::CHECK;
pub use args::{Args, Attention, Batch, Grads, Mask, Outputs, PAGE, Page, Side, Stretch, Together};
pub use saved::Saved;

/// y `[m heads·dv]` (=) of the dtype of q, 0 at padding. `saved` is for [`backward`].
///
/// # Errors
/// If shapes, dtypes or devices do not fit, or a device failed or has no kernel for the mask or the widths.
pub fn forward<'a, 'y>(
    attention: &Attention,
    args: impl Into<Args<View<'a>>>,
    y: impl Into<ViewMut<'y>>,
    saved: Option<&mut Saved>,
) -> Result<()> {
    let (args, y) = (args.into(), y.into());
    let dv = check(attention, &args)?;
    beside(&args, "y", &y, (args.q.shape().0, attention.heads * dv))?;
    match y {
        ViewMut::Host(y) => cpu::forward(Isa::best(), attention, &args.host()?, y),
        ViewMut::Device(y) => {
            let kept = cuda::forward(attention, &args.device(y.gpu())?, y, saved.is_some())?;
            if let Some(saved) = saved {
                saved.0 = kept;
            }
        }
    }
    Ok(())
}

/// The gradient of [`forward`]; `saved` is what that left for the same arguments.
///
/// # Errors
/// As [`forward`], or if `saved` is of other sizes or another device.
pub fn backward<'a, 'y, 'g>(
    attention: &Attention,
    args: impl Into<Args<View<'a>>>,
    saved: &Saved,
    outputs: impl Into<Outputs<View<'y>>>,
    grads: impl Into<Grads<ViewMut<'g>>>,
) -> Result<()> {
    let (args, Outputs { y, dy }, grads) = (args.into(), outputs.into(), grads.into());
    let dv = check(attention, &args)?;
    let shape = (args.q.shape().0, attention.heads * dv);
    beside(&args, "y", &y, shape)?;
    beside(&args, "dy", &dy, shape)?;
    beside(&args, "dq", &grads.dq, args.q.shape())?;
    beside(&args, "dk", &grads.dk, args.k.shape())?;
    beside(&args, "dv", &grads.dv, args.v.shape())?;
    if let Some(dsinks) = &grads.dsink_logits {
        CHECK.flat("dsink_logits", dsinks, attention.heads)?;
        let given = args.sink_logits.is_some();
        CHECK.that(given, "sink_logits", || "logits for their gradient".into(), || "none".into())?;
    }
    match dy {
        View::Host(dy) => {
            let mut grads = grads.map(|name, m| CHECK.host_mut(name, m), |name, m| CHECK.host_flat_mut(name, m))?;
            grads.dk.fill(0.0);
            grads.dv.fill(0.0);
            cpu::backward(Isa::best(), attention, &args.host()?, dy, grads);
            Ok(())
        }
        View::Device(dy) => {
            let gpu = dy.gpu();
            let outputs = Outputs { y: CHECK.device("y", y, gpu)?, dy };
            let on = |name, m| CHECK.device_mut(name, m, gpu);
            let grads = grads.map(on, on)?;
            let args = args.device(gpu)?;
            let nothing = args.stretches.past == 0;
            CHECK.that(
                nothing,
                "stretches",
                || "no keys of earlier calls".into(),
                || format!("{:?}", args.stretches),
            )?;
            let saved = saved.0.as_ref().filter(|saved| saved.is_for(attention, &args));
            let saved =
                saved.ok_or_else(|| CHECK.fault("saved", "what a forward of these left".into(), "other".into()))?;
            cuda::backward(attention, &args, saved, outputs, grads)
        }
    }
}

/// A matrix of the dtype of q.
fn beside(args: &Args<View<'_>>, name: &'static str, m: &impl Shaped, shape: (usize, usize)) -> error::Result<()> {
    CHECK.matrix(name, m, shape)?;
    CHECK.dtype(name, m, args.q.dtype())
}

/// Checks everything except the outputs; returns the width of a value head.
fn check(attention: &Attention, args: &Args<View<'_>>) -> error::Result<usize> {
    let &Attention { heads, kv_heads, ref mask, .. } = attention;
    let dilated = mask.dilation > 0 && (mask.dilation == 1 || mask.window > 0);
    CHECK.that(dilated, "dilation", || "1, or more with a window".into(), || mask.dilation.to_string())?;
    let grouped = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
    CHECK.that(grouped, "kv_heads", || format!("a divisor of {heads} heads"), || kv_heads.to_string())?;
    let ((m, q_cols), (n, _), (_, v_cols)) = (args.q.shape(), args.k.shape(), args.v.shape());
    let whole = |cols: usize, heads: usize| cols > 0 && cols.is_multiple_of(heads);
    CHECK.that(whole(q_cols, heads), "q", || format!("columns for {heads} heads"), || q_cols.to_string())?;
    CHECK.that(whole(v_cols, kv_heads), "v", || format!("columns for {kv_heads} heads"), || v_cols.to_string())?;
    beside(args, "k", &args.k, (args.v.shape().0, q_cols / heads * kv_heads))?;
    beside(args, "v", &args.v, (n, v_cols))?;
    if let Some(sinks) = &args.sink_logits {
        CHECK.flat("sink_logits", sinks, heads)?;
    }
    let page = [q_cols / heads * kv_heads * PAGE, v_cols * PAGE];
    let other = args.pages.iter().map(|page| [page.k.len(), page.v.len()]).find(|len| *len != page);
    CHECK.that(other.is_none(), "pages", || format!("{page:?} elements"), || format!("{other:?}"))?;
    match args.stretches {
        Together::Host(stretches) => {
            for stretch in stretches {
                let keys = stretch.keys.len().checked_add(stretch.paged);
                let last = stretch.offset.checked_add(stretch.queries.len());
                let inside = stretch.queries.end <= m
                    && stretch.keys.end <= n
                    && stretch.pages.end <= args.pages.len()
                    && stretch.paged.div_ceil(PAGE) <= stretch.pages.len()
                    && last.zip(keys).is_some_and(|(last, keys)| last <= keys);
                CHECK.that(inside, "stretches", || "rows that are there".into(), || format!("{stretch:?}"))?;
            }
            let mut queries: List<_> = stretches.iter().map(|stretch| stretch.queries.clone()).collect();
            queries.retain(|queries| !queries.is_empty());
            queries.sort_unstable_by_key(|queries| queries.start);
            let apart = queries.windows(2).all(|pair| pair[0].end <= pair[1].start);
            CHECK.that(apart, "stretches", || "queries of one stretch each".into(), || "a query of several".into())?;
        }
        Together::Device(Batch { b, l, past, segments }) => {
            let none = || format!("{}", args.pages.len());
            CHECK.that(args.pages.is_empty(), "pages", || "none on a GPU".into(), none)?;
            let keys = past.saturating_add(l);
            let all = m == CHECK.product("b l", &[b, l])? && n == CHECK.product("b l", &[b, keys])?;
            let one = past == 0 || b == 1;
            let got = || format!("{b} rows of {l} after {past}");
            CHECK.that(all && one, "stretches", || format!("{m} queries and {n} keys"), got)?;
            segments.check(CHECK.0, b, keys)?;
        }
    }
    Ok(v_cols / kv_heads)
}
