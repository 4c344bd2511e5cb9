//! Reverse-mode differentiation: a tape over coarse operations.
//!
//! An operation computes its output and, if an input needs a gradient, records on the tape a closure that turns the gradient
//! of the output into gradients of the inputs. [`Tape::backward`] runs the closures from last to first and drops each one
//! after it ran, with everything that it saved. The tape is independent of models; an operation is one file in
//! [`crate::ops`].
//!
//! Two rules keep memory traffic low. A column slice ([`Var::columns`]) shares the gradient of what it was cut from, so the
//! gradients of `x` and `z` are written straight into that of the packed `[x z]`. And the first writer of a gradient stores
//! it (`=`). Later ones add to it: in place if the operation can ([`Grads::accumulate`]), else through a temporary.

mod checkpoint;
mod grads;
mod saved;
mod slots;
mod tape;
mod var;

pub use checkpoint::checkpoint;
pub use grads::Want;
pub(crate) use saved::Saved;
pub use slots::Grads;
pub(crate) use tape::record;
pub use tape::{Final, Tape};
pub use var::Var;
