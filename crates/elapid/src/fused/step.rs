//! The trait of fused steps.

use elapid_kernels::cuda::Buffer;

use crate::Result;

/// One position of every row in few launches: reads the token ids, updates the state in place, replaces the ids by the
/// most likely tokens.
pub(crate) trait FusedStep: Send {
    /// Submits the step; does not wait.
    fn launch(&self) -> Result<()>;

    /// Logits `[b v]` of the last step, f32.
    fn logits(&self) -> &Buffer;

    /// Kernels that a step launches.
    fn launches(&self) -> u64;
}
