//! The pages of a row's past.

use std::collections::VecDeque;
use std::sync::Arc;

use elapid_kernels::attention::paged::{self, PAGE, Run, Shape};
use elapid_kernels::cuda::Gpu;

use super::cache_spec::CacheSpec;
use crate::{Device, Result};

/// [`PAGE`] positions, `[groups][64][cols / groups]`.
#[derive(Debug, Clone)]
pub(crate) enum Page {
    /// On the CPU.
    Host(Vec<f32>),
    /// On a GPU.
    Device(Arc<paged::Page>),
}

impl Page {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Host(values) => 4 * values.len(),
            Self::Device(page) => page.bytes(),
        }
    }

    pub(super) fn address(&self) -> usize {
        match self {
            Self::Host(values) => values.as_ptr() as usize,
            Self::Device(page) => page.address() as usize,
        }
    }

    /// Itself on a GPU in a shape; none if it is already.
    fn on(&self, gpu: Gpu, shape: Shape) -> Result<Option<Self>> {
        let page = match self {
            Self::Host(values) => paged::Page::upload(gpu, shape, values)?,
            Self::Device(page) if page.gpu() == gpu && page.shape() == shape => return Ok(None),
            Self::Device(page) if page.gpu() == gpu => page.converted(shape.dtype)?,
            Self::Device(page) => paged::Page::upload(gpu, shape, &page.to_vec()?)?,
        };
        Ok(Some(Self::Device(Arc::new(page))))
    }
}

/// The past of one row that is in pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pages {
    /// Pages of the first positions, which are always kept.
    pub(super) sinks: Vec<Arc<Page>>,
    /// The number of the first page of `pages`.
    pub(super) first: usize,
    pub(super) pages: VecDeque<Arc<Page>>,
    /// Positions since the last reset that are in pages.
    pub(super) len: usize,
}

impl Pages {
    /// All of them, those of the sinks first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Page>> {
        self.sinks.iter().chain(&self.pages)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Arc<Page>> {
        self.sinks.iter_mut().chain(&mut self.pages)
    }

    /// All with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &Arc<Page>)> {
        let later = self.pages.iter().enumerate().map(|(i, page)| (self.first + i, page));
        self.sinks.iter().enumerate().chain(later)
    }

    pub(super) fn page(&self, k: usize) -> &Page {
        if k < self.first { &self.sinks[k] } else { &self.pages[k - self.first] }
    }

    /// Puts pages on a device where they are on another, in the shape that a GPU has then.
    pub(super) fn move_to(&mut self, device: Device, shape: Shape) -> Result<()> {
        for page in self.all_mut() {
            match (&**page, device) {
                (Page::Device(on_gpu), Device::Cpu) => *page = Arc::new(Page::Host(on_gpu.to_vec()?)),
                (Page::Device(on_gpu), Device::Cuda(gpu)) if on_gpu.gpu() == gpu => {}
                (_, Device::Cuda(gpu)) => {
                    if let Some(moved) = page.on(gpu, shape)? {
                        *page = Arc::new(moved);
                    }
                }
                (Page::Host(_), Device::Cpu) => {}
            }
        }
        Ok(())
    }

    /// Puts pages on a device, on a GPU in exactly this shape.
    pub(super) fn place(&mut self, device: Device, shape: Shape) -> Result<()> {
        let Device::Cuda(gpu) = device else { return self.move_to(device, shape) };
        for page in self.all_mut() {
            if let Some(placed) = page.on(gpu, shape)? {
                *page = Arc::new(placed);
            }
        }
        Ok(())
    }

    /// Makes room for `more` positions in pages on a GPU that nothing else has.
    pub(super) fn reserve(&mut self, gpu: Gpu, shape: Shape, more: usize) -> Result<()> {
        if more == 0 {
            return Ok(());
        }
        for k in self.len / PAGE..=(self.len + more - 1) / PAGE {
            let i = k - self.first;
            if i == self.pages.len() {
                self.pages.push_back(Arc::new(Page::Device(Arc::new(paged::Page::new(gpu, shape)?))));
                continue;
            }
            let page = &mut self.pages[i];
            if let Some(placed) = page.on(gpu, shape)? {
                *page = Arc::new(placed);
            } else if let (2.., Page::Device(shared)) = (Arc::strong_count(page), &**page) {
                *page = Arc::new(Page::Device(Arc::new(shared.converted(shape.dtype)?)));
            }
        }
        Ok(())
    }

    /// `count` positions after those that it has, which are at `at` of a row of a chunk.
    pub(super) fn run(&self, at: usize, count: usize) -> Run<'_> {
        let pages = self.pages.iter().skip(self.len / PAGE - self.first);
        Run { slot: self.len % PAGE, at, count, pages: on_gpu(pages).take(count.div_ceil(PAGE) + 1).collect() }
    }

    /// All `count` positions that can be read.
    pub(super) fn kept(&self, count: usize) -> Run<'_> {
        Run { slot: 0, at: 0, count, pages: on_gpu(self.all()).collect() }
    }

    /// The page of the next position, if it is on a GPU.
    pub(super) fn next(&self) -> Option<&Arc<paged::Page>> {
        let page = self.pages.get((self.len / PAGE).checked_sub(self.first)?)?;
        if let Page::Device(page) = &**page { Some(page) } else { None }
    }

    pub(super) fn append<'a>(&mut self, spec: &CacheSpec, rows: impl Iterator<Item = &'a [f32]>) {
        let dim = spec.cols / spec.groups;
        for values in rows {
            let k = self.len / PAGE - self.first;
            if k == self.pages.len() {
                self.pages.push_back(Arc::new(Page::Host(vec![0.0; PAGE * spec.cols])));
            }
            let Page::Host(page) = Arc::make_mut(&mut self.pages[k]) else { continue };
            for (group, part) in values.chunks_exact(dim.max(1)).enumerate() {
                let from = (group * PAGE + self.len % PAGE) * dim;
                page[from..from + dim].copy_from_slice(part);
            }
            self.len += 1;
        }
    }

    /// Drops pages that the next position's window does not reach; the first ones move to the sinks.
    pub(super) fn trim(&mut self, spec: &CacheSpec) {
        if spec.window == 0 {
            return;
        }
        // The next position sees itself and window - 1 before it.
        let reach = (self.len + 1).saturating_sub(spec.window);
        while (self.first + 1) * PAGE <= reach {
            let Some(page) = self.pages.pop_front() else { return };
            if self.first * PAGE < spec.sinks {
                self.sinks.push(page);
            }
            self.first += 1;
        }
    }
}

fn on_gpu<'a>(pages: impl Iterator<Item = &'a Arc<Page>>) -> impl Iterator<Item = &'a paged::Page> {
    pages.filter_map(|page| if let Page::Device(page) = &**page { Some(&**page) } else { None })
}
