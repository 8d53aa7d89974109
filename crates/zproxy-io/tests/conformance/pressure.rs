//! Sinks that are full.

use std::io::Write;
use std::net::TcpStream;

use zproxy_io::{Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{End, Kit, Pump, World, bytes, far};

conformance!(
    full_sink_auto,
    full_sink_splice,
    full_sink_copy,
    stalled_flow_delays_nobody,
    full_sink_resets,
    source_is_closed_under_a_drain,
    sink_is_closed_under_a_drain,
);

/// More than all socket buffers on the way can hold.
const MUCH: u64 = 256 << 20;

/// Writes stream `seed` until source, driver and sink are full; gives how much went in.
fn pour<K: Kit>(
    world: &mut World<K::Driver>,
    source: &mut TcpStream,
    pump: &mut Pump,
    seed: u64,
) -> u64 {
    source.set_nonblocking(true).expect("open");
    let mut written = 0;
    let mut still = 0;
    let mut piece = vec![0; 128 << 10];
    while still < 2 {
        let before = (written, pump.put);
        bytes::pattern(seed, written, &mut piece);
        while let Ok(count) = source.write(&piece) {
            written += count as u64;
            bytes::pattern(seed, written, &mut piece);
            assert!(written < MUCH, "the source is read although the sink is full");
        }
        while world.settle() | pump.advance(world) {}
        still = if (written, pump.put) == before { still + 1 } else { 0 };
    }
    source.set_nonblocking(false).expect("open");
    assert!(world.is_flying(pump.token), "the pump waits for room");
    written
}

/// With a sink that does not read, the source is no longer read either; when the sink reads again,
/// everything arrives.
fn full_sink<K: Kit>(relay: RelayMode) {
    let mut world = World::new::<K>(relay);
    let (from, mut source) = world.pair();
    let (to, sink) = world.pair();
    far::narrow(&sink);
    let mut pump = Pump::start(&mut world, from, to);
    let poured = pour::<K>(&mut world, &mut source, &mut pump, 51);
    assert!(pump.taken < poured, "nothing was left to the socket buffers");
    let reading = far::spawn_reader(sink, 51, 100_000);
    source.shutdown(std::net::Shutdown::Write).expect("open");
    assert_eq!(pump.run(&mut world), End::Eof);
    assert_eq!(reading.join().expect("the bytes are right"), poured);
    assert_eq!(pump.put, poured);
    world.finish();
}

/// Memory stays bounded and nothing is lost, whichever path the driver chooses.
fn full_sink_auto<K: Kit>() {
    full_sink::<K>(RelayMode::Auto);
}

/// Memory stays bounded and nothing is lost through pipes.
fn full_sink_splice<K: Kit>() {
    full_sink::<K>(RelayMode::Splice);
}

/// Memory stays bounded and nothing is lost through buffers.
fn full_sink_copy<K: Kit>() {
    full_sink::<K>(RelayMode::Copy);
}

/// While one flow is stalled, another one moves.
fn stalled_flow_delays_nobody<K: Kit>() {
    const TOTAL: u64 = 16 << 20;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (from, mut source) = world.pair();
    let (to, sink) = world.pair();
    far::narrow(&sink);
    let mut stalled = Pump::start(&mut world, from, to);
    pour::<K>(&mut world, &mut source, &mut stalled, 61);
    let (from, source) = world.pair();
    let (to, sink) = world.pair();
    let reading = far::spawn_reader(sink, 62, 100_000);
    let writing = far::spawn_writer(source, 62, TOTAL, 100_000);
    assert_eq!(Pump::start(&mut world, from, to).run(&mut world), End::Eof);
    writing.join().expect("everything was taken");
    assert_eq!(reading.join().expect("the bytes are right"), TOTAL);
    assert!(world.is_flying(stalled.token));
    world.finish();
}

/// The drain that waits for a full sink fails when the sink is reset.
fn full_sink_resets<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, sink) = world.pair();
        far::narrow(&sink);
        let mut pump = Pump::start(&mut world, from, to);
        pour::<K>(&mut world, &mut source, &mut pump, 71);
        far::reset(sink);
        assert_eq!(pump.run(&mut world), End::Failed(Fault::Reset));
        world.finish();
    }
}

/// Closing the source of a drain that waits for its sink brings the drain home before the close.
fn source_is_closed_under_a_drain<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, sink) = world.pair();
        far::narrow(&sink);
        let mut pump = Pump::start(&mut world, from, to);
        pour::<K>(&mut world, &mut source, &mut pump, 81);
        let home = world.close(from, Ending::Reset);
        assert_eq!(home.len(), 1, "{home:?}");
        assert_eq!(home[0].token, pump.token);
        let ended = matches!(home[0].outcome, Outcome::Failed(Fault::Cancelled));
        assert!(ended || matches!(home[0].outcome, Outcome::Drained { .. }), "{home:?}");
        // The sink is not harmed, and its outbound place is free again. Whether it has room for one
        // byte is the kernel's affair.
        let next = world.submit(Op::Send { sock: to, buf: vec![1] });
        world.settle();
        if let Some(outcome) = world.take(next) {
            assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
        }
        drop(home);
        world.finish();
    }
}

/// Closing the full sink brings the drain home before the close, and the source goes on.
fn sink_is_closed_under_a_drain<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, sink) = world.pair();
        far::narrow(&sink);
        let mut pump = Pump::start(&mut world, from, to);
        pour::<K>(&mut world, &mut source, &mut pump, 91);
        let home = world.close(to, Ending::Reset);
        assert_eq!(home.len(), 1, "{home:?}");
        assert_eq!(home[0].token, pump.token);
        assert!(matches!(home[0].outcome, Outcome::Failed(Fault::Cancelled)), "{home:?}");
        let lease = world.fill(from);
        bytes::check(91, pump.taken, &head(lease));
        world.finish();
    }
}

fn head(mut lease: zproxy_io::Lease) -> Vec<u8> {
    let mut bytes = vec![0; lease.len()];
    assert_eq!(lease.take_head(&mut bytes), bytes.len());
    bytes
}
