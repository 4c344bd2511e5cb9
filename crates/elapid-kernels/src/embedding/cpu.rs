//! Rows are copied in parallel. For gradients, each thread owns some columns of the whole table, so every element is summed
//! in the order of the ids.

use pulp::{Simd, WithSimd};

use crate::parallel::{self, Columns};
use crate::{Isa, Rows, RowsMut};

/// Minimum number of elements for waking a thread.
const LEAST: usize = 1 << 16;

pub(super) fn forward(ids: &[u32], table: Rows<'_>, y: RowsMut<'_>) {
    let grain = parallel::grain(ids.len(), table.cols(), LEAST, 1);
    parallel::split(ids.len(), grain, y, &|from, count, y| super::naive::forward(&ids[from..][..count], table, y));
}

pub(super) fn backward(isa: Isa, ids: &[u32], dy: Rows<'_>, dtable: RowsMut<'_>) {
    let d = dtable.cols();
    let grain = parallel::grain(d, ids.len(), LEAST, 64);
    parallel::split(d, grain, Columns(dtable), &|from, count, Columns(dtable)| {
        isa.run(Add { ids, dy: dy.columns(from, count), dtable });
    });
}

struct Add<'a> {
    ids: &'a [u32],
    dy: Rows<'a>,
    dtable: RowsMut<'a>,
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        // The loop over a row is elementwise; the compiler vectorises it for the instruction set it is inlined into.
        for (r, &id) in self.ids.iter().enumerate() {
            for (g, &d) in self.dtable.row(id as usize).iter_mut().zip(self.dy.row(r)) {
                *g += d;
            }
        }
    }
}
