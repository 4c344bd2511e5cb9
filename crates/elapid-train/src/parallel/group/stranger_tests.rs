//! Strangers that reach the port, over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::handshake::{ANSWER, GREETING, VERSION};
use super::tests::{TIMEOUTS, free_port, secret, world};
use super::*;

/// Two ranks connect while `strangers` attacks rank 0's port before and while the second one arrives.
fn meet_despite(timeouts: Timeouts, strangers: impl FnOnce(u16)) {
    let port = free_port();
    thread::scope(|scope| {
        let join = |rank| Group::join(&world(rank, 2, port), Some(&secret()), timeouts, &mut |_| ());
        let first = scope.spawn(move || join(0).and_then(|group| group.finish()));
        strangers(port);
        join(1).and_then(|group| group.finish()).unwrap();
        first.join().unwrap().unwrap();
    });
}

/// A connection to rank 0, and its greeting.
fn connect(port: u16) -> (TcpStream, [u8; GREETING]) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port))
            && stream.local_addr().unwrap() != stream.peer_addr().unwrap()
        {
            let mut greeting = [0; GREETING];
            stream.read_exact(&mut greeting).unwrap();
            return (stream, greeting);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What arrives until rank 0 closes the connection.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    stream.read_to_end(&mut bytes).ok();
    bytes
}

/// A complete answer with a wrong tag.
fn forged(version: u32, size: u32, rank: u32) -> Vec<u8> {
    let numbers = [version, size, rank].map(u32::to_le_bytes).concat();
    let mut answer = [&b"elapid>0"[..], &numbers].concat();
    answer.resize(ANSWER, 7);
    answer
}

#[test]
fn garbage_is_ignored() {
    meet_despite(TIMEOUTS, |port| {
        let garbage: [&[u8]; 5] =
            [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0xff; 5000], b"elapid<0", b"elapid>1", &[0]];
        for bytes in garbage {
            let (mut stream, _) = connect(port);
            stream.write_all(bytes).unwrap();
            assert!(rest(stream).is_empty());
        }
        // As in the first version of the protocol: 20 bytes that everybody knows.
        let (mut stream, _) = connect(port);
        stream.write_all(&forged(1, 2, 1)[..20]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(rest(stream).is_empty());
        let (mut stream, _) = connect(port);
        stream.write_all(&forged(VERSION + 1, 2, 1)).unwrap();
        assert!(rest(stream).is_empty(), "another version");
    });
}

#[test]
fn one_that_says_nothing_or_little_waits_in_vain() {
    // Connections that stay open keep nobody out, ..
    let mut silent = Vec::new();
    meet_despite(TIMEOUTS, |port| {
        for sent in [0, 1, 8, ANSWER - 1] {
            let (mut stream, _) = connect(port);
            stream.write_all(&forged(VERSION, 2, 1)[..sent]).unwrap();
            silent.push(stream);
        }
    });
    // .. are closed when all ranks are there, ..
    silent.into_iter().for_each(|stream| assert!(rest(stream).is_empty()));
    // .. and end when their time is over, though a byte comes now and then.
    // Long enough for the ranks themselves on a busy machine.
    let brief = Timeouts { handshake: Duration::from_secs(3), ..TIMEOUTS };
    meet_despite(brief, |port| {
        let (mut stream, _) = connect(port);
        let answer = forged(VERSION, 2, 1);
        let closed = answer[..ANSWER - 1].iter().any(|byte| {
            thread::sleep(Duration::from_millis(20));
            stream.write_all(&[*byte]).is_err()
        });
        assert!(closed || rest(stream).is_empty());
    });
}

#[test]
fn many_connections_are_no_more_than_some() {
    let many = 2 * rendezvous::MOST_PENDING;
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let before = threads();
    meet_despite(TIMEOUTS, |port| {
        let open: Vec<_> = (0..many).map(|_| connect(port).0).collect();
        // Other tests have threads too, but far fewer than there are connections here.
        assert!(threads() < before + many / 2, "a thread for each");
        // The oldest were closed before their time was over; the newest are still pending.
        for mut stream in &open[..many - rendezvous::MOST_PENDING] {
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        }
        let mut newest = open.last().unwrap();
        newest.set_nonblocking(true).unwrap();
        assert_eq!(newest.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is still open");
    });
}

#[test]
fn another_secret_is_refused_and_the_meeting_goes_on() {
    let others = [None, Some(Secret::new(b"the secret of other tests").unwrap())];
    meet_despite(TIMEOUTS, |port| {
        for other in &others {
            let joined = Group::join(&world(1, 2, port), other.as_ref(), TIMEOUTS, &mut |_| ());
            let error = joined.err().unwrap().to_string();
            assert!(error.contains("another secret") && error.contains("ELAPID_SECRET_FILE"), "{error}");
        }
        // It learns nothing against which it could test guesses.
        let (mut stream, _) = connect(port);
        stream.write_all(&forged(VERSION, 2, 1)).unwrap();
        assert_eq!(rest(stream)[5..], [0; 32]);
    });
}

/// Forwards bytes between a rank and rank 0, and returns what the rank sent.
fn relay(port: u16, bytes: usize) -> (u16, thread::JoinHandle<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().port();
    let passing = thread::spawn(move || {
        let (mut rank, _) = listener.accept().unwrap();
        let (_root, greeting) = connect(port);
        rank.write_all(&greeting).unwrap();
        let mut answer = vec![0; bytes];
        rank.read_exact(&mut answer).unwrap();
        answer
    });
    (at, passing)
}

#[test]
fn a_recorded_handshake_proves_nothing() {
    meet_despite(TIMEOUTS, |port| {
        // The answer of rank 1 to a greeting of rank 0, before its connection is lost ..
        let (at, recorded) = relay(port, ANSWER);
        let short = Timeouts { meeting: Duration::ZERO, ..TIMEOUTS };
        Group::join(&world(1, 2, at), Some(&secret()), short, &mut |_| ()).err().unwrap();
        let recorded = recorded.join().unwrap();
        // .. is no answer to another greeting, by itself or with parts of it changed.
        let (mut stream, _) = connect(port);
        stream.write_all(&recorded).unwrap();
        let verdict = rest(stream);
        assert_eq!((verdict[0], verdict.len()), (1, 37), "another secret");
    });
}

#[test]
fn an_answer_is_bound_to_rank_size_and_version() {
    for at in [8, 12, 16, 20, ANSWER - 1] {
        meet_despite(TIMEOUTS, |port| {
            // A man in the middle changes a byte of the answer to this greeting.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let between = listener.local_addr().unwrap().port();
            thread::scope(|scope| {
                let passing = scope.spawn(move || {
                    let (mut rank, _) = listener.accept().unwrap();
                    let (mut root, greeting) = connect(port);
                    rank.write_all(&greeting).unwrap();
                    let mut answer = [0; ANSWER];
                    rank.read_exact(&mut answer).unwrap();
                    answer[at] ^= 2;
                    root.write_all(&answer).unwrap();
                    rest(root)
                });
                let short = Timeouts { meeting: Duration::ZERO, ..TIMEOUTS };
                Group::join(&world(1, 2, between), Some(&secret()), short, &mut |_| ()).err().unwrap();
                let verdict = passing.join().unwrap();
                assert!(verdict.is_empty() || verdict[0] == 1, "byte {at}: {verdict:?}");
            });
        });
    }
}

#[test]
fn rank_0_proves_that_it_knows_the_secret() {
    // An impostor that listens in place of rank 0, and accepts everybody.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut rank, _) = listener.accept().unwrap();
            rank.write_all(&[&b"elapid<0"[..], &VERSION.to_le_bytes(), &[7; 32]].concat()).unwrap();
            rank.read_exact(&mut [0; ANSWER]).unwrap();
            rank.write_all(&[&[0, 2, 0, 0, 0][..], &[7; 32]].concat()).unwrap();
            rest(rank);
        });
        let joined = Group::join(&world(1, 2, port), Some(&secret()), TIMEOUTS, &mut |_| ());
        let error = joined.err().unwrap().to_string();
        assert!(error.contains("does not know the secret"), "{error}");
    });
}

#[test]
fn a_rank_that_comes_twice_is_refused() {
    // Without a secret any process of this host may send this: accepting continues.
    let port = free_port();
    thread::scope(|scope| {
        let join = move |rank| {
            let group = Group::join(&world(rank, 3, port), None, TIMEOUTS, &mut |_| ()).unwrap();
            group.finish().unwrap();
        };
        scope.spawn(move || join(0));
        let connect = || rendezvous::connect_to_root(&world(1, 3, port), None, TIMEOUTS, &mut |_| ());
        let first = connect().unwrap();
        let error = connect().err().unwrap().to_string();
        assert!(error.contains("two processes were started as rank 1"), "{error}");
        // A rank that disconnected may connect again.
        drop(first);
        scope.spawn(move || join(1));
        join(2);
    });
}

#[test]
fn without_a_secret_other_hosts_are_refused() {
    for address in ["192.0.2.1", "0.0.0.0", "::", "no such host"] {
        for rank in [0, 1] {
            let world = World { address: address.into(), ..world(rank, 2, free_port()) };
            let error = Group::join(&world, None, TIMEOUTS, &mut |_| ()).err().unwrap();
            let text = error.to_string();
            assert!(matches!(error, Error::World { .. }), "{text}");
            for part in [address, "ELAPID_SECRET", "ELAPID_SECRET_FILE", "openssl rand", "127.0.0.1"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
    for address in ["localhost", "127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"] {
        let world = World { address: address.into(), ..world(0, 2, 1) };
        assert!(rendezvous::require_secret(&world, None).is_ok(), "{address}");
    }
    let world = World { address: "192.0.2.1".into(), ..world(0, 2, 1) };
    assert!(rendezvous::require_secret(&world, Some(&secret())).is_ok());
}

#[test]
fn frames_that_are_no_frames_of_the_link_end_it() {
    let huge = [&[Kind::Message as u8, 1, 0, 0, 0][..], &u64::MAX.to_le_bytes()].concat();
    let cases: [(&[u8], &str); 3] = [(&huge, "at most 1048576"), (&[99; 64], "unknown kind"), (&[0; 45], "changed")];
    for (bytes, reason) in cases {
        let port = free_port();
        thread::scope(|scope| {
            let first = scope.spawn(move || Group::join(&world(0, 2, port), Some(&secret()), TIMEOUTS, &mut |_| ()));
            let link = rendezvous::connect_to_root(&world(1, 2, port), Some(&secret()), TIMEOUTS, &mut |_| ()).unwrap();
            link.writer.get_ref().write_all(bytes).unwrap();
            let error = first.join().unwrap().err().unwrap().to_string();
            assert!(error.contains("rank 1 of 2 was lost") && error.contains(reason), "{error}");
        });
    }
}
