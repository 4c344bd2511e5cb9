//! Data-parallel training: several processes, one per GPU, each with its own batches.
//!
//! A process is a *rank*. [`World`] reads which one this is from the variables that `torchrun`, Slurm or [`launch`] set. A
//! [`Group`] connects the ranks: it starts them together, and ends all of them when one is lost. A [`Secret`] keeps
//! everybody else out. Every rank has the whole model. Gradients are averaged over all ranks, bucket by bucket while the
//! backward pass still runs, and each rank's optimiser then takes the same step: N ranks with a batch of B train as one rank
//! that accumulates N batches of B. Only rank 0 validates, writes files and reports.

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
