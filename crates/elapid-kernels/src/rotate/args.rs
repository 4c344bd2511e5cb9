//! Arguments of the rotation.

/// Which columns of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Column i and column i + r/2 (GPT-NeoX, Llama in `transformers`).
    Halves,
    /// Columns 2i and 2i + 1 (the paper, GPT-J).
    Interleaved,
}

/// Arguments of the rotation.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    /// Columns per head; columns after the last whole head are an error.
    pub dim: usize,
    /// Radians per position for each pair; the first `2 frequencies.len()` columns of a head are rotated, the others copied.
    pub frequencies: &'a [f64],
    /// Which columns make a pair.
    pub pairs: Pairs,
    /// What rotated columns are multiplied by.
    pub factor: f64,
    /// The position of each row, `[m]`.
    pub positions: &'a [u64],
}
