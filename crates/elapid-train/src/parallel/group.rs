//! Ranks that know of each other: they meet at rank 0 over TCP, keep these connections, and end together.
//!
//! What ranks do together goes through rank 0, in the same order everywhere; every exchange has a number, so that ranks
//! that lose step are found. A thread for each connection listens all the time, another sends a sign of life. When a
//! connection breaks, stays silent, or a rank says that it failed, rank 0 tells the others which one it was.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::World;
use super::frame::{self, Frame, Kind};
use crate::{Error, Result, resume};

/// What who comes says first, and what rank 0 answers. They differ: a process can be connected with itself.
const HELLO: [u8; 8] = *b"elapid>0";
const REPLY: [u8; 8] = *b"elapid<0";
const VERSION: u32 = 1;

/// How long ranks wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For all to come.
    pub meet: Duration,
    /// Between two signs of life.
    pub beat: Duration,
    /// For a sign of life.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let [meet, beat, silence] = [600, 5, 60].map(Duration::from_secs);
        Self { meet, beat, silence }
    }
}

/// A rank that is gone, so that all must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} of {size} was lost: {reason}; all ranks end. {kept}")]
pub struct Loss {
    /// The rank.
    pub rank: usize,
    /// All ranks.
    pub size: usize,
    /// What became of it.
    pub reason: String,
    /// What is left to go on from.
    pub kept: String,
}

type Hook = Box<dyn FnOnce(&Loss) + Send>;
type Watch = Box<dyn Fn() -> Option<String> + Send>;

/// This rank among the others.
pub struct Group {
    shared: Arc<Shared>,
    order: Mutex<Order>,
    told_to_stop: AtomicBool,
    /// Ends the signs of life when dropped.
    beats: Option<Sender<()>>,
}

/// What ranks do together is done in order.
struct Order {
    /// Exchanges so far.
    number: u32,
    /// What comes from each peer.
    inboxes: Vec<Receiver<Frame>>,
}

struct Shared {
    world: World,
    silence: Duration,
    /// At rank 0 all others by rank; elsewhere rank 0.
    peers: Vec<Peer>,
    losing: AtomicBool,
    loss: Mutex<Option<Loss>>,
    hooks: Mutex<Vec<Hook>>,
    watches: Mutex<Vec<Watch>>,
    /// The run's directory.
    dir: Mutex<Option<PathBuf>>,
    /// Connections may end.
    finished: AtomicBool,
    /// At rank 0: another rank was asked to stop.
    stop: AtomicBool,
}

struct Peer {
    rank: usize,
    out: Mutex<TcpStream>,
    /// It has ended because all is done.
    gone: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Meets the other ranks; returns when all have come. `note` is told who is waited for, if that takes long.
    ///
    /// # Errors
    /// If not all come in time, two say that they are the same rank, or ranks of another number or version come.
    pub fn join(world: &World, patience: Patience, note: &mut dyn FnMut(&str)) -> Result<Arc<Self>> {
        let streams = match world.rank {
            0 => welcome_all(world, patience, note)?,
            _ => vec![visit(world, patience, note)?],
        };
        let refused = |error: io::Error| meeting(world, error.to_string());
        let (mut peers, mut listening) = (Vec::new(), Vec::new());
        for (i, stream) in streams.into_iter().enumerate() {
            let rank = if world.rank == 0 { i + 1 } else { 0 };
            stream.set_nodelay(true).map_err(refused)?;
            stream.set_read_timeout(Some(patience.silence)).map_err(refused)?;
            stream.set_write_timeout(Some(patience.silence)).map_err(refused)?;
            listening.push(stream.try_clone().map_err(refused)?);
            peers.push(Peer { rank, out: Mutex::new(stream), gone: AtomicBool::new(false) });
        }
        let shared = Arc::new(Shared {
            world: world.clone(),
            silence: patience.silence,
            peers,
            losing: AtomicBool::new(false),
            loss: Mutex::default(),
            hooks: Mutex::default(),
            watches: Mutex::default(),
            dir: Mutex::default(),
            finished: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut inboxes = Vec::new();
        for (peer, stream) in listening.into_iter().enumerate() {
            let (to, inbox) = mpsc::channel();
            let shared = shared.clone();
            thread::spawn(move || shared.listen(peer, stream, &to));
            inboxes.push(inbox);
        }
        let (beats, ended) = mpsc::channel();
        let alive = shared.clone();
        thread::spawn(move || alive.beat(patience.beat, &ended));
        let order = Mutex::new(Order { number: 0, inboxes });
        let group = Self { shared, order, told_to_stop: AtomicBool::new(false), beats: Some(beats) };
        group.barrier()?;
        Ok(Arc::new(group))
    }

    /// This rank and where it is.
    pub fn world(&self) -> &World {
        &self.shared.world
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.shared.world.size
    }

    /// Whether this is rank 0, which validates, writes files and reports.
    pub fn is_first(&self) -> bool {
        self.shared.world.rank == 0
    }

    /// Says where checkpoints are, for the error of a lost rank.
    pub fn keeps_in(&self, dir: PathBuf) {
        *lock(&self.shared.dir) = Some(dir);
    }

    /// Calls `hook` in a thread of its own when a rank is lost: this rank may be waiting for what never comes.
    pub fn on_loss(&self, hook: impl FnOnce(&Loss) + Send + 'static) {
        lock(&self.shared.hooks).push(Box::new(hook));
        if lock(&self.shared.loss).is_some() {
            self.shared.run_hooks();
        }
    }

    /// Asks `watch` with every sign of life what went wrong here. What it says twice makes this rank a lost one: another
    /// rank's end has then had time to be the reason.
    pub fn watch(&self, watch: impl Fn() -> Option<String> + Send + 'static) {
        lock(&self.shared.watches).push(Box::new(watch));
    }

    /// Whether all ranks are there.
    ///
    /// # Errors
    /// [`Loss`], if one is not.
    pub fn check(&self) -> Result<()> {
        lock(&self.shared.loss).clone().map_or(Ok(()), |loss| Err(loss.into()))
    }

    /// A lost rank, if there is one or one is found soon: then `error` came of it.
    pub fn blame(&self, error: Error) -> Error {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            if let Err(loss) = self.check() {
                return loss;
            }
            thread::sleep(Duration::from_millis(20));
        }
        error
    }

    /// The bytes of rank 0, at every rank.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.broadcast_in(&mut lock(&self.order), bytes)
    }

    fn broadcast_in(&self, order: &mut Order, bytes: &[u8]) -> Result<Vec<u8>> {
        order.number = order.number.wrapping_add(1);
        if !self.is_first() {
            return self.receive(order, 0);
        }
        for peer in &self.shared.peers {
            self.send(peer, order.number, bytes)?;
        }
        Ok(bytes.to_vec())
    }

    /// The bytes of every rank, in order, at rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.gather_in(&mut lock(&self.order), bytes)
    }

    fn gather_in(&self, order: &mut Order, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        order.number = order.number.wrapping_add(1);
        if !self.is_first() {
            self.send(&self.shared.peers[0], order.number, bytes)?;
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

    /// What rank 0 says.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn agree(&self, yes: bool) -> Result<bool> {
        Ok(self.broadcast(&[u8::from(yes)])? == [1])
    }

    /// Whether all ranks stop here: if rank 0, or some time before another rank, was asked to.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn stop(&self, asked: bool) -> Result<bool> {
        if asked && !self.is_first() && !self.told_to_stop.swap(true, Ordering::Relaxed) {
            let sent = frame::write(&mut *lock(&self.shared.peers[0].out), Kind::Stop, 0, &[]);
            sent.or_else(|error| self.broken(0, &error))?;
        }
        self.agree(asked || self.shared.stop.load(Ordering::Relaxed))
    }

    /// numbers ← their sum over all ranks, in the order of ranks: the same bits everywhere.
    ///
    /// # Errors
    /// If a rank is lost, or has another number of them.
    pub fn sum(&self, numbers: &mut [f32]) -> Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let values = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
        for (rank, part) in self.gather(&bytes)?.iter().enumerate().skip(1) {
            if part.len() != bytes.len() {
                let (n, m) = (part.len() / 4, numbers.len());
                return Err(Error::Ranks { what: format!("rank {rank} sums {n} numbers, rank 0 {m}") });
            }
            numbers.iter_mut().zip(values(part)).for_each(|(sum, x)| *sum += x);
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        numbers.copy_from_slice(&values(&self.broadcast(&bytes)?));
        Ok(())
    }

    /// Tells the others that this rank ends with an error.
    pub fn fail(&self, reason: &str) {
        let lost = self.shared.losing.load(Ordering::Acquire);
        if self.shared.finished.swap(true, Ordering::AcqRel) || lost {
            return;
        }
        let (kind, text) = match self.is_first() {
            true => (Kind::Lost, format!("it ended with an error: {reason}")),
            false => (Kind::Failed, reason.to_owned()),
        };
        for peer in &self.shared.peers {
            // Who does not hear it finds the connection closed.
            frame::write(&mut *lock(&peer.out), kind, 0, text.as_bytes()).ok();
        }
    }

    /// Ends the group after all ranks have called it.
    ///
    /// # Errors
    /// If a rank was lost before.
    pub fn finish(&self) -> Result<()> {
        let order = &mut lock(&self.order);
        self.gather_in(order, &[])?;
        if self.is_first() {
            // From here on who ends has ended well.
            self.shared.finished.store(true, Ordering::Release);
        }
        self.broadcast_in(order, &[])?;
        self.shared.finished.store(true, Ordering::Release);
        for peer in self.shared.peers.iter().filter(|_| !self.is_first()) {
            frame::write(&mut *lock(&peer.out), Kind::Bye, 0, &[]).ok();
        }
        // Rank 0 stays until all have heard it.
        let since = Instant::now();
        let all_gone = || self.shared.peers.iter().all(|peer| peer.gone.load(Ordering::Acquire));
        while self.is_first() && !all_gone() && since.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn send(&self, peer: &Peer, number: u32, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let sent = frame::write(&mut *lock(&peer.out), Kind::Message, number, bytes);
        sent.or_else(|error| self.broken(peer.rank, &error))
    }

    /// What the connection's listener says of the end of it, or else what the system said.
    fn broken(&self, rank: usize, error: &io::Error) -> Result<()> {
        if self.shared.finished.load(Ordering::Acquire) {
            return Ok(());
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            self.check()?;
            thread::sleep(Duration::from_millis(5));
        }
        self.shared.lose(rank, format!("the connection to it broke: {error}"));
        self.ended()
    }

    fn receive(&self, order: &Order, peer: usize) -> Result<Vec<u8>> {
        let rank = self.shared.peers[peer].rank;
        loop {
            match order.inboxes[peer].recv_timeout(Duration::from_millis(100)) {
                Ok(frame) if frame.number == order.number => return Ok(frame.bytes),
                Ok(frame) => {
                    let (theirs, ours, own) = (frame.number, order.number, self.shared.world.rank);
                    let what = format!("rank {rank} is at exchange {theirs}, rank {own} at {ours}");
                    return Err(Error::Ranks { what });
                }
                Err(RecvTimeoutError::Timeout) => self.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    self.shared.lose(rank, "it ended before the others".into());
                    self.ended()?;
                }
            }
        }
    }

    /// The loss that has been, or is just being, found.
    fn ended(&self) -> Result<()> {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            self.check()?;
            thread::sleep(Duration::from_millis(5));
        }
        Err(Error::Ranks { what: "the group had ended".into() })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.fail("it ended before the others");
        self.beats = None;
        for peer in &self.shared.peers {
            // Wakes the listener; what was written is still sent.
            lock(&peer.out).shutdown(Shutdown::Both).ok();
        }
    }
}

impl Shared {
    /// Hears a peer until it ends.
    fn listen(self: &Arc<Self>, peer: usize, stream: TcpStream, inbox: &Sender<Frame>) {
        let Peer { rank, gone, .. } = &self.peers[peer];
        let mut from = BufReader::new(stream);
        let (lost, reason) = loop {
            let frame = match frame::read(&mut from) {
                Ok(Some(frame)) => frame,
                Ok(None) => break (*rank, "its process ended or was killed".to_owned()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let seconds = self.silence.as_secs_f64();
                    break (*rank, format!("no sign of life for {seconds:.0} s; is its host or the network down?"));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    break (*rank, "its process ended or was killed".to_owned());
                }
                Err(error) => break (*rank, format!("the connection to it broke: {error}")),
            };
            let text = || String::from_utf8_lossy(&frame.bytes).into_owned();
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
                    gone.store(true, Ordering::Release);
                    return;
                }
            }
        };
        self.lose(lost, reason);
    }

    /// Signs of life, until the group ends.
    fn beat(self: &Arc<Self>, every: Duration, ended: &Receiver<()>) {
        let mut said_before = false;
        while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            for peer in self.peers.iter().filter(|peer| !peer.gone.load(Ordering::Acquire)) {
                // Whoever holds the connection is writing: that is a sign of life.
                let Ok(mut out) = peer.out.try_lock() else { continue };
                if let Err(error) = frame::write(&mut *out, Kind::Beat, 0, &[]) {
                    drop(out);
                    // The listener knows better why.
                    thread::sleep(Duration::from_millis(500));
                    self.lose(peer.rank, format!("the connection to it broke: {error}"));
                }
            }
            let said = lock(&self.watches).iter().find_map(|watch| watch());
            match said {
                Some(reason) if said_before => self.lose(self.world.rank, reason),
                said => said_before = said.is_some(),
            }
        }
    }

    /// A rank is lost: says so to the others, then here.
    fn lose(self: &Arc<Self>, rank: usize, reason: String) {
        if self.finished.load(Ordering::Acquire) || self.losing.swap(true, Ordering::AcqRel) {
            return;
        }
        let loss = Loss { rank, size: self.world.size, reason, kept: self.kept() };
        let (told, all_told) = mpsc::channel();
        let first = self.world.rank == 0;
        let (kind, about) = if first { (Kind::Lost, rank as u32) } else { (Kind::Failed, 0) };
        let hears = |peer: &Peer| if first { peer.rank != rank } else { rank == self.world.rank };
        for i in (0..self.peers.len()).filter(|&i| hears(&self.peers[i])) {
            let (shared, reason, told) = (self.clone(), loss.reason.clone(), told.clone());
            thread::spawn(move || {
                frame::write(&mut *lock(&shared.peers[i].out), kind, about, reason.as_bytes()).ok();
                told.send(()).ok();
            });
        }
        drop(told);
        // This process may end as soon as it knows; a peer that does not listen is not waited for.
        let until = Instant::now() + Duration::from_secs(1);
        while all_told.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
        *lock(&self.loss) = Some(loss);
        self.run_hooks();
    }

    fn run_hooks(&self) {
        let Some(loss) = lock(&self.loss).clone() else { return };
        for hook in lock(&self.hooks).drain(..) {
            let loss = loss.clone();
            thread::spawn(move || hook(&loss));
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

fn meeting(world: &World, reason: String) -> Error {
    Error::Meeting { rank: world.rank, place: format!("{}:{}", world.address, world.port), reason }
}

/// `1, 2, 5`.
fn list(ranks: impl Iterator<Item = usize>) -> String {
    ranks.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ")
}

/// Tells `note` once, after a while.
struct Notice<'a> {
    note: &'a mut dyn FnMut(&str),
    at: Instant,
    told: bool,
}

impl<'a> Notice<'a> {
    fn new(note: &'a mut dyn FnMut(&str)) -> Self {
        Self { note, at: Instant::now() + Duration::from_secs(10), told: false }
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        if !self.told && Instant::now() > self.at {
            self.told = true;
            (self.note)(&text());
        }
    }
}

/// What came to rank 0.
enum Came {
    Rank(usize, TcpStream),
    /// Something that is not elapid, or said nothing.
    Stray,
    /// A rank that does not fit, and was told so.
    Refused(String),
}

/// Rank 0: the connections to all others, by rank.
fn welcome_all(world: &World, patience: Patience, note: &mut dyn FnMut(&str)) -> Result<Vec<TcpStream>> {
    let listener = bind(world).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => meeting(world, "the port is in use; set MASTER_PORT to a free one".into()),
        _ => meeting(world, format!("cannot listen there: {error}")),
    })?;
    listener.set_nonblocking(true).map_err(|error| meeting(world, error.to_string()))?;
    let until = Instant::now() + patience.meet;
    let mut notice = Notice::new(note);
    let (came, coming) = mpsc::channel();
    let mut found: BTreeMap<usize, TcpStream> = BTreeMap::new();
    let mut strays = 0;
    let failed = loop {
        if found.len() + 1 == world.size {
            return Ok(found.into_values().collect());
        }
        let missing = || list((1..world.size).filter(|rank| !found.contains_key(rank)));
        notice.tell(|| format!("rank 0 waits for rank {} at {}:{}", missing(), world.address, world.port));
        if Instant::now() > until {
            let (n, size, seconds) = (found.len() + 1, world.size, patience.meet.as_secs_f64());
            let others = if strays > 0 { format!("; {strays} came that were not elapid's") } else { String::new() };
            break format!("{n} of {size} ranks came in {seconds:.0} s, rank {} did not{others}", missing());
        }
        // A handshake is waited for beside: who says nothing keeps nobody out.
        if let Ok((stream, _)) = listener.accept() {
            let (came, size) = (came.clone(), world.size);
            thread::spawn(move || came.send(greet(stream, size)).ok());
        }
        match coming.try_recv() {
            Ok(Came::Rank(rank, mut stream)) if found.contains_key(&rank) => {
                let text = format!("two processes say that they are rank {rank}; RANK must be another in each");
                reply(&mut stream, &text).ok();
                break text;
            }
            Ok(Came::Rank(rank, mut stream)) => {
                if reply(&mut stream, "").is_ok() {
                    found.insert(rank, stream);
                }
            }
            Ok(Came::Stray) => strays += 1,
            Ok(Came::Refused(reason)) => break reason,
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    };
    for stream in found.values_mut() {
        let text = format!("it ended with an error: {failed}");
        frame::write(stream, Kind::Lost, 0, text.as_bytes()).ok();
    }
    Err(meeting(world, failed))
}

/// Listens on this host alone if that is where all ranks are, else on every address: the name of a host may stand for
/// one of its addresses only, or on itself for 127.0.1.1.
fn bind(world: &World) -> io::Result<TcpListener> {
    if matches!(world.address.as_str(), "localhost" | "127.0.0.1" | "::1") {
        return TcpListener::bind((world.address.as_str(), world.port));
    }
    match TcpListener::bind(("::", world.port)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", world.port)),
        bound => bound,
    }
}

/// Hears who a connection is from.
fn greet(mut stream: TcpStream, size: usize) -> Came {
    let mut hello = [0; 20];
    let timed = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(10))));
    if timed.and_then(|()| stream.read_exact(&mut hello)).is_err() || hello[..8] != HELLO {
        return Came::Stray;
    }
    let number = |at: usize| u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]]);
    let (version, theirs, rank) = (number(8), number(12) as usize, number(16) as usize);
    let refused = if version != VERSION {
        "a rank runs another version of elapid; start the same binary everywhere".to_owned()
    } else if theirs != size {
        format!("rank {rank} was started as one of {theirs}, rank 0 as one of {size}; WORLD_SIZE must be the same")
    } else if !(1..size).contains(&rank) {
        format!("a process says that it is rank {rank} of {size}")
    } else {
        return Came::Rank(rank, stream);
    };
    reply(&mut stream, &refused).ok();
    Came::Refused(refused)
}

/// Answers a rank: it is welcome, or refused for a reason.
fn reply(stream: &mut TcpStream, refused: &str) -> io::Result<()> {
    let len = u16::try_from(refused.len()).unwrap_or(0).to_le_bytes();
    stream.write_all(&[&REPLY[..], &VERSION.to_le_bytes(), &len, refused.as_bytes()].concat())
}

/// Another rank: the connection to rank 0.
fn visit(world: &World, patience: Patience, note: &mut dyn FnMut(&str)) -> Result<TcpStream> {
    let until = Instant::now() + patience.meet;
    let mut notice = Notice::new(note);
    let mut pause = Duration::from_millis(20);
    loop {
        let error = match connect(world, until).and_then(|mut stream| Ok((introduce(&mut stream, world)?, stream))) {
            Ok((Ok(()), stream)) => return Ok(stream),
            Ok((Err(refused), _)) => return Err(meeting(world, refused)),
            Err(error) => error,
        };
        if Instant::now() > until {
            let seconds = patience.meet.as_secs_f64();
            let fix = "is it running, and are MASTER_ADDR and MASTER_PORT its host and a port that is open?";
            return Err(meeting(world, format!("rank 0 was not there for {seconds:.0} s ({error}); {fix}")));
        }
        notice.tell(|| {
            let World { rank, address, port, .. } = world;
            format!("rank {rank} waits for rank 0 at {address}:{port} ({error})")
        });
        thread::sleep(pause);
        pause = (2 * pause).min(Duration::from_secs(1));
    }
}

fn connect(world: &World, until: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (world.address.as_str(), world.port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.clamp(Duration::from_millis(100), Duration::from_secs(5))) {
            // Without a listener, a port that the system gives out can be connected with itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => last = io::ErrorKind::ConnectionRefused.into(),
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Says who this is; the reason if that was refused.
fn introduce(stream: &mut TcpStream, world: &World) -> io::Result<Result<(), String>> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    stream.write_all(&[&HELLO[..], &VERSION.to_le_bytes(), &number(world.size), &number(world.rank)].concat())?;
    let mut answer = [0; 14];
    stream.read_exact(&mut answer[..8])?;
    if answer[..8] != REPLY {
        return Ok(Err("what listens there is not rank 0 of elapid; set MASTER_PORT to a free port".into()));
    }
    stream.read_exact(&mut answer[8..])?;
    let mut refused = vec![0; usize::from(u16::from_le_bytes([answer[12], answer[13]]))];
    stream.read_exact(&mut refused)?;
    let refused = String::from_utf8_lossy(&refused).into_owned();
    Ok(if refused.is_empty() { Ok(()) } else { Err(refused) })
}

#[cfg(test)]
mod tests;
