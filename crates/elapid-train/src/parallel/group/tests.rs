use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Barrier;

use super::*;

/// Longer than a busy machine takes; only tests of a timeout wait for it.
const LONG: Duration = Duration::from_secs(300);

pub(super) const TIMEOUTS: Timeouts = Timeouts {
    meeting: LONG,
    handshake: LONG,
    heartbeat: Duration::from_millis(50),
    silence: LONG,
    cause: Duration::from_secs(60),
};

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn world(rank: usize, size: usize, port: u16) -> World {
    World { rank, local_rank: rank, size, address: "127.0.0.1".into(), port }
}

pub(super) fn secret() -> Secret {
    Secret::new(b"the secret of these tests").unwrap()
}

fn join(rank: usize, size: usize, port: u16) -> Result<Arc<Group>> {
    Group::join(&world(rank, size, port), Some(&secret()), TIMEOUTS, &mut |_| ())
}

/// Every rank on its own thread.
fn ranks<R: Send>(size: usize, f: impl Fn(usize, Arc<Group>) -> R + Sync) -> Vec<R> {
    let (port, met) = (free_port(), Barrier::new(size));
    let (f, met) = (&f, &met);
    thread::scope(|scope| {
        let rank = |rank| {
            let group = join(rank, size, port).unwrap();
            // A rank that is lost before is an error of connecting.
            met.wait();
            f(rank, group)
        };
        let threads: Vec<_> = (0..size).map(|i| scope.spawn(move || rank(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn loss<T>(result: Result<T>) -> LostRank {
    match result {
        Err(Error::Lost(lost)) => lost,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no rank was lost"),
    }
}

#[test]
fn ranks_do_things_together() {
    for size in [2, 3, 5] {
        let sums = ranks(size, |rank, group| {
            assert_eq!((group.world().rank, group.size(), group.is_first()), (rank, size, rank == 0));
            assert_eq!(group.broadcast(&[rank as u8, 7]).unwrap(), [0, 7]);
            let gathered = group.gather(&[rank as u8]).unwrap();
            let all: Vec<Vec<u8>> = (0..size as u8).map(|rank| vec![rank]).collect();
            assert_eq!(gathered, if rank == 0 { all } else { Vec::new() });
            group.allow_values(1_000_000);
            group.barrier().unwrap();
            // More than fits into the system's buffers.
            let mut numbers: Vec<f32> = (0..1_000_000).map(|i| (i % 1000) as f32 * 0.1 + rank as f32).collect();
            group.sum(&mut numbers).unwrap();
            let mut shared = [rank as f32 + 0.5, -1.0];
            group.broadcast_values(&mut shared).unwrap();
            assert_eq!(shared, [0.5, -1.0]);
            assert!(group.agree(rank == 0).unwrap() && !group.agree(rank == 1).unwrap());
            group.barrier().unwrap();
            group.finish().unwrap();
            numbers
        });
        let extra = (0..size).sum::<usize>() as f32;
        assert!((sums[0][123] - (12.3 * size as f32 + extra)).abs() < 1e-3);
        assert!(sums.iter().all(|sum| sum == &sums[0]), "the same bits everywhere");
    }
}

#[test]
fn messages_have_the_size_that_is_expected() {
    let large = vec![1.0; 1 << 19];
    let errors = ranks(2, |rank, group| {
        let other = group.sum(&mut [0.0; 4][..3 + rank]).err().map(|error| error.to_string());
        if rank == 0 {
            // More than was allowed is not sent ..
            let error = group.broadcast_values(&mut large.clone()).unwrap_err().to_string();
            assert!(error.contains("2097152 bytes") && error.contains("1048576"), "{error}");
            // .. and, if it is sent, not read: the other end closes before all of it has arrived.
            lock(&group.members.peers[0].out).write(Kind::Message, 3, &to_bytes(&large)).ok();
        }
        let lost = loss((0..).try_for_each(|_| group.barrier()));
        (other, lost)
    });
    assert!(errors[0].0.as_ref().unwrap().contains("rank 1 sends 4 values, rank 0 expects 3"), "{errors:?}");
    assert!(errors[1].1.reason.contains("at most 1048576"), "{errors:?}");
}

#[test]
fn any_rank_can_be_asked_to_stop() {
    for asked in 0..3 {
        let stops = ranks(3, |rank, group| {
            let mut steps = 0;
            while !group.stop(rank == asked && steps >= 4).unwrap() {
                steps += 1;
                thread::sleep(Duration::from_millis(1));
                assert!(steps < 10_000);
            }
            group.finish().unwrap();
            steps
        });
        assert!(stops[0] >= 4 && stops.iter().all(|steps| steps == &stops[0]), "{stops:?}");
    }
}

#[test]
fn all_ranks_hear_which_one_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("resume/step-00000040")).unwrap();
    for lost in [0, 2] {
        let losses = ranks(4, |rank, group| {
            group.keeps_in(dir.path().to_owned());
            group.barrier().unwrap();
            if rank == lost {
                // Like a killed process: no message, the connections end.
                group.members.finished.store(true, Ordering::Release);
                return None;
            }
            let (heard, hearing) = mpsc::channel();
            group.on_loss(move |loss| heard.send(loss.clone()).unwrap());
            let waited = loss((0..).try_for_each(|_| group.barrier()));
            assert_eq!(hearing.recv_timeout(LONG).unwrap(), waited);
            let (late, hearing) = mpsc::channel();
            group.on_loss(move |loss| late.send(loss.clone()).unwrap());
            assert_eq!(hearing.recv_timeout(LONG).unwrap(), waited, "a hook that comes late");
            assert!(group.check().is_err());
            Some(waited)
        });
        for loss in losses.into_iter().flatten() {
            assert_eq!((loss.rank, loss.size), (lost, 4));
            let text = loss.to_string();
            for part in ["was lost", "ended or was killed", "step 40", "resume/step-00000040", "--resume"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}

#[test]
fn an_error_of_one_rank_is_told_to_all() {
    for failing in [0, 1] {
        let losses = ranks(3, |rank, group| {
            if rank == failing {
                group.report_failure("its disk is full");
                return None;
            }
            Some(loss((0..).try_for_each(|_| group.barrier())))
        });
        for loss in losses.into_iter().flatten() {
            assert_eq!(loss.rank, failing);
            assert!(loss.reason.contains("its disk is full"), "{loss}");
        }
    }
    let losses = ranks(2, |rank, group| {
        if rank == 1 {
            drop(group);
            return None;
        }
        Some(loss((0..).try_for_each(|_| group.barrier())))
    });
    assert!(losses[0].as_ref().unwrap().reason.contains("before the others"));
}

#[test]
fn what_a_watch_says_twice_is_a_loss_everywhere() {
    for broken in [0, 1] {
        let losses = ranks(3, |rank, group| {
            if rank == broken {
                group.watch(|| Some("its network broke".into()));
            }
            loss((0..).try_for_each(|_| {
                thread::sleep(Duration::from_millis(1));
                group.barrier()
            }))
        });
        assert!(losses.iter().all(|loss| loss.rank == broken && loss.reason.contains("network broke")), "{losses:?}");
    }
}

#[test]
fn silence_is_a_loss() {
    let port = free_port();
    let timeouts = Timeouts { silence: Duration::from_millis(200), ..TIMEOUTS };
    let met = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A rank that connects and then hangs.
            let link = rendezvous::connect_to_root(&world(1, 2, port), None, timeouts, &mut |_| ()).unwrap();
            met.wait();
            drop(link);
        });
        let lost = loss(Group::join(&world(0, 2, port), None, timeouts, &mut |_| ()));
        assert!(lost.rank == 1 && lost.reason.contains("no sign of life"), "{lost}");
        met.wait();
    });
}

#[test]
fn heartbeats_come_while_nothing_else_does() {
    let port = free_port();
    thread::scope(|scope| {
        scope.spawn(|| join(0, 3, port).and_then(|group| group.finish()).unwrap());
        let connect =
            |rank| rendezvous::connect_to_root(&world(rank, 3, port), Some(&secret()), TIMEOUTS, &mut |_| ()).unwrap();
        let beats = |link: &mut handshake::Link| {
            for _ in 0..3 {
                assert_eq!(link.reader.read(|| 0).unwrap().unwrap().kind, Kind::Beat);
            }
        };
        // Rank 2 may arrive much later than rank 1, ..
        let mut one = connect(1);
        beats(&mut one);
        let mut two = connect(2);
        // .. and a barrier may take long.
        beats(&mut two);
        for number in [1, 3] {
            for link in [&mut one, &mut two] {
                link.writer.write(Kind::Message, number, &[]).unwrap();
            }
        }
        for link in [&mut one, &mut two] {
            link.writer.write(Kind::Bye, 0, &[]).unwrap();
        }
        let kinds: Vec<Kind> = std::iter::from_fn(|| one.reader.read(|| 0).ok()?).map(|frame| frame.kind).collect();
        assert_eq!(kinds.iter().filter(|&&kind| kind == Kind::Message).count(), 2);
    });
}

#[test]
fn ranks_that_do_not_fit_are_told_why() {
    let meet = |first: World, second: World| {
        thread::scope(|scope| {
            let join = |world: &World| Group::join(world, Some(&secret()), TIMEOUTS, &mut |_| ()).err().unwrap();
            let first = scope.spawn(move || join(&first).to_string());
            let second = join(&second).to_string();
            (first.join().unwrap(), second)
        })
    };
    let port = free_port();
    let (first, second) = meet(world(0, 2, port), world(1, 3, port));
    assert!(first.contains("one of 3") && second.contains("WORLD_SIZE must be the same"), "{first} {second}");

    let port = free_port();
    let twice = thread::scope(|scope| {
        let ranks = [0, 1, 1].map(|rank| scope.spawn(move || join(rank, 3, port).err().unwrap().to_string()));
        ranks.map(|rank| rank.join().unwrap())
    });
    assert!(twice.iter().all(|text| text.contains("two processes were started as rank 1")), "{twice:?}");
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let short = Timeouts { meeting: Duration::from_millis(300), ..TIMEOUTS };
    let port = free_port();
    let refused = |rank, size, timeouts| {
        Group::join(&world(rank, size, port), None, timeouts, &mut |_| ()).err().unwrap().to_string()
    };
    let error = refused(0, 3, short);
    assert!(error.contains("1 of 3 ranks") && error.contains("rank 1, 2 did not"), "{error}");
    let error = refused(2, 3, short);
    assert!(error.contains("rank 0 was not there") && error.contains("MASTER_ADDR"), "{error}");
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = refused(0, 2, short);
    assert!(error.contains("in use") && error.contains("MASTER_PORT"), "{error}");
    // Something else listens where rank 0 should.
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = taken.accept().unwrap();
            stream.write_all(b"220 mail.example.org ready\r\n").unwrap();
            stream.read_to_end(&mut Vec::new()).ok();
        });
        let error = refused(1, 2, TIMEOUTS);
        assert!(error.contains("not rank 0 of elapid"), "{error}");
    });
}

#[test]
fn a_lost_rank_is_the_cause_of_an_error() {
    let errors = ranks(2, |rank, group| {
        if rank == 1 {
            group.report_failure("it stumbled");
            return String::new();
        }
        group.cause_of(Error::Ranks { what: "a consequence".into() }).to_string()
    });
    assert!(errors[0].contains("it stumbled"), "{errors:?}");
}
