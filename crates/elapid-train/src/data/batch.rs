//! What a training step reads.

/// The target of a position that predicts nothing.
pub const IGNORE: i32 = -1;

/// Tokens to predict, and what to predict them from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[b l]`: the inputs.
    pub tokens: Vec<u32>,
    /// `[b l]`: the token after each input, [`IGNORE`] where there is none to predict.
    pub targets: Vec<i32>,
    /// `[b l]`: non-zero where the state starts anew before that position. `None`: nowhere.
    pub resets: Option<Vec<u8>>,
    /// Rows.
    pub b: usize,
    /// Positions in a row.
    pub l: usize,
    /// How often the corpus had been read through before the first row.
    pub epoch: u64,
}

impl Batch {
    /// Number of positions that predict a token.
    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|&&target| target >= 0).count()
    }
}
