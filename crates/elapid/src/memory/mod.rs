//! How much memory there is, and what a piece of work takes of it, known before anything is allocated.

mod available;
mod needs;
mod of_model;
mod shortage;

pub use available::available;
pub use needs::Needs;
pub use shortage::{Available, Shortage};
