//! Available memory, and the memory that work needs, computed before anything is allocated.

mod available;
mod needs;
mod of_model;
mod shortage;

pub use available::available;
pub use needs::Needs;
pub use shortage::{Available, Shortage};
