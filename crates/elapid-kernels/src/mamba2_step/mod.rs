//! One position of some rows through a whole Mamba-2 language model, on a GPU: from the tokens to the most likely next ones, with
//! the states updated in place. One row takes one launch, more rows three launches a layer.
//!
//! It computes the same as the operations one after another. Sums are split differently, so results agree to the rounding of
//! bf16. There is no CPU form, as a launch costs nothing there.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
