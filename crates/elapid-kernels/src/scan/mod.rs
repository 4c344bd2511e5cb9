//! The linear recurrence h_t = a_t h_{t-1} + b_t as a prefix scan.
//!
//! A step is an [`Element`] `(a, b)`, the map h ↦ a h + b. Maps compose, composition is associative, and so the states of
//! all positions are a scan: (a₁, b₁) then (a₂, b₂) is (a₂ a₁, a₂ b₁ + b₂) (Blelloch 1990, "Prefix sums and their
//! applications", section 1.4; Martin and Cundy 2018, arXiv 1709.04057). The operator does not commute: the first argument
//! of [`Element::then`] is the earlier one.
//!
//! | function          | work in compositions | depth            |
//! |-------------------|----------------------|------------------|
//! | [`sequential`]    | l - 1                | l - 1            |
//! | [`hillis_steele`] | l log₂ l - l + 1     | log₂ l           |
//! | [`blelloch`]      | about 3 l            | 2 log₂ l + 1     |
//! | [`odd_even`]      | about 2 l            | 2 log₂ l         |
//! | [`chunked`]       | 2 l + p              | 2 l / p + p      |
//!
//! These are the plain algorithms, generic over the element. They explain the fast kernels and test them, and do not run in
//! a model. On a CPU with wide vectors, the sequential scan over time with channels in the lanes ([`crate::selective_scan`])
//! does the least work; scans that are parallel in time pay only for few channels and a long sequence.
//!
//! An initial state is folded into the first element ([`from_state`]), a reset is an element whose `a` is 0
//! ([`Element::reset`]).

mod algorithms;
mod element;
#[cfg(test)]
mod tests;

pub use algorithms::{
    blelloch, blelloch_exclusive, chunked, from_state, gradient, hillis_steele, odd_even, reverse, sequential,
};
pub use element::{Complex, Element, Matrix2, Ring, Step};
