//! Memory needed by a piece of work.

use elapid_kernels::os::machine::{Available, available};

use super::shortage::{Shortage, size};
use crate::{Device, Error, Result};

/// Memory needed by a piece of work, part by part.
///
/// Parts are computed from shapes. They are a lower bound on what is needed at the same time, so work that is refused could
/// not have run.
#[derive(Debug, Clone, Default)]
pub struct Needs(Vec<Part>);

#[derive(Debug, Clone)]
struct Part {
    what: &'static str,
    bytes: u128,
    /// Settings that reduce it.
    lower: String,
}

impl Needs {
    /// The same with another part of `count` elements of `size` bytes, which the settings `lower` reduce.
    #[must_use]
    pub fn and(mut self, what: &'static str, count: u128, size: u32, lower: &str) -> Self {
        self.0.push(Part { what, bytes: count.saturating_mul(size.into()), lower: lower.to_owned() });
        self
    }

    /// The same with the parts of `other`.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Total bytes.
    pub fn bytes(&self) -> u128 {
        self.0.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// Checks that it fits into what the system has left.
    ///
    /// # Errors
    /// If it does not; the error has both sizes, the parts, and the settings that reduce the largest one.
    pub fn check(&self) -> Result<()> {
        self.check_against(available())
    }

    /// Checks that it fits into the memory of a device; for a GPU, its total memory.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_on(&self, device: Device) -> Result<()> {
        match device {
            Device::Cpu => self.check(),
            Device::Cuda(gpu) => {
                self.check_against(Some(Available { bytes: gpu.total_memory() as u64, limit: "the memory of the GPU" }))
            }
        }
    }

    fn check_against(&self, available: Option<Available>) -> Result<()> {
        let needed = self.bytes();
        let most = available.map_or(u128::MAX, |available| available.bytes.into()).min(isize::MAX as u128);
        if needed <= most {
            return Ok(());
        }
        let mut parts: Vec<&Part> = self.0.iter().filter(|part| part.bytes > 0).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let list: Vec<String> = parts.iter().map(|part| format!("{} {}", part.what, size(part.bytes))).collect();
        // The settings of every part that is too large by itself, else those of the largest part.
        let alone = parts.iter().filter(|part| part.bytes > most).count().max(1);
        let mut lower: Vec<&str> = Vec::new();
        for part in parts.iter().take(alone) {
            if !lower.contains(&part.lower.as_str()) {
                lower.push(&part.lower);
            }
        }
        let detail = format!("{}; lower {}", list.join(", "), lower.join(", and "));
        Err(Error::Memory(Box::new(Shortage { needed, available, detail })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_both_sizes() {
        let needs = Needs::default().and("parameters", 1 << 20, 4, "model.d_model").and(
            "activations",
            1 << 40,
            4,
            "train.batch or data.length",
        );
        let there = Available { bytes: 8_000_000_000, limit: "free memory" };
        let text = needs.check_against(Some(there)).unwrap_err().to_string();
        assert_eq!(
            text,
            "this takes at least 4.40 TB of memory, and 8.00 GB are available (free memory): activations 4.40 TB, \
             parameters 4.19 MB; lower train.batch or data.length"
        );
        assert!(needs.check_against(None).is_ok(), "a system that does not report it");
        let both = needs.check_against(Some(Available { bytes: 9, limit: "" })).unwrap_err().to_string();
        assert!(both.ends_with("lower train.batch or data.length, and model.d_model"), "{both}");
        let beyond = Needs::default().and("x", u128::MAX, 4, "it").check_against(None).unwrap_err().to_string();
        assert!(beyond.contains("more than can be addressed"), "{beyond}");
    }

    #[test]
    fn what_fits_exactly_fits() {
        let needs = Needs::default().and("x", 2, 4, "it").with(Needs::default().and("y", 2, 1, "it"));
        let of = |bytes| needs.check_against(Some(Available { bytes, limit: "" }));
        assert!(needs.bytes() == 10 && of(10).is_ok() && of(9).is_err());
    }
}
