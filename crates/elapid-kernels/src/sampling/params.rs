//! How to choose, and memory to choose with.

/// How to choose. The default is the model's own distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// How many of the best tokens stay; 0 for all.
    pub top_k: usize,
    /// How much of the mass stays, in (0, 1]; 1 for all.
    pub top_p: f32,
    /// The least share of the best token's probability, in [0, 1]; 0 for all.
    pub min_p: f32,
    /// Above 1 discourages recent tokens; 1 for none.
    pub repetition_penalty: f32,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// Memory that is kept from token to token.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    pub(super) logits: Vec<f32>,
    pub(super) kept: Vec<(f32, u32)>,
    pub(super) recent: Vec<u32>,
}
