//! What the forward leaves for the backward.

use std::fmt;

use super::{cpu, cuda};

/// What [`forward`](super::forward) leaves for [`backward`](super::backward): states between chunks, as the device that made them lays
/// them out. On the CPU it may be used again for another call, and keeps its memory.
#[derive(Debug, Default)]
pub struct Saved(pub(super) Kept);

#[derive(Debug, Default)]
pub(super) enum Kept {
    #[default]
    Nothing,
    Host(cpu::Saved),
    Device(cuda::Saved),
}

impl Saved {
    /// An empty one, for [`forward`](super::forward) to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Memory it takes, in bytes: linear in the length.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Kept::Nothing => 0,
            Kept::Host(saved) => saved.bytes(),
            Kept::Device(saved) => saved.bytes(),
        }
    }

    /// That of the CPU, made if there is none.
    pub(super) fn host(&mut self) -> &mut cpu::Saved {
        if !matches!(self.0, Kept::Host(_)) {
            self.0 = Kept::Host(cpu::Saved::default());
        }
        match &mut self.0 {
            Kept::Host(saved) => saved,
            _ => unreachable!("it was just made"),
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Host(saved) => write!(f, "that of {:?} on the CPU", saved.made_for()),
            Self::Device(saved) => write!(f, "that of {:?} on a GPU", saved.made_for()),
        }
    }
}
