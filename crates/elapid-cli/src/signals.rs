//! Signals that ask a run to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use elapid_kernels::os::process::hangup;
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
    if let Some(signal) = hangup() {
        all = all.and(flag::register(signal, stop.clone()).map(|_| ()));
    }
    all.context("cannot listen for signals")
}
