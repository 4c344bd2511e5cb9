//! The input of a training step.

/// The target of a position that predicts nothing.
pub const IGNORE: i32 = -1;

/// Tokens to predict, and the tokens before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[b l]`: the inputs.
    pub tokens: Vec<u32>,
    /// `[b l]`: the token after each input, [`IGNORE`] where there is none to predict.
    pub targets: Vec<i32>,
    /// `[b l]`: non-zero where the state is reset before that position. `None`: nowhere.
    pub resets: Option<Vec<u8>>,
    /// Rows.
    pub b: usize,
    /// Positions in a row.
    pub l: usize,
    /// Number of complete passes over the corpus before the first row.
    pub epoch: u64,
}

impl Batch {
    /// Number of positions that predict a token.
    pub fn predictions(&self) -> usize {
        self.targets.iter().filter(|&&target| target >= 0).count()
    }
}
