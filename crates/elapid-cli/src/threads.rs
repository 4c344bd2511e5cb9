//! The thread pool that operations run on, as large as the system allows.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rayon::{ThreadBuilder, ThreadPoolBuilder};

use crate::failure::wrong;
use crate::output::Output;

/// Threads besides the pool: one waits for Ctrl-C, one prepares batches.
const OTHERS: usize = 2;

/// A thread that waits for its place in the pool.
struct Waiting {
    part: SyncSender<ThreadBuilder>,
    thread: JoinHandle<()>,
}

impl Waiting {
    fn start(i: usize) -> io::Result<Self> {
        let (part, given) = sync_channel::<ThreadBuilder>(1);
        let work = move || {
            if let Ok(part) = given.recv() {
                part.run();
            }
        };
        let thread = thread::Builder::new().name(format!("compute {i}")).spawn(work)?;
        Ok(Self { part, thread })
    }
}

/// Starts `wanted` threads, or one per core. If a limit allows fewer (`ulimit -u`, a control group), it warns and uses
/// fewer, down to this thread alone. Results do not depend on their number.
///
/// # Errors
/// If fewer than `wanted` can be started.
pub(crate) fn start(wanted: Option<usize>, output: Output) -> Result<()> {
    let count = wanted.unwrap_or_else(one_a_core);
    let mut waiting = Vec::new();
    // Threads are started first and join the pool later, because the global pool cannot be built twice.
    let refused = (0..count).find_map(|i| Waiting::start(i).map(|thread| waiting.push(thread)).err());
    if let Some(error) = refused {
        let limit = "the limit on threads (ulimit -u, the control group's pids.max) or on memory (ulimit -v)";
        if wanted.is_some() {
            let started = waiting.len();
            return Err(wrong(format!(
                "--threads {count}: {started} could be started ({error}); lower it, or raise {limit}"
            )));
        }
        for Waiting { part, thread } in waiting.drain(waiting.len().saturating_sub(OTHERS)..) {
            drop(part);
            // It has no work and ends; it cannot have panicked.
            thread.join().ok();
        }
        let left = waiting.len().max(1);
        output
            .warn(format_args!("warning: computing with {left} of {count} threads ({error}); raise {limit} for more"));
    }
    let pool = ThreadPoolBuilder::new().num_threads(waiting.len().max(1));
    let built = if waiting.is_empty() {
        pool.use_current_thread().build_global()
    } else {
        let mut waiting = waiting.into_iter();
        let give = |part: ThreadBuilder| {
            let thread = waiting.next().ok_or(io::ErrorKind::WouldBlock)?;
            thread.part.send(part).map_err(|_| io::ErrorKind::BrokenPipe.into())
        };
        pool.spawn_handler(give).build_global()
    };
    built.context("cannot start the compute threads")
}

fn one_a_core() -> usize {
    // The number that the pool would choose by itself.
    let set = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok()).filter(|&count| count > 0);
    set.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
}
