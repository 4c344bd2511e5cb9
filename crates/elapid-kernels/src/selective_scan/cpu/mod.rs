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
//! - Lanes are channels and time is sequential: no sum over time is split, so neither chunks nor threads change a bit, and
//!   the number of exponentials, which dominate, is the same as in any other order.
//! - Tiles: values that the states of a position share (Δ, Δu, the sum over states) are loaded once for four states and stay
//!   in cache. A tile ends at a reset, so the inner loops need not handle resets.
//! - The backward starts each tile from the state that the forward saved, and keeps the tile's decays and states in cache.
//!   dB and dC are sums over channels: they are accumulated as vectors over a group of channels, summed over lanes once per
//!   tile, and over groups in order at the end.

mod backward;
mod forward;
mod rule;
mod saved;
mod tiles;

pub(super) use backward::backward;
pub(super) use forward::{forward, step};
pub(super) use saved::Saved;
