//! Available memory, and the memory that work needs, computed before anything is allocated.

mod needs;
mod of_model;
mod shortage;

pub use elapid_kernels::os::machine::{Available, available};
pub use needs::Needs;
pub use shortage::Shortage;
