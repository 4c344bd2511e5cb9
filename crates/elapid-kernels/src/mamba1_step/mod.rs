//! One position of a few rows through a whole Mamba-1 language model, on a GPU in one launch: from tokens to the most likely
//! next ones, with the states updated in place.
//!
//! It computes the same as the operations one after another. Sums are split differently, so results agree to the rounding of
//! bf16. There is no CPU form, as a launch costs nothing there.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
