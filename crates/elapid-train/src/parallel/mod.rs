//! Training by several processes at once, one a GPU, each on batches of its own (data parallel).
//!
//! A process is a *rank*. [`World`] says which one this is, from the variables that `torchrun`, Slurm or
//! [`launch`] set; a [`Group`] is the connection between ranks: it starts them together, and ends all of them when one is
//! lost. A [`Secret`] keeps everybody else out. Every rank has the whole model. After the backward pass gradients are averaged over all ranks, bucket by bucket
//! while the pass still runs, and each rank's optimiser then does the same step: N ranks with a batch of B are one with
//! N batches of B accumulated. Rank 0 alone validates, writes files and reports.

mod buckets;
mod group;
mod launcher;
mod reducer;
mod secret;
pub(crate) mod start;
mod world;

pub use group::{Group, LostRank, Timeouts};
pub use launcher::{Ended, Failed, Launch, launch};
pub(crate) use reducer::Reducer;
pub use secret::{SECRET, SECRET_FILE, Secret};
pub use world::World;
