use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::tempdir;

use super::*;

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(unit).collect()
}

/// What is read from a directory: paths relative to it, and their text.
fn texts(dir: &Path) -> Vec<(String, String)> {
    let found = find(&[Source::Path(dir.into())]).unwrap();
    let text = |part: &Part| String::from_utf8(part.whole(DOCUMENT).unwrap()).unwrap();
    let name = |part: &Part| part.path.strip_prefix(dir).unwrap().display().to_string();
    found.parts.iter().map(|part| (name(part), text(part))).collect()
}

fn refused(path: &Path) -> String {
    find(&[Source::Path(path.into())]).unwrap_err().to_string()
}

#[test]
fn hidden_files_are_skipped_and_gitignore_is_not_consulted() {
    let dir = tempdir().unwrap();
    for name in [".git/HEAD.txt", ".ipynb_checkpoints/a.txt", "._a.txt", ".hidden.md", "a.txt", "sub/b.md"] {
        write(dir.path(), name, name);
    }
    for name in [".gitignore", ".ignore", "sub/.gitignore"] {
        write(dir.path(), name, "*\n");
    }
    let names: Vec<String> = texts(dir.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["a.txt", "sub/b.md"]);
    // A hidden file given by name is read.
    let hidden = find(&[Source::Path(dir.path().join(".git"))]).unwrap();
    assert_eq!(hidden.parts.len(), 1);
}

#[cfg(unix)]
#[test]
fn links_are_followed_to_nothing_twice() {
    use std::os::unix::fs::symlink;
    let dir = tempdir().unwrap();
    let (d, real) = (dir.path().join("d"), dir.path().join("real"));
    write(&d, "a.txt", "a");
    write(&real, "more.txt", "more");
    write(&real, "deep/most.txt", "most");
    symlink("../real", d.join("linked")).unwrap();
    symlink("../real/deep", d.join("linked-again")).unwrap();
    symlink("../d", real.join("back")).unwrap();
    symlink("../d/a.txt", real.join("z-same.txt")).unwrap();
    symlink("nowhere", d.join("broken.txt")).unwrap();
    symlink(".", d.join("self")).unwrap();
    let found = find(&[Source::Path(d.clone())]).unwrap();
    let mut all: Vec<String> =
        found.parts.iter().map(|part| part.path.file_name().unwrap().display().to_string()).collect();
    all.sort();
    assert_eq!(all, ["a.txt", "more.txt", "most.txt"]);
    let line = found.summary().unwrap();
    assert!(line.starts_with("3 files read; left out: "), "{line}");
    assert!(
        found.left_out.iter().any(|(path, why)| path.ends_with("broken.txt") && why == "a link to nothing"),
        "{line}"
    );
    assert!(found.left_out.iter().any(|(path, _)| path.ends_with("self")), "{:?}", found.left_out);
}

#[cfg(unix)]
#[test]
fn many_ways_to_a_directory_are_one() {
    use std::os::unix::fs::symlink;
    // Two links per level: 2^24 paths to the last directory.
    let dir = tempdir().unwrap();
    for level in 0..24 {
        fs::create_dir_all(dir.path().join(format!("store/{level}"))).unwrap();
        for link in ["x", "y"] {
            let to = dir.path().join(format!("store/{}", level + 1));
            symlink(to, dir.path().join(format!("store/{level}/{link}"))).unwrap();
        }
    }
    write(dir.path(), "store/24/a.txt", "a");
    let found = find(&[Source::Path(dir.path().join("store/0"))]).unwrap();
    assert_eq!(found.parts.len(), 1);
}

#[test]
fn compressed_and_coded_text_is_read() {
    let dir = tempdir().unwrap();
    let text = "Grüße, 世界 🦀\n".repeat(3000);
    let joined = [gzip(b"one "), gzip(b"two")].concat();
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(b"one "), &zstd(b"two")].concat();
    let files: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a.txt.gz", gzip(text.as_bytes()), &text),
        ("b.txt.zst", zstd(text.as_bytes()), &text),
        ("c.txt", utf16(&text, u16::to_le_bytes), &text),
        ("d.txt", utf16(&text, u16::to_be_bytes), &text),
        ("e.txt", [b"\xef\xbb\xbf", text.as_bytes()].concat(), &text),
        ("f.txt", gzip(&utf16(&text, u16::to_le_bytes)), &text),
        ("g.TXT.GZ", joined, "one two"),
        ("h.md.zst", skipped, "one two"),
        ("i.txt", b"BM and MZ and PAR1: plain".to_vec(), "BM and MZ and PAR1: plain"),
        ("j.txt", Vec::new(), ""),
    ];
    for (name, bytes, _) in &files {
        write(dir.path(), name, bytes);
    }
    write(dir.path(), "k.csv", "no text by its name");
    let read = texts(dir.path());
    assert_eq!(read.len(), files.len());
    for ((name, text), (wanted, _, whole)) in read.iter().zip(&files) {
        assert_eq!(name, wanted);
        assert!(text == whole, "{name}");
    }
    let line = find(&[Source::Path(dir.path().into())]).unwrap().summary().unwrap();
    for part in
        ["10 files read", "3 decompressed (gzip): ", "2 decompressed (zstd): ", "3 decoded from UTF-16: ", ".csv"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    // By name too, whatever the name is.
    let named = write(dir.path(), "m", gzip(b"text"));
    assert_eq!(read_text(&named).unwrap(), b"text");
    let found = find(&[Source::Path(named)]).unwrap();
    assert!(found.summary().unwrap().starts_with("1 file read, 1 decompressed (gzip): "));
    assert_eq!(find(&[Source::Path(dir.path().join("i.txt"))]).unwrap().summary(), None, "nothing to say");
}

#[test]
fn what_is_no_text_is_named() {
    let dir = tempdir().unwrap();
    let safetensors = [&40_u64.to_le_bytes()[..], b"{\"a\":{\"dtype\":\"F32\"}}"].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()),
        ("image/jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF\0".to_vec()),
        ("PDF", b"%PDF-1.7\n%text only".to_vec()),
        ("zip", b"PK\x03\x04\x14\0\0\0".to_vec()),
        ("ELF", b"\x7fELF\x02\x01\x01\0\0".to_vec()),
        ("safetensors", safetensors),
        ("NumPy", b"\x93NUMPY\x01\0v\0".to_vec()),
        ("bzip2", b"BZh91AY&SY\x12\x34".to_vec()),
        ("token cache", b"elapidtk\x02\0\0\0".to_vec()),
        ("NUL bytes", b"text\0text".to_vec()),
        ("UTF-32", b"\xff\xfe\0\0a\0\0\0".to_vec()),
        ("iconv -f UTF-16LE", b"t\0e\0x\0t\0".to_vec()),
        ("gzip of a PNG", gzip(b"\x89PNG\r\n\x1a\n\0\0")),
        ("zstd of binary", zstd(b"\0\0\0\0")),
        ("gzip of compressed data", gzip(&gzip(b"text"))),
        ("damaged gzip", gzip(b"text")[..9].to_vec()),
        ("damaged zstd", [&zstd(&[b'a'; 400])[..8], b"\xff\xff\xff\xff"].concat()),
    ];
    for (what, bytes) in &cases {
        let path = write(dir.path(), "x.txt", bytes);
        let error = refused(&path);
        assert!(error.contains("x.txt is not text: ") && error.contains(what), "{what}: {error}");
        assert!(read_text(&path).is_err(), "{what}");
        // In a directory it is left out, with the reason.
        write(dir.path(), "y.txt", "text");
        let line = find(&[Source::Path(dir.path().into())]).unwrap().summary().unwrap();
        assert!(line.starts_with("1 file read; left out: ") && line.contains(what), "{what}: {line}");
        fs::remove_file(dir.path().join("y.txt")).unwrap();
        let error = refused(dir.path());
        assert!(error.contains("left out") && error.contains("x.txt"), "{error}");
    }
}

#[test]
fn damaged_text_is_an_error_with_its_path() {
    let dir = tempdir().unwrap();
    let text: Vec<u8> =
        (0..200_000_u32).flat_map(|i| format!("{} ", i.wrapping_mul(2_654_435_761)).into_bytes()).collect();
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 9].to_vec();
    let mut odd = utf16("text", u16::to_le_bytes);
    odd.push(0);
    let half = [&utf16("text", u16::to_le_bytes)[..], &[0x3d, 0xd8, 0x61, 0]].concat();
    for (bytes, what) in [
        (cut(gzip(&text)), ""),
        (cut(zstd(&text)), ""),
        (odd, "half a character"),
        (half, "byte 10: half of a surrogate pair"),
    ] {
        let path = write(dir.path(), "x.txt", bytes);
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("x.txt") && error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_document_that_grows_without_end_is_stopped() {
    let dir = tempdir().unwrap();
    for bytes in [gzip(&vec![b'a'; 1 << 20]), zstd(&vec![b'a'; 1 << 20])] {
        let path = write(dir.path(), "x.txt", bytes);
        let found = find(&[Source::Path(path)]).unwrap();
        assert_eq!(found.parts[0].whole(1 << 20).unwrap().len(), 1 << 20);
        let error = found.parts[0].whole((1 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("x.txt") && error.contains("1048575 bytes of text"), "{error}");
        let count = Default::default();
        let read = found.parts[0].documents::<Error>("text", 1000, &count, &mut |document| match document {
            Document::Text(text) => {
                std::io::copy(text, &mut std::io::sink()).map(drop).map_err(Error::io("read", dir.path()))
            }
            Document::Line(..) => panic!("no lines"),
        });
        assert!(read.unwrap_err().to_string().contains("1000 bytes"));
    }
}

#[test]
fn lines_of_json_are_documents() {
    let dir = tempdir().unwrap();
    let lines = "{\"text\": \"one\\n\", \"id\": 1}\r\n\n  \n{\"id\": 2, \"text\": \"\u{4e16}\"}\n{\"text\":\"last\"}";
    for (name, bytes) in [("a.jsonl", lines.as_bytes().to_vec()), ("b.jsonl.gz", gzip(lines.as_bytes()))] {
        let path = write(dir.path(), name, bytes);
        assert_eq!(
            documents(&path, "text").unwrap(),
            [(1, "one\n"), (4, "世"), (5, "last")].map(|(n, s)| (n, s.into()))
        );
    }
    for (line, field, wanted) in [
        (
            "{\"text\": \"a\"}\n{\"content\": \"b\", \"id\": 2}",
            "text",
            "a.jsonl:2: no field `text`; it has `content`, `id`",
        ),
        ("{\"text\": \"a\"}", "body", "a.jsonl:1: no field `body`"),
        ("{\"text\": 5}", "text", "a.jsonl:1: wanted text in the field `text`, got a number"),
        ("{\"text\": null}", "text", "got null"),
        ("\n{\"text\": ", "text", "a.jsonl:2: wanted a JSON object"),
        ("[\"text\"]", "text", "wanted a JSON object"),
    ] {
        let path = write(dir.path(), "a.jsonl", line);
        let error = documents(&path, field).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

fn documents(path: &Path, field: &str) -> Result<Vec<(u64, String)>> {
    let mut all = Vec::new();
    for part in find(&[Source::Path(path.into())])?.parts {
        part.documents(field, DOCUMENT, &Default::default(), &mut |document| match document {
            Document::Line(line, text) => {
                all.push((line, text));
                Ok::<_, Error>(())
            }
            Document::Text(_) => panic!("a text"),
        })?;
    }
    Ok(all)
}

#[cfg(unix)]
#[test]
fn devices_pipes_and_sockets_are_not_opened() {
    use std::os::unix::net::UnixListener;
    let dir = tempdir().unwrap();
    for device in ["/dev/zero", "/dev/null"] {
        assert!(refused(Path::new(device)).ends_with("is not text: a device"));
        assert!(read_text(Path::new(device)).unwrap_err().to_string().ends_with("is not text: a device"));
    }
    assert!(read_text(dir.path()).unwrap_err().to_string().ends_with("a directory"));
    let socket = dir.path().join("socket.txt");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).ends_with("a socket"));
    // Opening a pipe in a directory would block until it has a writer.
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe.txt")).status();
    let has_pipe = made.is_ok_and(|status| status.success());
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("zero.txt")).unwrap();
    write(dir.path(), "a.txt", "a");
    let found = find(&[Source::Path(dir.path().into())]).unwrap();
    assert_eq!(found.parts.len(), 1);
    let left: Vec<&str> = found.left_out.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(left, if has_pipe { vec!["a pipe", "a socket", "a device"] } else { vec!["a socket", "a device"] });
}

#[cfg(unix)]
#[test]
fn a_pipe_by_name_is_read_whole() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("pipe");
    if !std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|status| status.success()) {
        return;
    }
    for bytes in [b"through a pipe".to_vec(), gzip(b"through a pipe")] {
        let to = path.clone();
        let writer = std::thread::spawn(move || fs::write(to, bytes).unwrap());
        let found = find(&[Source::Path(path.clone())]).unwrap();
        writer.join().unwrap();
        assert_eq!(found.parts[0].whole(DOCUMENT).unwrap(), b"through a pipe");
    }
}
