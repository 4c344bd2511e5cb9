//! Arguments of the scan.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::{Rows, RowsMut, Segments};

pub(super) const OP: &str = "selective_scan";

/// The discretisation: how Ā and B̄ follow from Δ, A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Discretisation {
    /// Ā = exp(ΔA), B̄ = ΔB: what the released Mamba models use.
    #[default]
    ExpEuler,
    /// Zero-order hold, equation 4 of the paper: Ā = exp(ΔA), B̄ = (exp(ΔA) - 1) / A · B; ΔB where ΔA = 0.
    Zoh,
    /// Ā = (1 + ΔA/2) / (1 - ΔA/2), B̄ = Δ / (1 - ΔA/2) · B (S4, arXiv 2111.00396, equation 3). ΔA must not be 2.
    Bilinear,
}

impl Discretisation {
    /// Every rule.
    pub const ALL: [Self; 3] = [Self::ExpEuler, Self::Zoh, Self::Bilinear];

    /// `exp-euler`, `zoh` or `bilinear`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExpEuler => "exp-euler",
            Self::Zoh => "zoh",
            Self::Bilinear => "bilinear",
        }
    }
}

impl fmt::Display for Discretisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Discretisation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name).ok_or_else(|| Error {
            op: OP,
            argument: "rule",
            wanted: Self::ALL.map(Self::name).join(", "),
            got: name.to_owned(),
        })
    }
}

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Batch.
    pub b: usize,
    /// Length; ignored in [`step`](super::step), where it is 1.
    pub l: usize,
    /// Channels, at least 1.
    pub d: usize,
    /// State size per channel, at least 1.
    pub n: usize,
}

/// The inputs of the scan.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a, T = f32> {
    /// `[b l d]`, the input.
    pub u: Rows<'a, T>,
    /// `[b l d]`, Δ before bias and softplus.
    pub delta: Rows<'a, T>,
    /// `[d]`.
    pub delta_bias: Option<&'a [T]>,
    /// Whether softplus is applied to Δ.
    pub softplus: bool,
    /// `[d n]`: A itself, negative for a state that decays.
    pub a: &'a [T],
    /// `[b l n]`.
    pub b: Rows<'a, T>,
    /// `[b l n]`.
    pub c: Rows<'a, T>,
    /// `[d]`: D, the weight of the input in the output.
    pub skip: Option<&'a [T]>,
    /// `[b l d]`, the gate.
    pub z: Option<Rows<'a, T>>,
    /// `[b d n]`: the state before position 0; zeros if absent.
    pub initial: Option<&'a [T]>,
    /// Padding and packed documents.
    pub segments: Segments<'a>,
    /// The discretisation.
    pub rule: Discretisation,
}

/// What [`forward`](super::forward) saves for [`backward`](super::backward): the states before every tile of up to 32
/// positions.
///
/// Its values are laid out for the vectors of this CPU. It may be reused for another call.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    pub(super) states: Vec<f32>,
    pub(super) made_for: Option<(Dims, usize)>,
}

impl Saved {
    /// An empty one, for [`forward`](super::forward) to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its size in bytes: about `4 b d n l / 32`.
    pub fn bytes(&self) -> usize {
        self.states.capacity() * size_of::<f32>()
    }
}

/// The outputs of the backward.
#[derive(Debug)]
pub struct Grads<'a, T = f32> {
    /// `[b l d]` (=).
    pub du: RowsMut<'a, T>,
    /// `[b l d]` (=), the gradient of `delta` before bias and softplus.
    pub ddelta: RowsMut<'a, T>,
    /// `[d]` (+=).
    pub ddelta_bias: Option<&'a mut [T]>,
    /// `[d n]` (+=).
    pub da: &'a mut [T],
    /// `[b l n]` (=).
    pub db: RowsMut<'a, T>,
    /// `[b l n]` (=).
    pub dc: RowsMut<'a, T>,
    /// `[d]` (+=).
    pub dskip: Option<&'a mut [T]>,
    /// `[b l d]` (=); needs `z`.
    pub dz: Option<RowsMut<'a, T>>,
    /// `[b d n]` (=).
    pub dinitial: Option<&'a mut [T]>,
}
