//! The operations of selective state space models, on slices.
//!
//! One folder is one operation. Its `mod.rs` is the contract: the equation with its source, the shapes, which outputs are
//! written (`=`) and which are accumulated (`+=`). `naive.rs` is the equation as a loop, generic over the float type: in
//! `f64` it is the oracle. `cpu.rs` is the fast form, written once over [`pulp`]'s vectors and chosen at run time by
//! [`Isa`].
//!
//! Every `unsafe` of elapid is in this crate. Letters of shapes: `b` batch, `l` length,
//! `d` channels, `n` state size, `k` convolution width or inner dimension of a product, `m` rows of a product,
//! `v` vocabulary.

pub mod adamw;
pub mod add_norm;
mod alloc;
pub mod answers;
pub mod attention;
mod batch_step;
pub mod causal_conv1d;
pub mod ceiling;
pub mod cell;
pub mod cross_entropy;
pub mod cuda;
pub mod cumulative_softmax;
pub mod diagonal_scan;
pub mod discretise;
pub mod dropout;
mod dtype;
pub mod elementwise;
pub mod embedding;
pub mod error;
pub mod experts;
mod float;
pub mod group_norm;
mod isa;
pub mod layer_norm;
pub mod linear;
pub mod linear_attention;
pub mod mamba1_step;
pub mod mamba2_step;
mod math;
pub mod neg_exp;
pub mod os;
pub mod packed;
mod parallel;
pub mod pointwise;
pub mod positions;
mod resident;
pub mod reuse;
pub mod rotate;
pub mod router;
mod rows;
pub mod sampling;
pub mod scan;
mod segments;
pub mod selective_scan;
pub mod squared_error;
pub mod step_sizes;
pub mod taylor_map;
mod team;
pub mod testing;
pub mod two_halves;
pub mod units;
mod view;

pub use alloc::{OutOfMemory, ProgramAllocator, with_room, zeros};
pub use dtype::DType;
pub use error::{Error, Result};
pub use float::Float;
pub use isa::Isa;
pub use rows::{Rows, RowsMut};
pub use segments::{Segments, SegmentsView};
pub use team::team;
pub use view::{Array, Matrix, View, ViewMut};
