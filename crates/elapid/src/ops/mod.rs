//! Differentiable operations: each a kernel's forward, and on the tape its backward. One file is one operation, and here
//! alone devices are told apart: an operation runs where its first argument is.

mod add_norm;
mod causal_conv1d;
mod cross_entropy;
mod embedding;
mod linear;
mod neg_exp;
mod repeat;
mod selective_scan;

pub use add_norm::add_norm;
pub use causal_conv1d::causal_conv1d;
pub use cross_entropy::{Loss, Targets, cross_entropy};
pub use embedding::{Ids, embedding};
pub use linear::{linear, linear_recomputed};
pub use neg_exp::neg_exp;
pub use repeat::repeat;
pub use selective_scan::{ScanArgs, selective_scan};

use std::sync::Arc;

use elapid_kernels::Segments;
use elapid_kernels::cuda::{self, Buffer, Gpu};

use crate::autograd::Var;
use crate::{DType, Result, Tensor};

/// How the positions of a batch lie: its size, where rows end, where documents begin.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Rows of the batch.
    pub b: usize,
    /// Positions of a row.
    pub l: usize,
    /// `[b]`: real positions of each row; later ones are padding.
    pub lengths: Option<Arc<[u32]>>,
    /// `[b l]`: where non-zero, every state starts anew before that position.
    pub resets: Option<Arc<[u8]>>,
    /// The same on a GPU, once an operation there needs it.
    pub device: Option<OnDevice>,
}

/// Lengths (u32) and resets (u8) on a GPU.
#[derive(Debug, Clone, Default)]
pub struct OnDevice {
    lengths: Option<Arc<Buffer>>,
    resets: Option<Arc<Buffer>>,
}

impl Layout {
    /// A batch of full rows, each one document.
    pub fn new(b: usize, l: usize) -> Self {
        Self { b, l, ..Self::default() }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.b * self.l
    }

    /// The same batch with its resets in a buffer that is there already, `[b l]` of u8: a captured graph reads what it
    /// then holds.
    pub fn with_device_resets(self, resets: Arc<Buffer>) -> Self {
        Self { device: Some(OnDevice { lengths: None, resets: Some(resets) }), ..self }
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
        Ok(Self { device: Some(OnDevice { lengths, resets }), ..self.clone() })
    }

    /// As kernels on a GPU take it.
    pub(crate) fn device_segments(&self) -> cuda::Segments<'_> {
        let Some(device) = &self.device else { return cuda::Segments::default() };
        cuda::Segments { lengths: device.lengths.as_deref(), resets: device.resets.as_deref() }
    }

    /// As the kernels take it.
    pub fn segments(&self) -> Segments<'_> {
        Segments { lengths: self.lengths.as_deref(), resets: self.resets.as_deref() }
    }
}

/// On a GPU, where the state after `l` positions goes: to the memory of the one `before`, if that is wished and nobody needs
/// it any more, else to memory of its own.
fn state_after(gpu: Gpu, before: &Var, l: usize, in_place: bool, recorded: bool) -> Result<Tensor> {
    match in_place && l == 1 && !recorded {
        true => Ok(before.value().clone()),
        false => Tensor::uninit(gpu, DType::F32, before.shape()),
    }
}
