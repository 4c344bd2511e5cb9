//! Membership: heartbeats, and what happens when a rank is lost.
//!
//! One thread per connection reads its frames, and another thread sends heartbeats. A rank is lost when its connection ends
//! or breaks, when nothing arrives for [`Timeouts::silence`](super::Timeouts), or when it reports an error; rank 0 then
//! tells the others.

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::lost::LostRank;
use super::timeouts::Timeouts;
use super::wire::{Frame, Kind, Reader, Writer};
use crate::parallel::World;
use crate::{Result, resume};

/// Maximum bytes of a message before [`Membership::allow`]: settings, an id.
const SMALL: u64 = 1 << 20;

type Hook = Box<dyn FnOnce(&LostRank) + Send>;
type Watch = Box<dyn Fn() -> Option<String> + Send>;

/// The other end of a connection.
pub(super) struct Peer {
    pub(super) rank: usize,
    pub(super) out: Mutex<Writer<TcpStream>>,
    /// It has finished.
    pub(super) done: AtomicBool,
}

/// State shared by the threads of a group.
pub(super) struct Membership {
    pub(super) world: World,
    pub(super) timeouts: Timeouts,
    /// On rank 0 all others by rank; elsewhere rank 0.
    pub(super) peers: Vec<Peer>,
    /// A lost rank is being reported; the first one counts.
    losing: AtomicBool,
    lost: Mutex<Option<LostRank>>,
    loss_known: Condvar,
    hooks: Mutex<Vec<Hook>>,
    watches: Mutex<Vec<Watch>>,
    /// The run's directory.
    pub(super) dir: Mutex<Option<PathBuf>>,
    /// Whether connections may end.
    pub(super) finished: AtomicBool,
    /// On rank 0: whether another rank was asked to stop.
    pub(super) stop: AtomicBool,
    /// Maximum bytes of a message.
    message: AtomicU64,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Membership {
    pub(super) fn new(world: World, timeouts: Timeouts, peers: Vec<Peer>) -> Self {
        Self {
            world,
            timeouts,
            peers,
            losing: AtomicBool::new(false),
            lost: Mutex::default(),
            loss_known: Condvar::new(),
            hooks: Mutex::default(),
            watches: Mutex::default(),
            dir: Mutex::default(),
            finished: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            message: AtomicU64::new(SMALL),
        }
    }

    /// Raises the maximum size of messages to this many bytes.
    pub(super) fn allow(&self, bytes: u64) {
        self.message.fetch_max(bytes, Ordering::AcqRel);
    }

    /// Maximum bytes of a message.
    pub(super) fn limit(&self) -> u64 {
        self.message.load(Ordering::Acquire)
    }

    pub(super) fn check(&self) -> Result<()> {
        lock(&self.lost).clone().map_or(Ok(()), |lost| Err(lost.into()))
    }

    /// [`check`](Self::check), after waiting for a loss that is just being detected.
    pub(super) fn check_soon(&self, wait: Duration) -> Result<()> {
        let found = self.loss_known.wait_timeout_while(lock(&self.lost), wait, |lost| lost.is_none());
        drop(found);
        self.check()
    }

    pub(super) fn add_hook(&self, hook: Hook) {
        lock(&self.hooks).push(hook);
        self.run_hooks();
    }

    pub(super) fn add_watch(&self, watch: Watch) {
        lock(&self.watches).push(watch);
    }

    /// Reads the frames of a peer until the connection ends; messages go to `inbox`.
    pub(super) fn listen(
        self: &Arc<Self>,
        peer: usize,
        mut from: Reader<BufReader<TcpStream>>,
        inbox: &SyncSender<Frame>,
    ) {
        let Peer { rank, done, .. } = &self.peers[peer];
        let (lost, reason) = loop {
            let frame = match from.read(|| self.limit()) {
                Ok(Some(frame)) => frame,
                Ok(None) => break (*rank, "its process ended or was killed".to_owned()),
                Err(error) => break (*rank, self.broken(&error)),
            };
            let text = || String::from_utf8_lossy(&frame.payload).into_owned();
            match frame.kind {
                Kind::Beat => {}
                Kind::Message => {
                    if inbox.send(frame).is_err() {
                        return;
                    }
                }
                Kind::Stop => self.stop.store(true, Ordering::Relaxed),
                Kind::Failed => break (*rank, format!("it ended with an error: {}", text())),
                Kind::Lost => break (frame.number as usize, text()),
                Kind::Bye => {
                    done.store(true, Ordering::Release);
                    return;
                }
            }
        };
        self.mark_lost(lost, reason);
    }

    fn broken(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let seconds = self.timeouts.silence.as_secs_f64();
                format!("no sign of life for {seconds:.0} s; is its host or the network down?")
            }
            io::ErrorKind::ConnectionReset => "its process ended or was killed".to_owned(),
            _ => format!("the connection to it broke: {error}"),
        }
    }

    /// Sends heartbeats until the group ends.
    pub(super) fn beat(self: &Arc<Self>, ended: &Receiver<()>) {
        let mut said_before = false;
        while ended.recv_timeout(self.timeouts.heartbeat) == Err(RecvTimeoutError::Timeout) {
            for peer in self.peers.iter().filter(|peer| !peer.done.load(Ordering::Acquire)) {
                // Another thread is writing to the connection, which is a sign of life too.
                let Ok(mut out) = peer.out.try_lock() else { continue };
                let sent = out.write(Kind::Beat, 0, &[]);
                drop(out);
                if let Err(error) = sent {
                    self.write_failed(peer.rank, &error).ok();
                }
            }
            let said = lock(&self.watches).iter().find_map(|watch| watch());
            match said {
                Some(reason) if said_before => self.mark_lost(self.world.rank, reason),
                said => said_before = said.is_some(),
            }
        }
    }

    /// When writing to a peer fails: the cause that its reading thread finds, or else the system's error.
    pub(super) fn write_failed(self: &Arc<Self>, rank: usize, error: &io::Error) -> Result<()> {
        if self.finished.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check_soon(self.timeouts.cause)?;
        self.mark_lost(rank, format!("the connection to it broke: {error}"));
        self.check_soon(self.timeouts.cause)
    }

    /// Reports a lost rank to the others, then to this process.
    pub(super) fn mark_lost(self: &Arc<Self>, rank: usize, reason: String) {
        if self.finished.load(Ordering::Acquire) || self.losing.swap(true, Ordering::AcqRel) {
            return;
        }
        let lost = LostRank { rank, size: self.world.size, reason, kept: self.kept() };
        let (told, all_told) = mpsc::channel();
        let first = self.world.rank == 0;
        let (kind, about) = if first { (Kind::Lost, rank as u32) } else { (Kind::Failed, 0) };
        let is_told = |peer: &Peer| if first { peer.rank != rank } else { rank == self.world.rank };
        for i in (0..self.peers.len()).filter(|&i| is_told(&self.peers[i])) {
            let (members, reason, told) = (self.clone(), lost.reason.clone(), told.clone());
            thread::spawn(move || {
                lock(&members.peers[i].out).write_reason(kind, about, &reason).ok();
                told.send(()).ok();
            });
        }
        drop(told);
        // This process may end as soon as it knows, so it does not wait for a peer that does not read.
        let until = Instant::now() + Duration::from_secs(1);
        while all_told.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
        *lock(&self.lost) = Some(lost);
        self.loss_known.notify_all();
        self.run_hooks();
    }

    /// Tells the others that this rank ends with an error.
    pub(super) fn report_failure(&self, reason: &str) {
        let lost = self.losing.load(Ordering::Acquire);
        if self.finished.swap(true, Ordering::AcqRel) || lost {
            return;
        }
        let (kind, text) = match self.world.rank {
            0 => (Kind::Lost, format!("it ended with an error: {reason}")),
            _ => (Kind::Failed, reason.to_owned()),
        };
        for peer in &self.peers {
            // A peer that does not receive it finds the connection closed.
            lock(&peer.out).write_reason(kind, 0, &text).ok();
        }
    }

    fn run_hooks(&self) {
        let Some(lost) = lock(&self.lost).clone() else { return };
        for hook in lock(&self.hooks).drain(..) {
            let lost = lost.clone();
            thread::spawn(move || hook(&lost));
        }
    }

    fn kept(&self) -> String {
        let on = "go on by the same command with --resume";
        match lock(&self.dir).as_ref() {
            None => "Training had not begun".to_owned(),
            Some(dir) => match resume::latest(dir) {
                Some((step, path)) => format!("The checkpoint of step {step} is in {}; {on}", path.display()),
                None if self.world.rank == 0 => "No checkpoint had been written yet (train.save_every)".to_owned(),
                None => format!("Checkpoints are in {} on the host of rank 0; {on}", dir.display()),
            },
        }
    }
}
