//! The group of ranks: they connect to rank 0 over TCP, keep these connections, and end together.
//!
//! | phase | what is sent | most bytes | file |
//! |---|---|---|---|
//! | meeting | rank 0 listens, the others connect | | [`rendezvous`] |
//! | handshake | greeting, answer, verdict: both ends prove that they know the secret | 44, 84, 37 | [`handshake`] |
//! | after it | frames with a message authentication code | | [`wire`] |
//! | | `Beat` both ways, every [`Timeouts::heartbeat`] | 0 | [`membership`] |
//! | | `Message` both ways: collective operations | 1 MiB, or what [`Group::allow_values`] said | this one |
//! | | `Stop` to rank 0: this rank was asked to stop | 0 | this one |
//! | the end | `Failed` to rank 0, `Lost` from rank 0: a rank ended with an error, or is lost | 4096 | [`membership`] |
//! | | `Bye` to rank 0: all is done | 0 | this one |
//!
//! Collective operations go through rank 0, in the same order everywhere. Each has a number, so ranks that get out of step
//! are detected. The secret keeps others out, and the codes detect frames that were changed, repeated or dropped in transit.
//! Nothing is encrypted.

mod handshake;
mod lost;
mod membership;
mod rendezvous;
mod timeouts;
mod wire;

use std::io;
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use self::membership::{Membership, Peer, lock};
use self::wire::{Frame, Kind};
use super::{Secret, World};
use crate::{Error, Result};

pub use self::lost::LostRank;
pub use self::timeouts::Timeouts;

/// Maximum messages of a peer in the queue; reading from its connection pauses beyond that.
const INBOX: usize = 256;

/// This rank's place in the group.
pub struct Group {
    members: Arc<Membership>,
    order: Mutex<Order>,
    stop_was_sent: AtomicBool,
    /// Ends the heartbeats when dropped.
    beats: Option<Sender<()>>,
}

/// Collective operations are done in order.
struct Order {
    /// Number of collective operations so far.
    number: u32,
    /// Messages of each peer.
    inboxes: Vec<Receiver<Frame>>,
}

impl Group {
    /// Connects the ranks; returns when all are there. A process that knows `secret` may join; without a secret, only
    /// processes of this host may. If it takes long, `note` is called once with the missing ranks.
    ///
    /// # Errors
    /// If there is no secret and other hosts can reach the address; if not all ranks arrive in time, two have the same rank,
    /// or ranks with another size, version or secret arrive.
    pub fn join(
        world: &World,
        secret: Option<&Secret>,
        timeouts: Timeouts,
        note: &mut dyn FnMut(&str),
    ) -> Result<Arc<Self>> {
        rendezvous::require_secret(world, secret)?;
        let links = match world.rank {
            0 => rendezvous::accept_peers(world, secret, timeouts, note)?,
            _ => vec![rendezvous::connect_to_root(world, secret, timeouts, note)?],
        };
        let (mut peers, mut readers) = (Vec::new(), Vec::new());
        for (i, link) in links.into_iter().enumerate() {
            let rank = if world.rank == 0 { i + 1 } else { 0 };
            peers.push(Peer { rank, out: Mutex::new(link.writer), done: AtomicBool::new(false) });
            readers.push(link.reader);
        }
        let members = Arc::new(Membership::new(world.clone(), timeouts, peers));
        let mut inboxes = Vec::new();
        for (peer, reader) in readers.into_iter().enumerate() {
            let (to, inbox) = mpsc::sync_channel(INBOX);
            let members = members.clone();
            thread::spawn(move || members.listen(peer, reader, &to));
            inboxes.push(inbox);
        }
        let (beats, ended) = mpsc::channel();
        let alive = members.clone();
        thread::spawn(move || alive.beat(&ended));
        let order = Mutex::new(Order { number: 0, inboxes });
        let group = Self { members, order, stop_was_sent: AtomicBool::new(false), beats: Some(beats) };
        group.barrier()?;
        Ok(Arc::new(group))
    }

    /// This rank.
    pub fn world(&self) -> &World {
        &self.members.world
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.members.world.size
    }

    /// Whether this is rank 0, which validates, writes files and reports.
    pub fn is_first(&self) -> bool {
        self.members.world.rank == 0
    }

    /// Sets the run's directory, so that the error of a lost rank can name a checkpoint.
    pub fn keeps_in(&self, dir: PathBuf) {
        *lock(&self.members.dir) = Some(dir);
    }

    /// Calls `hook` on a separate thread when a rank is lost: this rank may be waiting for something that never arrives.
    pub fn on_loss(&self, hook: impl FnOnce(&LostRank) + Send + 'static) {
        self.members.add_hook(Box::new(hook));
    }

    /// Calls `watch` with every heartbeat to ask for errors of this rank. An error reported twice makes this rank a lost
    /// one; by then, the loss of another rank would have been noticed as its cause.
    pub fn watch(&self, watch: impl Fn() -> Option<String> + Send + 'static) {
        self.members.add_watch(Box::new(watch));
    }

    /// Whether all ranks are there.
    ///
    /// # Errors
    /// [`LostRank`], if one is not.
    pub fn check(&self) -> Result<()> {
        self.members.check()
    }

    /// The lost rank that caused `error`, if one is detected soon; else `error`.
    pub fn cause_of(&self, error: Error) -> Error {
        self.members.check_soon(self.members.timeouts.cause).err().unwrap_or(error)
    }

    /// Allows messages of up to `values` values of `f32`. Every rank must call this before any rank sends that many, that
    /// is, before a [`barrier`](Self::barrier).
    pub fn allow_values(&self, values: usize) {
        self.members.allow(4 * values as u64);
    }

    /// Returns the bytes of rank 0, on every rank.
    ///
    /// # Errors
    /// If a rank is lost, or there are more bytes than allowed in a message.
    pub fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.broadcast_in(&mut lock(&self.order), bytes)
    }

    fn broadcast_in(&self, order: &mut Order, bytes: &[u8]) -> Result<Vec<u8>> {
        order.number = order.number.wrapping_add(1);
        if !self.is_first() {
            return self.receive(order, 0);
        }
        for peer in &self.members.peers {
            self.send(peer, order.number, bytes)?;
        }
        Ok(bytes.to_vec())
    }

    /// Returns the bytes of every rank in order on rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// If a rank is lost, or there are more bytes than allowed in a message.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.gather_in(&mut lock(&self.order), bytes)
    }

    fn gather_in(&self, order: &mut Order, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        order.number = order.number.wrapping_add(1);
        if !self.is_first() {
            self.send(&self.members.peers[0], order.number, bytes)?;
            return Ok(Vec::new());
        }
        let others = (0..order.inboxes.len()).map(|i| self.receive(order, i));
        std::iter::once(Ok(bytes.to_vec())).chain(others).collect()
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn barrier(&self) -> Result<()> {
        let order = &mut lock(&self.order);
        self.gather_in(order, &[])?;
        self.broadcast_in(order, &[]).map(drop)
    }

    /// Returns the value of rank 0.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn agree(&self, yes: bool) -> Result<bool> {
        Ok(self.broadcast(&[u8::from(yes)])? == [1])
    }

    /// Whether all ranks stop here, because rank 0, or earlier another rank, was asked to stop.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn stop(&self, asked: bool) -> Result<bool> {
        if asked && !self.is_first() && !self.stop_was_sent.swap(true, Ordering::Relaxed) {
            let sent = lock(&self.members.peers[0].out).write(Kind::Stop, 0, &[]);
            sent.or_else(|error| self.members.write_failed(0, &error))?;
        }
        self.agree(asked || self.members.stop.load(Ordering::Relaxed))
    }

    /// Replaces `values` by those of rank 0.
    ///
    /// # Errors
    /// If a rank is lost, or rank 0 has another number of them.
    pub fn broadcast_values(&self, values: &mut [f32]) -> Result<()> {
        let sent = if self.is_first() { to_bytes(values) } else { Vec::new() };
        let bytes = self.broadcast(&sent)?;
        self.same_length(0, &bytes, values)?;
        from_bytes(&bytes).zip(values).for_each(|(new, value)| *value = new);
        Ok(())
    }

    /// Replaces `values` by their sum over all ranks, in the order of ranks: the same bits everywhere.
    ///
    /// # Errors
    /// If a rank is lost, or has another number of them.
    pub fn sum(&self, values: &mut [f32]) -> Result<()> {
        for (rank, part) in self.gather(&to_bytes(values))?.iter().enumerate().skip(1) {
            self.same_length(rank, part, values)?;
            from_bytes(part).zip(&mut *values).for_each(|(term, sum)| *sum += term);
        }
        self.broadcast_values(values)
    }

    fn same_length(&self, rank: usize, bytes: &[u8], values: &[f32]) -> Result<()> {
        if bytes.len() == 4 * values.len() {
            return Ok(());
        }
        let (own, n, m) = (self.world().rank, values.len(), bytes.len() / 4);
        Err(Error::Ranks { what: format!("rank {rank} sends {m} values, rank {own} expects {n}") })
    }

    /// Tells the others that this rank ends with an error.
    pub fn report_failure(&self, reason: &str) {
        self.members.report_failure(reason);
    }

    /// Ends the group after all ranks have called it.
    ///
    /// # Errors
    /// If a rank was lost before.
    pub fn finish(&self) -> Result<()> {
        let order = &mut lock(&self.order);
        let finished = &self.members.finished;
        self.gather_in(order, &[])?;
        if self.is_first() {
            // From here on a rank that ends has finished.
            finished.store(true, Ordering::Release);
        }
        self.broadcast_in(order, &[])?;
        finished.store(true, Ordering::Release);
        for peer in self.members.peers.iter().filter(|_| !self.is_first()) {
            lock(&peer.out).write(Kind::Bye, 0, &[]).ok();
        }
        // Rank 0 stays until all have sent `Bye`.
        let since = Instant::now();
        let all_done = || self.members.peers.iter().all(|peer| peer.done.load(Ordering::Acquire));
        while self.is_first() && !all_done() && since.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn send(&self, peer: &Peer, number: u32, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let (len, most) = (bytes.len() as u64, self.members.limit());
        if len > most {
            return Err(Error::Ranks { what: format!("a message of {len} bytes, where at most {most} are expected") });
        }
        let sent = lock(&peer.out).write(Kind::Message, number, bytes);
        sent.or_else(|error: io::Error| self.members.write_failed(peer.rank, &error))
    }

    fn receive(&self, order: &Order, peer: usize) -> Result<Vec<u8>> {
        let rank = self.members.peers[peer].rank;
        loop {
            match order.inboxes[peer].recv_timeout(Duration::from_millis(100)) {
                Ok(frame) if frame.number == order.number => return Ok(frame.payload),
                Ok(frame) => {
                    let (theirs, ours, own) = (frame.number, order.number, self.members.world.rank);
                    let what = format!("rank {rank} is at exchange {theirs}, rank {own} at {ours}");
                    return Err(Error::Ranks { what });
                }
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.members.mark_lost(rank, "it ended before the others".into());
                    self.members.check_soon(self.members.timeouts.cause)?;
                    return Err(Error::Ranks { what: "the group had ended".into() });
                }
            }
        }
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

impl Drop for Group {
    fn drop(&mut self) {
        self.report_failure("it ended before the others");
        self.beats = None;
        for peer in &self.members.peers {
            // Wakes the reading thread; data already written is still sent.
            lock(&peer.out).get_ref().shutdown(Shutdown::Both).ok();
        }
    }
}

#[cfg(test)]
mod stranger_tests;
#[cfg(test)]
mod tests;
