//! Processes: how they end, their signals, their limits.

use std::io;
use std::process::{Command, ExitStatus};

/// Ends the process without exit handlers: those of CUDA's libraries would wait for work that never ends after a rank was lost.
/// On systems without `_exit`, with them.
pub fn end_at_once(code: i32) -> ! {
    #[cfg(unix)]
    // SAFETY: it does not return, and nothing of this process is used after.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}

/// Writes to stderr and ends the process with exit code 1, without allocating. On systems without `_exit`, does nothing.
pub(crate) fn print_and_end(text: &[u8]) {
    #[cfg(unix)]
    // SAFETY: the pointer and the length are those of one live slice; `_exit` runs nothing that could allocate.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(1);
    }
    #[cfg(not(unix))]
    let _ = text;
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error, like a full disk, instead of ending the process by
/// SIGXFSZ. Does nothing where there is no such signal.
pub fn return_error_for_large_files() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal installs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Keeps what the terminal sends, such as Ctrl-C, from a child, where the system has groups of processes.
pub fn own_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let _ = command;
}

/// The signal of a closed terminal, SIGHUP; none where there is none, or if this process was started with it ignored, as under
/// `nohup` (which only Linux tells).
pub fn hangup() -> Option<i32> {
    #[cfg(unix)]
    {
        let status = std::fs::read_to_string("/proc/self/status");
        (!status.is_ok_and(|status| ignores(&status, libc::SIGHUP))).then_some(libc::SIGHUP)
    }
    #[cfg(not(unix))]
    None
}

/// Whether a signal is ignored by the process that `/proc/self/status` describes.
#[cfg(unix)]
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Limits this process to `memory` bytes of address space and `cpu` more seconds of CPU time, and lets it leave no core dump.
/// Does nothing where the system has no limits.
///
/// # Errors
/// The system's.
pub fn limit(memory: u64, cpu: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        use rustix::time::{ClockId, clock_gettime};
        // A soft limit, no higher than the hard one.
        let lower = |resource: Resource, to: u64| {
            let maximum = getrlimit(resource).maximum;
            let current = Some(maximum.map_or(to, |maximum| maximum.min(to)));
            setrlimit(resource, Rlimit { current, maximum })
        };
        let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
        lower(Resource::As, memory)?;
        lower(Resource::Cpu, used + cpu)?;
        lower(Resource::Core, 0)?;
    }
    let _ = (memory, cpu);
    Ok(())
}

/// Whether a child was ended by its limit on CPU time.
pub fn out_of_time(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return signal(status) == Some(libc::SIGXCPU);
    #[cfg(not(unix))]
    {
        let _ = status;
        false
    }
}

/// Whether a child was killed, as the system does when memory runs out.
pub fn killed(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return signal(status) == Some(libc::SIGKILL);
    #[cfg(not(unix))]
    {
        let _ = status;
        false
    }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_in_the_mask() {
        let status = "Name:\telapid\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000004002\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores(status, 15) && !ignores("", 1));
    }
}
