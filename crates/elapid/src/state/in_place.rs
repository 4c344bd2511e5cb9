//! Keeping the caches of a batch where its steps on a GPU read and write them.

use std::sync::Arc;

use elapid_kernels::attention::paged::{Columns, PAGE, Tables};
use elapid_kernels::cuda::{Buffer, Gpu};

use super::cache::Cache;
use super::cache_spec::CacheSpec;
use super::pages::{Page, Pages};
use super::tables::InPlace;
use super::{LayerState, Slot, State};
use crate::{DType, Device, Result};

fn columns(spec: &CacheSpec, pages: usize) -> Columns {
    match spec.window {
        0 => Columns::growing(pages),
        window => Columns::window(window, spec.sinks),
    }
}

impl State {
    /// Lets the steps of this batch read and write its caches in pages of a dtype, up to `pages` of a row, with the positions
    /// that are in `positions`.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub(crate) fn keep_in_place(
        &mut self,
        gpu: Gpu,
        dtype: DType,
        pages: usize,
        positions: &Arc<Buffer>,
    ) -> Result<()> {
        let shapes: Vec<_> =
            self.caches().map(|cache| (cache.spec().page(dtype), columns(cache.spec(), pages))).collect();
        let place = Arc::new(InPlace::new(Tables::new(gpu, self.rows(), &shapes)?, positions));
        {
            let mut tables = place.tables();
            for (i, cache) in self.caches_mut().enumerate() {
                cache.set_in_place(&place, i);
                for row in 0..tables.rows() {
                    fill(&mut tables, i, cache, row);
                }
            }
        }
        Ok(())
    }

    /// Makes room for the next position of these rows in pages that no other state has. Whether the tables have place for it.
    ///
    /// # Errors
    /// If the device failed, or has too little memory.
    pub(crate) fn prepare(&mut self, rows: impl Iterator<Item = usize> + Clone) -> Result<bool> {
        let Some(place) = self.caches().find_map(|cache| cache.in_place().map(|(place, _)| place.clone())) else {
            return Ok(true);
        };
        let mut tables = place.tables();
        let gpu = place.gpu();
        for (i, cache) in self.caches_mut().enumerate() {
            let (spec, shape) = (cache.spec().clone(), tables.shape(i));
            for row in rows.clone() {
                let pages = &mut cache.pages_mut()[row];
                pages.trim(&spec);
                pages.reserve(gpu, shape, 1)?;
                let k = pages.len / PAGE;
                if pages.next().is_some_and(|page| !tables.set(i, row, k, page)) {
                    return Ok(false);
                }
            }
        }
        tables.flush()?;
        Ok(true)
    }

    /// Counts the position that a step wrote in place.
    pub(super) fn grow(&mut self, rows: impl Iterator<Item = usize> + Clone) {
        for cache in self.caches_mut().filter(|cache| cache.in_place().is_some()) {
            let pages = cache.pages_mut();
            rows.clone().for_each(|row| pages[row].len += 1);
        }
    }

    /// Writes the caches of a state of one row into row `row`, where they are kept in place.
    pub(super) fn write_caches(&mut self, row: usize, from: &State) -> Result<()> {
        for (to, from) in self.caches_mut().zip(from.caches()) {
            let Some((place, i)) = to.in_place().cloned() else { continue };
            let mut tables = place.tables();
            let mut pages = from.select(&[0])?;
            pages.place(Device::Cuda(place.gpu()), tables.shape(i).dtype)?;
            to.pages_mut()[row] = pages.pages_mut()[0].clone();
            if i == 0 {
                tables.clear(row);
            }
            fill(&mut tables, i, to, row);
        }
        Ok(())
    }

    /// Forgets the caches of a row.
    pub(super) fn clear_caches(&mut self, row: usize) {
        for cache in self.caches_mut() {
            let Some((place, i)) = cache.in_place().cloned() else { continue };
            cache.pages_mut()[row] = Pages::default();
            if i == 0 {
                place.tables().clear(row);
            }
        }
    }

    fn caches(&self) -> impl Iterator<Item = &Cache> {
        self.layers.iter().flat_map(LayerState::slots).filter_map(|slot| match slot {
            Slot::Cache(cache) => Some(cache),
            Slot::Fixed(_) => None,
        })
    }

    fn caches_mut(&mut self) -> impl Iterator<Item = &mut Cache> {
        self.layers.iter_mut().flat_map(|layer| &mut layer.0).filter_map(|slot| match slot {
            Slot::Cache(cache) => Some(cache),
            Slot::Fixed(_) => None,
        })
    }
}

/// Enters the pages of a row; what has no place is told by [`State::prepare`].
fn fill(tables: &mut Tables, i: usize, cache: &mut Cache, row: usize) {
    for (k, page) in cache.pages_mut()[row].numbered() {
        if let Page::Device(page) = &**page {
            tables.set(i, row, k, page);
        }
    }
}
