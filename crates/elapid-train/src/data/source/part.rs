//! A file or text to read.

use std::path::PathBuf;
use std::sync::Arc;

use super::form::Form;

/// A file of text, or a text that is in memory.
#[derive(Debug, Clone)]
pub(in crate::data) struct Part {
    /// Its path, or a name.
    pub(in crate::data) path: PathBuf,
    /// Its size in bytes, as stored.
    pub(in crate::data) len: u64,
    pub(in crate::data) text: Text,
    pub(in crate::data) form: Form,
}

/// Where a part's bytes are.
#[derive(Debug, Clone)]
pub(in crate::data) enum Text {
    /// In the file, last changed at this time, in nanoseconds since 1970.
    File {
        modified: u128,
    },
    Embedded(&'static [u8]),
    /// Read from a pipe.
    Memory(Arc<[u8]>),
}
