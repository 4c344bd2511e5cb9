//! Which pages hold the positions of each row, at an address that does not change.

use std::sync::Arc;

use super::page::{PAGE, Page, Shape};
use crate::cuda::{Buffer, Gpu, Result};
use crate::error::product;

/// Counters of a row: heads of keys times blocks of query heads, at most.
pub(super) const COUNTERS: usize = 1024;
/// With more changed rows than this, the whole table is written at once.
const FEW: usize = 8;

/// Which pages of a row a cache's table has columns for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first pages of a document, which stay.
    pub sinks: usize,
    /// Pages after them: those from `sinks` on if the cache grows, else the last ones in turn.
    pub ring: usize,
    /// Whether all positions are kept.
    pub grows: bool,
}

impl Columns {
    /// For a cache that keeps all of up to this many pages.
    pub fn growing(pages: usize) -> Self {
        Self { sinks: 0, ring: pages, grows: true }
    }

    /// For a cache that keeps the last `reach` positions and the first `sinks`.
    pub fn window(reach: usize, sinks: usize) -> Self {
        Self { sinks: sinks.div_ceil(PAGE), ring: reach.div_ceil(PAGE) + 1, grows: false }
    }

    fn count(&self) -> usize {
        self.sinks + self.ring
    }

    /// The column of page k; none if there is no place for it.
    fn of(&self, k: usize) -> Option<usize> {
        match k.checked_sub(self.sinks) {
            None => Some(k),
            Some(later) if self.grows => (later < self.ring).then_some(k),
            Some(later) => Some(self.sinks + later % self.ring),
        }
    }
}

/// The tables of a batch: for each cache and row the addresses of its pages. They hold the pages, so that what a captured
/// step reads is there.
#[derive(Debug)]
pub struct Tables {
    gpu: Gpu,
    rows: usize,
    caches: Vec<Place>,
    /// `[caches][rows][columns]` u64, 0 where there is none.
    addresses: Buffer,
    pages: Vec<Option<Arc<Page>>>,
    /// Rows of caches that differ on the device.
    changed: Vec<(usize, usize)>,
    /// `[rows][COUNTERS]` u32, zeros between launches.
    counters: Buffer,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) shape: Shape,
    pub(super) columns: Columns,
    /// Where its table begins.
    first: usize,
}

impl Tables {
    /// Tables of `rows` rows without pages.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(gpu: Gpu, rows: usize, caches: &[(Shape, Columns)]) -> Result<Self> {
        let mut first = 0_usize;
        let mut places = Vec::with_capacity(caches.len());
        for &(shape, columns) in caches {
            places.push(Place { shape, columns, first });
            first = first.saturating_add(product(&[rows, columns.count()]));
        }
        let addresses = gpu.alloc(product(&[first.max(1), 8]))?;
        gpu.write(&addresses, 0, &vec![0u64; first])?;
        let counters = gpu.upload(&vec![0u32; product(&[rows, COUNTERS])])?;
        let pages = vec![None; first];
        Ok(Self { gpu, rows, caches: places, addresses, pages, changed: Vec::new(), counters })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The shape of a cache's pages.
    pub fn shape(&self, cache: usize) -> Shape {
        self.caches[cache].shape
    }

    /// Puts page k of a row into a cache's table. Whether there is a place for it.
    ///
    /// # Panics
    /// If there is no such cache or row, or the page has another shape or device.
    pub fn set(&mut self, cache: usize, row: usize, k: usize, page: &Arc<Page>) -> bool {
        let place = self.caches[cache];
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (shape, gpu) = (page.shape(), page.gpu());
        assert!(shape == place.shape && gpu == self.gpu, "{page:?} in a table of {:?}", place.shape);
        let Some(column) = place.columns.of(k) else { return false };
        let slot = &mut self.pages[place.first + row * place.columns.count() + column];
        if slot.as_ref().is_none_or(|known| !Arc::ptr_eq(known, page)) {
            *slot = Some(page.clone());
            if self.changed.last() != Some(&(cache, row)) {
                self.changed.push((cache, row));
            }
        }
        true
    }

    /// Takes all pages of a row out.
    pub fn clear(&mut self, row: usize) {
        for (cache, place) in self.caches.iter().enumerate() {
            let count = place.columns.count();
            self.pages[place.first + row * count..][..count].fill(None);
            self.changed.push((cache, row));
        }
    }

    /// Writes what changed to the device.
    ///
    /// # Errors
    /// If the device failed.
    pub fn flush(&mut self) -> Result<()> {
        let address = |page: &Option<Arc<Page>>| page.as_ref().map_or(0, |page| page.address());
        if self.changed.len() > FEW {
            let all: Vec<u64> = self.pages.iter().map(address).collect();
            self.gpu.write(&self.addresses, 0, &all)?;
        } else {
            for &(cache, row) in &self.changed {
                let Place { columns, first, .. } = self.caches[cache];
                let (at, count) = (first + row * columns.count(), columns.count());
                let some: Vec<u64> = self.pages[at..at + count].iter().map(address).collect();
                self.gpu.write(&self.addresses, at, &some)?;
            }
        }
        self.changed.clear();
        Ok(())
    }

    pub(super) fn gpu(&self) -> Gpu {
        self.gpu
    }

    pub(super) fn place(&self, cache: usize) -> Option<&Place> {
        self.caches.get(cache)
    }

    pub(super) fn address(&self, place: &Place) -> u64 {
        self.addresses.address() + 8 * place.first as u64
    }

    pub(super) fn counters(&self) -> u64 {
        self.counters.address()
    }
}
