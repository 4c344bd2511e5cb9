//! The selective scan with vectors over channels.
//!
//! ```text
//! for each row of the batch and group of channels, in parallel:
//!   for each tile of up to 32 positions (first to last; backward last to first):
//!     copy the tile's B and C, block of states after block
//!     for each position and each vector of channels: Δ and Δu, into cache
//!     for each vector of channels and each block of 4 states:
//!       for each position of the tile: the recurrence, h in registers
//!       ask for a part of the next tile's inputs
//!     for each position and each vector of channels: D and the gate
//! ```
//!
//! Departures from naive, with reasons:
//! - Lanes are channels and time is sequential: no sum over time is cut, so neither chunks nor threads change a bit, and
//!   the exponential, which dominates, is the same number of instructions as with any other order.
//! - Tiles, so that what a position shares among its states (Δ, Δu, the sum over states) is loaded once for four states
//!   and stays in cache; a tile ends at a reset, so that the inner loops know nothing of resets.
//! - Backward starts each tile from the state forward saved, and keeps the tile's decays and states in cache. dB and dC
//!   are sums over channels: they gather as vectors over a group of channels, are summed over lanes once a tile, and over
//!   groups in order at the end.

mod backward;
mod forward;
mod rule;
mod tiles;

pub(super) use backward::backward;
pub(super) use forward::{forward, step};
