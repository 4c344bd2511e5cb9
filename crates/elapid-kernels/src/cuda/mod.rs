//! NVIDIA GPUs: the device, its memory, its kernels.
//!
//! Nothing of CUDA is needed to build: the driver, NVRTC and cuBLASLt are found and loaded when a device is opened
//! ([`library`]), and kernels are compiled then ([`compile`], kept on disk). A [`Gpu`] has one stream; every call is
//! asynchronous on it and in order, so that memory freed by one operation can be used by the next without waiting.
//! An operation's device form is `cuda.rs` in its folder, its kernels the `.cu` beside it.

mod blas;
pub mod ceiling;
pub mod compile;
pub mod elementwise;
mod error;
mod event;
mod gpu;
mod graph;
pub mod library;
mod memory;
pub mod nccl;
mod transfer;
mod view;

pub use compile::{Define, Source, Unit};
pub use error::{Error, Result};
pub use event::Event;
pub use gpu::{Gpu, Kernel, Launch, count};
pub use graph::Graph;
pub use memory::{Buffer, MemoryUse};
pub use transfer::Pinned;
pub use view::{Mat, MatMut, Pod, RawMat, Segments};
