//! What a file is, by its first bytes.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::form::{Coding, Form, Packing};
use super::part::Part;
use crate::{Error, Result};

/// Number of leading bytes that are examined.
const HEAD: u64 = 16 << 10;

impl Packing {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl Part {
    /// The part, with the encoding that its first bytes show; or a name of what it is instead of text.
    pub(super) fn looked_at(mut self) -> Result<Result<Self, String>> {
        let lines = without_packing(&self.path);
        self.form.lines = Path::new(&lines).extension().is_some_and(|end| end.eq_ignore_ascii_case("jsonl"));
        let head = self.head().map_err(Error::io("read", &self.path))?;
        self.form.packing = Packing::of(&head);
        let packed = match self.form.packing {
            Packing::None => return Ok(look(&head).map(|coding| self.with(coding))),
            Packing::Gzip => "gzip",
            Packing::Zstd => "zstd",
        };
        let head = match self.head() {
            Ok(head) => head,
            Err(error) => return Ok(Err(format!("damaged {packed}: {error}"))),
        };
        if Packing::of(&head) != Packing::None {
            return Ok(Err(format!("{packed} of compressed data; decompress it first")));
        }
        Ok(look(&head).map(|coding| self.with(coding)).map_err(|what| format!("{packed} of {what}")))
    }

    fn with(self, coding: Coding) -> Self {
        Self { form: Form { coding, ..self.form }, ..self }
    }

    /// The first bytes, decompressed.
    fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        self.unpacked(None)?.take(HEAD).read_to_end(&mut head)?;
        Ok(head)
    }
}

/// The name of a file without the extension of a compression.
pub(super) fn without_packing(path: &Path) -> PathBuf {
    let is = |end: &OsStr| ["gz", "zst"].iter().any(|packing| end.eq_ignore_ascii_case(packing));
    if path.extension().is_some_and(is) { path.with_extension("") } else { path.to_owned() }
}

/// The encoding of text that begins like this; or a name of what it is instead of text.
fn look(head: &[u8]) -> Result<Coding, String> {
    let convert = |from: &str| format!("UTF-32; convert it: iconv -f {from} -t UTF-8");
    match head {
        [0xef, 0xbb, 0xbf, ..] => return plain(head).map(|()| Coding::Marked),
        [0xff, 0xfe, 0, 0, ..] => return Err(convert("UTF-32LE")),
        [0, 0, 0xfe, 0xff, ..] => return Err(convert("UTF-32BE")),
        [0xff, 0xfe, ..] => return Ok(Coding::Utf16Le),
        [0xfe, 0xff, ..] => return Ok(Coding::Utf16Be),
        _ => {}
    }
    plain(head).map(|()| Coding::Plain)
}

/// Formats that `infer` does not know, or only by leading bytes that text may have too.
const SIGNATURES: [(&[u8], &str); 10] = [
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a pickle"),
    (b"GGUF\x02\0", "a GGUF model"),
    (b"GGUF\x03\0", "a GGUF model"),
    (b"elapidtk", "a token cache of elapid"),
];

/// Checks that text may begin like this; the error names what it is.
fn plain(head: &[u8]) -> Result<(), String> {
    if let Some((_, what)) = SIGNATURES.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err((*what).into());
    }
    if head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY") {
        return Err("bzip2; decompress it first".into());
    }
    if !head.contains(&0) {
        return Ok(());
    }
    // Eight bytes of length, then JSON.
    let length = head.first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes));
    if (2..1 << 40).contains(&length) && head.get(8..10) == Some(b"{\"") {
        return Err("a safetensors file".into());
    }
    if let Some(kind) = infer::get(head).filter(|kind| kind.matcher_type() != infer::MatcherType::Text) {
        return Err(format!("binary ({})", kind.mime_type()));
    }
    Err("binary (it has NUL bytes), or UTF-16 without a byte order mark; convert that: iconv -f UTF-16LE -t UTF-8"
        .into())
}
