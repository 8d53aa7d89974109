//! An idle flow costs two sockets in each program and nothing else.

use std::io::{Read, Write};

use zproxy_tests::world::heavy_turn;
use zproxy_tests::{Flow, Rig, both_backends, proc};

const FLOWS: usize = 4_000;

/// Pipes that the pool of a data core may keep ready, whatever the number of flows.
const PIPE_ENDS_MAX: usize = 300;

fn converse(flow: &Flow, number: usize) {
    let word = number.to_be_bytes();
    (&flow.public).write_all(&word).expect("a word from outside");
    let mut came = [0; 8];
    (&flow.local).read_exact(&mut came).expect("the word inside");
    assert_eq!(came, word, "flow {number}");
    (&flow.local).write_all(&word).expect("a word from inside");
    (&flow.public).read_exact(&mut came).expect("the word outside");
    assert_eq!(came, word, "flow {number}");
}

both_backends! {
    /// Four thousand idle flows hold no pipe in either program, little memory, and still work.
    fn four_thousand_idle_connections(world) {
        let _turn = heavy_turn();
        let rig = Rig::tunnel(world);
        let before: Vec<_> = rig.pids().into_iter().map(proc::resident_bytes).collect();
        let mut flows = Vec::with_capacity(FLOWS);
        for number in 0..FLOWS {
            let flow = rig.flow();
            converse(&flow, number);
            flows.push(flow);
        }
        for (pid, before) in rig.pids().into_iter().zip(before) {
            let held = proc::descriptors(pid);
            assert!(held.sockets >= 2 * FLOWS, "{held:?}");
            assert!(held.sockets <= 2 * FLOWS + 400, "{held:?}");
            assert!(held.pipes <= PIPE_ENDS_MAX, "{held:?}");
            assert!(held.others <= 100, "{held:?}");
            let grown = proc::resident_bytes(pid).saturating_sub(before);
            assert!(grown / (FLOWS as u64) < 16 << 10, "{grown} bytes for {FLOWS} idle flows");
        }
        for (number, flow) in flows.iter().enumerate() {
            converse(flow, number + FLOWS);
        }
        for pid in rig.pids() {
            assert!(proc::descriptors(pid).pipes <= PIPE_ENDS_MAX);
        }
    }
}
