//! Batches prepared ahead on a thread.

use std::sync::{Arc, mpsc};
use std::thread;

/// Maximum batches in the queue: enough that a slow batch causes no wait.
const WAITING: usize = 2;

/// The batches of these numbers in order, prepared on a separate thread. A GPU never waits for them as long as preparing one
/// takes less time than a step.
pub(crate) fn ahead<B: Send + 'static>(
    numbers: impl Iterator<Item = u64> + Clone + Send + 'static,
    make: impl Fn(u64) -> B + Send + Sync + 'static,
) -> impl Iterator<Item = B> {
    let (sender, made) = mpsc::sync_channel(WAITING);
    let make = Arc::new(make);
    let (theirs, maker) = (numbers.clone(), make.clone());
    let work = move || {
        // The receiver is gone: the run is over.
        let _ = theirs.into_iter().try_for_each(|number| sender.send(maker(number)));
    };
    // If the thread could not start, or panicked, batches are made here, where a panic is visible.
    let _ = thread::Builder::new().name("batches".into()).spawn(work);
    numbers.map(move |number| made.recv().unwrap_or_else(|_| make(number)))
}

#[cfg(test)]
mod tests {
    use super::super::Batch;
    use super::*;

    fn batch(number: u64) -> Batch {
        Batch { epoch: number, ..Batch::empty(1, 1, 0, false) }
    }

    #[test]
    fn batches_come_in_order() {
        let made = ahead((5..).map(|i| 3 * i), batch).take(100).map(|batch| batch.epoch);
        assert_eq!(made.collect::<Vec<_>>(), (5..105).map(|i| 3 * i).collect::<Vec<_>>());
    }

    #[test]
    fn a_thread_that_is_lost_is_done_without() {
        let here = thread::current().id();
        let fragile = move |number| {
            assert!(number < 4 || thread::current().id() == here, "elsewhere");
            batch(number)
        };
        assert_eq!(
            ahead(0.., fragile).take(8).map(|batch| batch.epoch).collect::<Vec<_>>(),
            (0..8).collect::<Vec<_>>()
        );
    }
}
