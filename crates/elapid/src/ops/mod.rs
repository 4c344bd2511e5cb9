//! Differentiable operations: each a kernel's forward, and on the tape its backward. One file is one operation, written
//! once for all devices: it runs where its arguments are, and the kernel tells devices apart.

mod add_norm;
mod attention;
mod attention_gpu;
mod cached_attention;
mod causal_conv1d;
mod cell;
mod cross_entropy;
mod documents;
mod dropout;
mod embedding;
mod experts;
mod frequencies;
mod heads;
mod linear;
mod neg_exp;
mod norm;
mod place;
mod pointwise;
mod repeat;
mod rotate;
mod selective_scan;
mod squared_error;
mod two_halves;

pub use add_norm::add_norm;
pub use attention::{Attention, Mask, attention};
pub use causal_conv1d::causal_conv1d;
pub use cell::{CellArgs, CellKind, cell};
pub use cross_entropy::{Loss, Targets, cross_entropy};
pub use dropout::{First, Seeds, Unit, dropout};
pub use elapid_kernels::selective_scan::Discretisation;
pub use embedding::{Ids, embedding};
pub use experts::{Experts, Picked, Router, balance, mixture, route, sinkhorn, sort, spread, weighed, z_loss};
pub use frequencies::Scaling;
pub use heads::{block_linear, head_norm};
pub use linear::{linear, linear_recomputed};
pub use neg_exp::neg_exp;
pub use norm::{Norm, NormKind, norm};
pub(crate) use pointwise::cast;
pub use pointwise::{Function, Map, add_constant, add_scaled, contiguous, glu, map, scaled, soft_cap};
pub use repeat::repeat;
pub(crate) use rotate::sinusoids_like;
pub use rotate::{Pairs, Rotary, rotate, rotate_columns, sinusoids};
pub use selective_scan::{ScanArgs, selective_scan};
pub use squared_error::squared_error;
pub use two_halves::{Halves, two_halves};
