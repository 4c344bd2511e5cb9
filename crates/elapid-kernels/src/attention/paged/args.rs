//! What moves positions into pages and out of them, and what a step reads.

use super::page::Page;
use super::tables::Tables;
use crate::cuda::Buffer;

/// Consecutive positions of a row of a batch, and the pages that have them.
#[derive(Debug)]
pub struct Run<'a> {
    /// The first one's place in the first page.
    pub slot: usize,
    /// Where it is in its row of the matrix.
    pub at: usize,
    /// How many.
    pub count: usize,
    /// Their pages in order.
    pub pages: Vec<&'a Page>,
}

/// What rows have read, where a step reads and writes it.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// The pages of all caches, those of the position that is read now among them, which only this row has.
    pub tables: &'a Tables,
    /// Which of the caches are those of keys and values.
    pub caches: [usize; 2],
    /// `[rows]` u64: the position in its document that each row reads now.
    pub positions: &'a Buffer,
}
