//! What comes out.

/// What one row of logits answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
pub struct Answer {
    /// The id of the largest logit, the first of equals; a NaN is never the largest.
    pub likeliest: u32,
    /// -log p of the target in nats; NaN if a logit is.
    pub nll: f32,
    /// The target's logit minus the mean of all.
    pub lead: f32,
}
