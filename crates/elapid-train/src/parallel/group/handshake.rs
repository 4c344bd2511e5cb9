//! The handshake of a connection: both ends prove that they know the run's secret, and agree on their ranks.
//!
//! | from | bytes | content |
//! |---|---|---|
//! | rank 0 | 44 | `elapid<0`, version, nonce of 32 random bytes |
//! | other rank | 84 | `elapid>0`, version, number of ranks, its rank, nonce of 32 random bytes, tag |
//! | rank 0 | 37 | verdict, number of ranks, tag; nothing, if the other is no rank of this version |
//!
//! A tag is the HMAC-SHA256, keyed by the secret, of sender, version, number of ranks, rank and both nonces; the verdict's
//! tag also covers the verdict itself. Nonces are new for every connection, so a recorded handshake proves nothing. All
//! messages have a fixed length, and must arrive within [`Timeouts::handshake`](super::Timeouts) after connecting. Each
//! direction of the connection then has its own key, derived in the same way ([`super::wire`]).

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hmac::Mac;

use super::wire::{Key, Reader, Writer};
use crate::parallel::{Secret, World, secret};

/// Magic bytes. They differ, because a process can be connected to itself.
const ROOT: [u8; 8] = *b"elapid<0";
const PEER: [u8; 8] = *b"elapid>0";
pub(super) const VERSION: u32 = 2;

const NONCE: usize = 32;
const TAG: usize = 32;
pub(super) const GREETING: usize = 8 + 4 + NONCE;
pub(super) const ANSWER: usize = 8 + 4 + 4 + 4 + NONCE + TAG;
const VERDICT: usize = 1 + 4 + TAG;

/// The purpose of a keyed hash.
#[derive(Clone, Copy)]
enum Purpose {
    PeerProof,
    RootProof,
    KeyToRoot,
    KeyFromRoot,
}

/// What both ends must agree on.
#[derive(Clone, Copy)]
struct Terms {
    size: u32,
    rank: u32,
    root_nonce: [u8; NONCE],
    peer_nonce: [u8; NONCE],
}

impl Terms {
    fn hash(&self, secret: Option<&Secret>, purpose: Purpose) -> Key {
        let mut hash = Secret::key(secret);
        hash.update(&[purpose as u8]);
        for number in [VERSION, self.size, self.rank] {
            hash.update(&number.to_le_bytes());
        }
        hash.update(&self.root_nonce);
        hash.update(&self.peer_nonce);
        hash
    }

    fn key(&self, shared: Option<&Secret>, purpose: Purpose) -> Key {
        secret::key(&self.hash(shared, purpose).finalize().into_bytes())
    }
}

/// A connection after the handshake.
pub(super) struct Link {
    pub(super) writer: Writer<TcpStream>,
    pub(super) reader: Reader<BufReader<TcpStream>>,
}

impl Link {
    fn new(stream: TcpStream, send: Key, receive: Key, silence: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        let reader = Reader::new(BufReader::new(stream.try_clone()?), receive);
        Ok(Self { writer: Writer::new(stream, send), reader })
    }

    /// Whether the connection is still open, as far as is known here.
    pub(super) fn is_open(&self) -> bool {
        let stream = self.writer.get_ref();
        let seen = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        let blocking = stream.set_nonblocking(false);
        let waiting = matches!(&seen, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        (waiting || matches!(seen, Ok(1..))) && blocking.is_ok()
    }
}

/// A process that knows the secret but is not a rank of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InvalidPeer {
    /// It was started with another number of ranks.
    Size { rank: u32, theirs: u32, ours: u32 },
    /// Its rank is out of range.
    Rank { rank: u32, size: u32 },
    /// Another process has this rank.
    Taken { rank: u32 },
}

impl std::fmt::Display for InvalidPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { rank, theirs, ours } => write!(
                f,
                "rank {rank} was started as one of {theirs}, rank 0 as one of {ours}; WORLD_SIZE must be the same"
            ),
            Self::Rank { rank, size } => {
                write!(f, "a process was started as rank {rank} of {size}; RANK is wrong there")
            }
            Self::Taken { rank } => {
                write!(f, "two processes were started as rank {rank}; RANK must be another in each")
            }
        }
    }
}

/// The answer of rank 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Welcome = 0,
    OtherSecret = 1,
    OtherSize = 2,
    NoSuchRank = 3,
    TakenRank = 4,
}

impl Verdict {
    const ALL: [Self; 5] = [Self::Welcome, Self::OtherSecret, Self::OtherSize, Self::NoSuchRank, Self::TakenRank];
}

/// The progress of a handshake with a candidate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// Its answer has not arrived yet.
    Pending,
    /// It is not a rank of this version, or took too long.
    Stranger,
    /// It does not know the secret.
    OtherSecret,
    /// It knows the secret but is not a rank of this run.
    Invalid(InvalidPeer),
    /// It knows the secret and is this rank.
    Peer(usize),
}

/// A connection to rank 0 that may be from a rank. Nothing here blocks.
pub(super) struct Candidate {
    stream: TcpStream,
    until: Instant,
    root_nonce: [u8; NONCE],
    answer: [u8; ANSWER],
    read: usize,
}

impl Candidate {
    /// Sends the greeting; the answer must arrive by `until`.
    pub(super) fn greet(mut stream: TcpStream, until: Instant) -> io::Result<Self> {
        let root_nonce = nonce()?;
        stream.set_nonblocking(true)?;
        stream.write_all(&[&ROOT[..], &VERSION.to_le_bytes(), &root_nonce].concat())?;
        Ok(Self { stream, until, root_nonce, answer: [0; ANSWER], read: 0 })
    }

    /// Reads what has arrived, and checks it once it is complete.
    pub(super) fn advance(&mut self, world: &World, secret: Option<&Secret>) -> Handshake {
        while self.read < ANSWER {
            match self.stream.read(&mut self.answer[self.read..]) {
                Ok(count @ 1..) => self.read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < self.until => {
                    return Handshake::Pending;
                }
                _ => return Handshake::Stranger,
            }
            let begun = self.read.min(PEER.len());
            if self.answer[..begun] != PEER[..begun] {
                return Handshake::Stranger;
            }
        }
        self.judge(world, secret)
    }

    fn judge(&self, world: &World, secret: Option<&Secret>) -> Handshake {
        if number(&self.answer, 8) != VERSION {
            return Handshake::Stranger;
        }
        let (terms, ours) = (self.terms(), number_of(world.size));
        let proof = terms.hash(secret, Purpose::PeerProof);
        if proof.verify_slice(&self.answer[ANSWER - TAG..]).is_err() {
            return Handshake::OtherSecret;
        }
        let Terms { size, rank, .. } = terms;
        if size != ours {
            Handshake::Invalid(InvalidPeer::Size { rank, theirs: size, ours })
        } else if !(1..ours).contains(&rank) {
            Handshake::Invalid(InvalidPeer::Rank { rank, size })
        } else {
            Handshake::Peer(rank as usize)
        }
    }

    /// The verdict on the answer.
    fn terms(&self) -> Terms {
        let mut peer_nonce = [0; NONCE];
        peer_nonce.copy_from_slice(&self.answer[20..20 + NONCE]);
        let (size, rank) = (number(&self.answer, 12), number(&self.answer, 16));
        Terms { size, rank, root_nonce: self.root_nonce, peer_nonce }
    }

    /// Accepts a candidate that is a peer.
    pub(super) fn welcome(mut self, secret: Option<&Secret>, silence: Duration) -> io::Result<Link> {
        let terms = self.terms();
        self.send(Verdict::Welcome, terms.size, Some(terms.hash(secret, Purpose::RootProof)))?;
        let [to_root, from_root] = [Purpose::KeyToRoot, Purpose::KeyFromRoot].map(|key| terms.key(secret, key));
        Link::new(self.stream, from_root, to_root, silence)
    }

    /// Tells a process that knows the secret why it cannot join.
    pub(super) fn refuse(mut self, why: InvalidPeer, world: &World, secret: Option<&Secret>) {
        let verdict = match why {
            InvalidPeer::Size { .. } => Verdict::OtherSize,
            InvalidPeer::Rank { .. } => Verdict::NoSuchRank,
            InvalidPeer::Taken { .. } => Verdict::TakenRank,
        };
        let proof = self.terms().hash(secret, Purpose::RootProof);
        // If this fails, it finds the connection closed.
        self.send(verdict, number_of(world.size), Some(proof)).ok();
    }

    /// Tells a process that it does not know the secret. The message has no tag, against which it could test guesses.
    pub(super) fn refuse_secret(mut self) {
        self.send(Verdict::OtherSecret, 0, None).ok();
    }

    fn send(&mut self, verdict: Verdict, size: u32, proof: Option<Key>) -> io::Result<()> {
        let mut message = [0; VERDICT];
        message[0] = verdict as u8;
        message[1..5].copy_from_slice(&size.to_le_bytes());
        if let Some(mut proof) = proof {
            proof.update(&message[..5]);
            message[5..].copy_from_slice(&proof.finalize().into_bytes());
        }
        self.stream.write_all(&message)
    }
}

/// The handshake with rank 0: the connection, or why rank 0 refused it.
///
/// # Errors
/// If the connection breaks, or takes longer than `until`.
pub(super) fn handshake(
    stream: TcpStream,
    world: &World,
    secret: Option<&Secret>,
    until: Instant,
    silence: Duration,
) -> io::Result<Result<Link, String>> {
    let mut greeting = [0; GREETING];
    read_by(&stream, &mut greeting[..8], until)?;
    if greeting[..8] != ROOT {
        return Ok(Err("what listens there is not rank 0 of elapid; set MASTER_PORT to a free port".into()));
    }
    read_by(&stream, &mut greeting[8..], until)?;
    if number(&greeting, 8) != VERSION {
        return Ok(Err("rank 0 runs another version of elapid; start the same binary everywhere".into()));
    }
    let mut root_nonce = [0; NONCE];
    root_nonce.copy_from_slice(&greeting[12..]);
    let terms = Terms { size: number_of(world.size), rank: number_of(world.rank), root_nonce, peer_nonce: nonce()? };
    let answer = answer(&terms, secret);
    (&stream).write_all(&answer)?;

    let mut message = [0; VERDICT];
    read_by(&stream, &mut message, until)?;
    let verdict = Verdict::ALL.into_iter().find(|&verdict| verdict as u8 == message[0]);
    let mut proof = terms.hash(secret, Purpose::RootProof);
    proof.update(&message[..5]);
    let (rank, theirs) = (terms.rank, number(&message, 1));
    let refused = match verdict {
        Some(Verdict::OtherSecret) => {
            format!("rank 0 has another secret, or only one of the two has one; {}", secret::HOW)
        }
        _ if proof.verify_slice(&message[5..]).is_err() => {
            format!("what listens there does not know the secret of this run; {}", secret::HOW)
        }
        Some(Verdict::Welcome) => {
            let [to_root, from_root] = [Purpose::KeyToRoot, Purpose::KeyFromRoot].map(|key| terms.key(secret, key));
            return Link::new(stream, to_root, from_root, silence).map(Ok);
        }
        Some(Verdict::OtherSize) => InvalidPeer::Size { rank, theirs: terms.size, ours: theirs }.to_string(),
        Some(Verdict::NoSuchRank) => InvalidPeer::Rank { rank, size: terms.size }.to_string(),
        Some(Verdict::TakenRank) => InvalidPeer::Taken { rank }.to_string(),
        None => format!("rank 0 gave the unknown answer {}", message[0]),
    };
    Ok(Err(refused))
}

fn answer(terms: &Terms, secret: Option<&Secret>) -> [u8; ANSWER] {
    let mut answer = [0; ANSWER];
    answer[..8].copy_from_slice(&PEER);
    for (at, number) in [(8, VERSION), (12, terms.size), (16, terms.rank)] {
        answer[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    answer[20..20 + NONCE].copy_from_slice(&terms.peer_nonce);
    answer[ANSWER - TAG..].copy_from_slice(&terms.hash(secret, Purpose::PeerProof).finalize().into_bytes());
    answer
}

/// Fills `bytes` before `until`, however slowly they come.
fn read_by(mut stream: &TcpStream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn nonce() -> io::Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn number_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
