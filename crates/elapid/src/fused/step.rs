//! The trait of fused steps, and what their plans ask alike.

use elapid_kernels::cuda::Buffer;

use crate::Result;
use crate::config::{ModelSettings, PositionKind};
use crate::ops::NormKind;

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

/// Whether a row of the embedding is the first layer's input as it is, and a product of the last norm the logits.
pub(super) fn plain_ends(settings: &ModelSettings) -> bool {
    let &ModelSettings { embedding_scale, embedding_norm, positions, logit_scale, logit_softcap, norm_f_eps, .. } =
        settings;
    (embedding_scale, logit_scale, logit_softcap) == (1.0, 1.0, 0.0)
        && (embedding_norm, positions) == (NormKind::None, PositionKind::None)
        && norm_f_eps.or(settings.norm_eps) == settings.norm_eps
}
