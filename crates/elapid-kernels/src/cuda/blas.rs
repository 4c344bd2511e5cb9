//! cuBLASLt's handle.

use cudarc::cublaslt::{result, sys};

use super::{Error, Result};

pub(super) struct Blas(sys::cublasLtHandle_t);

// SAFETY: handles may be used from any thread; calls on one stream are ordered.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// Under [`Gpu::bind`](super::Gpu::bind).
    pub(super) fn new() -> Result<Self> {
        let failed = |error: result::CublasError| Error::Call { call: "cublasLtCreate", reason: format!("{error:?}") };
        Ok(Self(result::create_handle().map_err(failed)?))
    }

    pub(super) fn handle(&self) -> sys::cublasLtHandle_t {
        self.0
    }
}
