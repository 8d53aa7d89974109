//! Receiving and sending, as control connections do.

use std::io::Write;
use std::net::Shutdown;

use zproxy_io::{Driver, Fault, Op, Outcome, RelayMode};

use crate::support::{Far, Kit, World, bytes, far};

conformance!(
    recv_appends_and_keeps_to_its_limit,
    recv_waits_for_bytes,
    recv_sees_the_end,
    recv_sees_a_reset,
    send_to_a_slow_reader,
    send_to_a_dead_reader,
    send_of_nothing,
    echo,
    what_is_there_is_taken_at_once,
    taking_at_once_leaves_the_end,
    taking_at_once_leaves_the_fault,
);

conformance_simulated!(
    recv_appends_and_keeps_to_its_limit,
    recv_waits_for_bytes,
    recv_sees_the_end,
    recv_sees_a_reset,
    send_to_a_dead_reader,
    send_of_nothing,
    what_is_there_is_taken_at_once,
    taking_at_once_leaves_the_end,
    taking_at_once_leaves_the_fault,
);

fn received(outcome: Outcome) -> (Vec<u8>, usize) {
    match outcome {
        Outcome::Received { buf, count } => (buf, count),
        other => panic!("not received: {other:?}"),
    }
}

/// What is in the buffer stays, and no more than `max` bytes come on top.
fn recv_appends_and_keeps_to_its_limit<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    far.write_all(b"0123456789").expect("open");
    let mut buf = b"kept:".to_vec();
    while buf.len() < 15 {
        let before = buf.len();
        let outcome = world.run(Op::Recv { sock: near, buf, max: 4 });
        let (now, count) = received(outcome);
        assert!((1..=4).contains(&count));
        assert_eq!(now.len(), before + count);
        buf = now;
    }
    assert_eq!(buf, b"kept:0123456789");
    world.finish();
}

/// A receive waits for bytes, and the next one finds what arrived in between.
fn recv_waits_for_bytes<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    for message in 0..100 {
        let token = world.submit(Op::Recv { sock: near, buf: Vec::new(), max: 64 });
        if message == 0 {
            world.assert_waits(token);
        }
        far.write_all(&bytes::patterned(message, 0, 20)).expect("open");
        let mut buf = Vec::new();
        let mut outcome = world.outcome(token);
        loop {
            buf.extend(received(outcome).0);
            if buf.len() == 20 {
                break;
            }
            outcome = world.run(Op::Recv { sock: near, buf: Vec::new(), max: 64 });
        }
        bytes::check(message, 0, &buf);
    }
    world.finish();
}

/// The end of the stream is 0 bytes, and the buffer comes back; so does asking again.
fn recv_sees_the_end<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    far.write_all(b"last").expect("open");
    far.shutdown(Shutdown::Write).expect("open");
    let mut buf = Vec::new();
    loop {
        let outcome = world.run(Op::Recv { sock: near, buf, max: 100 });
        let (now, count) = received(outcome);
        buf = now;
        if count == 0 {
            break;
        }
    }
    assert_eq!(buf, b"last");
    let again = world.run(Op::Recv { sock: near, buf: Vec::new(), max: 100 });
    assert_eq!(received(again), (Vec::new(), 0));
    world.finish();
}

/// A reset fails the receive that waits.
fn recv_sees_a_reset<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.meet();
    let token = world.submit(Op::Recv { sock: near, buf: Vec::new(), max: 100 });
    world.assert_waits(token);
    far::reset(far);
    let outcome = world.outcome(token);
    assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
    world.finish();
}

/// A send of many MiB waits for its reader and loses nothing.
fn send_to_a_slow_reader<K: Kit>() {
    const TOTAL: usize = 24 << 20;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.pair();
    far::narrow(&far);
    let token = world.submit(Op::Send { sock: near, buf: bytes::patterned(3, 0, TOTAL) });
    world.assert_waits(token);
    let reading = far::spawn_reader(far, 3, 50_000);
    let outcome = world.outcome(token);
    assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
    world.driver.shutdown_write(near);
    assert_eq!(reading.join().expect("the bytes are right"), TOTAL as u64);
    world.finish();
}

/// A reset fails the send that waits.
fn send_to_a_dead_reader<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.meet();
    far::narrow(&far);
    let token = world.submit(Op::Send { sock: near, buf: vec![7; 24 << 20] });
    world.assert_waits(token);
    far::reset(far);
    let outcome = world.outcome(token);
    assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
    world.finish();
}

/// A send of no bytes is done at once.
fn send_of_nothing<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, _far) = world.meet();
    let outcome = world.run(Op::Send { sock: near, buf: Vec::new() });
    assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
    world.finish();
}

/// Receiving and sending go on at the same time on one socket.
fn echo<K: Kit>() {
    const TOTAL: u64 = 4 << 20;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.pair();
    let reading = far::spawn_reader(far.try_clone().expect("a free descriptor"), 4, 70_000);
    let writing = far::spawn_writer(far, 4, TOTAL, 70_000);
    let mut spare = Vec::new();
    loop {
        let outcome = world.run(Op::Recv { sock: near, buf: spare, max: 65_536 });
        let (buf, count) = received(outcome);
        if count == 0 {
            break;
        }
        let next = world.submit(Op::Send { sock: near, buf });
        spare = match world.outcome(next) {
            Outcome::Sent { mut buf } => {
                buf.clear();
                buf
            }
            other => panic!("{other:?}"),
        };
    }
    world.driver.shutdown_write(near);
    writing.join().expect("everything was taken");
    assert_eq!(reading.join().expect("the bytes are right"), TOTAL);
    world.finish();
}

/// Bytes that are there are taken at once, up to the limit and behind what the buffer holds; when
/// there are none nothing is, and the next fill finds what was left or comes later.
fn what_is_there_is_taken_at_once<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    let mut buf = b"kept:".to_vec();
    assert_eq!(world.driver.take_now(near, &mut buf, 6), 0);
    assert_eq!(buf, b"kept:");
    let late = world.submit(Op::Fill { from: near });
    world.assert_waits(late);
    far.write_all(b"0123456789").expect("open");
    let outcome = world.outcome(late);
    let Outcome::Filled(mut lease) = outcome else { panic!("not filled: {outcome:?}") };
    let mut filled = [0; 10];
    assert_eq!(lease.take_head(&mut filled), 10);
    drop(lease);
    world.finish();

    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    far.write_all(b"0123456789").expect("open");
    assert_eq!(world.driver.take_now(near, &mut buf, 6), 6);
    assert_eq!(buf, b"kept:012345");
    let mut lease = world.fill(near);
    let mut rest = [0; 4];
    assert_eq!(lease.take_head(&mut rest), 4);
    assert_eq!(&rest, b"6789");
    drop(lease);
    world.finish();
}

/// An end that was met while taking at once is told by the next fill.
fn taking_at_once_leaves_the_end<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    far.write_all(b"last").expect("open");
    far.shutdown(Shutdown::Write).expect("open");
    let mut buf = Vec::new();
    assert_eq!(world.driver.take_now(near, &mut buf, 100), 4);
    assert_eq!(world.driver.take_now(near, &mut buf, 100), 0);
    assert_eq!(buf, b"last");
    let outcome = world.run(Op::Fill { from: near });
    assert!(matches!(outcome, Outcome::Eof), "{outcome:?}");
    world.finish();
}

/// A reset that was met while taking at once is told by the next fill, and not as an end: the kernel
/// tells an error once.
fn taking_at_once_leaves_the_fault<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.meet();
    far::reset(far);
    let mut buf = Vec::new();
    assert_eq!(world.driver.take_now(near, &mut buf, 100), 0);
    let outcome = world.run(Op::Fill { from: near });
    assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
    world.finish();
}
