//! NVIDIA GPUs: the device, its memory, its kernels.
//!
//! Building needs nothing of CUDA: the driver, NVRTC and cuBLASLt are found and loaded when a device is opened
//! ([`library`]), and kernels are compiled at first use ([`compile`], cached on disk). Kernels of a [`Gpu`] run on one
//! stream, asynchronously and in order, so memory freed by one operation can be reused by the next without waiting.
//! ([`nccl`] has a stream of its own.) An operation's GPU form is `cuda.rs` in its folder, with its kernels in the `.cu`
//! file beside it.

mod blas;
pub mod ceiling;
pub mod compile;
pub mod elementwise;
mod error;
mod event;
mod gpu;
mod graph;
pub mod library;
mod mat;
mod memory;
pub mod nccl;
mod pinned;
mod pod;
mod transfer;

pub use compile::{Define, Source, Unit};
pub use error::{Error, Result};
pub use event::Event;
pub use gpu::{Gpu, Kernel, Launch, count};
pub use graph::Graph;
pub use mat::{Mat, MatMut, RawMat, Segments};
pub(crate) use memory::Held;
pub use memory::{Buffer, MemoryUse};
pub use pinned::Pinned;
pub use pod::Pod;
