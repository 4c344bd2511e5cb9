//! The forms of stored weights, and their sizes.

use std::fmt;
use std::str::FromStr;

/// Values that share a scale.
pub const GROUP: usize = 32;

/// Rows of a panel.
pub const PANEL: usize = 16;

/// How the values of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Integers of 8 bits, a bf16 scale for each 32.
    Int8,
    /// Integers of 4 bits, a bf16 scale for each 32.
    Int4,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of a panel of rows of `k` values: whole cache lines.
    pub(super) fn panel_bytes(self, k: usize) -> usize {
        self.values_bytes(k) + (2 * PANEL * self.groups(k)).next_multiple_of(Line::BYTES)
    }

    /// Bytes of a panel before its scales.
    pub(super) fn values_bytes(self, k: usize) -> usize {
        match self {
            Self::F32 => 4 * PANEL * k,
            Self::Bf16 => 4 * PANEL * k.div_ceil(2),
            Self::Int8 => PANEL * GROUP * self.groups(k),
            Self::Int4 => PANEL * GROUP / 2 * self.groups(k),
        }
    }

    /// Groups of a row of `k` values that have a scale.
    pub(super) fn groups(self, k: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 | Self::Int4 => k.div_ceil(GROUP),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let wanted = || format!("`{name}` is not a form of weights: wanted f32, bf16, int8 or int4");
        Self::ALL.into_iter().find(|form| form.name() == name).ok_or_else(wanted)
    }
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([u8; Self::BYTES]);

impl Line {
    /// Bytes of a line.
    pub const BYTES: usize = 64;
    pub(super) const ZERO: Self = Self([0; Self::BYTES]);
}
