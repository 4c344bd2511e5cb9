//! The binary as scripts and people run it: its contracts, its exit codes, its errors.

mod bench;
mod eval;
mod formats;
mod generate;
mod hostile;
mod inspect;
mod limits;
mod shell;
mod text;
mod train;
mod weights;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A model of 64 token ids without a tokenizer, recorded from a reference implementation.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
}

fn tiny() -> String {
    golden("mamba1-tiny").display().to_string()
}

/// What a run of the binary came to.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    /// The one object on stdout of a run that succeeded.
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Its text, of a run that succeeded.
    fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.stderr);
        &self.stdout
    }

    /// Fails with this exit code, and says each of `words`.
    fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "", "an error leaves stdout alone");
        assert!(self.stderr.contains("error"), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in: {}", self.stderr);
        }
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

fn elapid(arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap().into()
}

fn elapid_with_stdin(arguments: &[&str], stdin: &[u8]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap().into()
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Writes a file into a directory and gives its path.
fn file(dir: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn every_command_explains_itself_with_examples() {
    for command in [
        vec![],
        vec!["generate"],
        vec!["train"],
        vec!["eval"],
        vec!["inspect"],
        vec!["tokenize"],
        vec!["doctor"],
        vec!["bench", "scan"],
        vec!["bench", "attention"],
        vec!["bench", "decode"],
        vec!["bench", "prefill"],
        vec!["bench", "train"],
    ] {
        let run = elapid(&[command.as_slice(), &["--help"]].concat());
        let examples = run.text().split("Examples:").nth(1).unwrap_or_else(|| panic!("{command:?}: no examples"));
        assert!(examples.matches("elapid ").count() >= 2, "{command:?}: {examples}");
    }
    assert!(elapid(&["--version"]).text().starts_with("elapid "));
}

#[test]
fn wrong_command_lines_exit_with_2() {
    elapid(&[]).fails_with_usage();
    elapid(&["dance"]).fails(2, &["dance"]);
    elapid(&["generate", "--top-p", "1.5", "x"]).fails(2, &["--top-p", "at most 1"]);
    elapid(&["generate", "--temperature", "nan", "x"]).fails(2, &["--temperature"]);
    elapid(&["generate", "--temperature", "-1", "x"]).fails(2, &["--temperature", "at least 0"]);
    elapid(&["train", "--steps", "-5"]).fails(2, &["--steps", "-5"]);
    elapid(&["generate", "--greedy", "--temperature", "1", "x"]).fails(2, &["cannot be used with"]);
    elapid(&["generate", "x", "--prompt-tokens", "1"]).fails(2, &["cannot be used with"]);
    elapid(&["generate", "--device", "tpu", "x"]).fails(2, &["tpu", "wanted cpu, cuda"]);
    elapid(&["doctor", "--threads", "0"]).fails(2, &["--threads"]);
    elapid(&["eval", "--tokens", "a.json", "--data", "b.txt"]).fails(2, &["cannot be used with"]);
}

impl Run {
    fn fails_with_usage(&self) {
        assert_eq!(self.code, 2);
        assert!(self.stderr.contains("Usage: elapid"), "{}", self.stderr);
    }
}

#[test]
fn broken_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().display().to_string();
    let commands = [
        vec!["generate", "--model", &model, "--prompt-tokens", "1"],
        vec!["eval", "--model", &model, "--data", "tinyshakespeare"],
        vec!["inspect", "--model", &model],
        vec!["bench", "decode", "--model", &model],
    ];
    let all = |words: &[&str]| commands.iter().for_each(|command| elapid(command).fails(2, words));
    all(&["config.json"]);
    file(&dir, "config.json", "{ not json");
    all(&["config.json"]);
    std::fs::copy(golden("mamba1-tiny").join("config.json"), dir.path().join("config.json")).unwrap();
    all(&["model.safetensors"]);
    let whole = std::fs::read(golden("mamba1-tiny").join("model.safetensors")).unwrap();
    file(&dir, "model.safetensors", &whole[..whole.len() / 2]);
    all(&["model.safetensors"]);
    let missing = dir.path().join("nowhere").display().to_string();
    elapid(&["generate", "--model", &missing, "x"]).fails(2, &["nowhere"]);
}

/// A copy of the tiny golden model, with the last value of some tensors replaced.
fn tiny_with(changes: &[(&str, f32)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(golden("mamba1-tiny").join(name)).unwrap();
    let mut weights = read("model.safetensors");
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&weights[8..header]).unwrap();
    for (name, value) in changes {
        let end = header + tensors[name]["data_offsets"][1].as_u64().unwrap() as usize;
        weights[end - 4..end].copy_from_slice(&value.to_le_bytes());
    }
    file(&dir, "model.safetensors", weights);
    file(&dir, "config.json", read("config.json"));
    dir
}

/// Every command that computes with a model names the tensor and exits with 2; `inspect` alone still shows it.
#[test]
fn weights_that_are_not_finite_are_refused() {
    let name = "backbone.layers.1.mixer.in_proj.weight";
    for value in [f32::NAN, f32::INFINITY] {
        let dir = tiny_with(&[(name, value)]);
        let (model, ids) = (dir.path().display().to_string(), file(&dir, "ids.json", "[[1, 2, 3]]"));
        for command in [
            vec!["generate", "--prompt-tokens", "1,2"],
            vec!["eval", "--tokens", &ids],
            vec!["eval", "--task", "induction-heads", "--lengths", "16", "--sequences", "1"],
            vec!["inspect", "--trace", "delta", "--length", "20"],
            vec!["bench", "decode"],
            vec!["bench", "prefill"],
        ] {
            let run = elapid(&[&command[..], &["--model", &model]].concat());
            run.fails(2, &[name, "model.safetensors", "1 ", "the first at [191, 47]"]);
        }
        assert!(elapid(&["inspect", "--model", &model]).text().contains(name));
    }
}

/// Finite weights can give values that are not: the command fails and says where.
#[test]
fn results_that_are_not_finite_are_no_results() {
    let dir = tiny_with(&[("backbone.layers.1.norm.weight", 3e38)]);
    let model = dir.path().display().to_string();
    let eval = ["eval", "--task", "induction-heads", "--lengths", "16", "--sequences", "1", "--model", &model];
    elapid(&eval).fails(1, &["not finite", "layer 1"]);
    let picture = dir.path().join("delta").display().to_string();
    let trace = ["inspect", "--trace", "delta", "--length", "20", "--model", &model, "--picture", &picture];
    elapid(&trace).fails(1, &["not finite", "layer 1"]);
    assert!(!dir.path().join("delta.svg").exists());
}

#[test]
fn an_unknown_instruction_set_is_refused() {
    let run = |isa: &str| -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
        command.args(["inspect", "--json"]).env("ELAPID_ISA", isa).stdin(Stdio::null()).output().unwrap().into()
    };
    run("sse9").fails(2, &["ELAPID_ISA", "sse9", "portable"]);
    run("portable").text();
    run("").text();
}

#[test]
fn a_file_is_no_directory() {
    let model = golden("mamba1-tiny").join("model.safetensors").display().to_string();
    let words = ["wanted the directory of a model, got a file", "give the directory it is in"];
    elapid(&["generate", "--model", &model, "--prompt-tokens", "1"]).fails(2, &words);
    elapid(&["inspect", "--model", &model]).fails(2, &words);
}

#[test]
#[cfg(target_os = "linux")]
fn a_reader_that_had_enough_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
    let model = tiny();
    let arguments = ["generate", "--model", &model, "--prompt-tokens", "1,2", "--max-tokens", "100000"];
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
}

#[test]
fn the_version_says_what_was_built() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let run = elapid(&["--version"]);
    let lines: Vec<&str> = run.text().lines().collect();
    assert_eq!(lines[0], elapid(&["-V"]).text().trim_end());
    assert!(lines[0].starts_with(concat!("elapid ", env!("CARGO_PKG_VERSION"))), "{}", run.stdout);
    if root.join(".git").exists() {
        let git = Command::new("git").current_dir(root).args(["rev-parse", "--short=12", "HEAD"]).output().unwrap();
        let commit = String::from_utf8(git.stdout).unwrap();
        assert!(lines[0].contains(&format!(" ({}", commit.trim())), "{commit} is not in {}", run.stdout);
    }
    assert!(lines[1].contains(std::env::consts::ARCH) && lines[1].contains(std::env::consts::OS), "{}", run.stdout);
    assert!(lines[2].starts_with("features: "), "{}", run.stdout);
}

#[test]
fn doctor_finds_the_machine() {
    let found = elapid(&["doctor", "--json", "--threads", "1"]).json();
    assert_eq!(found["threads"], 1);
    assert_eq!(found["embedded_model"]["ok"], true);
    assert_eq!(found["cuda"]["libraries"].as_array().map(Vec::len), Some(4));
    for rate in
        ["read_bytes_per_second", "flops_per_second", "bf16_flops_per_second", "int8_ops_per_second", "exps_per_second"]
    {
        assert!(found[rate].as_f64().unwrap() > 1e6, "{rate}: {}", found[rate]);
    }
    let run = elapid(&["doctor"]);
    for word in ["CPU", "instructions", "memory read", "GPU", "built-in model"] {
        assert!(run.text().contains(word), "{}", run.stdout);
    }
}
