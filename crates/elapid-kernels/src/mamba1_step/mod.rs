//! One position of a few rows through a whole Mamba-1 language model, on a GPU in one launch: from tokens to the
//! likeliest next ones, the states moved on in place.
//!
//! What is computed is what the operations compute one after another; sums are divided otherwise, so that results agree to
//! the rounding of bf16. The processor has no such form: there a launch costs nothing.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
