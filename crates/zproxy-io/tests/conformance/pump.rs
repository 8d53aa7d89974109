//! Rounds: filling and draining.

use std::io::Write;
use std::net::Shutdown;

use zproxy_io::{Driver, Ending, Op, Outcome, RelayMode};

use crate::support::{End, Kit, Pump, World, bytes, far, run_pumps};

conformance!(
    much_auto,
    much_splice,
    much_copy,
    small_fills_auto,
    small_fills_splice,
    small_fills_copy,
    head_is_taken_across_segments,
    whole_batches_leave_no_tail,
    reused_socket_starts_afresh,
    many_flows_at_once,
);

conformance_busy!(much_auto, much_splice, much_copy, small_fills_auto, many_flows_at_once);

/// Both directions of two sockets, 32 MiB one way and 8 MiB the other, in random pieces.
fn much<K: Kit>(relay: RelayMode) {
    const THERE: u64 = 32 << 20;
    const BACK: u64 = 8 << 20;
    let mut world = World::new::<K>(relay);
    let (left, left_far) = world.pair();
    let (right, right_far) = world.pair();
    let clone = |far: &std::net::TcpStream| far.try_clone().expect("a free descriptor");
    let readers = [
        far::spawn_reader(clone(&right_far), 11, 200_000),
        far::spawn_reader(clone(&left_far), 12, 3_000),
    ];
    let writers = [
        far::spawn_writer(left_far, 11, THERE, 300_000),
        far::spawn_writer(right_far, 12, BACK, 5_000),
    ];
    let mut pumps = [Pump::start(&mut world, left, right), Pump::start(&mut world, right, left)];
    run_pumps(&mut world, &mut pumps);
    assert_eq!(pumps.each_ref().map(|pump| pump.end), [Some(End::Eof); 2]);
    assert_eq!(pumps.each_ref().map(|pump| pump.put), [THERE, BACK]);
    for writer in writers {
        writer.join().expect("everything was taken");
    }
    let ends = readers.map(|reader| reader.join().expect("the bytes are right"));
    assert_eq!(ends, [THERE, BACK]);
    let stats = world.driver.stats();
    assert_eq!(stats.bytes_spliced + stats.bytes_copied, THERE + BACK, "{stats:?}");
    match relay {
        RelayMode::Auto => {}
        RelayMode::Splice => assert!(stats.bytes_spliced > THERE / 2, "{stats:?}"),
        RelayMode::Copy => assert_eq!(stats.bytes_spliced, 0, "{stats:?}"),
    }
    world.finish();
}

/// Every byte arrives, in order, whichever path the driver chooses.
fn much_auto<K: Kit>() {
    much::<K>(RelayMode::Auto);
}

/// Every byte arrives, in order, through pipes.
fn much_splice<K: Kit>() {
    much::<K>(RelayMode::Splice);
}

/// Every byte arrives, in order, through buffers.
fn much_copy<K: Kit>() {
    much::<K>(RelayMode::Copy);
}

/// Short fills: 1 to 40 bytes at a time, answered at once, so that each is a fill of its own.
fn small_fills<K: Kit>(relay: RelayMode) {
    let mut world = World::new::<K>(relay);
    let (from, mut source) = world.pair();
    let (to, mut sink) = world.pair();
    let mut pump = Pump::start(&mut world, from, to);
    let mut random = bytes::Random::new(21);
    let mut at = 0;
    for _ in 0..500 {
        let count = random.upto(40);
        source.write_all(&bytes::patterned(21, at, count)).expect("open");
        while pump.put < at + count as u64 {
            if !pump.advance(&mut world) {
                world.turn();
            }
        }
        far::read_exactly(&mut sink, 21, at, count);
        at += count as u64;
    }
    assert_eq!(pump.end, None);
    world.finish();
}

/// Small messages are relayed as they come.
fn small_fills_auto<K: Kit>() {
    small_fills::<K>(RelayMode::Auto);
}

/// Small messages are relayed as they come, also through a pipe.
fn small_fills_splice<K: Kit>() {
    small_fills::<K>(RelayMode::Splice);
}

/// Small messages are relayed as they come, also through a buffer.
fn small_fills_copy<K: Kit>() {
    small_fills::<K>(RelayMode::Copy);
}

/// The head of a lease is read off over the borders of segments, and the rest is still relayed.
fn head_is_taken_across_segments<K: Kit>() {
    for relay in [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, mut sink) = world.pair();
        for at in 0..100 {
            source.write_all(&bytes::patterned(31, at, 1)).expect("open");
        }
        let mut head = [0; 16];
        let mut have = 0;
        // All of it is there, but how much a fill takes is the driver's choice.
        let rest = loop {
            let mut lease = world.fill(from);
            have += lease.take_head(&mut head[have..]);
            if have == head.len() {
                break lease;
            }
            assert!(lease.is_empty(), "the head was not full and bytes were left");
        };
        bytes::check(31, 0, &head);
        let mut put = 0;
        let mut next = if rest.is_empty() { world.fill(from) } else { rest };
        loop {
            match world.run(Op::Drain { lease: next, to, refill: Some(from) }) {
                Outcome::Drained { put: count, lease, .. } => {
                    put += count;
                    if put == 84 {
                        assert!(lease.is_none());
                        break;
                    }
                    next = lease.unwrap_or_else(|| world.fill(from));
                }
                other => panic!("{other:?}"),
            }
        }
        far::read_exactly(&mut sink, 31, 16, 84);
        world.finish();
    }
}

/// A batch of exactly 16, 32 or 48 segments arrives without more bytes behind it: the kernel must
/// not be told that more is coming, or it keeps the last segments back.
fn whole_batches_leave_no_tail<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Auto] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, mut sink) = world.pair();
        let mut at = 0;
        let mut pump = Pump::start(&mut world, from, to);
        for segments in [16, 32, 48, 16] {
            for _ in 0..segments {
                source.write_all(&bytes::patterned(41, at, 700)).expect("open");
                at += 700;
            }
            while pump.put < at {
                if !pump.advance(&mut world) {
                    world.turn();
                }
            }
            far::read_exactly(&mut sink, 41, at - segments * 700, segments as usize * 700);
        }
        world.finish();
    }
}

/// A flow whose lease was dropped with bytes in it leaves none of them to the next flow.
fn reused_socket_starts_afresh<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        for round in 0..20 {
            let (from, mut source) = world.pair();
            let (to, mut sink) = world.pair();
            source.write_all(&bytes::patterned(1_000 + round, 0, 5_000)).expect("open");
            drop(world.fill(from));
            let (next, mut next_source) = world.pair();
            next_source.write_all(&bytes::patterned(round, 0, 5_000)).expect("open");
            next_source.shutdown(Shutdown::Write).expect("open");
            let end = Pump::start(&mut world, next, to).run(&mut world);
            assert_eq!(end, End::Eof);
            assert_eq!(far::read_to_end(&mut sink, round, 0, 5_000), 5_000);
            for sock in [from, to, next] {
                world.close(sock, Ending::Reset);
            }
        }
        world.finish();
    }
}

/// Forty flows at once keep their bytes apart.
fn many_flows_at_once<K: Kit>() {
    const FLOWS: u64 = 40;
    const EACH: u64 = 400_000;
    let mut world = World::new::<K>(RelayMode::Auto);
    let mut pumps = Vec::new();
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for flow in 0..FLOWS {
        let (from, source) = world.pair();
        let (to, sink) = world.pair();
        readers.push(far::spawn_reader(sink, flow, 20_000));
        writers.push(far::spawn_writer(source, flow, EACH, 30_000));
        pumps.push(Pump::start(&mut world, from, to));
    }
    run_pumps(&mut world, &mut pumps);
    for writer in writers {
        writer.join().expect("everything was taken");
    }
    for reader in readers {
        assert_eq!(reader.join().expect("the bytes are right"), EACH);
    }
    world.finish();
}
