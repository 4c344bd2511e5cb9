//! How a file encodes text.

/// How text is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::data) struct Form {
    pub(super) packing: Packing,
    pub(super) coding: Coding,
    /// One JSON object per line.
    pub(in crate::data) lines: bool,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Packing {
    #[default]
    None,
    Gzip,
    Zstd,
}

/// The character encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Coding {
    /// As they are.
    #[default]
    Plain,
    /// After a byte order mark.
    Marked,
    Utf16Le,
    Utf16Be,
}
