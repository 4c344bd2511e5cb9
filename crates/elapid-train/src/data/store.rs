//! Token ids in memory or in a mapped cache file.

use std::ops::Range;

use elapid::files::Map;

/// The tokens of a text, and where its documents begin.
#[derive(Debug)]
pub(super) struct Store {
    ids: Ids,
    documents: Vec<u64>,
}

#[derive(Debug)]
enum Ids {
    Memory(Vec<u32>),
    /// Little-endian ids of this width in a file.
    Mapped {
        map: Map,
        bytes: Range<usize>,
        width: Width,
    },
}

/// Bytes of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Two = 2,
    Four = 4,
}

impl Width {
    /// The least that holds every id of a vocabulary.
    pub(super) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Two } else { Self::Four }
    }
}

impl Store {
    pub(super) fn memory(ids: Vec<u32>, documents: Vec<u64>) -> Self {
        Self { ids: Ids::Memory(ids), documents }
    }

    pub(super) fn mapped(map: Map, bytes: Range<usize>, width: Width, documents: Vec<u64>) -> Self {
        Self { ids: Ids::Mapped { map, bytes, width }, documents }
    }

    pub(super) fn len(&self) -> u64 {
        match &self.ids {
            Ids::Memory(ids) => ids.len() as u64,
            Ids::Mapped { bytes, width, .. } => (bytes.len() / *width as usize) as u64,
        }
    }

    pub(super) fn copy(&self, from: u64, out: &mut [u32]) {
        let from = from as usize;
        match &self.ids {
            Ids::Memory(ids) => out.copy_from_slice(&ids[from..from + out.len()]),
            Ids::Mapped { map, bytes, width } => {
                let width_bytes = *width as usize;
                let source = &map[bytes.clone()][from * width_bytes..(from + out.len()) * width_bytes];
                match width {
                    Width::Two => {
                        for (id, &bytes) in out.iter_mut().zip(source.as_chunks::<2>().0) {
                            *id = u32::from(u16::from_le_bytes(bytes));
                        }
                    }
                    Width::Four => {
                        for (id, &bytes) in out.iter_mut().zip(source.as_chunks::<4>().0) {
                            *id = u32::from_le_bytes(bytes);
                        }
                    }
                }
            }
        }
    }

    /// The documents that begin in a range.
    pub(super) fn documents(&self, range: Range<u64>) -> &[u64] {
        let first = self.documents.partition_point(|&at| at < range.start);
        let last = self.documents.partition_point(|&at| at < range.end);
        &self.documents[first..last.max(first)]
    }
}
