//! Keys and values of earlier positions on a GPU: pages of [`PAGE`] positions in the device's pool of memory, which caches
//! share until one writes (on the CPU, pages are memory of the host and [`forward`](super::forward) reads them).
//!
//! A cache is written by [`store`] and read by [`gather`] where a pass has many positions. In a decoding step ([`step`]) a
//! row's only position goes to its page, and its query reads the pages in place, by [`Tables`] and positions at fixed
//! addresses: a captured step serves rows that grow, come and go.

mod args;
mod cuda;
#[cfg(test)]
mod cuda_tests;
mod page;
mod tables;

use super::args::{Attention, CHECK};
use crate::DType;
use crate::cuda::{Mat, MatMut, Result};

pub use args::{Past, Run};
pub(crate) use cuda::units;
pub use page::{PAGE, Page, Shape};
pub use tables::{Columns, Tables};

/// Writes positions of x `[b l groups·dim]`, a run of each row, into pages.
///
/// # Errors
/// If shapes, formats or devices do not fit, or the device failed.
pub fn store(x: Mat<'_>, l: usize, runs: &[Run<'_>]) -> Result<()> {
    check_runs(&x, l, runs)?;
    cuda::store(x, l, runs)
}

/// Reads pages into x `[b l groups·dim]` (=), a run into each row.
///
/// # Errors
/// As [`store`].
pub fn gather(x: MatMut<'_>, l: usize, runs: &[Run<'_>]) -> Result<()> {
    check_runs(&x.as_mat(), l, runs)?;
    cuda::gather(x, l, runs)
}

fn check_runs(x: &Mat<'_>, l: usize, runs: &[Run<'_>]) -> Result<()> {
    let rows = CHECK.product("b l", &[runs.len(), l])?;
    CHECK.that(x.rows() == rows, "x", || format!("{rows} rows"), || x.rows().to_string())?;
    let first = runs.iter().find_map(|run| run.pages.first()).map(|page| page.shape());
    for run in runs {
        let inside = run.at.checked_add(run.count).is_some_and(|end| end <= l);
        let end = run.slot.saturating_add(run.count);
        let there = end <= run.pages.len().saturating_mul(PAGE) && run.slot < PAGE;
        CHECK.that(inside && there, "runs", || "positions of the row and its pages".into(), || format!("{run:?}"))?;
        let fits = run.pages.iter().all(|page| {
            let shape = page.shape();
            Some(shape) == first
                && shape.dtype == x.dtype()
                && page.gpu() == x.gpu()
                && shape.groups.saturating_mul(shape.dim) == x.cols()
        });
        CHECK.that(fits, "runs", || format!("pages for {x:?}"), || format!("{:?}", run.pages.first()))?;
    }
    Ok(())
}

/// y `[rows heads·dv]` (=) of one position of every row: q `[rows heads·dk]` over the pages and this position, whose k
/// `[rows kv_heads·dk]` and v `[rows kv_heads·dv]` are written to their pages. 0 for rows without pages.
///
/// # Errors
/// If shapes, formats or devices do not fit, the mask is not causal, or the device failed.
pub fn step(
    attention: &Attention,
    [q, k, v]: [Mat<'_>; 3],
    sink_logits: Option<Mat<'_>>,
    past: Past<'_>,
    y: MatMut<'_>,
) -> Result<()> {
    let &Attention { heads, kv_heads, ref mask, .. } = attention;
    let rows = past.tables.rows();
    CHECK.that(mask.causal, "mask", || "a causal one".into(), || "one that sees what comes".into())?;
    let grouped = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
    CHECK.that(grouped, "kv_heads", || format!("a divisor of {heads} heads"), || kv_heads.to_string())?;
    let [Some(keys), Some(values)] = past.caches.map(|cache| past.tables.place(cache)) else {
        return Err(CHECK.fault("caches", "caches of these tables".into(), format!("{:?}", past.caches)).into());
    };
    let (hk, hv) = (keys.shape.dim, values.shape.dim);
    for (name, m, cols) in
        [("q", &q, heads * hk), ("k", &k, kv_heads * hk), ("v", &v, kv_heads * hv), ("y", &y.as_mat(), heads * hv)]
    {
        CHECK.shape(name, m.shape(), (rows, cols))?;
        let alike = m.dtype() == keys.shape.dtype && m.gpu() == past.tables.gpu();
        CHECK.that(alike, name, || format!("{} on {:?}", keys.shape.dtype, past.tables.gpu()), || format!("{m:?}"))?;
    }
    let shapes = [keys, values].map(|place| (place.shape.groups, place.shape.dtype));
    CHECK.that(
        shapes.iter().all(|&shape| shape == (kv_heads, q.dtype())),
        "caches",
        || format!("{kv_heads} groups"),
        || format!("{shapes:?}"),
    )?;
    CHECK.that(keys.columns == values.columns, "caches", || "columns alike".into(), || "others".into())?;
    let columns = keys.columns;
    let enough = columns.grows
        || mask.reach().is_some_and(|reach| {
            let wanted = Columns::window(reach, mask.sinks);
            wanted.ring <= columns.ring && wanted.sinks <= columns.sinks
        });
    CHECK.that(enough, "mask", || format!("one that sees what {columns:?} keep"), || format!("{mask:?}"))?;
    let here = past.positions.gpu() == q.gpu() && past.positions.bytes() >= 8 * rows;
    CHECK.that(here, "positions", || format!("{rows} on {:?}", q.gpu()), || format!("{:?}", past.positions))?;
    if let Some(sinks) = &sink_logits {
        let fits = sinks.len() == heads && sinks.dtype() == DType::F32 && sinks.gpu() == q.gpu();
        CHECK.that(fits, "sink_logits", || format!("{heads} f32 on {:?}", q.gpu()), || format!("{sinks:?}"))?;
    }
    cuda::step(attention, [q, k, v], sink_logits, past, [keys, values], y)
}
