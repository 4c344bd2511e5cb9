//! How a file holds text.

/// How text is written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::data) struct Form {
    pub(super) packing: Packing,
    pub(super) coding: Coding,
    /// A JSON object a line.
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

/// How characters are bytes.
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
