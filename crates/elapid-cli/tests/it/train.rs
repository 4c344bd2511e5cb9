//! `elapid train`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Run, elapid, file};

/// Arguments of a run of a second, and more.
fn train(dir: &str, more: &[&str]) -> crate::Run {
    let small = ["train", "--output", dir, "--json", "--batch", "2", "--length", "32", "--set", "model.d_model=24"];
    let rest = ["--set", "model.n_layer=1", "--set", "train.warmup=1", "--set", "train.save_every=2"];
    elapid(&[&small[..], &rest, more].concat())
}

fn text(dir: &tempfile::TempDir) -> String {
    file(dir, "text.txt", "The snake that has no name is long, and what it was is what it is. ".repeat(40))
}

#[test]
fn a_trained_model_can_be_used_and_a_run_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
    let data = ["--data", text.as_str(), "--set", "data.cache=none"];
    let first = train(&out, &[&data[..], &["--steps", "4"]].concat()).json();
    assert_eq!((&first["step"], &first["tokens"]), (&4.into(), &(4 * 2 * 32).into()));
    assert!(first["val_loss"].as_f64().unwrap().is_finite() && first["sample"].is_string());
    let on = train(&out, &[&data[..], &["--steps", "6", "--resume"]].concat()).json();
    assert_eq!(on["step"], 6);

    let generated = elapid(&["generate", "--model", &out, "The", "--max-tokens", "5", "--json"]).json();
    assert_eq!(generated["tokens"].as_array().unwrap().len(), 5);
    let evaluated = elapid(&["eval", "--model", &out, "--data", &text, "--json"]).json();
    assert_eq!(evaluated["bytes"], 67 * 40);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "config.toml", "metrics.jsonl", "loss.png"] {
        assert!(dir.path().join("run").join(file).is_file(), "{file}");
    }
    train(&out, &data).fails(2, &["--resume", "--output"]);
}

#[test]
fn settings_that_do_not_fit_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run").display().to_string();
    train(&out, &["--set", "train.stepz=3"]).fails(2, &["train.stepz", "did you mean `train.steps`"]);
    train(&out, &["--config", "absent.toml"]).fails(2, &["absent.toml"]);
    let config = file(&dir, "bad.toml", "[train]\nsteps = 3\nspeed = 7\n");
    train(&out, &["--config", &config]).fails(2, &["bad.toml", "speed"]);
    train(&out, &["--resume"]).fails(2, &["without --resume"]);
    train(&out, &["--data", "absent.txt"]).fails(2, &["absent.txt"]);
    let short = file(&dir, "short.txt", "too short");
    train(&out, &["--data", &short, "--set", "data.cache=none"]).fails(2, &["too short"]);
    assert!(!dir.path().join("run/model.safetensors").exists());
}

fn losses(dir: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    text.lines().map(loss).collect()
}

/// Two ranks, and one with two batches a step.
fn two_ranks_are_one(device: &[&str], tolerance: f64) {
    let dir = tempfile::tempdir().unwrap();
    let text = text(&dir);
    let data = ["--data", text.as_str(), "--set", "data.cache=none", "--steps", "8", "--set", "train.log_every=1"];
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let run = |out: &Path, more: &[&str]| train(&out.display().to_string(), &[&data[..], device, more].concat()).json();
    let alone = run(&one, &["--set", "train.accumulate=2"]);
    let together = run(&two, &["--gpus", "2"]);
    assert_eq!((&alone["tokens"], &alone["step"]), (&together["tokens"], &together["step"]));
    let (want, got) = (losses(&one), losses(&two));
    assert_eq!((want.len(), got.len()), (8, 8));
    for (step, (want, got)) in want.iter().zip(&got).enumerate() {
        assert!((want - got).abs() < tolerance * want, "step {step}: {want} {got}");
    }
}

#[test]
fn two_processes_train_as_one() {
    two_ranks_are_one(&["--device", "cpu"], 1e-4);
}

#[test]
#[ignore = "needs two GPUs and NCCL"]
fn two_gpus_train_as_one() {
    two_ranks_are_one(&["--device", "cuda", "--dtype", "f32"], 1e-4);
    two_ranks_are_one(&["--device", "cuda", "--dtype", "bf16"], 2e-2);
    let many = ["--set", "train.accumulate=3", "--set", "train.checkpoint_blocks=true"];
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
    let data = ["--data", &text, "--set", "data.cache=none", "--steps", "9", "--gpus", "2", "--device", "cuda"];
    let result = train(&out, &[&data[..], &many].concat()).json();
    assert_eq!(result["tokens"], 9 * 2 * 3 * 2 * 32);
}

/// A run that is left to itself; killed if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    /// As rank `rank` of `size`, or alone if there is no such.
    fn start(arguments: &[&str], place: Option<(usize, usize, u16)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((rank, size, port)) = place {
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command.env("WORLD_SIZE", size.to_string()).env("MASTER_ADDR", "127.0.0.1");
            command.env("MASTER_PORT", port.to_string());
        }
        Self(command.spawn().unwrap())
    }

    fn end(mut self) -> Run {
        let since = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(since.elapsed() < Duration::from_secs(600), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let read = |from: &mut dyn std::io::Read| {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        };
        let (stdout, stderr) = (read(self.0.stdout.as_mut().unwrap()), read(self.0.stderr.as_mut().unwrap()));
        Run { code: self.0.wait().unwrap().code().unwrap_or(-1), stdout, stderr }
    }
}

/// Whether the name is that of a whole checkpoint, `step-00000012`.
fn is_step(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.strip_prefix("step-").is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Waits for the first checkpoint of a run and gives its directory.
fn checkpoint(out: &Path) -> PathBuf {
    let since = Instant::now();
    loop {
        let entries = std::fs::read_dir(out.join("resume")).into_iter().flatten().flatten();
        if let Some(found) = entries.map(|entry| entry.path()).find(|path| is_step(path)) {
            return found;
        }
        assert!(since.elapsed() < Duration::from_secs(600), "no checkpoint");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn endless<'a>(out: &'a str, text: &'a str) -> Vec<&'a str> {
    let all = "train --batch 2 --length 32 --device cpu --steps 1000000 --quiet --threads 1 --set data.cache=none \
               --set model.d_model=24 --set model.n_layer=1 --set train.warmup=1 --set train.save_every=2 --set \
               train.eval_every=0";
    all.split_whitespace().chain(["--output", out, "--data", text]).collect()
}

#[test]
fn ranks_of_several_hosts_need_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let rank = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
        command.args(["train", "--device", "cpu"]).stdin(Stdio::null()).current_dir(dir.path());
        let place = [("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "192.0.2.1")];
        command.env_remove("ELAPID_SECRET").env_remove("ELAPID_SECRET_FILE").env("MASTER_PORT", "29500");
        Run::from(command.envs(place).envs(variables.iter().copied()).output().unwrap())
    };
    rank(&[]).fails(2, &["MASTER_ADDR is 192.0.2.1", "ELAPID_SECRET_FILE", "openssl rand"]);
    rank(&[("ELAPID_SECRET", "secret")]).fails(2, &["ELAPID_SECRET has 6 bytes", "16"]);
    #[cfg(unix)]
    {
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&file, readable).unwrap();
        rank(&[("ELAPID_SECRET_FILE", file.to_str().unwrap())]).fails(2, &["other users", "chmod 600"]);
    }
}

#[test]
fn a_lost_rank_ends_all_and_names_the_checkpoint() {
    for lost in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = endless(&out, &text);
        let mut ranks = [0, 1].map(|rank| Some(Running::start(&arguments, Some((rank, 2, port)))));
        checkpoint(Path::new(&out));
        let mut killed = ranks[lost].take().unwrap();
        killed.0.kill().unwrap();
        let left = ranks[1 - lost].take().unwrap().end();
        let name = format!("rank {lost} of 2 was lost");
        left.fails(1, &[&name, "ended or was killed", "The checkpoint of step", "resume/step-", "--resume"]);
        // What is there can be gone on from, by one or by two.
        let step: u64 = checkpoint(Path::new(&out)).display().to_string().rsplit('-').next().unwrap().parse().unwrap();
        let (last, more) = ((step + 2).to_string(), ["--resume", "--json", "--gpus", "2", "--steps"]);
        let mut again: Vec<&str> =
            arguments.iter().copied().filter(|a| !["--quiet", "--threads", "1"].contains(a)).collect();
        again.retain(|&argument| argument != "--steps" && argument != "1000000");
        let on = elapid(&[&again[..], &more, &[&last]].concat()).json();
        assert_eq!(on["step"], step + 2);
    }
}

#[cfg(unix)]
fn signal(running: &Running, name: &str) {
    let id = running.0.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
}

#[test]
#[cfg(unix)]
fn signals_stop_a_run_and_it_says_how_to_go_on() {
    for (name, more) in
        [("INT", &[][..]), ("TERM", &[]), ("HUP", &[]), ("TERM", &["--gpus", "2"]), ("HUP", &["--gpus", "2"])]
    {
        let dir = tempfile::tempdir().unwrap();
        let (text, out) = (text(&dir), dir.path().join("my run").display().to_string());
        let arguments = [&endless(&out, &text)[..], &["--json"], more].concat();
        let running = Running::start(&arguments, None);
        checkpoint(Path::new(&out));
        signal(&running, name);
        let result = running.end().json();
        assert_eq!(result["stopped"], "interrupted", "{name}");
        let step = result["step"].as_u64().unwrap();
        assert!(Path::new(&out).join(format!("resume/step-{step:08}")).is_dir() && step >= 2);
        let mut command = format!("elapid train --resume --output '{out}' --device cpu --threads 1");
        more.iter().for_each(|word| command += &format!(" {word}"));
        assert_eq!(result["resume"], command);
    }
}

#[test]
#[cfg(unix)]
fn a_second_signal_ends_a_run_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run").display().to_string();
    // Steps of a second or more, during one of which both signals come.
    let slow = ["train", "--output", &out, "--steps", "1000", "--length", "512", "--device", "cpu", "--threads", "1"];
    let running = Running::start(&[&slow[..], &["--set", "train.log_every=1", "--quiet"]].concat(), None);
    let since = Instant::now();
    while std::fs::metadata(dir.path().join("run/metrics.jsonl")).map_or(0, |data| data.len()) == 0 {
        assert!(since.elapsed() < Duration::from_secs(600), "no step");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&running, "INT");
    // Signals that wait are one: the second must come after the first was handled.
    std::thread::sleep(Duration::from_millis(50));
    signal(&running, "TERM");
    assert_eq!(running.end().code, 128 + 15);
    let left: Vec<_> =
        std::fs::read_dir(dir.path().join("run/resume")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["begun"]);
}

#[test]
#[cfg(target_os = "linux")]
fn nohup_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_elapid")]).args(endless(&out, &text));
    let running = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let first = checkpoint(Path::new(&out));
    signal(&running, "HUP");
    let since = Instant::now();
    while first.exists() {
        assert!(since.elapsed() < Duration::from_secs(600), "it does not go on");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&running, "TERM");
    assert_eq!(running.end().code, 0);
}

#[test]
fn a_directory_in_use_is_refused_and_a_killed_run_leaves_it_free() {
    let dir = tempfile::tempdir().unwrap();
    let (text, out) = (text(&dir), dir.path().join("run").display().to_string());
    let arguments = endless(&out, &text);
    let mut running = Running::start(&arguments, None);
    checkpoint(Path::new(&out));
    let process = format!("process {}", running.0.id());
    for more in ["--seed=2", "--resume", "--overwrite"] {
        elapid(&[&arguments[..], &[more]].concat()).fails(2, &["another run is using it", &process, "--output"]);
    }
    assert!(running.0.try_wait().unwrap().is_none(), "the first one goes on");
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let step: u64 = checkpoint(Path::new(&out)).display().to_string().rsplit('-').next().unwrap().parse().unwrap();
    let last = (step + 1).to_string();
    let on = elapid(&["train", "--resume", "--output", &out, "--device", "cpu", "--json", "--steps", &last]).json();
    assert_eq!(on["step"], step + 1);
    let steps: Vec<u64> = std::fs::read_to_string(Path::new(&out).join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
    let names = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.ends_with(".tmp")));
}

#[test]
fn a_model_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (text, model) = (text(&dir), dir.path().join("model"));
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(crate::golden("mamba1-tiny").join(name), model.join(name)).unwrap();
    }
    let weights = std::fs::read(model.join("model.safetensors")).unwrap();
    let out = model.display().to_string();
    let data = ["--data", text.as_str(), "--set", "data.cache=none", "--steps", "2"];
    train(&out, &data).fails(2, &["config.json, model.safetensors", "--output", "--overwrite"]);
    assert!(std::fs::read(model.join("model.safetensors")).unwrap() == weights);
    train(&out, &[&data[..], &["--overwrite"]].concat()).json();
    assert!(std::fs::read(model.join("old-1/model.safetensors")).unwrap() == weights);

    // Settings of one's own in the directory where the results are to go.
    let own = dir.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let settings = format!("# my notes\n[data]\ntrain = {text:?}\ncache = \"none\"\n[train]\nsteps = 2\n");
    std::fs::write(own.join("config.toml"), &settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_elapid"));
    command.current_dir(&own).args(["train", "--config", "config.toml", "--output", "."]);
    Run::from(command.output().unwrap()).fails(2, &["config.toml"]);
    assert_eq!(std::fs::read_to_string(own.join("config.toml")).unwrap(), settings);
}

#[test]
fn a_run_begins_from_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let (text, one) = (text(&dir), dir.path().join("one").display().to_string());
    let data = ["--data", text.as_str(), "--set", "data.cache=none"];
    train(&one, &[&data[..], &["--steps", "4"]].concat()).json();
    let (two, three) = (dir.path().join("two").display().to_string(), dir.path().join("three").display().to_string());
    let tune = ["train", "--from", &one, "--lr", "1e-7", "--batch", "2", "--length", "32", "--device", "cpu"];
    let tune = |out: &str, more: &[&str]| elapid(&[&tune[..], &data, &["--output", out], more].concat());
    let run = tune(&two, &["--steps", "4"]);
    assert!(run.stderr.contains("train.min_lr = 0.00001 is above --lr 0.0000001"), "{}", run.stderr);
    run.text();
    let config = std::fs::read_to_string(dir.path().join("two/config.toml")).unwrap();
    for line in [&format!("from = {one:?}"), "d_model = 24", "n_layer = 1"] {
        assert!(config.contains(line), "no `{line}` in {config}");
    }
    let loss =
        |model: &str| elapid(&["eval", "--model", model, "--data", &text, "--json"]).json()["loss"].as_f64().unwrap();
    assert!((loss(&one) - loss(&two)).abs() < 1e-3, "{} {}", loss(&one), loss(&two));
    // It goes on as any other run, with the same command or a short one.
    tune(&two, &["--resume", "--steps", "5"]).text();
    elapid(&["train", "--resume", "--output", &two, "--steps", "6"]).text();
    tune(&one, &[]).fails(2, &["begins from", "--output"]);
    tune(&three, &["--set", "model.d_model=99"]).fails(2, &["`model.d_model`", "24", "99"]);
    // Ids without a tokenizer: text is read by bytes, whose ids do not fit.
    let tiny = crate::tiny();
    elapid(&["train", "--from", &tiny, "--output", &three]).fails(2, &["`data.tokenizer`", "259"]);
    assert!(!Path::new(&three).exists());
}

#[test]
fn a_short_first_try() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name).display().to_string();
    let small =
        ["--batch", "1", "--length", "16", "--set", "model.d_model=8", "--set", "model.n_layer=1", "--device", "cpu"];
    let short = |more: &[&str]| elapid(&[&["train", "--steps", "20"], &small[..], more].concat());
    short(&["--output", &out("defaults")]).text();
    let config = file(&dir, "a.toml", "[train]\nsteps = 5000\nwarmup = 500\n");
    let run = short(&["--config", &config, "--output", &out("config")]);
    assert!(run.stderr.contains("train.warmup = 500 is longer than --steps 20: 2 instead"), "{}", run.stderr);
    run.text();
    short(&["--output", &out("said"), "--set", "train.warmup=21"]).fails(2, &["train.warmup"]);
    let seed = "9223372036854775808";
    short(&["--output", &out("seed"), "--seed", seed, "--set", "train.lr=1e-3"]).fails(2, &["train.seed", seed]);
    assert!(!dir.path().join("seed").exists());
}

#[test]
fn ranks_that_cannot_start_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run").display().to_string();
    // Said once, before any rank is started.
    train(&out, &["--gpus", "2", "--set", "train.stepz=3"]).fails(2, &["train.stepz"]);
    train(&out, &["--gpus", "2", "--device", "cuda:1"]).fails(2, &["CUDA_VISIBLE_DEVICES"]);
    train(&out, &["--gpus", "1000", "--device", "cuda"]).fails(2, &["--gpus 1000"]);
    // Said by rank 0, or by the rank that it is about.
    train(&out, &["--gpus", "2", "--device", "cpu", "--data", "absent.txt"]).fails(2, &["absent.txt"]);
    let mut half = Command::new(env!("CARGO_BIN_EXE_elapid"));
    half.args(["train", "--output", &out]).env("RANK", "0").env_remove("WORLD_SIZE");
    Run::from(half.output().unwrap()).fails(2, &["WORLD_SIZE is not set", "--gpus"]);
}

#[test]
fn a_task() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run").display().to_string();
    let small = ["--steps", "2", "--length", "8", "--set", "train.eval_batches=1", "--set", "model.d_model=16"];
    let train = [&["train", "--task", "selective-copying", "--batch", "2", "--output", &output][..], &small].concat();
    let run = elapid(&[&train[..], &["--json"]].concat()).json();
    assert_eq!((run["step"].as_u64(), run["tokens"].as_u64()), (Some(2), Some(2 * 2 * (8 + 32))));
    assert!((0.0..=1.0).contains(&run["accuracy"].as_f64().unwrap()) && run["sample"].is_null(), "{run}");
    let page = dir.path().join("page.md").display().to_string();
    let eval = ["eval", "--task", "selective-copying", "--model", &output, "--model", &output, "--sequences", "2"];
    let own = elapid(&[&eval[..], &["--report", &page, "--json"]].concat()).json()["models"][1]["lengths"][0].take();
    assert_eq!((own["length"].as_u64(), own["answers"].as_u64()), (Some(8), Some(32)));
    elapid(&["eval", "--task", "copying", "--model", &output]).fails(2, &[&output, "say --task selective-copying"]);
    let page = std::fs::read_to_string(&page).unwrap();
    for words in ["| S4 without a gate", "| - |", "--seed 1", "model.d_model=16", "| 160 |", "## Cost"] {
        assert!(page.replace("the paper's ", "").contains(words), "no `{words}` in:\n{page}");
    }
    elapid(&["train", "--task", "sorting"]).fails(2, &["`sorting`", "selective-copying"]);
    elapid(&["train", "--task", "copying", "--data", "x"]).fails(2, &["--data"]);
}

#[test]
fn recall_and_state_tracking() {
    let dir = tempfile::tempdir().unwrap();
    let run = |task: &str, own: &[&str]| {
        let output = dir.path().join(task).display().to_string();
        let small = ["--steps", "2", "--batch", "2", "--set", "train.eval_batches=1", "--set", "model.d_model=16"];
        let train = [&["train", "--task", task, "--output", &output, "--json"][..], &small, own].concat();
        let accuracy = elapid(&train).json()["accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{task}: {accuracy}");
        let page = dir.path().join(format!("{task}.md"));
        let eval = ["eval", "--task", task, "--model", &output, "--sequences", "3", "--json", "--report"];
        let line =
            elapid(&[&eval[..], &[&page.display().to_string()]].concat()).json()["models"][0]["lengths"][0].take();
        (line["length"].as_u64().unwrap(), line["answers"].as_u64().unwrap(), std::fs::read_to_string(page).unwrap())
    };
    let (length, answers, page) =
        run("mqar", &["--length", "16", "--set", "task.pairs=4", "--set", "task.vocab=16", "--set", "train.warmup=1"]);
    assert_eq!((length, answers), (16, 12));
    assert!(page.contains("task.pairs=4"), "{page}");
    let (length, answers, page) = run("state-tracking", &["--length", "20", "--set", "task.modulus=5"]);
    assert_eq!((length, answers), (20, 3));
    assert!(page.contains("task.modulus=5") && page.contains("Mamba-3"), "{page}");
    let wrong =
        |sets: &[&str], words: &[&str]| elapid(&[&["train", "--task", "mqar"][..], sets].concat()).fails(2, words);
    wrong(&["--length", "255"], &["data.length", "even"]);
    wrong(&["--set", "task.pairs=65"], &["data.length", "65 pairs"]);
    wrong(&["--set", "task.pairs=5000"], &["task.pairs", "4095"]);
}

#[test]
fn runs_compared_by_size() {
    let dir = tempfile::tempdir().unwrap();
    let runs: Vec<String> = [("tiny-1", 1), ("tiny-4", 4), ("other", 2)]
        .map(|(name, states)| {
            let output = dir.path().join(name).display().to_string();
            let d_state = format!("model.d_state={states}");
            let small = [
                "--steps",
                "2",
                "--batch",
                "2",
                "--length",
                "8",
                "--set",
                "model.d_model=16",
                "--set",
                "model.n_layer=2",
            ];
            let own = ["train", "--output", &output, "--quiet", "--set", "train.eval_batches=1", "--set", &d_state];
            elapid(&[&own[..], &small].concat()).text();
            output
        })
        .into();
    let page = dir.path().join("page.md").display().to_string();
    let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
    let compare = [&["compare", "--against", "state", "--report", &page, "--json"][..], &runs].concat();
    let found = elapid(&compare).json();
    // Two layers of 32 channels: N states, and 3 inputs of the convolution.
    let bytes: Vec<u64> =
        found["runs"].as_array().unwrap().iter().map(|run| run["state_bytes"].as_u64().unwrap()).collect();
    assert_eq!(bytes, [1, 4, 2].map(|n| 4 * 2 * 32 * (n + 3)));
    assert!(found["runs"][0]["parameters"].as_u64() < found["runs"][1]["parameters"].as_u64(), "{found}");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("state at 8,192") && text.contains("page-sizes.svg"), "{text}");
    let picture = std::fs::read_to_string(dir.path().join("page-sizes.svg")).unwrap();
    assert!(
        [">\ntiny\n", "other", "bytes of the state at 8,192"].iter().all(|word| picture.contains(word)),
        "{picture}"
    );
    assert!(!picture.contains("tiny-1"));
    elapid(&["compare", runs[0], "--context", "5"]).fails(2, &["--against"]);
}

#[test]
fn curves_of_runs_in_one_chart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (name, more) in [("one", ""), ("two-seed-1", r#","val_loss":1.25"#), ("two-seed-2", r#","val_loss":1.5"#)] {
        let line = |step: u64| {
            let loss = 1.0 + 4.0 / step as f64;
            let more = if step == 40 { more } else { "" };
            format!(
                r#"{{"step":{step},"tokens":{},"seconds":{},"loss":{loss},"lr":0.01,"grad_norm":1,"tokens_per_second":32{more}}}"#,
                64 * step,
                2 * step,
            )
        };
        let text: String = (1..=40).map(|step| line(step) + "\n").collect();
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(dir.path().join(name).join("metrics.jsonl"), text).unwrap();
    }
    let runs = [at("one"), at("two-seed-1"), at("two-seed-2")];
    let plot = |more: &[&str]| elapid(&[&["plot"][..], &runs.each_ref().map(String::as_str), more].concat());
    let picture = |file: &str| std::fs::read_to_string(at(file)).unwrap();

    // Without an extension, both.
    let found = plot(&["--output", &at("new/losses"), "--x", "tokens", "--json"]).json();
    assert_eq!(found["files"], serde_json::json!([at("new/losses.svg"), at("new/losses.png")]));
    assert_eq!(found["runs"][1]["name"], "two-seed-1");
    assert_eq!(found["runs"][2]["points"][39][0], 2560.0);
    let words = ["\none\n", "\ntwo\n", "\ntokens\n", "training loss by tokens", "training loss, nats per token"];
    let svg = picture("new/losses.svg");
    assert!(words.iter().all(|word| svg.contains(word)) && !svg.contains("seed"), "{svg}");
    assert!(!svg.contains("\n4\n"), "the first losses are above the frame");
    assert!(std::fs::read(at("new/losses.png")).unwrap().starts_with(b"\x89PNG"));

    let text = plot(&["--output", &at("log.svg"), "--log-x", "--log-y", "--title", "T"]).text().to_owned();
    assert_eq!(text, format!("{}\n", at("log.svg")));
    assert!(
        picture("log.svg").contains("\nT\n")
            && picture("log.svg").contains("\n4\n")
            && !Path::new(&at("log.png")).exists()
    );
    // A figure that a run does not have, one that none has, and a picture of another kind.
    plot(&["--y", "val_loss"]).fails(2, &["one", "no `val_loss`", "it has grad_norm, loss, lr, seconds, tokens"]);
    plot(&["--y", "los"]).fails(2, &["no `los`", "loss"]);
    plot(&["--output", &at("x.pdf")]).fails(2, &["--output", ".svg or .png", "x.pdf"]);
    elapid(&["plot", &at("none")]).fails(2, &["none"]);
}
