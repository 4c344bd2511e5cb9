//! Tokenizer files that are broken or made to break: no command may panic, abort, or not end because of one.

mod fixtures;
mod mutate;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Run;

/// Files that the ordinary test tries, and all of them.
const FEW: u64 = 400;
const MANY: u64 = 4000;

/// What became of a file in the child.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Fine,
    /// Refused with an error.
    Refused(String),
    /// It ended the process: how, and what that said.
    Died(String),
}

/// Tries files in children, each of which goes on until a file ends it.
fn try_all(files: &[PathBuf]) -> Vec<End> {
    let mut ends = Vec::new();
    while ends.len() < files.len() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
        command.args(["try-tokenizer", "--"]).args(&files[ends.len()..]).env("RUST_BACKTRACE", "0");
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        ends.extend(stdout.lines().map(|line| match line.strip_prefix("refused: ") {
            Some(error) => End::Refused(error.to_owned()),
            None => {
                assert_eq!(line, "fine");
                End::Fine
            }
        }));
        if ends.len() < files.len() {
            let stderr: String = String::from_utf8_lossy(&output.stderr).chars().take(300).collect();
            ends.push(End::Died(format!("{}: {stderr}", output.status)));
        }
    }
    ends
}

/// Writes mutated files and gives their paths.
fn mutated(dir: &Path, count: u64) -> Vec<PathBuf> {
    let fixtures = fixtures::all();
    let write = |i| {
        let path = dir.join(format!("{i}.json"));
        fs::write(&path, mutate::mutated(&fixtures, i).to_string()).unwrap();
        path
    };
    (0..count).map(write).collect()
}

/// Encodes a text by this tokenizer in a command: what a user does with a file.
fn tokenize(dir: &Path, tokenizer: &Path) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
    command.args(["tokenize", "--threads", "1", "--json", "--model"]).arg(tokenizer);
    command.arg("The end, the\n\n  énd <s>. New York | 12 日本\t").env("ELAPID_CACHE", dir.join("cache"));
    command.stdin(Stdio::null()).output().unwrap().into()
}

#[test]
fn fixtures_are_good() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = fixtures::all()
        .into_iter()
        .map(|(name, json)| {
            let path = dir.path().join(name);
            fs::write(&path, json.to_string()).unwrap();
            path
        })
        .collect();
    for (file, end) in files.iter().zip(try_all(&files)) {
        assert_eq!(end, End::Fine, "{}", file.display());
    }
}

#[test]
fn mutated_files_end_with_an_error_or_work() {
    let dir = tempfile::tempdir().unwrap();
    let files = mutated(dir.path(), FEW);
    let ends = try_all(&files);
    let dead: Vec<_> = ends.iter().enumerate().filter(|(_, end)| matches!(end, End::Died(_))).collect();
    assert!(dead.len() <= FEW as usize / 100, "the checks should know {} of {FEW}: {dead:#?}", dead.len());
    for wanted in [End::Fine, End::Refused(String::new())] {
        let like = |end: &&End| std::mem::discriminant(*end) == std::mem::discriminant(&wanted);
        assert!(ends.iter().filter(like).count() > FEW as usize / 10, "mutations of all kinds: {wanted:?}");
    }
    // What the checks do not know ends a child process, and the command with an error.
    for file in files[..24].iter().chain(dead.iter().map(|&(i, _)| &files[i])) {
        let run = tokenize(dir.path(), file);
        assert!((0..=2).contains(&run.code), "{}: exit {}: {}", file.display(), run.code, run.stderr);
    }
}

#[test]
fn a_verdict_is_kept_by_the_hash_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, fixtures::all()[0].1.to_string()).unwrap();
    assert_eq!(tokenize(dir.path(), &file).code, 0);
    let kept = || fs::read_dir(dir.path().join("cache/tokenizers")).unwrap().map(|entry| entry.unwrap().path());
    let record = kept().next().unwrap();
    assert_eq!(fs::read_to_string(&record).unwrap(), "fine\n");
    fs::write(&record, "crashed index out of bounds\n").unwrap();
    tokenize(dir.path(), &file).fails(2, &["file", "crashed (index out of bounds) in a trial", "get the file again"]);
    // Cut short it is no verdict, and the file is tried again.
    fs::write(&record, "crash").unwrap();
    assert_eq!(tokenize(dir.path(), &file).code, 0);
    assert_eq!(fs::read_to_string(&record).unwrap(), "fine\n");
    // Other bytes are another file.
    fs::write(&file, format!("{} ", fixtures::all()[0].1)).unwrap();
    assert_eq!(tokenize(dir.path(), &file).code, 0);
    assert_eq!(kept().count(), 2);
    // A cache that cannot be written is none.
    fs::remove_dir_all(dir.path().join("cache")).unwrap();
    fs::write(dir.path().join("cache"), "in the way").unwrap();
    assert_eq!(tokenize(dir.path(), &file).code, 0);
}

/// All files, each in a command of its own: minutes. `cargo test -p elapid-cli -- --ignored mutated`.
#[test]
#[ignore = "takes minutes"]
fn mutated_files_in_a_command_each() {
    let dir = tempfile::tempdir().unwrap();
    let files = mutated(dir.path(), MANY);
    let mut codes = std::collections::BTreeMap::new();
    let mut tried = 0;
    for file in &files {
        let run = tokenize(dir.path(), file);
        *codes.entry(run.code).or_insert(0) += 1;
        tried += usize::from(run.stderr.contains("in a trial"));
        assert!((0..=2).contains(&run.code), "{}: exit {}: {}", file.display(), run.code, run.stderr);
        assert!(!run.stderr.contains("panicked"), "{}: {}", file.display(), run.stderr);
    }
    println!("exit codes {codes:?}; {tried} refused after a trial");
}
