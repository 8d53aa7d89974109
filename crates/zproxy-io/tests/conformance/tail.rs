//! The last bytes of a drain.

use std::io::Write;
use std::time::{Duration, Instant};

use zproxy_io::{Driver, RelayMode};

use crate::support::{Kit, Pump, World, bytes, far};

conformance!(no_tail_waits);

/// A pipe that holds a multiple of 16 pieces, drained with a length above what it holds, makes the
/// kernel expect more and hold the last segment back for 200 ms. With the exact length nothing is
/// held back.
fn no_tail_waits<K: Kit>() {
    const ROUNDS: u32 = 200;
    /// 16 of them are no small fill, so a direction that splices goes on splicing.
    const PIECE: usize = 1_400;
    /// A direction that may copy begins to splice.
    const WARM_UP: usize = 4_000_000;
    for relay in [RelayMode::Splice, RelayMode::Auto, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.pair();
        let (to, mut sink) = world.pair();
        let mut pump = Pump::start(&mut world, from, to);
        let stream = bytes::patterned(1, 0, WARM_UP);
        std::thread::scope(|scope| {
            scope.spawn(|| source.write_all(&stream).expect("open"));
            scope.spawn(|| far::read_exactly(&mut sink, 1, 0, WARM_UP));
            pump_until(&mut world, &mut pump, WARM_UP as u64);
        });
        let mut at = WARM_UP as u64;
        let begun = Instant::now();
        for round in 0..ROUNDS {
            let pieces = [16, 32, 48, 17][round as usize % 4];
            let start = at;
            for _ in 0..pieces {
                source.write_all(&bytes::patterned(1, at, PIECE)).expect("open");
                at += PIECE as u64;
            }
            pump_until(&mut world, &mut pump, at);
            far::read_exactly(&mut sink, 1, start, pieces * PIECE);
        }
        // A third of the rounds and more would wait for 200 ms: 12 s.
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{relay:?}: {ROUNDS} small rounds took {took:?}");
        world.finish();
    }
}

fn pump_until<D: Driver>(world: &mut World<D>, pump: &mut Pump, put: u64) {
    while pump.put < put {
        if !pump.advance(world) {
            world.turn();
        }
    }
}
