use std::sync::Barrier;

use super::*;

const SHORT: Patience =
    Patience { meet: Duration::from_secs(20), beat: Duration::from_millis(50), silence: Duration::from_secs(20) };

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn world(rank: usize, size: usize, port: u16) -> World {
    World { rank, local_rank: rank, size, address: "127.0.0.1".into(), port }
}

fn join(rank: usize, size: usize, port: u16) -> Result<Arc<Group>> {
    Group::join(&world(rank, size, port), SHORT, &mut |_| ())
}

/// Every rank in a thread of its own.
fn ranks<R: Send>(size: usize, f: impl Fn(usize, Arc<Group>) -> R + Sync) -> Vec<R> {
    let (port, met) = (free_port(), Barrier::new(size));
    let (f, met) = (&f, &met);
    thread::scope(|scope| {
        let rank = |rank| {
            let group = join(rank, size, port).unwrap();
            // A rank that is lost before is an error of the meeting.
            met.wait();
            f(rank, group)
        };
        let threads: Vec<_> = (0..size).map(|i| scope.spawn(move || rank(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn loss<T>(result: Result<T>) -> Loss {
    match result {
        Err(Error::Lost(loss)) => loss,
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
            // More than fits into the system's buffers.
            let mut numbers: Vec<f32> = (0..1_000_000).map(|i| (i % 1000) as f32 * 0.1 + rank as f32).collect();
            group.sum(&mut numbers).unwrap();
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
                // As a killed process: no word, the connections end.
                group.shared.finished.store(true, Ordering::Release);
                return None;
            }
            let (heard, hearing) = mpsc::channel();
            group.on_loss(move |loss| heard.send(loss.clone()).unwrap());
            let waited = loss((0..).try_for_each(|_| group.barrier()));
            assert_eq!(hearing.recv_timeout(Duration::from_secs(5)).unwrap(), waited);
            let (late, hearing) = mpsc::channel();
            group.on_loss(move |loss| late.send(loss.clone()).unwrap());
            assert_eq!(hearing.recv_timeout(Duration::from_secs(5)).unwrap(), waited, "a hook that comes late");
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
                group.fail("its disk is full");
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
    let patience = Patience { silence: Duration::from_millis(400), ..SHORT };
    let met = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A rank that meets the other and then hangs: no signs of life.
            let mut stream = visit(&world(1, 2, port), patience, &mut |_| ()).unwrap();
            frame::write(&mut stream, Kind::Message, 1, &[]).unwrap();
            met.wait();
        });
        let group = Group::join(&world(0, 2, port), patience, &mut |_| ()).unwrap();
        let loss = loss(group.barrier());
        assert!(loss.rank == 1 && loss.reason.contains("no sign of life"), "{loss}");
        met.wait();
    });
    // Signs of life keep a quiet group together.
    let quiet = free_port();
    thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let group = Group::join(&world(rank, 2, quiet), patience, &mut |_| ()).unwrap();
                thread::sleep(Duration::from_millis(1200));
                group.finish().unwrap();
            });
        }
    });
}

#[test]
fn strangers_are_not_let_in() {
    let port = free_port();
    thread::scope(|scope| {
        let first = scope.spawn(move || join(0, 2, port));
        let connected = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) if stream.local_addr().unwrap() != stream.peer_addr().unwrap() => break stream,
                _ => thread::sleep(Duration::from_millis(5)),
            }
        };
        // One says nothing at all, one speaks HTTP.
        let mut browser = TcpStream::connect(("127.0.0.1", port)).unwrap();
        browser.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        browser.read_to_end(&mut answer).ok();
        assert!(answer.is_empty());
        let second = join(1, 2, port).unwrap();
        let first = first.join().unwrap().unwrap();
        drop(connected);
        thread::scope(|scope| {
            scope.spawn(|| first.finish().unwrap());
            second.finish().unwrap();
        });
    });
}

#[test]
fn ranks_that_do_not_fit_are_told_why() {
    let meet = |first: World, second: World| {
        thread::scope(|scope| {
            let first = scope.spawn(move || Group::join(&first, SHORT, &mut |_| ()).err().unwrap().to_string());
            let second = Group::join(&second, SHORT, &mut |_| ()).err().unwrap().to_string();
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
    assert!(twice.iter().all(|text| text.contains("two processes say that they are rank 1")), "{twice:?}");
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let impatient = Patience { meet: Duration::from_millis(300), ..SHORT };
    let port = free_port();
    let error = Group::join(&world(0, 3, port), impatient, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("1 of 3 ranks") && error.contains("rank 1, 2 did not"), "{error}");
    let error = Group::join(&world(2, 3, port), impatient, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("rank 0 was not there") && error.contains("MASTER_ADDR"), "{error}");
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = Group::join(&world(0, 2, port), impatient, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("in use") && error.contains("MASTER_PORT"), "{error}");
    // Something else listens where rank 0 should.
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = taken.accept().unwrap();
            stream.write_all(b"220 mail.example.org ready\r\n").unwrap();
            stream.read_to_end(&mut Vec::new()).ok();
        });
        let error = Group::join(&world(1, 2, port), impatient, &mut |_| ()).err().unwrap().to_string();
        assert!(error.contains("not rank 0 of elapid"), "{error}");
    });
}

#[test]
fn an_error_is_blamed_on_a_lost_rank() {
    let errors = ranks(2, |rank, group| {
        if rank == 1 {
            group.fail("it stumbled");
            return String::new();
        }
        group.blame(Error::Ranks { what: "a consequence".into() }).to_string()
    });
    assert!(errors[0].contains("it stumbled"), "{errors:?}");
}
