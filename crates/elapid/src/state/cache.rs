//! The cache of attention, which grows with each row, in copy-on-write pages.

use std::sync::Arc;

use elapid_kernels::attention::paged;
use elapid_kernels::reuse::List;

use super::cache_spec::CacheSpec;
use super::pages::{Page, Pages};
use super::tables::InPlace;
use crate::Layout;
use crate::autograd::Var;
use crate::{DType, Device, Error, Result};

use paged::PAGE;

/// The past of each row of a batch.
///
/// Positions count from the last reset, so a packed document has the same pages as the document alone. Cloning and selecting
/// rows copies pointers; writing copies a shared page, never the whole past.
#[derive(Debug, Clone)]
pub struct Cache {
    spec: CacheSpec,
    rows: Vec<Pages>,
    /// Positions that are on a tape and not yet in pages, in order.
    recorded: Vec<Span>,
    /// Where steps of a batch on a GPU read and write it, and which of the caches there it is.
    in_place: Option<(Arc<InPlace>, usize)>,
}

/// A chunk `[b l cols]` whose positions are not in pages yet.
#[derive(Debug, Clone)]
struct Span {
    var: Var,
    rows: List<SpanRow>,
}

/// Which positions of a chunk belong to the current document of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SpanRow {
    /// Position in the document of the first.
    start: usize,
    /// Position in the chunk of the first.
    at: usize,
    /// Number of positions.
    len: usize,
}

/// The sources of a row's keys, in the order of their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Positions of the document so far.
    pub(crate) len: usize,
    /// The first position of the window that is kept; positions below are kept only as sinks.
    pub(crate) from: usize,
    /// First positions kept as sinks, at most `from`.
    pub(crate) sinks: usize,
}

impl Kept {
    /// Positions that can be read.
    pub(crate) fn count(&self) -> usize {
        self.sinks + self.len - self.from
    }

    /// The position of the `i`-th that can be read.
    pub(crate) fn position(&self, i: usize) -> usize {
        if i < self.sinks { i } else { self.from + i - self.sinks }
    }
}

/// A chunk of earlier keys on the tape, and where its rows are among the readable ones of a cache.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) var: Var,
    /// For each row: the first readable position, the first position of the chunk, and the number of positions.
    pub(crate) rows: Vec<(usize, usize, usize)>,
}

impl Cache {
    /// The cache of `b` rows that have read nothing.
    pub(crate) fn empty(spec: &CacheSpec, b: usize) -> Self {
        Self { spec: spec.clone(), rows: vec![Pages::default(); b], recorded: Vec::new(), in_place: None }
    }

    /// Its shape.
    pub fn spec(&self) -> &CacheSpec {
        &self.spec
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Positions of a row since its last reset.
    pub fn len(&self, row: usize) -> usize {
        self.recorded.last().map_or(self.rows[row].len, |span| span.rows[row].start + span.rows[row].len)
    }

    /// Whether no row has read anything.
    pub fn is_empty(&self) -> bool {
        (0..self.rows()).all(|row| self.len(row) == 0)
    }

    /// Bytes of its pages; a page that several rows or caches share counts once for each.
    pub fn bytes(&self) -> usize {
        let pages: usize = self.rows.iter().flat_map(Pages::all).map(|page| page.bytes()).sum();
        let of = |x: &crate::Tensor| x.len() * x.dtype().bytes();
        pages + self.recorded.iter().map(|span| of(span.var.value())).sum::<usize>()
    }

    /// Addresses of its pages, to tell shared pages from copies.
    pub fn page_addresses(&self) -> Vec<usize> {
        self.rows.iter().flat_map(Pages::all).map(|page| page.address()).collect()
    }

    /// Appends the real positions since each row's last reset of the chunk `[b l cols]`.
    ///
    /// The variable itself is kept until `settle`, recorded or not, so that a layer does the same in both passes of a
    /// recomputed segment.
    ///
    /// # Errors
    /// If its shape does not match the layout and the cache.
    pub fn push(&mut self, chunk: &Var, layout: &Layout) -> Result<()> {
        let (b, l, cols) = (layout.b, layout.l, self.spec.cols);
        if chunk.shape() != [b, l, cols] || self.rows() != b {
            let got = chunk.shape();
            return Err(Error::Argument(format!("a cache of {} rows [{b}, {l}, {cols}] got {got:?}", self.rows())));
        }
        let mut rows = List::with_room(b);
        for row in 0..b {
            let real = layout.len(row);
            rows.push(match layout.last_reset(row) {
                Some(at) => {
                    self.rows[row] = Pages::default();
                    for span in &mut self.recorded {
                        span.rows[row] = SpanRow { start: 0, at: 0, len: 0 };
                    }
                    SpanRow { start: 0, at, len: real - at }
                }
                None => SpanRow { start: self.len(row), at: 0, len: real },
            });
        }
        self.recorded.push(Span { var: chunk.clone(), rows });
        Ok(())
    }

    /// Moves leading chunks that are constants on the CPU into pages, and drops pages that the window has passed. Those on a
    /// GPU wait for [`place`](Self::place): most passes there are followed by no other.
    pub(crate) fn settle(&mut self) {
        let settles = |span: &&Span| !span.var.wants_grad() && span.var.value().device() == Device::Cpu;
        let constant = self.recorded.iter().take_while(settles).count();
        for span in self.recorded.drain(..constant).collect::<List<_>>() {
            let l = span.var.shape()[1];
            let chunk = span.var.value().rows();
            for (row, &part) in span.rows.iter().enumerate() {
                let rows = (0..part.len).map(|i| chunk.row(row * l + part.at + i));
                self.rows[row].append(&self.spec, rows);
            }
        }
        self.rows.iter_mut().for_each(|row| row.trim(&self.spec));
    }

    /// Moves leading chunks that are constants into pages, wherever they are.
    fn settle_all(&mut self) -> Result<()> {
        self.settle();
        let settles = |span: &&Span| !span.var.wants_grad();
        let constant = self.recorded.iter().take_while(settles).count();
        for Span { var, rows } in self.recorded.drain(..constant).collect::<List<_>>() {
            let (l, x) = (var.shape()[1], var.value());
            let Some(gpu) = x.gpu() else { continue };
            let shape = self.spec.page(x.dtype());
            for (row, part) in self.rows.iter_mut().zip(&rows) {
                row.reserve(gpu, shape, part.len)?;
            }
            let runs: Vec<_> = self.rows.iter().zip(&rows).map(|(row, part)| row.run(part.at, part.len)).collect();
            paged::store(x.mat(), l, &runs)?;
            drop(runs);
            for (row, part) in self.rows.iter_mut().zip(&rows) {
                row.len += part.len;
                row.trim(&self.spec);
            }
        }
        Ok(())
    }

    /// Puts what is not on a tape where a pass on a device in a dtype reads it.
    ///
    /// # Errors
    /// If the device failed, or has too little memory.
    pub(crate) fn place(&mut self, device: Device, dtype: DType) -> Result<()> {
        if self.in_place.is_some() {
            return Ok(());
        }
        self.settle_all()?;
        let shape = self.spec.page(dtype);
        self.rows.iter_mut().try_for_each(|row| row.place(device, shape))
    }

    /// The same values as constants, in pages.
    pub(crate) fn detach(&self) -> Self {
        let mut detached = self.clone();
        detached.recorded.iter_mut().for_each(|span| span.var = span.var.detach());
        detached.settle();
        detached
    }

    /// The same positions as constants in pages, on their device.
    fn in_pages(&self) -> Result<Self> {
        let mut settled = self.clone();
        settled.in_place = None;
        settled.recorded.iter_mut().for_each(|span| span.var = span.var.detach());
        settled.settle_all()?;
        Ok(settled)
    }

    /// The same positions as constants on a device; from the CPU to a GPU as they are, in f32.
    ///
    /// # Errors
    /// If a device failed, or has too little memory.
    pub(crate) fn to(&self, device: Device) -> Result<Self> {
        let mut moved = self.in_pages()?;
        moved.rows.iter_mut().try_for_each(|row| row.move_to(device, self.spec.page(DType::F32)))?;
        Ok(moved)
    }

    /// The rows in that order, as constants; pages are shared.
    ///
    /// # Errors
    /// If positions are on a GPU and it failed.
    pub(crate) fn select(&self, rows: &[usize]) -> Result<Self> {
        let settled = self.in_pages()?;
        Ok(Self { rows: rows.iter().map(|&row| settled.rows[row].clone()).collect(), ..settled })
    }

    /// The rows of several caches, as constants; pages are shared.
    ///
    /// # Errors
    /// If positions are on a GPU and it failed.
    pub(crate) fn stack<'a>(caches: impl IntoIterator<Item = &'a Cache>, spec: &CacheSpec) -> Result<Self> {
        let mut rows = Vec::new();
        for cache in caches {
            rows.extend(cache.in_pages()?.rows);
        }
        Ok(Self { rows, ..Self::empty(spec, 0) })
    }

    /// Where steps read and write it, on a GPU.
    pub(crate) fn in_place(&self) -> Option<&(Arc<InPlace>, usize)> {
        self.in_place.as_ref()
    }

    /// From now on steps read and write it there, as cache `i`.
    pub(super) fn set_in_place(&mut self, place: &Arc<InPlace>, i: usize) {
        self.in_place = Some((place.clone(), i));
    }

    /// The pages of each row.
    pub(super) fn pages_mut(&mut self) -> &mut [Pages] {
        &mut self.rows
    }

    /// Reads group by group what a row of a cache on a GPU has, into `x` `[n cols]` from its first row on.
    ///
    /// # Errors
    /// If the device failed.
    pub(crate) fn gather(&self, row: usize, mut x: elapid_kernels::cuda::MatMut<'_>) -> Result<()> {
        let (pages, kept, gpu) = (&self.rows[row], self.kept(row), x.gpu());
        let settled = (kept.sinks + pages.len).saturating_sub(kept.from);
        for source in self.sources() {
            let (first, at, len) = source.rows[row];
            let chunk = source.var.value().mat().rows_range(row * source.var.shape()[1] + at, len);
            gpu.copy(chunk, x.reborrow().rows_range(first, len))?;
        }
        Ok(paged::gather(x.rows_range(0, settled), settled, &[pages.kept(settled)])?)
    }

    /// Variables not yet in pages: inputs and outputs of a recomputed segment.
    pub(crate) fn vars(&self) -> impl Iterator<Item = &Var> {
        self.recorded.iter().map(|span| &span.var)
    }

    /// The same cache with other variables, as many as [`vars`](Self::vars) returns.
    pub(crate) fn with_vars(&self, vars: &mut impl Iterator<Item = Var>) -> Self {
        let mut cache = self.clone();
        for (span, var) in cache.recorded.iter_mut().zip(vars) {
            span.var = var;
        }
        cache
    }

    /// Which positions of a row can be read.
    pub(crate) fn kept(&self, row: usize) -> Kept {
        let pages = &self.rows[row];
        let from = pages.first * PAGE;
        Kept { len: self.len(row), from, sinks: from.min(pages.sinks.len() * PAGE) }
    }

    /// Whether all positions are in pages.
    pub(crate) fn is_settled(&self) -> bool {
        self.recorded.is_empty()
    }

    /// The pages of a row that can be read, in order: those of sinks, then those of the window.
    pub(crate) fn pages(&self, row: usize) -> impl Iterator<Item = &[f32]> {
        let sinks = self.kept(row).sinks / PAGE;
        let pages = self.rows[row].sinks.iter().take(sinks).chain(&self.rows[row].pages);
        pages.filter_map(|page| if let Page::Host(values) = &**page { Some(&values[..]) } else { None })
    }

    /// Copies group `group` of the readable positions of a row to `out`, `[count, cols / groups]`.
    pub(crate) fn read(&self, row: usize, group: usize, out: &mut [f32]) {
        let dim = self.spec.cols / self.spec.groups;
        let (pages, kept) = (&self.rows[row], self.kept(row));
        let mut out = out.chunks_exact_mut(dim.max(1));
        let settled = (0..kept.count()).map(|i| kept.position(i)).take_while(|&at| at < pages.len);
        for at in settled {
            let from = (group * PAGE + at % PAGE) * dim;
            if let (Some(out), Page::Host(page)) = (out.next(), pages.page(at / PAGE)) {
                out.copy_from_slice(&page[from..from + dim]);
            }
        }
        for span in &self.recorded {
            let (part, l, chunk) = (span.rows[row], span.var.shape()[1], span.var.value().rows());
            for i in 0..part.len {
                if let Some(out) = out.next() {
                    out.copy_from_slice(&chunk.row(row * l + part.at + i)[group * dim..(group + 1) * dim]);
                }
            }
        }
    }

    /// The chunks that are not in pages yet, and where the positions of each row are among the readable ones.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let place = |row: usize, part: SpanRow| {
            let kept = self.kept(row);
            (kept.sinks + part.start.saturating_sub(kept.from), part.at, part.len)
        };
        let source = |span: &Span| {
            let rows = span.rows.iter().enumerate().map(|(row, &part)| place(row, part)).collect();
            Source { var: span.var.clone(), rows }
        };
        self.recorded.iter().map(source).collect()
    }

    /// The contents of a file: for each row (positions since the last reset, first kept page), and the elements. The cache
    /// must be detached, on the CPU.
    pub(crate) fn export(&self) -> (Vec<[u64; 2]>, Vec<f32>) {
        let mut values = Vec::new();
        let mut rows = Vec::with_capacity(self.rows());
        let dim = self.spec.cols / self.spec.groups;
        for (row, pages) in self.rows.iter().enumerate() {
            let kept = self.kept(row);
            rows.push([pages.len as u64, pages.first as u64]);
            for at in (0..kept.count()).map(|i| kept.position(i)) {
                let Page::Host(page) = pages.page(at / PAGE) else { continue };
                for group in 0..self.spec.groups {
                    let from = (group * PAGE + at % PAGE) * dim;
                    values.extend_from_slice(&page[from..from + dim]);
                }
            }
        }
        (rows, values)
    }

    /// The cache that [`export`](Self::export) described.
    pub(crate) fn import(spec: &CacheSpec, rows: &[[u64; 2]], values: &[f32]) -> Result<Self, String> {
        let mut cache = Self::empty(spec, rows.len());
        let mut values = values.chunks_exact(spec.cols.max(1));
        for (pages, &[len, first]) in cache.rows.iter_mut().zip(rows) {
            let (len, first) = (len as usize, first as usize);
            let sinks = spec.sinks.div_ceil(PAGE).min(first);
            if first > 0 && spec.window == 0 || first.checked_mul(PAGE).is_none_or(|from| from > len) {
                return Err(format!("a row of {len} positions cannot begin at page {first}"));
            }
            let count = (sinks * PAGE) + len - first * PAGE;
            let kept: Vec<&[f32]> = values.by_ref().take(count).collect();
            if kept.len() != count {
                return Err(format!("{} positions where {count} are kept", kept.len()));
            }
            let (early, late) = kept.split_at(sinks * PAGE);
            pages.append(spec, early.iter().copied());
            pages.sinks = pages.pages.drain(..).collect();
            (pages.first, pages.len) = (first, first * PAGE);
            pages.append(spec, late.iter().copied());
        }
        if values.next().is_some() { Err("more positions than its rows have".into()) } else { Ok(cache) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    fn chunk(b: usize, l: usize, cols: usize, from: usize) -> Var {
        let values = (0..b * l * cols).map(|i| (from * cols + i) as f32).collect();
        Tensor::new(values, &[b, l, cols]).into()
    }

    fn read(cache: &Cache, row: usize) -> Vec<f32> {
        let (count, dim) = (cache.kept(row).count(), cache.spec.cols / cache.spec.groups);
        let mut out = vec![0.0; count * dim];
        cache.read(row, 0, &mut out);
        out
    }

    fn grown(spec: &CacheSpec, parts: &[usize]) -> Cache {
        let mut cache = Cache::empty(spec, 1);
        let mut at = 0;
        for &l in parts {
            cache.push(&chunk(1, l, spec.cols, at), &Layout::new(1, l)).unwrap();
            cache.settle();
            at += l;
        }
        cache
    }

    #[test]
    fn any_split_has_the_same_pages() {
        let spec = CacheSpec::growing(4, 2);
        let whole = grown(&spec, &[150]);
        let parts = grown(&spec, &[1, 63, 1, 64, 21]);
        assert_eq!((whole.len(0), read(&whole, 0).len()), (150, 300));
        assert_eq!(read(&whole, 0), read(&parts, 0));
        assert_eq!(read(&whole, 0)[..4], [0.0, 1.0, 4.0, 5.0], "group 0 of the first two positions");
    }

    #[test]
    fn clones_share_pages_until_one_writes() {
        let spec = CacheSpec::growing(2, 1);
        let cache = grown(&spec, &[100]);
        let mut fork = cache.select(&[0, 0]).unwrap();
        assert_eq!(fork.page_addresses(), [cache.page_addresses(), cache.page_addresses()].concat());
        fork.push(&chunk(2, 1, 2, 900), &Layout::new(2, 1)).unwrap();
        fork.settle();
        let (old, new) = (cache.page_addresses(), fork.page_addresses());
        assert_eq!((new[0], new[2]), (old[0], old[0]), "full pages stay shared");
        assert!(new[1] != old[1] && new[3] != old[1], "the last page is copied");
        assert_eq!(read(&cache, 0).len(), 200);
    }

    #[test]
    fn a_window_is_bounded_and_keeps_its_sinks() {
        let spec = CacheSpec { window: 100, sinks: 4, ..CacheSpec::growing(2, 1) };
        let cache = grown(&spec, &[64; 20]);
        assert_eq!(cache.len(0), 1280);
        assert!(cache.page_addresses().len() <= 4, "{} pages", cache.page_addresses().len());
        let kept = cache.kept(0);
        assert!(kept.from <= 1280 - 99 && kept.from + PAGE > 1280 - 99);
        assert_eq!(read(&cache, 0)[..4], [0.0, 1.0, 2.0, 3.0], "the sinks");
        let (rows, values) = cache.export();
        assert_eq!(read(&Cache::import(&spec, &rows, &values).unwrap(), 0), read(&cache, 0));
        assert!(Cache::import(&spec, &rows, &values[2..]).is_err());
        assert!(Cache::import(&spec, &[[5, 3]], &values).is_err());
    }

    #[test]
    fn a_reset_begins_a_document() {
        let spec = CacheSpec::growing(1, 1);
        let mut cache = grown(&spec, &[70]);
        let layout = Layout { resets: Some(Arc::from([0, 0, 1, 0, 0])), ..Layout::new(1, 5) };
        cache.push(&chunk(1, 5, 1, 100), &layout).unwrap();
        cache.settle();
        assert_eq!((cache.len(0), read(&cache, 0)), (3, vec![102.0, 103.0, 104.0]));
    }
}
