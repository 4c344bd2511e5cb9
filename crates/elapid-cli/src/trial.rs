//! Tries an unknown tokenizer.json in a child process before this process opens it.
//!
//! The library's checks refuse what is known to break the `tokenizers` crate. A file that breaks it in a new way can abort,
//! and no `catch_unwind` stops an abort. So a child process, this binary with a hidden command, opens the file under limits
//! on memory and CPU time and uses it on unusual texts. The verdict is cached by the file's hash.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use elapid::files::atomic_write;
use elapid::tokenizer::trial;
use elapid_kernels::os::process;
use elapid_train::data::cache_dir;

use crate::failure::wrong;
use crate::output::Output;

/// The hidden command. Parent and child are always the same binary.
pub(crate) const COMMAND: &str = "try-tokenizer";
/// Seconds of wall time after which a child is killed, in case CPU time cannot be limited or is not used.
const WALL_SECONDS: u64 = 120;
/// Exit code of a child whose tokenizer panicked.
const PANICKED: u8 = 101;

/// The result of a trial.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This process may open the file. It may still refuse it.
    Fine,
    /// It panicked, aborted, or overflowed the stack: its last message.
    Crashed(String),
    OutOfMemory,
    OutOfTime,
}

/// Arguments of the child.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Files to try, one after another; prints a line for each that did not end the process
    files: Vec<PathBuf>,
}

/// Refuses a tokenizer that breaks. A missing or unreadable file is left to the caller that opens it.
///
/// # Errors
/// If the trial crashed, ran out of memory or took too long; the error names the file.
pub(crate) fn check(path: &Path, output: Output) -> Result<()> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    if !file.is_file() {
        return Ok(());
    }
    let Ok(bytes) = fs::read(&file) else { return Ok(()) };
    if !trial::is_needed(&bytes) {
        return Ok(());
    }
    let record = record(&bytes);
    let verdict = match fs::read_to_string(&record).ok().and_then(|text| parse(&text)) {
        Some(verdict) => verdict,
        None => match in_child(&file) {
            Ok(verdict) => {
                keep(&record, &verdict);
                verdict
            }
            Err(error) => {
                output.warn(format_args!(
                    "warning: cannot try {} in a separate process ({error}); opening it untested",
                    file.display()
                ));
                return Ok(());
            }
        },
    };
    let what = match verdict {
        Verdict::Fine => return Ok(()),
        Verdict::Crashed(detail) => format!("crashed ({detail})"),
        Verdict::OutOfMemory => format!("ran out of memory (more than {} MiB)", memory_limit(bytes.len()) >> 20),
        Verdict::OutOfTime => format!("took too long (more than {} s of CPU time)", cpu_limit(bytes.len())),
    };
    Err(wrong(format!(
        "{}: this tokenizer cannot be used: opening it and encoding a few texts {what} in a trial; get the file again, \
         or remove what is unusual in it",
        file.display()
    )))
}

/// The child: tries each file. Does not return from a file that ends the process.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut result = Ok(());
    for file in &arguments.files {
        let bytes = fs::metadata(file).map_or(0, |meta| meta.len());
        // Not counting what this process has used so far. Where the system has no limits, a child has only its deadline.
        process::limit(memory_limit(bytes as usize), cpu_limit(bytes as usize))?;
        // Tokenizing runs on threads with this stack size, whatever the main thread has.
        let attempt = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, || trial::run(file));
            thread.map(|thread| thread.join())
        })?;
        let Ok(opened) = attempt else { std::process::exit(PANICKED.into()) };
        let line = match &opened {
            Ok(()) => "fine".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        writeln!(io::stdout(), "{}", line.lines().next().unwrap_or_default())?;
        result = result.and(opened.map_err(anyhow::Error::from));
    }
    result
}

/// Bytes of address space for a trial of a file.
fn memory_limit(file: usize) -> u64 {
    (1 << 30) + 64 * file as u64
}

/// Seconds of CPU time for a trial of a file.
fn cpu_limit(file: usize) -> u64 {
    10 + file as u64 / (1 << 20)
}

/// Tries the file in a child.
fn in_child(file: &Path) -> io::Result<Verdict> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(COMMAND).arg("--").arg(file).env("RUST_BACKTRACE", "0");
    watch(&mut command)
}

/// Runs a child and returns its verdict.
fn watch(command: &mut Command) -> io::Result<Verdict> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // A child that writes much must not block on a full pipe.
    let stderr = child.stderr.take();
    let reader = thread::spawn(move || {
        let mut head = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(8 << 10).read_to_end(&mut head);
            let _ = io::copy(&mut stderr, &mut io::sink());
        }
        String::from_utf8_lossy(&head).into_owned()
    });
    let status = wait(&mut child)?;
    let said = reader.join().unwrap_or_default();
    match status {
        None => Ok(Verdict::OutOfTime),
        // It could not start.
        Some(status) if status.code() == Some(1) => Err(io::Error::other(said.trim().to_owned())),
        Some(status) => Ok(verdict(status, &said)),
    }
}

/// Waits for the end; `None` if the child had to be killed.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + Duration::from_secs(WALL_SECONDS);
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn verdict(status: ExitStatus, said: &str) -> Verdict {
    match status.code() {
        Some(0 | 2) => Verdict::Fine,
        _ if process::out_of_time(status) => Verdict::OutOfTime,
        _ if said.contains("memory allocation of ") || process::killed(status) => Verdict::OutOfMemory,
        _ => Verdict::Crashed(detail(status, said)),
    }
}

/// The message of a crash, in one line. A panic's message follows the line with its location.
fn detail(status: ExitStatus, said: &str) -> String {
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let line = match lines.clone().position(|line| line.contains("panicked at")) {
        Some(i) => lines.nth(i + 1),
        None => lines.next(),
    };
    let line: String = line.unwrap_or_default().trim().chars().filter(|c| !c.is_control()).take(200).collect();
    if line.is_empty() { status.to_string() } else { line }
}

/// Where the verdict on these bytes is cached.
fn record(bytes: &[u8]) -> PathBuf {
    let mut hash = blake3::Hasher::new_derive_key("elapid tokenizer trial");
    hash.update(env!("CARGO_PKG_VERSION").as_bytes()).update(&trial::VERSION.to_le_bytes()).update(bytes);
    cache_dir().join("tokenizers").join(hash.finalize().to_hex().as_str())
}

/// Caches a verdict that another trial would reach too. Running into limits on memory or time may pass another day.
fn keep(record: &Path, verdict: &Verdict) {
    let text = match verdict {
        Verdict::Fine => "fine\n".to_owned(),
        Verdict::Crashed(detail) => format!("crashed {detail}\n"),
        Verdict::OutOfMemory | Verdict::OutOfTime => return,
    };
    // Without a cache the trial is run each time.
    let _ = record.parent().map(fs::create_dir_all);
    let _ = atomic_write(record, |out| out.write_all(text.as_bytes()));
}

/// A verdict as `keep` wrote it.
fn parse(text: &str) -> Option<Verdict> {
    let text = text.strip_suffix('\n')?;
    match text.strip_prefix("crashed ") {
        Some(detail) => Some(Verdict::Crashed(detail.to_owned())),
        None => (text == "fine").then_some(Verdict::Fine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_kept_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("tokenizers").join("a");
        for verdict in [Verdict::Fine, Verdict::Crashed("index out of bounds".into())] {
            keep(&record, &verdict);
            assert_eq!(parse(&fs::read_to_string(&record).unwrap()), Some(verdict));
        }
        for text in ["", "fine", "fin\n", "crashe"] {
            assert_eq!(parse(text), None, "{text:?}: a file cut short is no verdict");
        }
    }

    #[test]
    fn limits_of_this_machine_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("a");
        keep(&record, &Verdict::OutOfMemory);
        keep(&record, &Verdict::OutOfTime);
        assert!(!record.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        keep(&file.join("tokenizers").join("a"), &Verdict::Fine);
    }

    #[cfg(unix)]
    #[test]
    fn ends_of_a_child_are_told_apart() {
        let of = |script: &str| watch(Command::new("sh").args(["-c", script]));
        assert_eq!(of("exit 0").unwrap(), Verdict::Fine);
        assert_eq!(of("exit 2").unwrap(), Verdict::Fine, "refused with an error: so it will be here");
        assert_eq!(of("echo no limits >&2; exit 1").unwrap_err().to_string(), "no limits");
        assert_eq!(of("ulimit -c 0; kill -XCPU $$").unwrap(), Verdict::OutOfTime);
        assert_eq!(of("kill -KILL $$").unwrap(), Verdict::OutOfMemory);
        let abort = |said: &str| of(&format!("ulimit -c 0; echo '{said}' >&2; kill -ABRT $$")).unwrap();
        assert_eq!(abort("memory allocation of 99 bytes failed"), Verdict::OutOfMemory);
        let overflow = "thread has overflowed its stack";
        assert_eq!(abort(overflow), Verdict::Crashed(overflow.into()));
        assert_eq!(of("ulimit -c 0; kill -SEGV $$").unwrap(), Verdict::Crashed("signal: 11 (SIGSEGV)".into()));
        let panic = "echo; echo \"thread 'x' panicked at lib.rs:1:2:\" >&2; echo index out of bounds >&2; exit 101";
        assert_eq!(of(panic).unwrap(), Verdict::Crashed("index out of bounds".into()));
        let long = "i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2; i=$((i+1)); done; exit 101";
        assert_eq!(of(long).unwrap(), Verdict::Crashed("0123456789".into()), "more than a pipe holds");
    }
}
