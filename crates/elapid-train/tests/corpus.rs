//! The fuzz targets' corpora, through the entry points of the targets.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use elapid_kernels::testing::Random;

#[path = "../../../fuzz/entry.rs"]
mod entry;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Bytes that parsers stop at, and numbers at the ends of their ranges.
const WORDS: [&[u8]; 12] = [
    b"\"",
    b"{",
    b"]",
    b",",
    b"-1",
    b"1e999",
    b"null",
    b"\\ud800",
    b"18446744073709551615",
    b"\0",
    b"\xff",
    &[0xff; 8],
];

/// The bytes with some of them changed, cut, doubled or replaced: a function of the seed.
fn mutated(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(16)).min(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => drop(bytes.splice(at..end, WORDS[random.below(WORDS.len())].iter().copied())),
        }
    }
    bytes
}

/// Runs of a mutated file; `ELAPID_MUTATIONS` asks for more.
fn mutations() -> u64 {
    std::env::var("ELAPID_MUTATIONS").map_or(4, |count| count.parse().expect("a number"))
}

#[test]
fn every_target_has_a_corpus() {
    let targets: BTreeSet<String> = entry::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz().join("corpus")), targets, "a corpus for each target, and nothing else");
    let files: BTreeSet<String> = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), files);
}

#[test]
fn every_file_and_its_mutations_return() {
    for (name, entry) in entry::ALL {
        let dir = fuzz().join("corpus").join(name);
        let files = names(&dir);
        assert!(files.len() >= 3, "{name}: a good file, a broken one and an empty one at least");
        for file in files {
            let bytes = fs::read(dir.join(&file)).unwrap();
            entry(&bytes);
            for seed in 0..mutations() {
                // Said before, as a fault may end the process: the last line is the input that did.
                println!("{name}/{file}, seed {seed}");
                // What an unknown tokenizer does is tried in a child process by the command line, not here.
                if name != "tokenizer" {
                    entry(&mutated(&bytes, seed));
                }
            }
        }
    }
    entry::clear();
}
