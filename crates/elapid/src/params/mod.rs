//! Parameters: the trained values, separate from the structure that uses them.

mod builder;
mod grads;
mod init;
mod param;
mod set;

pub use builder::{Bias, Packing, ParamBuilder, Source, Wanted};
pub use grads::ParamGrads;
pub use init::{Draw, Init};
pub use param::{Param, ParamId, Role, Traits};
pub(crate) use set::pack;
pub use set::{Flat, Params};
