//! Threads that stay awake from one operation to the next.
//!
//! A decoding step is a hundred short operations one after another. Waking a thread for each costs as much as the operation.
//! In [`team`] the threads of the pool wait for parts of work without sleeping, and sleep again when it returns.

use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// Turns of waiting before other programs get the CPU.
const PATIENCE: u32 = 1 << 12;

/// Runs `f`, whose operations share their work with the pool's threads without waking them each time.
///
/// Results do not depend on it. Inside another team it is a plain call.
pub fn team<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let threads = rayon::current_num_threads();
    if threads == 1 || is_active() {
        return f();
    }
    rayon::scope(|scope| {
        let offers = (0..threads).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        let team = std::sync::Arc::new(Team { offers, done: AtomicBool::new(false) });
        for _ in 1..threads {
            let team = team.clone();
            scope.spawn(move |_| team.help());
        }
        let _end = End(&team);
        team.entered(f)
    })
}

/// Whether this thread is in a team.
pub(crate) fn is_active() -> bool {
    !TEAM.get().is_null()
}

/// Runs both, at the same time if a thread is free: of the team, or of the pool where there is no team.
pub(crate) fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    let team = TEAM.get();
    if team.is_null() {
        rayon::join(a, b);
        return;
    }
    // SAFETY: `entered` sets the pointer while it holds a reference to the team.
    unsafe { &*team }.join(a, b);
}

thread_local! {
    static TEAM: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

struct Team {
    /// Parts of work that wait for a thread.
    offers: Box<[AtomicPtr<Part>]>,
    done: AtomicBool,
}

/// A call that another thread may make, on the stack of the thread that offers it.
struct Part {
    /// Makes the call once.
    run: unsafe fn(*const ()),
    call: *const (),
    finished: AtomicBool,
    panicked: AtomicBool,
}

/// Ends the team when dropped, also by a panic.
struct End<'a>(&'a Team);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
    }
}

impl Team {
    /// Runs `f` on this thread as one of the team.
    fn entered<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                TEAM.set(ptr::null());
            }
        }
        TEAM.set(self);
        let _leave = Leave;
        f()
    }

    /// Takes parts until the team is done.
    fn help(&self) {
        self.entered(|| {
            let mut turns = 0;
            while !self.done.load(Ordering::Acquire) {
                let offered = self.offers.iter().find_map(|offer| {
                    let part = offer.load(Ordering::Relaxed);
                    let taken = !part.is_null()
                        && offer.compare_exchange(part, ptr::null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok();
                    taken.then_some(part)
                });
                match offered {
                    Some(part) => {
                        // SAFETY: who offered it waits until it is finished, and only one thread took it.
                        unsafe { Part::make(part) };
                        turns = 0;
                    }
                    None => wait(&mut turns),
                }
            }
        });
    }

    fn join(&self, a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
        let call = UnsafeCell::new(Some(b));
        let part = Part::new(&call);
        let place = (&raw const part).cast_mut();
        let free = |offer: &&AtomicPtr<Part>| {
            offer.load(Ordering::Relaxed).is_null()
                && offer.compare_exchange(ptr::null_mut(), place, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        let Some(offer) = self.offers.iter().find(free) else {
            a();
            // SAFETY: nobody was offered it.
            unsafe { Part::make(place) };
            return part.check();
        };
        /// Waits for the part even if the other call panics: it is on this stack.
        struct Finish<'a>(&'a AtomicPtr<Part>, *mut Part);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                let mine = self.0.compare_exchange(self.1, ptr::null_mut(), Ordering::Acquire, Ordering::Relaxed);
                // SAFETY: it is on the stack of `join`. If nobody took it, this thread makes the call.
                unsafe {
                    if mine.is_ok() {
                        Part::make(self.1);
                    }
                    let mut turns = 0;
                    while !(*self.1).finished.load(Ordering::Acquire) {
                        wait(&mut turns);
                    }
                }
            }
        }
        let finish = Finish(offer, place);
        a();
        drop(finish);
        part.check();
    }
}

impl Part {
    fn new<F: FnOnce()>(call: &UnsafeCell<Option<F>>) -> Self {
        /// # Safety
        /// `call` is a live `UnsafeCell<Option<F>>` that no other thread uses.
        unsafe fn run<F: FnOnce()>(call: *const ()) {
            // SAFETY: the caller vouches for it.
            if let Some(f) = unsafe { &mut *(*call.cast::<UnsafeCell<Option<F>>>()).get() }.take() {
                f();
            }
        }
        Self {
            run: run::<F>,
            call: ptr::from_ref(call).cast(),
            finished: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        }
    }

    /// Makes the call, and says so.
    ///
    /// # Safety
    /// It is alive, and no other thread makes it.
    unsafe fn make(part: *const Self) {
        // SAFETY: the caller vouches for it; after `finished` it is not touched.
        unsafe {
            let (run, call) = ((*part).run, (*part).call);
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(call)));
            (*part).panicked.store(made.is_err(), Ordering::Relaxed);
            (*part).finished.store(true, Ordering::Release);
        }
    }

    /// Panics if the call did.
    fn check(&self) {
        assert!(!self.panicked.load(Ordering::Relaxed), "a part of an operation panicked; its message stands above");
    }
}

fn wait(turns: &mut u32) {
    *turns += 1;
    if *turns < PATIENCE {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::parallel;
    use crate::testing::with_threads;

    #[test]
    fn every_part_is_done_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            with_threads(threads, || {
                for _ in 0..20 {
                    team(|| {
                        for count in [1, 2, 33, 500] {
                            let mut done = vec![0u32; count];
                            parallel::split(count, 3, &mut done[..], &|from, _, part| {
                                // Nested, as a product inside a part.
                                let total = AtomicUsize::new(0);
                                parallel::split(8, 1, (), &|_, n, ()| _ = total.fetch_add(n, Ordering::Relaxed));
                                assert_eq!(total.into_inner(), 8);
                                part.iter_mut().enumerate().for_each(|(i, done)| *done += (from + i) as u32 + 1);
                            });
                            assert!(done.iter().enumerate().all(|(i, &done)| done == i as u32 + 1));
                        }
                    });
                    assert!(!is_active());
                }
            });
        }
    }

    #[test]
    fn a_panic_in_a_part_arrives_and_the_threads_go_on() {
        with_threads(3, || {
            for bad in 0..8 {
                let work = || team(|| parallel::split(8, 1, (), &|at, _, ()| assert!(at != bad, "part {at}")));
                assert!(std::panic::catch_unwind(work).is_err());
                let sum = AtomicUsize::new(0);
                team(|| parallel::split(8, 1, (), &|at, _, ()| _ = sum.fetch_add(at, Ordering::Relaxed)));
                assert_eq!(sum.into_inner(), 28);
            }
        });
    }
}
