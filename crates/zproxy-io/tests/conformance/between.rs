//! What comes between two fills, and just behind one.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use zproxy_io::{Driver, Ending, Fault, Op, Outcome, RelayMode, Sock};

use crate::support::{End, Kit, Pump, World, bytes, far, run_pumps};

conformance!(
    bytes_between_fills,
    end_between_fills,
    reset_between_fills,
    reset_behind_bytes,
    resets_close_behind_bytes,
    stream_between_fills,
    stream_behind_small_messages,
    close_between_fills,
    many_close_between_fills,
);

const MODES: [RelayMode; 3] = [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy];
const SEED: u64 = 77;
/// So many small messages, each taken by a fill of its own, come first.
const SMALL: u64 = 6;

/// A socket whose messages have been small so far: 8 bytes each, [`SMALL`] of them.
fn small<K: Kit>(relay: RelayMode) -> (World<K::Driver>, Sock, TcpStream) {
    let mut world = World::new::<K>(relay);
    let (near, far) = greet(&mut world);
    (world, near, far)
}

fn greet<D: Driver>(world: &mut World<D>) -> (Sock, TcpStream) {
    let (near, mut far) = world.pair();
    for message in 0..SMALL {
        far.write_all(&bytes::patterned(SEED, message * 8, 8)).expect("open");
        assert_eq!(take(world, near, message * 8), 8);
    }
    (near, far)
}

/// One fill, whose bytes are checked and dropped.
fn take<D: Driver>(world: &mut World<D>, near: Sock, at: u64) -> u64 {
    let mut lease = world.fill(near);
    let mut bytes = vec![0; lease.len()];
    assert_eq!(lease.take_head(&mut bytes), bytes.len());
    bytes::check(SEED, at, &bytes);
    bytes.len() as u64
}

/// Fills get what came while there was none, in order, and then what comes.
fn bytes_between_fills<K: Kit>() {
    for relay in MODES {
        let (mut world, near, mut far) = small::<K>(relay);
        let mut at = SMALL * 8;
        let mut written = at;
        for message in 1..40 {
            far.write_all(&bytes::patterned(SEED, written, message)).expect("open");
            written += message as u64;
            // Sometimes the driver looks before it is asked, and sometimes more comes first.
            if message % 3 == 0 {
                world.settle();
            }
            while message % 4 == 0 && at < written {
                at += take(&mut world, near, at);
            }
        }
        while at < written {
            at += take(&mut world, near, at);
        }
        let waiting = world.submit(Op::Fill { from: near });
        world.assert_waits(waiting);
        far.write_all(&bytes::patterned(SEED, written, 1)).expect("open");
        assert!(matches!(world.outcome(waiting), Outcome::Filled(lease) if lease.len() == 1));
        world.finish();
    }
}

/// An end that came while there was no fill is told behind the last byte.
fn end_between_fills<K: Kit>() {
    for relay in MODES {
        for count in [0, 1, 5_000] {
            let (mut world, near, mut far) = small::<K>(relay);
            let mut at = SMALL * 8;
            far.write_all(&bytes::patterned(SEED, at, count)).expect("open");
            far.shutdown(Shutdown::Write).expect("open");
            world.settle();
            let end = at + count as u64;
            while at < end {
                at += take(&mut world, near, at);
            }
            let outcome = world.run(Op::Fill { from: near });
            assert!(matches!(outcome, Outcome::Eof), "{outcome:?}");
            world.finish();
        }
    }
}

/// A reset that came while there was no fill is a fault and never an end.
fn reset_between_fills<K: Kit>() {
    for relay in MODES {
        let (mut world, near, far) = small::<K>(relay);
        far::reset(far);
        world.settle();
        let outcome = world.run(Op::Fill { from: near });
        assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
        world.finish();
    }
}

/// Bytes and a reset that come together are both told, to a fill that waits and to the next one.
fn reset_behind_bytes<K: Kit>() {
    for relay in MODES {
        for is_waited_for in [true, false] {
            let (mut world, near, mut far) = small::<K>(relay);
            let waiting = is_waited_for.then(|| world.submit(Op::Fill { from: near }));
            if let Some(waiting) = waiting {
                world.assert_waits(waiting);
            }
            far.write_all(&bytes::patterned(SEED, SMALL * 8, 8)).expect("open");
            far::reset(far);
            let first = waiting.unwrap_or_else(|| world.submit(Op::Fill { from: near }));
            match world.outcome(first) {
                Outcome::Filled(lease) => assert_eq!(lease.len(), 8),
                // A kernel may drop what nobody has read yet.
                Outcome::Failed(Fault::Reset) => continue,
                other => panic!("{other:?}"),
            }
            let outcome = world.run(Op::Fill { from: near });
            assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
            world.finish();
        }
    }
}

/// However close a reset comes behind bytes, and whatever the driver does meanwhile, it is told.
fn resets_close_behind_bytes<K: Kit>() {
    const RESETS: u64 = 1_500;
    let (post, resetting) = far::spawn_resetter();
    let mut world = World::new::<K>(RelayMode::Auto);
    let mut pauses = bytes::Random::new(5);
    for _ in 0..RESETS {
        let (near, far) = greet(&mut world);
        let mut waiting = world.submit(Op::Fill { from: near });
        world.wait(Duration::ZERO);
        let pause = Duration::from_micros(pauses.upto(10) as u64);
        let message = bytes::patterned(SEED, SMALL * 8, 8);
        post.send((far, message, pause)).expect("it ends when we do");
        let mut at = SMALL * 8;
        loop {
            match world.outcome(waiting) {
                Outcome::Filled(mut lease) => {
                    let mut bytes = vec![0; lease.len()];
                    lease.take_head(&mut bytes);
                    bytes::check(SEED, at, &bytes);
                    at += bytes.len() as u64;
                }
                Outcome::Failed(Fault::Reset) => break,
                other => panic!("{other:?}"),
            }
            waiting = world.submit(Op::Fill { from: near });
        }
        world.close(near, Ending::Reset);
    }
    world.finish();
    drop(post);
    resetting.join().expect("it resets");
}

/// Whatever comes while nobody fills stays with its sender, but for a little.
fn stream_between_fills<K: Kit>() {
    for relay in MODES {
        let (mut world, near, mut far) = small::<K>(relay);
        let mut at = SMALL * 8;
        let mut written = at;
        far.set_nonblocking(true).expect("a socket");
        // Full is what stays full when the driver has had its look.
        let mut vain = 0;
        while vain < 2 {
            match far.write(&bytes::patterned(SEED, written, 64 << 10)) {
                Ok(count) => (written, vain) = (written + count as u64, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    vain += 1;
                    world.settle();
                }
                Err(error) => panic!("{error}"),
            }
        }
        let stats = world.driver.stats();
        let held = stats.bufs_leased - stats.bufs_returned;
        assert!(held <= 4, "{held} buffers are held for nobody: {stats:?}");
        while at < written {
            at += take(&mut world, near, at);
        }
        let waiting = world.submit(Op::Fill { from: near });
        world.assert_waits(waiting);
        world.finish();
    }
}

/// Small messages and a stream by turns: the paths change to and fro, and no byte is out of place.
fn stream_behind_small_messages<K: Kit>() {
    for relay in MODES {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, sink) = world.pair();
        let reader = far::spawn_reader(sink, SEED, 70_000);
        let writer = std::thread::spawn(move || {
            let mut at = 0;
            for turn in 0..60_u64 {
                let sizes: &[usize] = match turn % 3 {
                    0 => &[8, 100, 8, 1_000, 8, 8],
                    1 => &[300_000],
                    _ => &[4_096, 4_096, 10, 5_000, 10],
                };
                for &size in sizes {
                    source.write_all(&bytes::patterned(SEED, at, size)).expect("open");
                    at += size as u64;
                }
            }
            source.shutdown(Shutdown::Write).expect("open");
            (at, source)
        });
        let mut pumps = [Pump::start(&mut world, from, to)];
        run_pumps(&mut world, &mut pumps);
        let (written, _source) = writer.join().expect("everything was taken");
        assert_eq!(pumps[0].end, Some(End::Eof));
        assert_eq!(pumps[0].put, written);
        assert_eq!(reader.join().expect("the bytes are right"), written);
        world.finish();
    }
}

/// A socket is closed while bytes for nobody are there, and while more are coming.
fn close_between_fills<K: Kit>() {
    for relay in MODES {
        for how in [Ending::Clean, Ending::Reset] {
            for settles in [false, true] {
                let (mut world, near, mut far) = small::<K>(relay);
                far.write_all(&[1; 10_000]).expect("open");
                if settles {
                    world.settle();
                }
                assert!(world.close(near, how).is_empty(), "nothing was in flight");
                world.finish();
            }
        }
    }
}

/// Many at once, some of which have been sent something in the same moment, and some waited for.
fn many_close_between_fills<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let mut ends = Vec::new();
    for _ in 0..100 {
        ends.push(greet(&mut world));
    }
    for (number, (near, far)) in ends.iter_mut().enumerate() {
        if number % 2 == 0 {
            world.submit(Op::Fill { from: *near });
        }
        if number % 3 == 0 {
            far.write_all(&[1; 100]).expect("open");
        }
        if number % 5 == 0 {
            far.shutdown(Shutdown::Write).expect("open");
        }
    }
    let nears = ends.iter().map(|(near, _)| *near);
    world.close_all(nears, Ending::Reset, |done| {
        let is_fine = matches!(
            done.outcome,
            Outcome::Failed(Fault::Cancelled) | Outcome::Filled(_) | Outcome::Eof
        );
        assert!(is_fine, "{done:?}");
    });
    world.finish();
}
