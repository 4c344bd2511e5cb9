//! How experts are picked, and where the picks are.

use crate::Array;
use crate::cuda::Buffer;
use crate::error::Check;

pub(super) const CHECK: Check = Check("router");

/// Experts at most.
pub const MOST: usize = 1024;

/// Iterations of [`sinkhorn`](super::sinkhorn) at most: `TURNS` of the source.
pub(super) const SINKHORN_TURNS: usize = 100;
/// The change of a correction below which it ends: `CHANGE` of the source.
pub(super) const SINKHORN_CHANGE: f64 = 1e-3;
/// Added to sums that may be 0: `LEAST` of the source.
pub(super) const SINKHORN_LEAST: f64 = 1e-30;

/// How experts are picked and weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Router {
    /// Experts per position.
    pub top_k: usize,
    /// Neighbouring experts are in so many groups, ...
    pub groups: usize,
    /// ... and a position picks from this many of them: those with the best expert, or with a correction those with the largest
    /// sum of their two best (DeepSeek-V3, Liu et al. 2024, section 2.1.2).
    pub top_groups: usize,
    /// Whether a correction is added to the logits for the pick, not to the scores.
    pub correct_logits: bool,
    /// Whether scores are sigmoids of the logits, each by itself; otherwise their softmax over all experts.
    pub sigmoid: bool,
    /// Whether the weights of the picked experts are divided by their sum.
    pub renormalise: bool,
    /// Factor of the weights.
    pub scale: f32,
}

impl Router {
    /// The k best of all experts, weighed by their share of the softmax.
    pub fn top(k: usize) -> Self {
        Self {
            top_k: k,
            groups: 1,
            top_groups: 1,
            correct_logits: false,
            sigmoid: false,
            renormalise: false,
            scale: 1.0,
        }
    }
}

/// Indices where an operation left them: on the CPU, or on a GPU.
#[derive(Debug)]
pub enum Indices {
    /// On the CPU.
    Host(Vec<u32>),
    /// On a GPU.
    Device(Buffer),
}

impl Indices {
    /// To read.
    pub fn view(&self) -> Array<'_, u32> {
        match self {
            Self::Host(indices) => indices.into(),
            Self::Device(buffer) => buffer.into(),
        }
    }
}
