//! Work that does not fit.

use std::fmt;

use elapid_kernels::os::machine::Available;

/// Work that does not fit, and the available memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes needed.
    pub needed: u128,
    /// Available bytes, if the system reports them; else the needed ones exceed the address space.
    pub available: Option<Available>,
    /// The needed bytes by part, and the fix.
    pub detail: String,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this takes at least {} of memory, ", size(self.needed))?;
        match self.available {
            Some(Available { bytes, limit }) => write!(f, "and {} are available ({limit})", size(bytes.into()))?,
            None => write!(f, "more than can be addressed")?,
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Shortage {}

/// `1.50 GB`.
pub(super) fn size(bytes: u128) -> String {
    const UNITS: [(u128, &str); 6] = [
        (1_000_000_000_000_000_000, "EB"),
        (1_000_000_000_000_000, "PB"),
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
