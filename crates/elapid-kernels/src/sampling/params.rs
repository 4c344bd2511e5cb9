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
    /// Above 1 discourages recent tokens, of the prompt too; 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of a token that was generated before; 0 for none.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time that it was generated before; 0 for none.
    pub frequency_penalty: f32,
}

impl Params {
    /// Whether the choice depends on how often tokens were generated.
    pub fn counts(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether the choice is the likeliest token of the logits as they are.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0 && !self.counts()
    }
}

/// What penalties look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Past<'a> {
    /// Tokens read lately, of the prompt too, in any order: for the repetition penalty.
    pub recent: &'a [u32],
    /// How often each token was generated, `[v]`, or nothing: for the presence and frequency penalties.
    pub counts: &'a [u16],
}

impl<'a> Past<'a> {
    /// A past in which nothing is counted.
    pub fn recent(recent: &'a [u32]) -> Self {
        Self { recent, counts: &[] }
    }
}

impl Params {
    /// The model's own distribution.
    pub const DEFAULT: Self = Self {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
    };
}

impl Default for Params {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Memory that is kept from token to token.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    pub(super) logits: Vec<f32>,
    pub(super) kept: Vec<(f32, u32)>,
    pub(super) recent: Vec<u32>,
}
