//! Memory, threads, sizes of files: what is not there is an error with both sizes and the setting, never an abort; and
//! outputs that are no regular files.

use std::process::Command;

use super::{Run, elapid, file};

/// A size that no machine has the memory for.
const HUGE: &str = "1000000000000";

/// A run under limits of the shell's `ulimit`.
#[cfg(unix)]
fn limited(limits: &str, arguments: &[&str]) -> Run {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limits} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_elapid")]);
    command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap().into()
}

#[test]
fn sizes_beyond_memory_are_refused_with_both_sizes() {
    let small = ["--device", "cpu", "--model-size", "8x1"];
    let bench = |more: &[&str]| elapid(&[&["bench"], &more[..1], &small, &more[1..]].concat());
    let both = ["this takes at least", "are available"];
    let with = |setting| [both[0], both[1], setting];
    bench(&["decode", "--batch", HUGE]).fails(2, &with("--batch"));
    bench(&["prefill", "--batch", HUGE]).fails(2, &with("--batch"));
    bench(&["prefill", "--length", HUGE]).fails(2, &with("--length"));
    bench(&["train", "--batch", HUGE]).fails(2, &with("--batch"));
    bench(&["train", "--length", "18446744073709551615"]).fails(2, &with("--length"));
    for size in ["--b", "--l", "--d", "--n"] {
        elapid(&["bench", "scan", "--device", "cpu", size, HUGE]).fails(2, &with(size));
    }
    for size in ["--b", "--heads", "--l", "--width"] {
        elapid(&["bench", "attention", "--device", "cpu", size, HUGE]).fails(2, &with(size));
    }
    elapid(&["bench", "decode", "--device", "cpu", "--model-size", "1000000x1000"]).fails(2, &with("model's sizes"));

    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run").display().to_string();
    let train = |more: &[&str]| {
        let run = elapid(&[&["train", "--device", "cpu", "--output", &output], more].concat());
        assert!(!dir.path().join("run").exists(), "nothing is begun that cannot be done: {more:?}");
        run
    };
    train(&["--batch", "1000000000"]).fails(2, &with("train.batch"));
    train(&["--length", "100000000000", "--batch", "1"]).fails(2, &with("data.length"));
    train(&["--batch", HUGE]).fails(2, &["train.batch", "rows of data.length"]);
    train(&["--length", "9223372036854775807"]).fails(2, &["train.batch", "rows of data.length"]);
    train(&["--set", "model.d_state=1000000000"]).fails(2, &with("model's sizes"));
    train(&["--task", "copying", "--batch", "100000000"]).fails(2, &with("train.batch"));
}

#[test]
fn inspect_counts_a_model_of_any_size() {
    let count = |size: &str, vocab: &str| {
        let object = elapid(&["inspect", "--model-size", size, "--vocab", vocab, "--json"]).json();
        (object["parameters"].as_u64().unwrap(), object["state_bytes"].as_u64().unwrap())
    };
    let (small, _) = count("130m", "50277");
    assert_eq!(small, 129_135_360);
    let (large, state) = count("130m", "1000000000");
    assert_eq!(large - small, (1_000_000_000 - 50_280) * 768);
    assert_eq!(state, 24 * 1536 * (16 + 3) * 4);
    assert!(count("1000000x1000", "256").0 > 1_000_000_000_000_000);
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_address_space_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let text = file(&dir, "text.txt", "the river ran past the bridge. ".repeat(300));
    let (output, state) =
        (dir.path().join("run").display().to_string(), dir.path().join("state").display().to_string());
    let small =
        ["--batch", "2", "--length", "64", "--steps", "2", "--set", "train.warmup=0", "--set", "model.n_layer=1"];
    let train = [&["train", "--device", "cpu", "-q", "--data", &text, "--output", &output], &small[..]].concat();
    let generate = ["generate", "--device", "cpu", "-q", "--max-tokens", "3", "--save-state", &state, "x"];
    let eval = ["eval", "--device", "cpu", "-q", "--data", &text];
    let mut ended = [0; 3];
    // From too little to begin with to more than enough.
    for megabytes in [50, 80, 120, 200, 400, 4000] {
        for arguments in [&train[..], &generate, &eval] {
            let run = limited(&format!("-v {}", megabytes * 1024), arguments);
            // The system's loader says so itself.
            let loaded = run.code != 127;
            assert!(!loaded || (0..=2).contains(&run.code), "{megabytes} MB: {} {}", run.code, run.stderr);
            assert!(!run.stderr.contains("panicked"), "{megabytes} MB: {}", run.stderr);
            if loaded {
                ended[run.code as usize] += 1;
            }
            if loaded && run.code > 0 {
                let said = ["memory", "threads", "allocate"].iter().any(|word| run.stderr.contains(word));
                assert!(said, "{megabytes} MB, {arguments:?}: {}", run.stderr);
            }
            std::fs::remove_dir_all(&output).ok();
        }
    }
    assert!(ended[0] >= 3 && ended[1] + ended[2] >= 1, "{ended:?}: some fit, some do not");
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_threads_means_fewer_threads() {
    // No thread can have a stack of this size, as if none were allowed. Unlike `ulimit -u` it holds for root too.
    let run = |arguments: &[&str]| -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
        command.env("RUST_MIN_STACK", (1_u64 << 46).to_string()).args(arguments).stdin(std::process::Stdio::null());
        command.output().unwrap().into()
    };
    let tokens = |run: Run| run.json()["tokens"].clone();
    let generate = ["generate", "--device", "cpu", "--greedy", "--max-tokens", "5", "--json", "ROMEO:"];
    let alone = run(&generate);
    assert!(alone.stderr.contains("computing with 1 of"), "{}", alone.stderr);
    assert_eq!(tokens(alone), tokens(elapid(&generate)), "the number of threads changes nothing");
    run(&[&generate[..], &["--threads", "2"]].concat()).fails(2, &["--threads 2: 0 could be started", "ulimit -u"]);

    let dir = tempfile::tempdir().unwrap();
    let text = file(&dir, "text.txt", "the river ran past the bridge. ".repeat(300));
    let output = dir.path().join("run").display().to_string();
    let small =
        ["--batch", "1", "--length", "16", "--steps", "2", "--set", "train.warmup=0", "--set", "model.d_model=8"];
    let train = run(&[&["train", "--device", "cpu", "--data", &text, "--output", &output], &small[..]].concat());
    assert_eq!(train.code, 0, "{}", train.stderr);
    assert!(dir.path().join("run/model.safetensors").is_file());
}

#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::write(&state, "old").unwrap();
    let path = state.display().to_string();
    let save = ["generate", "--device", "cpu", "-q", "--max-tokens", "0", "--save-state", &path, "x"];
    limited("-f 8", &save).fails(1, &["state", "ulimit -f"]);
    assert_eq!(std::fs::read_to_string(&state).unwrap(), "old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn a_state_is_not_saved_as_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    // At once: the prompt, which no tokenizer reads, is not looked at.
    elapid(&["generate", "--save-state", &path, "--prompt-file", "/no/such"]).fails(2, &[&path, "it is a directory"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_state_goes_to_what_is_there() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let save = |path: &str| {
        let arguments = ["generate", "--device", "cpu", "-q", "--max-tokens", "0", "--save-state", path, "ROMEO:"];
        let run = Command::new(env!("CARGO_BIN_EXE_elapid")).args(arguments).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        run.stdout
    };
    /// The tensors, behind the header.
    fn tensors(state: &[u8]) -> &[u8] {
        let (length, rest) = state.split_first_chunk().unwrap();
        &rest[u64::from_le_bytes(*length) as usize..]
    }
    save(&at("state"));
    let want = std::fs::read(at("state")).unwrap();
    let want = tensors(&want);
    assert!(want.len() > 1000);

    std::fs::write(at("other"), "old").unwrap();
    symlink("other", at("link")).unwrap();
    save(&at("link"));
    assert!(std::fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert_eq!(tensors(&std::fs::read(at("other")).unwrap()), want);

    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let from = at("pipe");
    let reader = std::thread::spawn(move || std::fs::read(from).unwrap());
    save(&at("pipe"));
    assert_eq!(tensors(&reader.join().unwrap()), want);
    assert!(std::fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());

    assert_eq!(tensors(&save("/dev/stdout")), want);

    let made = Command::new("mknod").args([&at("null"), "c", "1", "3"]).output();
    let usable = made.is_ok_and(|made| made.status.success()) && std::fs::write(at("null"), "x").is_ok();
    if !usable {
        eprintln!("skipped: a device cannot be made here");
        return;
    }
    save(&at("null"));
    assert!(std::fs::symlink_metadata(at("null")).unwrap().file_type().is_char_device());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for name in ["config.json", "tokenizer.json", "config.toml"] {
        assert!(Command::new("mkfifo").arg(at(name)).status().unwrap().success());
    }
    let model = dir.path().display().to_string();
    elapid(&["generate", "--model", &model, "x"]).fails(2, &["config.json", "it is a pipe"]);
    elapid(&["train", "--config", &at("config.toml")]).fails(2, &["config.toml", "it is a pipe"]);
    elapid(&["train", "--config", "/dev/zero"]).fails(2, &["/dev/zero", "it is a device"]);
    elapid(&["generate", "--load-state", &at("config.json"), "x"]).fails(2, &["config.json", "it is a pipe"]);
    elapid(&["eval", "--tokens", "/dev/zero"]).fails(2, &["/dev/zero", "it is a device"]);
}
