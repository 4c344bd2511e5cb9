//! Attention over a chunk and cached positions, which the kernel reads in place.

use elapid_kernels::attention::{self as kernel, Args, Attention, Page, Stretch, Together};

use elapid_kernels::reuse::List;

use super::documents::{documents, shape_of_y};
use crate::autograd::Var;
use crate::state::Cache;
use crate::{Error, Layout, Result, Tensor};

/// [`attention`](super::attention()) without gradients over caches whose positions are all in pages.
pub(super) fn cached_attention(
    [q, k, v]: [&Var; 3],
    sink_logits: Option<&Var>,
    (past_k, past_v): (&Cache, &Cache),
    sizes: &Attention,
    layout: &Layout,
) -> Result<Tensor> {
    let (mut stretches, mut pages) = (List::new(), List::new());
    for (row, documents) in documents(layout, past_k)?.into_iter().enumerate() {
        let first = pages.len();
        pages.extend(past_k.pages(row).zip(past_v.pages(row)).map(|(k, v)| Page { k, v }));
        let (kept, start) = (past_k.kept(row), row * layout.l);
        for document in documents {
            let (from, to) = (start + document.positions.start, start + document.positions.end);
            let whole = Stretch::whole(from..to, from..to, 0);
            stretches.push(match document.continues {
                false => whole,
                true => Stretch {
                    pages: first..pages.len(),
                    paged: kept.count(),
                    offset: kept.count(),
                    sinks: kept.sinks,
                    gap: kept.from - kept.sinks,
                    ..whole
                },
            });
        }
    }
    for past in [past_k, past_v] {
        if past.spec().groups != sizes.kv_heads || past.rows() != layout.b {
            let (rows, groups) = (past.rows(), past.spec().groups);
            let got = format!("a cache of {rows} rows and {groups} heads");
            return Err(Error::Argument(format!("{got} for {} rows and {} heads", layout.b, sizes.kv_heads)));
        }
    }
    let shape = shape_of_y(q, v, sizes);
    let [q, k, v] = [q, k, v].map(|x| x.value().view());
    let sink_logits = sink_logits.map(|x| x.value().view_flat());
    let args = Args { q, k, v, pages: &pages, sink_logits, stretches: Together::Host(&stretches) };
    Tensor::filled(&shape, |y| kernel::forward(sizes, args, y, None))
}
