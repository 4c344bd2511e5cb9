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
mod gpu;
mod graph;
pub mod library;
mod memory;
pub mod nccl;
mod view;

pub use compile::{Define, Source, Unit};
pub use error::{Error, Result};
pub use gpu::{Event, Gpu, Kernel, Launch, count};
pub use graph::Graph;
pub use memory::{Buffer, MemoryUse, Pinned};
pub use view::{Mat, MatMut, Pod, RawMat, Segments};

/// Every kernel and specialisation that operations use: what `cargo xtask cuda-check` compiles.
pub fn units() -> Vec<Unit> {
    [
        crate::adamw::cuda::units(),
        crate::add_norm::cuda::units(),
        crate::causal_conv1d::cuda::units(),
        crate::cross_entropy::cuda::units(),
        crate::embedding::cuda::units(),
        crate::linear::cuda::units(),
        crate::mamba1_step::cuda::units(),
        crate::neg_exp::cuda::units(),
        crate::sampling::cuda::units(),
        crate::selective_scan::cuda::units(),
        elementwise::units(),
    ]
    .concat()
}
