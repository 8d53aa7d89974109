//! More operations at once than any queue of the kernel's holds.

use std::collections::HashMap;
use std::io::{Read, Write};

use zproxy_io::{Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{Kit, World, bytes};

conformance!(thousands_complete, thousands_wait_and_are_closed);

conformance_simulated!(thousands_complete, thousands_wait_and_are_closed,);

/// Connections to make: 2,500, or what a small limit of descriptors leaves to several tests.
fn conns() -> usize {
    let (limit, _) = zproxy_io::sys::descriptor_limit();
    2_500.min(usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(200) / 8)
}

/// Two operations on each of 2,500 sockets, submitted in one breath, complete exactly once each
/// (the world checks that), with the right bytes.
fn thousands_complete<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let mut pairs: Vec<_> = (0..conns()).map(|_| world.meet()).collect();
    for (index, (_, far)) in pairs.iter_mut().enumerate() {
        far.write_all(&bytes::patterned(index as u64, 0, 8)).expect("open");
    }
    let mut fills = HashMap::new();
    let mut sends = Vec::new();
    for (index, (near, _)) in pairs.iter().enumerate() {
        fills.insert(world.submit(Op::Fill { from: *near }), index);
        let buf = bytes::patterned(index as u64, 8, 8);
        sends.push(world.submit(Op::Send { sock: *near, buf }));
    }
    let mut sent = 0;
    while !fills.is_empty() || sent < pairs.len() {
        world.turn();
        while let Some(done) = world.next_home() {
            match done.outcome {
                Outcome::Filled(mut lease) => {
                    let index = fills.remove(&done.token).expect("one of the fills");
                    let mut head = [0; 9];
                    assert_eq!(lease.take_head(&mut head), 8);
                    bytes::check(index as u64, 0, &head[..8]);
                }
                Outcome::Sent { .. } => sent += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    for (index, (_, far)) in pairs.iter_mut().enumerate() {
        let mut answer = [0; 8];
        far.read_exact(&mut answer).expect("the bytes arrive");
        bytes::check(index as u64, 8, &answer);
    }
    world.finish();
}

/// Two operations wait on each of 2,500 sockets without pipe or buffer, and a close in one breath
/// brings all of them home.
fn thousands_wait_and_are_closed<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Splice);
    let pairs: Vec<_> = (0..conns()).map(|_| world.meet()).collect();
    for (near, _) in &pairs {
        world.submit(Op::Fill { from: *near });
        world.submit(Op::Watch { sock: *near });
    }
    world.settle();
    let stats = zproxy_io::Driver::stats(&world.driver);
    assert_eq!(stats.pipes_leased, stats.pipes_returned, "waiting holds pipes: {stats:?}");
    assert_eq!(stats.bufs_leased, stats.bufs_returned, "waiting holds buffers: {stats:?}");
    world.close_all(pairs.iter().map(|(near, _)| *near), Ending::Reset, |done| {
        assert!(matches!(done.outcome, Outcome::Failed(Fault::Cancelled)), "{done:?}");
    });
    world.finish();
}
