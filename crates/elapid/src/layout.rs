//! The layout of a batch: its size, where rows end, where documents begin.

use std::sync::Arc;

use elapid_kernels::cuda::{self, Buffer, Gpu};
use elapid_kernels::positions::{self, Width};
use elapid_kernels::reuse::List;
use elapid_kernels::{Array, Segments, SegmentsView};

use crate::{Device, Error, Result};

/// Positions in documents, on the device of an operation.
#[derive(Debug, Clone)]
pub(crate) enum Positions {
    /// On the CPU.
    Host(List<u64>),
    /// u64 on a GPU.
    Device(Arc<Buffer>),
}

impl Positions {
    pub(crate) fn view(&self) -> Array<'_, u64> {
        match self {
            Self::Host(positions) => Array::Host(positions),
            Self::Device(positions) => Array::Device(positions),
        }
    }
}

/// The layout of a batch: its size, where rows end, where documents begin.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Rows of the batch.
    pub b: usize,
    /// Positions per row.
    pub l: usize,
    /// `[b]`: real positions of each row; later ones are padding.
    pub lengths: Option<Arc<[u32]>>,
    /// `[b l]`: where non-zero, every state is reset before that position.
    pub resets: Option<Arc<[u8]>>,
    /// `[b]`: positions of its document that each row has read before this pass. A model overwrites it from the state; none
    /// means 0.
    pub starts: Option<List<u64>>,
    /// The same on a GPU, created when an operation there needs it.
    pub device: Option<OnDevice>,
}

/// Lengths (u32), resets (u8) and starts (u64) on a GPU.
#[derive(Debug, Clone, Default)]
pub struct OnDevice {
    lengths: Option<Arc<Buffer>>,
    resets: Option<Arc<Buffer>>,
    starts: Option<Arc<Buffer>>,
}

impl Layout {
    /// A batch of full rows, each one document.
    pub fn new(b: usize, l: usize) -> Self {
        Self { b, l, ..Self::default() }
    }

    /// Real positions of a row.
    pub fn len(&self, row: usize) -> usize {
        self.segments().len(row, self.l)
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.positions() == 0
    }

    /// The last real position of a row before which its state is reset.
    pub(crate) fn last_reset(&self, row: usize) -> Option<usize> {
        let segments = self.segments();
        (0..self.len(row)).rev().find(|&t| segments.reset(row, t, self.l))
    }

    /// Whether a state may be reset inside a row.
    pub(crate) fn has_resets(&self) -> bool {
        self.resets.is_some() || self.device.as_ref().is_some_and(|device| device.resets.is_some())
    }

    /// Whether rows may have padding.
    pub(crate) fn has_lengths(&self) -> bool {
        self.lengths.is_some() || self.device.as_ref().is_some_and(|device| device.lengths.is_some())
    }

    /// `[b l]`: the position of each in its document, counted from the last reset.
    ///
    /// # Errors
    /// If resets are only on a device.
    pub(crate) fn document_positions(&self) -> Result<List<u64>> {
        if self.resets_elsewhere() || self.device_starts().is_some() {
            return Err(Error::Argument("positions of documents that are only on a GPU".into()));
        }
        Ok(positions::on_host(self.b, self.l, self.host_starts(), &self.segments())?)
    }

    /// [`document_positions`](Self::document_positions) where an operation on `device` reads them.
    ///
    /// # Errors
    /// If resets are on another device, or the device failed; while a graph is captured, if a row has read something before and
    /// its start is not on the device.
    pub(crate) fn positions_on(&self, device: Device) -> Result<Positions> {
        match device {
            Device::Cpu => Ok(Positions::Host(self.document_positions()?)),
            Device::Cuda(gpu) => match self.device_starts() {
                // Of one position each.
                Some(starts) if self.l == 1 && !self.has_resets() => Ok(Positions::Device(starts.clone())),
                _ => Ok(Positions::Device(Arc::new(self.positions_as(gpu, Width::U64)?))),
            },
        }
    }

    /// Checks that a table of `max` rows has one for every position. Where resets are only on a GPU, rows must be short enough
    /// without them.
    ///
    /// # Errors
    /// If a position has no row.
    pub(crate) fn check_positions(&self, max: usize) -> Result<()> {
        let last = if self.resets_elsewhere() || self.device_starts().is_some() {
            let begins = self.host_starts().and_then(|starts| starts.iter().max().copied()).unwrap_or(0);
            (self.positions() > 0).then(|| begins + self.l as u64 - 1)
        } else {
            self.document_positions()?.into_iter().max()
        };
        last.map_or(Ok(()), |at| check_position(at, max))
    }

    fn host_starts(&self) -> Option<&[u64]> {
        self.starts.as_ref().map(|starts| &starts[..])
    }

    fn device_starts(&self) -> Option<&Arc<Buffer>> {
        self.device.as_ref()?.starts.as_ref()
    }

    fn resets_elsewhere(&self) -> bool {
        self.resets.is_none() && self.has_resets()
    }

    /// Positions in documents on a GPU, in a format.
    ///
    /// # Errors
    /// As [`positions_on`](Self::positions_on).
    pub(crate) fn positions_as(&self, gpu: Gpu, width: Width) -> Result<Buffer> {
        let host = self.host_starts().map(Array::Host);
        let starts = self.device_starts().map(|starts| Array::Device(starts)).or(host);
        let on_gpu = self.on(gpu)?;
        Ok(positions::on_device(gpu, self.b, self.l, starts, &on_gpu.device_segments(), width)?)
    }

    /// The same batch, in which every document's first position is a reset, also where it is a row's first: for layers that
    /// begin otherwise than they go on.
    ///
    /// # Errors
    /// As [`positions_on`](Self::positions_on).
    pub(crate) fn with_begins(&self, device: Device) -> Result<Self> {
        match device {
            Device::Cpu => {
                let begins = self.document_positions()?.into_iter().map(|position| u8::from(position == 0));
                Ok(Self { resets: Some(begins.collect()), ..self.clone() })
            }
            Device::Cuda(gpu) => {
                let resets = Some(Arc::new(self.positions_as(gpu, Width::Begins)?));
                let device = self.on(gpu)?.device.unwrap_or_default();
                Ok(Self { device: Some(OnDevice { resets, ..device }), ..self.clone() })
            }
        }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.b * self.l
    }

    /// The same batch with its resets in an existing buffer, `[b l]` of u8, so that a captured graph reads its current
    /// contents.
    pub fn with_device_resets(self, resets: Arc<Buffer>) -> Self {
        Self { device: Some(OnDevice { resets: Some(resets), ..OnDevice::default() }), ..self }
    }

    /// The same batch, whose rows have read what an existing buffer says, `[b]` of u64, so that a captured graph reads its
    /// current contents.
    pub(crate) fn with_device_starts(self, starts: &Arc<Buffer>) -> Self {
        Self { device: Some(OnDevice { starts: Some(starts.clone()), ..OnDevice::default() }), ..self }
    }

    /// The same layout, ready for operations on a GPU.
    ///
    /// # Errors
    /// If it has too little memory.
    pub fn on(&self, gpu: Gpu) -> Result<Self> {
        if self.device.is_some() || (self.lengths.is_none() && self.resets.is_none()) {
            return Ok(self.clone());
        }
        self.segments().check_sizes(self.b, self.l)?;
        let lengths = self.lengths.as_deref().map(|x| gpu.upload(x).map(Arc::new)).transpose()?;
        let resets = self.resets.as_deref().map(|x| gpu.upload(x).map(Arc::new)).transpose()?;
        Ok(Self { device: Some(OnDevice { lengths, resets, starts: None }), ..self.clone() })
    }

    /// In the form that GPU kernels take.
    pub(crate) fn device_segments(&self) -> cuda::Segments<'_> {
        let Some(device) = &self.device else { return cuda::Segments::default() };
        cuda::Segments { lengths: device.lengths.as_deref(), resets: device.resets.as_deref() }
    }

    /// As kernels take it that run on a device.
    pub(crate) fn view(&self, device: Device) -> SegmentsView<'_> {
        match device {
            Device::Cpu => self.segments().into(),
            Device::Cuda(_) => self.device_segments().into(),
        }
    }

    /// As the kernels take it.
    pub fn segments(&self) -> Segments<'_> {
        Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() }
    }
}

/// Checks that a table of `max` rows has one for a position.
///
/// # Errors
/// If it has not.
pub(crate) fn check_position(at: u64, max: usize) -> Result<()> {
    if at < max as u64 {
        return Ok(());
    }
    let what = format!("position {at} of a document, where max_positions is {max}");
    Err(Error::Argument(format!("{what}; give shorter texts")))
}
