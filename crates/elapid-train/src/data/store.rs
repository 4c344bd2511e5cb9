//! Token ids in memory or in a cache file.

use std::ops::Range;

use elapid::files::RegularFile;

use crate::Result;

/// The tokens of a text, and where its documents begin.
#[derive(Debug)]
pub(super) struct Store {
    ids: Ids,
    documents: Vec<u64>,
}

#[derive(Debug)]
enum Ids {
    Memory(Vec<u32>),
    /// Little-endian ids of this width in a file, from byte `start` on; read where they are asked for.
    File {
        file: RegularFile,
        start: u64,
        count: u64,
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

    pub(super) fn file(file: RegularFile, start: u64, count: u64, width: Width, documents: Vec<u64>) -> Self {
        Self { ids: Ids::File { file, start, count, width }, documents }
    }

    pub(super) fn len(&self) -> u64 {
        match &self.ids {
            Ids::Memory(ids) => ids.len() as u64,
            Ids::File { count, .. } => *count,
        }
    }

    pub(super) fn copy(&self, from: u64, out: &mut [u32]) -> Result<()> {
        match &self.ids {
            Ids::Memory(ids) => out.copy_from_slice(&ids[from as usize..from as usize + out.len()]),
            Ids::File { file, start, width, .. } => {
                let bytes = *width as u64;
                let count = out.len() as u64;
                let mut left = out;
                let mut fill = |part: &[u8]| {
                    let (now, later) = std::mem::take(&mut left).split_at_mut(part.len() / *width as usize);
                    match width {
                        Width::Two => decode(part, now, |bytes| u32::from(u16::from_le_bytes(bytes))),
                        Width::Four => decode(part, now, u32::from_le_bytes),
                    }
                    left = later;
                };
                let first = start + from * bytes;
                file.windows(first..first + count * bytes, &mut fill)?;
            }
        }
        Ok(())
    }

    /// The documents that begin in a range.
    pub(super) fn documents(&self, range: Range<u64>) -> &[u64] {
        let first = self.documents.partition_point(|&at| at < range.start);
        let last = self.documents.partition_point(|&at| at < range.end);
        &self.documents[first..last.max(first)]
    }
}

fn decode<const N: usize>(bytes: &[u8], ids: &mut [u32], id: impl Fn([u8; N]) -> u32) {
    ids.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &bytes)| *to = id(bytes));
}
