//! Training: whatever needs a dataset.
//!
//! [`TrainConfig`](config::TrainConfig) says what to train on what; a [`Trainer`] does it, and leaves a directory with
//! the model, its metrics and their picture, and what it takes to go on.
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
