//! The cells on the CPU.
//!
//! ```text
//! for each group of rows of the batch, in parallel:
//!   for each position (backward: last to first):
//!     q = U h, for all rows and gates at once
//!     for each row and each vector of channels: the nonlinearities
//! ```
//!
//! Departures from naive, with reasons:
//! - U h is nearly all of the time. Its rows are all rows of a group, so that U is read once for them, by the product whose
//!   order of summation depends on the inner dimension alone (`linear/invariant.rs`): a row of a batch is the row alone, and
//!   prefill is decoding, bit for bit. With fewer rows than what fills its tiles on every thread there is one group, and the
//!   product's own threads share the rows of U.
//! - q, and its gradient, have the gates of a head together, so that a head is one product; x has the heads of a gate
//!   together.
//! - The backward's product is with U transposed, once per call, by the same code. dU and dbias are sums over all positions:
//!   one product at the end.

mod backward;
mod forward;
mod gates;
mod parts;

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(super) use parts::Saved;
