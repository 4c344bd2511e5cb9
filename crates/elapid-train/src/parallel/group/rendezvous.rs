//! Connecting the ranks: rank 0 listens, the others connect to it.
//!
//! A connection to the port is a [`Candidate`] until the handshake shows what it is. One thread handles at most
//! [`MOST_PENDING`] of them; each costs a connection and some hundred bytes, and a new one replaces the oldest. A candidate
//! that is not a rank is closed and counted, and accepting continues. When all ranks are there, rank 0 stops listening:
//! nobody can join later.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::Timeouts;
use super::handshake::{Candidate, Handshake, InvalidPeer, Link, handshake};
use super::wire::Kind;
use crate::parallel::{Secret, World, secret};
use crate::{Error, Result};

/// Maximum connections whose handshake is not done.
pub(super) const MOST_PENDING: usize = 128;
/// Maximum new connections to accept before existing ones are checked.
const MOST_ACCEPTED: usize = 16;

pub(super) fn meeting(world: &World, reason: String) -> Error {
    Error::Meeting { rank: world.rank, place: format!("{}:{}", world.address, world.port), reason }
}

/// `1, 2, 5`.
fn list(ranks: impl Iterator<Item = usize>) -> String {
    ranks.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ")
}

/// Calls `note` once, after a while.
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

/// Without a secret all ranks must be on this host.
pub(super) fn require_secret(world: &World, secret: Option<&Secret>) -> Result<()> {
    if secret.is_some() || loopback(world).is_some() {
        return Ok(());
    }
    Err(Error::World {
        what: format!(
            "MASTER_ADDR is {}, which other hosts can reach, and there is no secret to know the ranks of this run by",
            world.address
        ),
        fix: format!("{}; on one host, MASTER_ADDR=127.0.0.1 does without", secret::HOW),
    })
}

/// The addresses where ranks meet, if only this host can reach them.
fn loopback(world: &World) -> Option<Vec<SocketAddr>> {
    let addresses: Vec<_> = (world.address.as_str(), world.port).to_socket_addrs().ok()?.collect();
    (!addresses.is_empty() && addresses.iter().all(|address| is_loopback(address.ip()))).then_some(addresses)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Listens on loopback if all ranks are on this host; else on every address, which needs a secret. It does not listen on the
/// named address alone, because a host's name may resolve to only one of its addresses, or on the host itself to 127.0.1.1.
fn bind(world: &World, secret: Option<&Secret>) -> io::Result<TcpListener> {
    match (loopback(world), secret) {
        (Some(addresses), _) => return TcpListener::bind(addresses.as_slice()),
        // The name was looked up again, and resolves to something else now.
        (None, None) => return Err(io::Error::new(io::ErrorKind::PermissionDenied, "there is no secret")),
        (None, Some(_)) => {}
    }
    match TcpListener::bind(("::", world.port)) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", world.port)),
        bound => bound,
    }
}

/// Accepting ranks on rank 0.
struct Meeting<'a> {
    world: &'a World,
    secret: Option<&'a Secret>,
    timeouts: Timeouts,
    pending: VecDeque<Candidate>,
    found: BTreeMap<usize, Link>,
    /// Number of connections that were not from a rank of this version.
    strangers: u64,
    /// Number of processes that did not know the secret.
    other_secrets: u64,
    /// Number of processes that were not ranks of this run, where there is no secret.
    invalid: Option<InvalidPeer>,
}

/// On rank 0: the connections to all others, by rank.
///
/// # Errors
/// If it cannot listen, not all ranks arrive in time, or a process with the secret is not a rank of this run.
pub(super) fn accept_peers(
    world: &World,
    secret: Option<&Secret>,
    timeouts: Timeouts,
    note: &mut dyn FnMut(&str),
) -> Result<Vec<Link>> {
    let listener = bind(world, secret).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => meeting(world, "the port is in use; set MASTER_PORT to a free one".into()),
        _ => meeting(world, format!("cannot listen there: {error}")),
    })?;
    listener.set_nonblocking(true).map_err(|error| meeting(world, error.to_string()))?;
    let mut at_root = Meeting {
        world,
        secret,
        timeouts,
        pending: VecDeque::new(),
        found: BTreeMap::new(),
        strangers: 0,
        other_secrets: 0,
        invalid: None,
    };
    let until = Instant::now() + timeouts.meeting;
    let mut notice = Notice::new(note);
    let mut beaten = Instant::now();
    let failed = loop {
        if let Err(invalid) = at_root.advance() {
            break invalid.to_string();
        }
        // A rank that disconnected meanwhile may connect again.
        at_root.found.retain(|_, link| link.is_open());
        if at_root.found.len() + 1 == world.size {
            return Ok(at_root.found.into_values().collect());
        }
        if Instant::now() > until {
            break at_root.absent();
        }
        notice.tell(|| {
            let World { address, port, .. } = world;
            format!("rank 0 waits for rank {} at {address}:{port}{}", at_root.missing(), at_root.refused())
        });
        if beaten.elapsed() > timeouts.heartbeat {
            beaten = Instant::now();
            at_root.beat();
        }
        at_root.accept(&listener);
        thread::sleep(Duration::from_millis(2));
    };
    for link in at_root.found.values_mut() {
        link.writer.write_reason(Kind::Lost, 0, &format!("it ended with an error: {failed}")).ok();
    }
    Err(meeting(world, failed))
}

impl Meeting<'_> {
    /// Accepts new connections.
    fn accept(&mut self, listener: &TcpListener) {
        for _ in 0..MOST_ACCEPTED {
            // Without a free file descriptor none can be accepted until the handshakes of strangers time out.
            let Ok((stream, _)) = listener.accept() else { return };
            if self.pending.len() >= MOST_PENDING {
                self.pending.pop_front();
                self.strangers += 1;
            }
            match Candidate::greet(stream, Instant::now() + self.timeouts.handshake) {
                Ok(candidate) => self.pending.push_back(candidate),
                Err(_) => self.strangers += 1,
            }
        }
    }

    /// Advances every handshake.
    fn advance(&mut self) -> Result<(), InvalidPeer> {
        for _ in 0..self.pending.len() {
            let Some(mut candidate) = self.pending.pop_front() else { break };
            let invalid = match candidate.advance(self.world, self.secret) {
                Handshake::Pending => {
                    self.pending.push_back(candidate);
                    continue;
                }
                Handshake::Stranger => {
                    self.strangers += 1;
                    continue;
                }
                Handshake::OtherSecret => {
                    self.other_secrets += 1;
                    candidate.refuse_secret();
                    continue;
                }
                Handshake::Peer(rank) if self.found.get(&rank).is_none_or(|link| !link.is_open()) => {
                    if let Ok(link) = candidate.welcome(self.secret, self.timeouts.silence) {
                        self.found.insert(rank, link);
                    }
                    continue;
                }
                Handshake::Peer(rank) => InvalidPeer::Taken { rank: rank as u32 },
                Handshake::Invalid(invalid) => invalid,
            };
            candidate.refuse(invalid, self.world, self.secret);
            // Without a secret, any process of this host may have sent this.
            if self.secret.is_some() {
                return Err(invalid);
            }
            self.invalid = Some(invalid);
        }
        Ok(())
    }

    /// Sends heartbeats to the ranks that wait for the others. A rank that disconnected may connect again.
    fn beat(&mut self) {
        self.found.retain(|_, link| link.writer.write(Kind::Beat, 0, &[]).is_ok());
    }

    fn missing(&self) -> String {
        list((1..self.world.size).filter(|rank| !self.found.contains_key(rank)))
    }

    /// Which connections were refused: `; connections from no rank of this version: 2`.
    fn refused(&self) -> String {
        let count = |count: u64, what: &str| if count > 0 { format!("; {what}: {count}") } else { String::new() };
        format!(
            "{}{}{}",
            count(self.strangers, "connections from no rank of this version"),
            count(self.other_secrets, "processes with another secret, or none"),
            self.invalid.map_or_else(String::new, |invalid| format!("; {invalid}"))
        )
    }

    fn absent(&self) -> String {
        let (n, size, seconds) = (self.found.len() + 1, self.world.size, self.timeouts.meeting.as_secs_f64());
        format!("{n} of {size} ranks came in {seconds:.0} s, rank {} did not{}", self.missing(), self.refused())
    }
}

/// On another rank: the connection to rank 0.
///
/// # Errors
/// If rank 0 is not there in time, or refuses this rank.
pub(super) fn connect_to_root(
    world: &World,
    secret: Option<&Secret>,
    timeouts: Timeouts,
    note: &mut dyn FnMut(&str),
) -> Result<Link> {
    let until = Instant::now() + timeouts.meeting;
    let mut notice = Notice::new(note);
    let mut pause = Duration::from_millis(20);
    loop {
        let made = connect(world, until)
            .and_then(|stream| handshake(stream, world, secret, Instant::now() + timeouts.handshake, timeouts.silence));
        let error = match made {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(refused)) => return Err(meeting(world, refused)),
            Err(error) => error,
        };
        if Instant::now() > until {
            let seconds = timeouts.meeting.as_secs_f64();
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
            // Without a listener, a connection to an ephemeral port can connect to itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => last = io::ErrorKind::ConnectionRefused.into(),
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_meeting_names_who_is_missing_and_who_was_refused() {
        let world = World { rank: 0, local_rank: 0, size: 4, address: "127.0.0.1".into(), port: 1 };
        let mut meeting = Meeting {
            world: &world,
            secret: None,
            timeouts: Timeouts::default(),
            pending: VecDeque::new(),
            found: BTreeMap::new(),
            strangers: 0,
            other_secrets: 0,
            invalid: None,
        };
        assert_eq!(meeting.absent(), "1 of 4 ranks came in 600 s, rank 1, 2, 3 did not");
        (meeting.strangers, meeting.other_secrets) = (2, 1);
        meeting.invalid = Some(InvalidPeer::Taken { rank: 3 });
        let refused = "; connections from no rank of this version: 2; processes with another secret, or none: 1; two \
                       processes were started as rank 3";
        assert!(meeting.absent().contains(refused), "{}", meeting.absent());
    }
}
