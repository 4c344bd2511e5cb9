//! Starting the ranks of one host.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use elapid_kernels::os;

use super::World;
use super::secret::{SECRET, SECRET_FILE, SecretFile};
use crate::{Error, Result};

/// Exit code of elapid for a wrong command line or file.
const WRONG_INPUT: i32 = 2;

/// Exit code of a Rust program that panicked.
const PANIC: i32 = 101;
/// Bytes of a rank's stderr to keep.
const KEPT: usize = 1 << 14;

/// A program to run once for each rank.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Environment variables in addition to those of [`World`].
    pub variables: Vec<(OsString, OsString)>,
    /// How many ranks.
    pub ranks: usize,
    /// How long ranks may continue after one ended with an error.
    pub grace: Duration,
}

/// The result of the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code for all of them: that of the rank that failed, or 0.
    pub code: u8,
    /// The rank that failed, if one did.
    pub failed: Option<Failed>,
}

/// A rank that failed: one that crashed, or else the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The rank.
    pub rank: usize,
    /// How it ended: `exit status: 1`, `signal: 9 (SIGKILL)`.
    pub how: String,
    /// Whether it ended without reporting an error.
    pub crashed: bool,
    /// The last lines of its stderr, except for rank 0, whose stderr is the user's.
    pub said: String,
}

struct Rank {
    child: Child,
    /// The stderr of the ranks except the first.
    said: Option<JoinHandle<String>>,
    ended: Option<ExitStatus>,
    /// Its time to end by itself is over.
    killed: bool,
}

/// Runs every rank of `launch` on this host until all have ended. Rank 0 inherits stdout and stderr; the others are silent.
/// They share a secret in a file that only this user can read, and that is removed at the end.
///
/// Each rank's stdin is a pipe from this process: a byte asks it to stop, and end of file means that this process is gone.
/// When `stop` is set, all are asked to stop. When one ends with an error, the others have some time to end by themselves,
/// and are then killed.
///
/// # Errors
/// If the program cannot be started, or the secret cannot be written.
pub fn launch(launch: &Launch, stop: &AtomicBool) -> Result<Ended> {
    let failed = |source| Error::Io { doing: "run", path: launch.program.clone(), source };
    // The port is free now, and should still be when rank 0 listens there.
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map_err(failed)?.port();
    let secret = SecretFile::new().map_err(Error::io("write a secret in", &std::env::temp_dir()))?;
    let mut ranks = Ranks(Vec::with_capacity(launch.ranks));
    for rank in 0..launch.ranks {
        ranks.0.push(start(launch, rank, port, &secret).map_err(failed)?);
    }
    let (mut asked, mut first, mut since) = (false, None, Instant::now());
    loop {
        for (i, rank) in ranks.0.iter_mut().enumerate().filter(|(_, rank)| rank.ended.is_none()) {
            rank.ended = rank.child.try_wait().map_err(failed)?;
            if first.is_none() && rank.ended.is_some_and(|status| !status.success()) {
                (first, since) = (Some(i), Instant::now());
            }
        }
        if ranks.0.iter().all(|rank| rank.ended.is_some()) {
            break;
        }
        if stop.load(Ordering::Relaxed) && !asked {
            asked = true;
            for rank in &mut ranks.0 {
                // A rank that has ended need not be asked.
                rank.child.stdin.as_mut().map(|stdin| stdin.write_all(b"s")).transpose().ok();
            }
        }
        if first.is_some() && since.elapsed() > launch.grace {
            ranks.0.iter_mut().for_each(Rank::kill);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let Some(first) = first else { return Ok(Ended { code: 0, failed: None }) };
    // If a rank crashes or finds wrong input (2), other ranks may end because of it, with 1, before this process sees that
    // it ended.
    let crashed = ranks.0.iter().position(Rank::crashed);
    let failed = crashed.or_else(|| ranks.0.iter().position(Rank::had_wrong_input)).unwrap_or(first);
    let rank = &mut ranks.0[failed];
    let how = rank.ended.map_or_else(String::new, |status| status.to_string());
    let said = rank.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
    let code = rank.ended.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    let crashed = rank.crashed();
    let code = code.filter(|&code| code != 0 && !crashed).unwrap_or(1);
    Ok(Ended { code, failed: Some(Failed { rank: failed, how, crashed, said }) })
}

fn start(launch: &Launch, rank: usize, port: u16, secret: &SecretFile) -> std::io::Result<Rank> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).envs(launch.variables.iter().map(|(name, value)| (name, value)));
    command.envs(World::variables(rank, launch.ranks, port)).env_remove("TORCHELASTIC_USE_AGENT_STORE");
    command.env_remove(SECRET).env(SECRET_FILE, secret.path());
    command.stdin(Stdio::piped());
    if rank > 0 {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    // Ctrl-C reaches only this process, which forwards it to the ranks once.
    os::process::own_group(&mut command);
    let mut child = command.spawn()?;
    let said = child.stderr.take().map(|stderr| thread::spawn(move || last_of(stderr)));
    Ok(Rank { child, said, ended: None, killed: false })
}

/// The last bytes.
fn last_of(mut stderr: ChildStderr) -> String {
    let mut last = VecDeque::new();
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut part) {
        last.extend(&part[..count]);
        last.drain(..last.len().saturating_sub(KEPT));
    }
    String::from_utf8_lossy(last.make_contiguous()).into_owned()
}

impl Rank {
    fn kill(&mut self) {
        if self.ended.is_none() {
            self.killed = true;
            // It may have ended just now.
            self.child.kill().ok();
        }
    }

    fn had_wrong_input(&self) -> bool {
        self.ended.is_some_and(|status| status.code() == Some(WRONG_INPUT))
    }

    /// Whether it ended by a signal or a panic.
    fn crashed(&self) -> bool {
        !self.killed && self.ended.is_some_and(|status| matches!(status.code(), None | Some(PANIC)))
    }
}

/// Kills all ranks when dropped.
struct Ranks(Vec<Rank>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            rank.kill();
            rank.child.wait().ok();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    fn shell(script: &str, dir: &Path, ranks: usize) -> Launch {
        Launch {
            program: "sh".into(),
            arguments: ["-c", script].map(OsString::from).to_vec(),
            variables: vec![("OUT".into(), dir.into())],
            ranks,
            grace: Duration::from_millis(500),
        }
    }

    fn read(dir: &Path, file: &str) -> String {
        std::fs::read_to_string(dir.join(file)).unwrap()
    }

    #[test]
    fn ranks_get_their_variables() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT > $OUT/$RANK; echo noise >&2";
        // Rank 0 would write to the test's own stderr.
        let script = format!("exec 2> $OUT/stderr.$RANK; {script}");
        let ended = launch(&shell(&script, dir.path(), 3), &AtomicBool::new(false)).unwrap();
        assert_eq!(ended, Ended { code: 0, failed: None });
        let all: Vec<String> = (0..3).map(|rank| read(dir.path(), &rank.to_string())).collect();
        let port = all[0].split_whitespace().last().unwrap().to_owned();
        for (rank, line) in all.iter().enumerate() {
            assert_eq!(line.trim(), format!("{rank} {rank} 3 127.0.0.1 {port}"));
        }
    }

    #[test]
    fn ranks_share_a_secret_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo ${ELAPID_SECRET-none} $(stat -c %a $ELAPID_SECRET_FILE) $ELAPID_SECRET_FILE $(cat \
                      $ELAPID_SECRET_FILE) > $OUT/$RANK";
        let ended = |variables: Vec<(OsString, OsString)>| {
            let mut all = shell(script, dir.path(), 2);
            all.variables.extend(variables);
            assert_eq!(launch(&all, &AtomicBool::new(false)).unwrap().code, 0);
            [0, 1].map(|rank| read(dir.path(), &rank.to_string()))
        };
        let [one, two] = ended(Vec::new());
        assert_eq!(one, two);
        let said: Vec<&str> = one.split_whitespace().collect();
        let [own, mode, file, secret] = said[..] else { panic!("{one}") };
        assert_eq!((own, mode, secret.len()), ("none", "600", 64));
        assert!(!Path::new(file).exists(), "it is removed in the end");
        // A secret in the user's environment is for other runs.
        let [other, _] = ended(vec![(SECRET.into(), "0123456789abcdef".into())]);
        assert!(other.starts_with("none 600") && !other.contains(secret), "{other}");
    }

    #[test]
    fn one_that_fails_ends_all_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let script = "if [ $RANK = 2 ]; then echo 'error: no luck' >&2; exit 7; fi; exec sleep 1000";
        let since = Instant::now();
        let ended = launch(&shell(script, dir.path(), 4), &AtomicBool::new(false)).unwrap();
        let failed = ended.failed.unwrap();
        assert_eq!((ended.code, failed.rank, failed.said.trim()), (7, 2, "error: no luck"));
        assert!(failed.how.contains('7') && !failed.crashed, "{failed:?}");
        assert!(since.elapsed() < Duration::from_secs(500));
        // The others end because of it, perhaps before the kill is noticed.
        let killed = "if [ $RANK = 1 ]; then echo oh >&2; kill -9 $$; fi; sleep 0.01; exit 1";
        let patient = Launch { grace: Duration::from_secs(300), ..shell(killed, dir.path(), 3) };
        let ended = launch(&patient, &AtomicBool::new(false)).unwrap();
        let failed = ended.failed.unwrap();
        assert!(ended.code == 1 && failed.rank == 1 && failed.crashed && failed.how.contains("signal"), "{failed:?}");
        assert_eq!(failed.said.trim(), "oh");
    }

    #[test]
    fn a_stop_is_passed_on_once() {
        let dir = tempfile::tempdir().unwrap();
        // Each rank waits for one byte, and prints it.
        let script = "touch $OUT/ready.$RANK; dd bs=1 count=1 2> $OUT/dd.$RANK > $OUT/$RANK";
        let script = script.replace("> $OUT/$RANK", "of=$OUT/$RANK");
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, out) = (stop.clone(), dir.path().to_owned());
        let asking = thread::spawn(move || {
            while !(0..2).all(|rank| out.join(format!("ready.{rank}")).exists()) {
                thread::sleep(Duration::from_millis(5));
            }
            asked.store(true, Ordering::Relaxed);
        });
        let ended = launch(&shell(&script, dir.path(), 2), &stop).unwrap();
        asking.join().unwrap();
        assert_eq!(ended.code, 0);
        assert_eq!((read(dir.path(), "0"), read(dir.path(), "1")), ("s".to_owned(), "s".to_owned()));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let absent = Launch { program: "/no/such/program".into(), ..shell("", Path::new("/"), 2) };
        let error = launch(&absent, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
