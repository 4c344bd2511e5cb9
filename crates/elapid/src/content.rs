//! Recognises what a file really is when it cannot be read as its name suggests.

use crate::json::without_mark;

/// Content of an unexpected kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// What it is.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) fix: &'static str,
}

/// Leading bytes of a file, what they mean, and the fix.
type Magic = (&'static [u8], &'static str, &'static str);

const DOWNLOAD: &str = "download the file again";
const UNPACK: &str = "unpack it first";
const CONVERT: &str = "convert it to safetensors first";
const UTF_8: &str = "save it as UTF-8";
const PICKLE: &str = "pickled files can run programs and are not read: convert it to safetensors with Python and torch";

const MAGIC: &[Magic] = &[
    (b"\x1f\x8b\x08", "gzip-compressed data", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", UNPACK),
    (b"\xfd7zXZ\0", "xz-compressed data", UNPACK),
    (b"BZh", "bzip2-compressed data", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"GGUF", "a GGUF model", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"%PDF-", "a PDF document", DOWNLOAD),
    (b"\x7fELF", "a program", DOWNLOAD),
    (b"\xff\xfe\0\0", "text in UTF-32", UTF_8),
    (b"\0\0\xfe\xff", "text in UTF-32", UTF_8),
    (b"\xff\xfe", "text in UTF-16", UTF_8),
    (b"\xfe\xff", "text in UTF-16", UTF_8),
];

/// Recognises a file by its first bytes; none if they are unknown. Call this only after reading the file has failed, as good
/// files can begin with the same bytes.
pub(crate) fn recognise(bytes: &[u8]) -> Option<Content> {
    let found = |what: &str, fix| Some(Content { what: what.to_owned(), fix });
    if bytes.is_empty() {
        return found("an empty file", DOWNLOAD);
    }
    if bytes.iter().take(1 << 16).all(|&byte| byte == 0) {
        return found("nothing but zero bytes", DOWNLOAD);
    }
    if is_safetensors(bytes) {
        return found("a safetensors file", "give the file of this name that came with the model");
    }
    if let Some(pointer) = pointer(bytes) {
        return Some(pointer);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        // torch.save writes a zip of `<name>/data.pkl` and one file per tensor.
        let pickled = bytes.get(30..).is_some_and(|rest| contains(&rest[..rest.len().min(512)], b"data.pkl"));
        return if pickled { found("a pickled PyTorch file", PICKLE) } else { found("a zip archive", UNPACK) };
    }
    if bytes[0] == 0x80 && bytes.get(1).is_some_and(|version| (2..=5).contains(version)) {
        return found("a pickled Python object", PICKLE);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return found("a tar archive", UNPACK);
    }
    if let Some((_, what, fix)) = MAGIC.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return found(what, fix);
    }
    markup(bytes)
}

/// As [`recognise`], and also text of any kind by its first line: for a file that should not be text.
pub(crate) fn recognise_binary(bytes: &[u8]) -> Option<Content> {
    if is_safetensors(bytes) {
        // It is of the expected kind, or close to it.
        return None;
    }
    recognise(bytes).or_else(|| {
        let shown = first_line(bytes)?;
        Some(Content { what: format!("text that begins with `{shown}`"), fix: DOWNLOAD })
    })
}

/// The message for a file that should be JSON and is not: what it really is, else the parser's error.
pub(crate) fn not_json(bytes: &[u8], error: &dyn std::fmt::Display) -> String {
    match recognise(bytes) {
        Some(Content { what, fix }) => format!("wanted JSON, got {what}; {fix}"),
        None => format!("not JSON: {error}; fetch the file again"),
    }
}

/// A header's length, then a JSON object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| (2..1 << 32).contains(&length)) && bytes.get(8) == Some(&b'{')
}

/// The pointer that version control stores in place of a large file.
fn pointer(bytes: &[u8]) -> Option<Content> {
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    if bytes.starts_with(LFS) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.parse::<u64>().ok());
        let size = size.map(|size| format!(" to a file of {size} bytes")).unwrap_or_default();
        let what = format!("a Git LFS pointer{size}, which itself was not downloaded");
        return Some(Content { what, fix: "run `git lfs pull` in that repository, or download the file itself" });
    }
    contains(&bytes[..bytes.len().min(512)], b"/annex/objects/").then(|| Content {
        what: "a git-annex pointer to a file that was not downloaded".into(),
        fix: "run `git annex get` for it, or download the file itself",
    })
}

/// A web page or server response that was saved in place of a file.
fn markup(bytes: &[u8]) -> Option<Content> {
    let bytes = without_mark(bytes).trim_ascii_start();
    let begins = |with: &[u8]| bytes.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let head = bytes[..bytes.len().min(1024)].to_ascii_lowercase();
    if begins(b"<!doctype html") || begins(b"<html") || (begins(b"<") && contains(&head, b"<html")) {
        return Some(Content {
            what: "a web page (HTML)".into(),
            fix: "download the file itself: on Hugging Face its address has `resolve`, not `blob`, and a gated model \
                  needs a login",
        });
    }
    let xml = begins(b"<?xml") || begins(b"<error>");
    xml.then(|| Content { what: "XML, perhaps a server's error message".into(), fix: DOWNLOAD })
}

/// The beginning of the first line, if the file begins as text.
fn first_line(bytes: &[u8]) -> Option<String> {
    const SHOWN: usize = 60;
    let start = &bytes[..bytes.len().min(512)];
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut inside a character, or not text.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if valid.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let line = valid.trim_start().lines().next().filter(|line| !line.is_empty())?;
    let mut shown: String = line.chars().take(SHOWN).collect();
    if line.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    Some(shown)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised() {
        let torch_zip = [&b"PK\x03\x04"[..], &[0; 26], b"archive/data.pkl", &[0; 9]].concat();
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        let tensors = [&20_u64.to_le_bytes()[..], b"{                  }"].concat();
        for (bytes, what) in [
            (&b""[..], "empty"),
            (&[0; 100], "zero bytes"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 516576000\n",
                "LFS pointer to a file of 516576000",
            ),
            (b"/annex/objects/SHA256E-s5--0.safetensors\n", "git-annex"),
            (b"../../.git/annex/objects/a/b", "git-annex"),
            (b"\xef\xbb\xbf\n <!DOCTYPE HTML>\n<html>", "HTML"),
            (b"<html lang=\"en\">", "HTML"),
            (b"<!-- x -->\n<html>", "HTML"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "XML"),
            (&torch_zip, "PyTorch"),
            (b"PK\x03\x04\x14\0", "zip archive"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pickled"),
            (b"\x80\x04\x95", "pickled"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
            (b"BZh91AY", "bzip2"),
            (b"GGUF\x03", "GGUF"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
            (&tar, "tar"),
            (&tensors, "safetensors"),
        ] {
            let found = recognise(bytes).unwrap_or_else(|| panic!("{what} is not recognised"));
            assert!(found.what.contains(what), "{what}: {found:?}");
        }
        for bytes in [&b"{}"[..], b"\xef\xbb\xbf{}", b"[1]", b"a", &[7; 300]] {
            assert_eq!(recognise(bytes), None);
        }
    }

    #[test]
    fn text_is_named_where_there_should_be_none() {
        let what = |bytes: &[u8]| recognise_binary(bytes).map(|found| found.what);
        assert_eq!(what(b"Entry not found\n").unwrap(), "text that begins with `Entry not found`");
        assert!(what("Ω".repeat(300).as_bytes()).unwrap().contains('…'));
        assert_eq!(what(b"\x01\x02\x03"), None);
        // A header of 640 bytes, whose length has the first byte of a pickle.
        assert_eq!(what(&[&640_u64.to_le_bytes()[..], b"{\"a\": "].concat()), None);
    }
}
