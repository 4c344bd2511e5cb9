//! Threads that stay awake from one operation to the next.
//!
//! A decoding step is a hundred short operations one after another. Waking a thread for each costs as much as the operation.
//! In [`team`] the calling thread leads, and helpers wait for parts of work without sleeping; they sleep again some time
//! after it returns. Neither joining nor leaving allocates.

use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread::{self, Thread};

/// Turns of waiting before other programs get the CPU.
const PATIENCE: u32 = 1 << 12;

/// Parts of work of a team that wait for a thread, at most.
const OFFERS: usize = 64;

/// Runs `f`, whose operations share their work with helpers without waking them each time: as many threads in all as the
/// pool has, as far as helpers are free.
///
/// Results do not depend on it. Inside another team it is a plain call.
pub fn team<R>(f: impl FnOnce() -> R) -> R {
    if is_active() {
        return f();
    }
    let threads = rayon::current_num_threads();
    let team = Team {
        threads,
        offers: [const { AtomicPtr::new(ptr::null_mut()) }; OFFERS],
        done: AtomicBool::new(false),
        left: AtomicUsize::new(0),
    };
    let _end = End { team: &team, invited: invite(&team, threads - 1) };
    team.entered(f)
}

/// Whether this thread is in a team.
pub(crate) fn is_active() -> bool {
    !TEAM.get().is_null()
}

/// Threads that share the work of an operation: of the team, or of the pool where there is no team.
pub(crate) fn threads() -> usize {
    // SAFETY: as in `join`.
    unsafe { TEAM.get().as_ref() }.map_or_else(rayon::current_num_threads, |team| team.threads)
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
    threads: usize,
    /// Of which the first ones are in use, one for each thread.
    offers: [AtomicPtr<Part>; OFFERS],
    done: AtomicBool,
    /// Helpers that came and went.
    left: AtomicUsize,
}

/// A thread that joins teams. It lives as long as the process.
#[derive(Default)]
struct Helper {
    /// Null where it is free, the team that invites it, or [`joined`].
    team: AtomicPtr<Team>,
    thread: OnceLock<Thread>,
}

/// All of them.
static HELPERS: RwLock<Vec<Arc<Helper>>> = RwLock::new(Vec::new());

/// What [`Helper::team`] is while it helps one.
fn joined() -> *mut Team {
    ptr::without_provenance_mut(1)
}

/// Invites up to `most` free helpers, and starts threads if there are fewer in all; returns how many.
fn invite(team: &Team, most: usize) -> usize {
    let mut helpers = HELPERS.read().unwrap_or_else(PoisonError::into_inner);
    if helpers.len() < most {
        drop(helpers);
        Helper::start(most);
        helpers = HELPERS.read().unwrap_or_else(PoisonError::into_inner);
    }
    let place = ptr::from_ref(team).cast_mut();
    let mut invited = 0;
    for helper in helpers.iter() {
        if invited == most {
            break;
        }
        if helper.team.compare_exchange(ptr::null_mut(), place, Ordering::Release, Ordering::Relaxed).is_ok() {
            helper.thread.get().into_iter().for_each(Thread::unpark);
            invited += 1;
        }
    }
    invited
}

impl Helper {
    /// Starts threads until there are `count`; if the system has no more, teams are smaller.
    fn start(count: usize) {
        let mut helpers = HELPERS.write().unwrap_or_else(PoisonError::into_inner);
        while helpers.len() < count {
            let helper = Arc::<Self>::default();
            let runs = helper.clone();
            let Ok(handle) = thread::Builder::new().name("elapid-team".into()).spawn(move || runs.run()) else {
                return;
            };
            helper.thread.get_or_init(|| handle.thread().clone());
            helpers.push(helper);
        }
    }

    fn run(&self) {
        let mut turns = 0;
        loop {
            let team = self.team.load(Ordering::Relaxed);
            let invited = !team.is_null()
                && self.team.compare_exchange(team, joined(), Ordering::Acquire, Ordering::Relaxed).is_ok();
            if invited {
                // SAFETY: the team waits in `End` until who joined it has left.
                let team = unsafe { &*team };
                team.help();
                team.left.fetch_add(1, Ordering::Release);
                self.team.store(ptr::null_mut(), Ordering::Release);
                turns = 0;
            } else if turns < PATIENCE {
                turns += 1;
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
    }
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
struct End<'a> {
    team: &'a Team,
    invited: usize,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.team.done.store(true, Ordering::Release);
        let place = ptr::from_ref(self.team).cast_mut();
        let helpers = HELPERS.read().unwrap_or_else(PoisonError::into_inner);
        // Who is still asleep need not come.
        let uninvites = |helper: &&Arc<Helper>| {
            helper.team.compare_exchange(place, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        let came = self.invited - helpers.iter().filter(uninvites).count();
        drop(helpers);
        let mut turns = 0;
        while self.team.left.load(Ordering::Acquire) < came {
            wait(&mut turns);
        }
    }
}

impl Team {
    fn offers(&self) -> &[AtomicPtr<Part>] {
        &self.offers[..self.threads.min(OFFERS)]
    }

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
                let offered = self.offers().iter().find_map(|offer| {
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
        let Some(offer) = self.offers().iter().find(free) else {
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
