//! The keys or the values of one head of a stretch.

use std::fmt::Debug;

use super::{Args, PAGE, Page, Stretch};
use crate::Rows;

/// Keys, or values: those in pages, then those in rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a, E = f32> {
    pages: &'a [Page<'a, E>],
    /// Whether they are values.
    values: bool,
    /// How many are in pages.
    paged: usize,
    /// The first element in a page.
    from: usize,
    rows: Rows<'a, E>,
}

impl<'a, E: Copy + Debug> Keys<'a, E> {
    /// Keys and values of head `kv`, of so many columns each.
    pub(super) fn of(args: &Args<Rows<'a, E>>, stretch: &Stretch, kv: usize, (c, dv): (usize, usize)) -> (Self, Self) {
        let (pages, paged) = (&args.pages[stretch.pages.clone()], stretch.paged);
        let rows = |x: Rows<'a, E>, dim: usize| x.columns(kv * dim, dim).slice(stretch.keys.start, stretch.keys.len());
        let one = |x, values, dim| Self { pages, values, paged, from: kv * PAGE * dim, rows: rows(x, dim) };
        (one(args.k, false, c), one(args.v, true, dv))
    }

    #[inline]
    pub(super) fn row(&self, key: usize) -> &'a [E] {
        match key.checked_sub(self.paged) {
            Some(row) => self.rows.row(row),
            None => {
                let (dim, page) = (self.rows.cols(), &self.pages[key / PAGE]);
                let page = if self.values { page.v } else { page.k };
                &page[self.from + key % PAGE * dim..][..dim]
            }
        }
    }
}
