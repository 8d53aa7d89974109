//! FIN and RST at each point.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use zproxy_io::{Driver, Ending, Fault, Lease, Op, Outcome, RelayMode, Sock, SourceNow};

use crate::support::{End, Far, Kit, Meets, Pump, World, bytes, far};

conformance!(
    fin_before_any_byte,
    fin_behind_bytes,
    fin_in_the_refill,
    fin_that_is_known_with_the_bytes,
    fin_that_goes_with_the_bytes,
    fin_and_bytes_in_one_packet,
    fin_in_one_direction_only,
    rst_while_a_fill_waits,
    rst_before_a_fill,
    rst_in_the_refill,
    rst_before_a_drain,
    rst_inside_a_drain,
    rst_never_looks_like_a_fin,
    rst_after_a_bulk_transfer,
    watch_ignores_a_fin,
    watch_sees_both_ends_finished,
    watch_sees_a_reset,
    watch_sees_a_reset_of_a_half_closed_connection,
    watch_comes_late,
);

conformance_simulated!(
    fin_before_any_byte,
    fin_behind_bytes,
    fin_in_the_refill,
    fin_that_is_known_with_the_bytes,
    fin_that_goes_with_the_bytes,
    rst_while_a_fill_waits,
    rst_before_a_fill,
    rst_in_the_refill,
    rst_before_a_drain,
    rst_never_looks_like_a_fin,
    watch_ignores_a_fin,
    watch_sees_both_ends_finished,
    watch_sees_a_reset,
    watch_sees_a_reset_of_a_half_closed_connection,
    watch_comes_late,
);

const MODES: [RelayMode; 3] = [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy];

/// A world, a source with its far end, and a sink with its far end.
fn scene<K: Kit>(relay: RelayMode) -> Scene<K::Driver, <K::Driver as Meets>::Far> {
    let mut world = World::new::<K>(relay);
    let (from, source) = world.meet();
    let (to, sink) = world.meet();
    (world, [from, to], [source, sink])
}

type Scene<D, F> = (World<D>, [Sock; 2], [F; 2]);

/// The same with threads at the far ends.
fn threaded_scene<K: Kit>(relay: RelayMode) -> Scene<K::Driver, TcpStream> {
    let mut world = World::new::<K>(relay);
    let (from, source) = world.pair();
    let (to, sink) = world.pair();
    (world, [from, to], [source, sink])
}

/// A source that ends without a byte gives the end, also to a fill that waits.
fn fin_before_any_byte<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [source, sink]) = scene::<K>(relay);
        source.shutdown(Shutdown::Write).expect("open");
        assert!(matches!(world.run(Op::Fill { from }), Outcome::Eof));
        // Asked again, it is still the end.
        assert!(matches!(world.run(Op::Fill { from }), Outcome::Eof));
        let waiting = world.submit(Op::Fill { from: to });
        world.assert_waits(waiting);
        sink.shutdown(Shutdown::Write).expect("open");
        assert!(matches!(world.outcome(waiting), Outcome::Eof));
        world.finish();
    }
}

/// The bytes before a FIN arrive, then the end.
fn fin_behind_bytes<K: Kit>() {
    for relay in MODES {
        for count in [1, 16, 4_096, 65_536, 65_537, 300_000] {
            let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
            source.write_all(&bytes::patterned(1, 0, count)).expect("open");
            source.shutdown(Shutdown::Write).expect("open");
            let mut pump = Pump::start(&mut world, from, to);
            assert_eq!(pump.run(&mut world), End::Eof);
            assert_eq!(pump.put, count as u64);
            assert_eq!(far::read_to_end(&mut sink, 1, 0, 100_000), count as u64);
            world.finish();
        }
    }
}

/// A FIN that comes between fill and refill is reported by the drain or by the next fill.
fn fin_in_the_refill<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, 100)).expect("open");
        let lease = world.fill(from);
        source.shutdown(Shutdown::Write).expect("open");
        match drain(&mut world, lease, to, from) {
            SourceNow::Eof => {}
            SourceNow::Open => assert!(matches!(world.run(Op::Fill { from }), Outcome::Eof)),
            SourceNow::Failed(fault) => panic!("{fault}"),
        }
        world.driver.shutdown_write(to);
        assert_eq!(far::read_to_end(&mut sink, 1, 0, 100), 100);
        world.finish();
    }
}

/// A fill may know that its bytes are the last ones, and is never wrong about it. The real drivers know it
/// of what they copy, when bytes and end come together.
fn fin_that_is_known_with_the_bytes<K: Kit>() {
    for (relay, count) in MODES.into_iter().flat_map(|relay| [(relay, 1), (relay, 3_000)]) {
        let (mut world, [from, _], [mut source, _sink]) = scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, count)).expect("open");
        let lease = world.fill(from);
        assert!(!lease.has_end(), "nothing has ended");
        let (mut taken, mut is_known) = (lease.len(), false);
        drop(lease);
        let waiting = world.submit(Op::Fill { from });
        source.write_all(&bytes::patterned(1, count as u64, count)).expect("open");
        source.shutdown(Shutdown::Write).expect("open");
        let mut outcome = world.outcome(waiting);
        while let Outcome::Filled(lease) = outcome {
            taken += lease.len();
            assert!(taken == 2 * count || !lease.has_end(), "{taken} bytes are not all");
            is_known |= lease.has_end();
            // What a lease knows, the next fill says too.
            outcome = world.run(Op::Fill { from });
        }
        assert!(matches!(outcome, Outcome::Eof), "{outcome:?}");
        assert_eq!(taken, 2 * count);
        let may_not_know = relay == RelayMode::Splice || K::Driver::NAME == "sim";
        assert!(is_known || may_not_know, "the end was there");
        world.finish();
    }
}

/// A lease with an end ends the sink behind its last byte, however many drains that takes, and the other
/// direction goes on.
fn fin_that_goes_with_the_bytes<K: Kit>() {
    for (relay, count) in MODES.into_iter().flat_map(|relay| [(relay, 1), (relay, 65_536)]) {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, count)).expect("open");
        let mut put = 0;
        while put < count {
            let mut lease = world.fill(from);
            let (mut held, has_all) = (lease.len(), put + lease.len() == count);
            if has_all {
                lease.add_end();
            }
            let mut left = Some(lease);
            while let Some(lease) = left {
                assert_eq!(lease.has_end(), has_all, "a lease keeps its end");
                let outcome = world.run(Op::Drain { lease, to, refill: None });
                let Outcome::Drained { put: count, lease, .. } = outcome else {
                    panic!("not drained: {outcome:?}")
                };
                held -= count;
                put += count;
                left = lease;
            }
            assert_eq!(held, 0);
        }
        assert_eq!(far::read_to_end(&mut sink, 1, 0, count), count as u64);
        // It has ended once and for all.
        world.driver.shutdown_write(to);
        sink.write_all(&bytes::patterned(2, 0, 10)).expect("this direction is open");
        assert_eq!(world.fill(to).len(), 10);
        world.finish();
    }
}

/// Last bytes and FIN are one packet, so that whoever waits for both is woken once.
fn fin_and_bytes_in_one_packet<K: Kit>() {
    for relay in [RelayMode::Auto, RelayMode::Copy] {
        let (mut world, [from, to], [mut source, mut sink]) = threaded_scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, 100)).expect("open");
        let mut lease = world.fill(from);
        lease.add_end();
        let before = far::packets_received(&sink);
        let outcome = world.run(Op::Drain { lease, to, refill: None });
        assert!(matches!(outcome, Outcome::Drained { put: 100, .. }), "{outcome:?}");
        assert_eq!(far::read_to_end(&mut sink, 1, 0, 100), 100);
        assert_eq!(far::packets_received(&sink) - before, 1);
        world.finish();
    }
}

/// Drains a lease that the sink has room for, refilling; gives what was learned of the source.
fn drain<D: Driver>(world: &mut World<D>, lease: Lease, to: Sock, from: Sock) -> SourceNow {
    let count = lease.len();
    match world.run(Op::Drain { lease, to, refill: Some(from) }) {
        Outcome::Drained { put, refilled: 0, lease: None, source } => {
            assert_eq!(put, count);
            source
        }
        other => panic!("not drained: {other:?}"),
    }
}

/// After a FIN in one direction, much still flows in the other.
fn fin_in_one_direction_only<K: Kit>() {
    const BACK: u64 = 5 << 20;
    for relay in MODES {
        let (mut world, [left, right], [left_far, right_far]) = threaded_scene::<K>(relay);
        left_far.shutdown(Shutdown::Write).expect("open");
        assert_eq!(Pump::start(&mut world, left, right).run(&mut world), End::Eof);
        let reading = far::spawn_reader(left_far, 5, 90_000);
        let writing = far::spawn_writer(right_far, 5, BACK, 90_000);
        assert_eq!(Pump::start(&mut world, right, left).run(&mut world), End::Eof);
        writing.join().expect("everything was taken");
        assert_eq!(reading.join().expect("the bytes are right"), BACK);
        world.finish();
    }
}

/// A reset fails the fill that waits.
fn rst_while_a_fill_waits<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, _], [source, _sink]) = scene::<K>(relay);
        let token = world.submit(Op::Fill { from });
        world.assert_waits(token);
        far::reset(source);
        let outcome = world.outcome(token);
        assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
        world.finish();
    }
}

/// A reset that came before the fill fails it.
fn rst_before_a_fill<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, _], [source, _sink]) = scene::<K>(relay);
        far::reset(source);
        let outcome = world.run(Op::Fill { from });
        assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
        world.finish();
    }
}

/// A reset that comes between fill and refill is reported by the drain or by the next fill, and
/// what was taken before still arrives.
fn rst_in_the_refill<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, 100)).expect("open");
        let lease = world.fill(from);
        far::reset(source);
        match drain(&mut world, lease, to, from) {
            SourceNow::Failed(fault) => assert_eq!(fault, Fault::Reset),
            SourceNow::Open => {
                let outcome = world.run(Op::Fill { from });
                assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
            }
            SourceNow::Eof => panic!("a reset looks like an end"),
        }
        far::read_exactly(&mut sink, 1, 0, 100);
        world.finish();
    }
}

/// A drain into a connection that was reset fails.
fn rst_before_a_drain<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, sink]) = scene::<K>(relay);
        source.write_all(&bytes::patterned(1, 0, 100)).expect("open");
        let lease = world.fill(from);
        far::reset(sink);
        let outcome = world.run(Op::Drain { lease, to, refill: Some(from) });
        assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
        // The source is unharmed, and its inbound place is free.
        source.write_all(b"x").expect("open");
        assert_eq!(world.fill(from).len(), 1);
        world.finish();
    }
}

/// A reset that comes while a drain splices is a fault, and never an end. splice(2) sends 16 pieces of
/// the pipe at a time: when it has sent some, and the next ones meet the reset, it returns the count,
/// and nobody else is told the error. About every hundredth reset comes just then.
fn rst_inside_a_drain<K: Kit>() {
    const RESETS: u64 = 1_500;
    const PIECES: usize = 200;
    const PIECE: usize = 100;
    let (post, resetting) = far::spawn_resetter();
    let mut delays = bytes::Random::new(3);
    for relay in [RelayMode::Auto, RelayMode::Splice] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        // From here on it is spliced.
        source.write_all(&[0; 100_000]).expect("open");
        let mut left = 100_000;
        while left > 0 {
            left -= world.fill(from).len();
        }
        for _ in 0..RESETS {
            let (to, sink) = world.pair();
            for _ in 0..PIECES {
                source.write_all(&[7; PIECE]).expect("open");
            }
            let lease = world.fill(from);
            let mut left = PIECES * PIECE - lease.len();
            let delay = Duration::from_micros(delays.upto(60) as u64);
            post.send((sink, Vec::new(), delay)).expect("it ends when we do");
            let outcome = world.run(Op::Drain { lease, to, refill: None });
            assert!(
                matches!(outcome, Outcome::Drained { .. } | Outcome::Failed(Fault::Reset)),
                "{outcome:?}"
            );
            let outcome = world.run(Op::Fill { from: to });
            assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
            world.close(to, Ending::Reset);
            while left > 0 {
                left -= world.fill(from).len();
            }
        }
        world.finish();
    }
    drop(post);
    resetting.join().expect("it resets");
}

/// A stream that was so full that its direction is spliced, then ran dry and is reset, waited for or
/// not: the next take fails, however the driver looks for bytes by then.
fn rst_after_a_bulk_transfer<K: Kit>() {
    const SIZE: u64 = 8 << 20;
    for relay in MODES {
        for waits in [false, true] {
            let (mut world, [from, to], [mut source, sink]) = threaded_scene::<K>(relay);
            let reading = far::spawn_reader(sink, 1, 100_000);
            let (go, went) = std::sync::mpsc::channel();
            let writing = std::thread::spawn(move || {
                source.write_all(&bytes::patterned(1, 0, SIZE as usize)).expect("open");
                went.recv().expect("the pump is done");
                far::reset(source);
            });
            let mut pump = Pump::start(&mut world, from, to);
            while pump.put < SIZE {
                assert_eq!(pump.end, None, "after {} bytes", pump.put);
                if !pump.advance(&mut world) {
                    world.turn();
                }
            }
            if waits {
                world.assert_waits(pump.token);
            }
            go.send(()).expect("the writer waits");
            writing.join().expect("everything was taken");
            assert_eq!(pump.run(&mut world), End::Failed(Fault::Reset), "{relay:?}, {waits}");
            world.driver.shutdown_write(to);
            assert_eq!(reading.join().expect("the bytes are right"), SIZE);
            world.finish();
        }
    }
}

/// The kernel tells an error only once; still every direction of a reset connection fails, and
/// none reports an end.
fn rst_never_looks_like_a_fin<K: Kit>() {
    for relay in MODES {
        for watched in [false, true] {
            let (mut world, [from, to], [mut source, sink]) = scene::<K>(relay);
            source.write_all(&bytes::patterned(1, 0, 100)).expect("open");
            let lease = world.fill(from);
            let watch = watched.then(|| world.submit(Op::Watch { sock: to }));
            if let Some(watch) = watch {
                world.assert_waits(watch);
            }
            far::reset(sink);
            if let Some(watch) = watch {
                let outcome = world.outcome(watch);
                assert!(matches!(outcome, Outcome::Hangup(Some(Fault::Reset))), "{outcome:?}");
            }
            let put = world.run(Op::Drain { lease, to, refill: None });
            assert!(matches!(put, Outcome::Failed(Fault::Reset)), "{put:?}");
            let taken = world.run(Op::Fill { from: to });
            assert!(matches!(taken, Outcome::Failed(Fault::Reset)), "{taken:?}");
            world.finish();
        }
    }
}

/// A FIN of the peer alone does not end the watch, nor do bytes.
fn watch_ignores_a_fin<K: Kit>() {
    let (mut world, [near, _], [mut far, _sink]) = scene::<K>(RelayMode::Auto);
    let watch = world.submit(Op::Watch { sock: near });
    far.write_all(b"bytes").expect("open");
    far.shutdown(Shutdown::Write).expect("open");
    world.assert_waits(watch);
    assert_eq!(world.fill(near).len(), 5);
    assert!(matches!(world.run(Op::Fill { from: near }), Outcome::Eof));
    world.assert_waits(watch);
    world.finish();
}

/// When both directions have ended, in either order, the watch ends without a fault.
fn watch_sees_both_ends_finished<K: Kit>() {
    for far_first in [false, true] {
        let (mut world, [near, _], [far, _sink]) = scene::<K>(RelayMode::Auto);
        let watch = world.submit(Op::Watch { sock: near });
        if far_first {
            far.shutdown(Shutdown::Write).expect("open");
            world.assert_waits(watch);
            world.driver.shutdown_write(near);
        } else {
            world.driver.shutdown_write(near);
            world.assert_waits(watch);
            far.shutdown(Shutdown::Write).expect("open");
        }
        let outcome = world.outcome(watch);
        assert!(matches!(outcome, Outcome::Hangup(None)), "{outcome:?}");
        world.finish();
    }
}

/// A reset ends the watch, and the fill beside it.
fn watch_sees_a_reset<K: Kit>() {
    for relay in MODES {
        let (mut world, [near, _], [far, _sink]) = scene::<K>(relay);
        let watch = world.submit(Op::Watch { sock: near });
        let fill = world.submit(Op::Fill { from: near });
        world.settle();
        far::reset(far);
        let outcome = world.outcome(watch);
        assert!(matches!(outcome, Outcome::Hangup(Some(Fault::Reset))), "{outcome:?}");
        let outcome = world.outcome(fill);
        assert!(matches!(outcome, Outcome::Failed(Fault::Reset)), "{outcome:?}");
        world.finish();
    }
}

/// When the peer has ended its direction and then resets, only the watch can tell.
fn watch_sees_a_reset_of_a_half_closed_connection<K: Kit>() {
    let (mut world, [near, _], [far, _sink]) = scene::<K>(RelayMode::Auto);
    far.shutdown(Shutdown::Write).expect("open");
    assert!(matches!(world.run(Op::Fill { from: near }), Outcome::Eof));
    let watch = world.submit(Op::Watch { sock: near });
    world.assert_waits(watch);
    far::reset(far);
    let outcome = world.outcome(watch);
    assert!(matches!(outcome, Outcome::Hangup(Some(Fault::Reset))), "{outcome:?}");
    world.finish();
}

/// A watch that is submitted after the reset ends at once.
fn watch_comes_late<K: Kit>() {
    let (mut world, [near, other], [far, _sink]) = scene::<K>(RelayMode::Auto);
    let fill = world.submit(Op::Fill { from: other });
    world.assert_waits(fill);
    far::reset(far);
    world.settle();
    let outcome = world.run(Op::Watch { sock: near });
    assert!(matches!(outcome, Outcome::Hangup(Some(Fault::Reset))), "{outcome:?}");
    world.finish();
}
