//! Urgent data, at which splice(2) stops, pretends to be at the end, or stalls.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use zproxy_io::{Driver, Op, Outcome, RelayMode, Sock};

use crate::support::{End, Kit, Pump, World, bytes, far};

conformance!(
    in_the_middle,
    in_a_conversation,
    first_and_last,
    before_a_fin,
    in_a_busy_stream,
    while_a_fill_waits,
    to_a_receive
);

const MODES: [RelayMode; 3] = [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy];

fn scene<K: Kit>(relay: RelayMode) -> (World<K::Driver>, [Sock; 2], [TcpStream; 2]) {
    let mut world = World::new::<K>(relay);
    let (from, source) = world.pair();
    let (to, sink) = world.pair();
    (world, [from, to], [source, sink])
}

fn send_urgent_byte(far: &TcpStream, seed: u64, at: u64) {
    far::send_urgent(far, bytes::patterned(seed, at, 1)[0]);
}

#[track_caller]
fn pump_until<D: Driver>(world: &mut World<D>, pump: &mut Pump, put: u64) {
    while pump.put < put {
        if !pump.advance(world) {
            assert_eq!(pump.end, None, "it ended after {} of {put} bytes", pump.put);
            world.turn();
        }
    }
}

/// Bytes before, at and behind an urgent mark all arrive, in order, with nothing after them to
/// push them along.
fn in_the_middle<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        let mut pump = Pump::start(&mut world, from, to);
        let mut at = 0;
        for size in [1, 10, 1_000, 70_000] {
            let start = at;
            source.write_all(&bytes::patterned(1, at, size)).expect("open");
            at += size as u64;
            send_urgent_byte(&source, 1, at);
            at += 1;
            source.write_all(&bytes::patterned(1, at, size)).expect("open");
            at += size as u64;
            pump_until(&mut world, &mut pump, at);
            far::read_exactly(&mut sink, 1, start, 2 * size + 1);
        }
        world.finish();
    }
}

/// The same between small messages, each of which is waited for.
fn in_a_conversation<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        let mut pump = Pump::start(&mut world, from, to);
        let mut at = 0;
        for round in 0..100 {
            let start = at;
            source.write_all(&bytes::patterned(1, at, 10)).expect("open");
            at += 10;
            if round % 5 == 4 {
                send_urgent_byte(&source, 1, at);
                at += 1;
                source.write_all(&bytes::patterned(1, at, 10)).expect("open");
                at += 10;
            }
            pump_until(&mut world, &mut pump, at);
            far::read_exactly(&mut sink, 1, start, (at - start) as usize);
        }
        world.finish();
    }
}

/// The urgent byte may be the first or the last one there is.
fn first_and_last<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
        let mut pump = Pump::start(&mut world, from, to);
        send_urgent_byte(&source, 1, 0);
        pump_until(&mut world, &mut pump, 1);
        source.write_all(&bytes::patterned(1, 1, 99)).expect("open");
        pump_until(&mut world, &mut pump, 100);
        send_urgent_byte(&source, 1, 100);
        pump_until(&mut world, &mut pump, 101);
        far::read_exactly(&mut sink, 1, 0, 101);
        world.finish();
    }
}

/// A FIN behind an urgent mark does not swallow what lies between.
fn before_a_fin<K: Kit>() {
    for relay in MODES {
        for behind in [0, 1, 5_000] {
            let (mut world, [from, to], [mut source, mut sink]) = scene::<K>(relay);
            source.write_all(&bytes::patterned(1, 0, 3_000)).expect("open");
            send_urgent_byte(&source, 1, 3_000);
            source.write_all(&bytes::patterned(1, 3_001, behind)).expect("open");
            source.shutdown(Shutdown::Write).expect("open");
            let total = 3_001 + behind as u64;
            let mut pump = Pump::start(&mut world, from, to);
            assert_eq!(pump.run(&mut world), End::Eof);
            assert_eq!(pump.put, total, "{relay:?}, {behind} bytes behind the mark");
            assert_eq!(far::read_to_end(&mut sink, 1, 0, 10_000), total);
            world.finish();
        }
    }
}

/// Hundreds of marks in a stream that never pauses.
fn in_a_busy_stream<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, to], [mut source, sink]) = scene::<K>(relay);
        let reading = far::spawn_reader(sink, 1, 100_000);
        let writing = std::thread::spawn(move || {
            let mut random = bytes::Random::new(8);
            let mut at = 0;
            for _ in 0..400 {
                let count = random.upto(20_000);
                source.write_all(&bytes::patterned(1, at, count)).expect("open");
                at += count as u64;
                send_urgent_byte(&source, 1, at);
                at += 1;
            }
            source.shutdown(Shutdown::Write).expect("open");
            at
        });
        let mut pump = Pump::start(&mut world, from, to);
        assert_eq!(pump.run(&mut world), End::Eof);
        let total = writing.join().expect("everything was taken");
        assert_eq!(reading.join().expect("the bytes are right"), total);
        world.finish();
    }
}

/// An urgent byte wakes a fill that waits.
fn while_a_fill_waits<K: Kit>() {
    for relay in MODES {
        let (mut world, [from, _], [source, _sink]) = scene::<K>(relay);
        for _ in 0..20 {
            let fill = world.submit(Op::Fill { from });
            world.assert_waits(fill);
            far::send_urgent(&source, 33);
            match world.outcome(fill) {
                Outcome::Filled(mut lease) => {
                    let mut head = [0; 4];
                    assert_eq!(lease.take_head(&mut head), 1);
                    assert_eq!(head[0], 33);
                }
                other => panic!("{other:?}"),
            }
        }
        world.finish();
    }
}

/// A receive gets urgent bytes in line.
fn to_a_receive<K: Kit>() {
    let (mut world, [near, _], [mut far, _sink]) = scene::<K>(RelayMode::Auto);
    far.write_all(b"ab").expect("open");
    far::send_urgent(&far, b'!');
    far.write_all(b"cd").expect("open");
    let mut all = Vec::new();
    while all.len() < 5 {
        match world.run(Op::Recv { sock: near, buf: all, max: 100 }) {
            Outcome::Received { buf, count } => {
                assert!(count > 0);
                all = buf;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(all, b"ab!cd");
    world.finish();
}
