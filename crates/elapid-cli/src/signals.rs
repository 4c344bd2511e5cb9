//! Signals that ask a run to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Sets `stop` at Ctrl-C (SIGINT), at SIGTERM (Slurm, containers, `kill`) and at SIGHUP (a closed terminal). A second
/// Ctrl-C or SIGTERM ends the process at once.
///
/// SIGHUP never ends it: a closing terminal sends it from both the shell and the system, and some session managers add
/// SIGTERM. If it is ignored, as under `nohup`, it stays ignored.
pub(crate) fn stop_at_signals(stop: &Arc<AtomicBool>) -> Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    let mut all = Ok(());
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in the order of registration, so the first signal finds `asked` unset.
        let handlers = || {
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
            flag::register(signal, asked.clone())?;
            flag::register(signal, stop.clone())
        };
        all = all.and(handlers().map(|_| ()));
    }
    #[cfg(unix)]
    if !is_hangup_ignored() {
        all = all.and(flag::register(signal_hook::consts::SIGHUP, stop.clone()).map(|_| ()));
    }
    all.context("cannot listen for signals")
}

/// Whether this process was started with SIGHUP ignored.
#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal_hook::consts::SIGHUP))
}

/// Whether a signal is ignored by the process that `/proc/self/status` describes.
#[cfg(unix)]
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
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
