//! Ends the process at its n-th change to files, so that tests can check what a kill at any moment leaves behind.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exit code of a process that ended itself here.
pub const CODE: i32 = 86;

static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Lets `operations` more changes to files pass and ends the process before the next one, without cleaning up.
pub fn end_after(operations: u64) {
    LEFT.store(operations, Ordering::Relaxed);
}

/// Called before every change to files: creating, filling, renaming or removing one. Costs one load, unless a test has set a
/// limit.
pub fn operation() {
    if LEFT.load(Ordering::Relaxed) != u64::MAX && LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
        std::process::exit(CODE);
    }
}
