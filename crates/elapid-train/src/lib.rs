//! Training: whatever needs a dataset.
//!
//! A [`TrainConfig`](config::TrainConfig) describes a run. A [`Trainer`] runs it and writes a directory with the model, its
//! metrics, a picture of them, and a checkpoint to resume from.
#![forbid(unsafe_code)]

pub mod config;
pub mod cuda_step;
pub mod data;
mod error;
mod groups;
pub mod metrics;
pub mod objectives;
pub mod optim;
pub mod parallel;
pub mod plot;
pub mod progress;
mod resume;
mod run_dir;
pub mod schedule;
mod shell;
pub mod tasks;
mod trainer;

pub use error::{Error, Result};
pub use shell::shell_word;
pub use trainer::{Outcome, Start, Stopped, Trainer};
