//! RST stays RST: who is aborted at one end of a flow learns it at the other.

use zproxy_tests::scenes::{self, End};
use zproxy_tests::{Rig, both_backends};

const ROUNDS: usize = 20;

fn play(world: &zproxy_tests::World, scene: fn(&Rig, End)) {
    let rig = Rig::tunnel(world);
    let rest = rig.rest();
    for round in 0..ROUNDS {
        scene(&rig, End::BOTH[round % 2]);
    }
    rig.expect_rest(&rest);
    // And whatever was aborted has left nothing behind in the next flow.
    scenes::half_close(&rig, End::Public, 50_000);
}

/// Scenes that fill every buffer wait for it, so they are played only a few times.
fn play_slowly(world: &zproxy_tests::World, scene: fn(&Rig, End)) {
    let rig = Rig::tunnel(world);
    let rest = rig.rest();
    for who in [End::Public, End::Local, End::Public, End::Local] {
        scene(&rig, who);
    }
    rig.expect_rest(&rest);
    scenes::half_close(&rig, End::Public, 50_000);
}

both_backends! {
    /// Either side aborts an open flow: the other side sees a RST.
    fn in_an_open_flow(world) {
        play(world, scenes::abort);
    }

    /// A side that has sent its FIN aborts: the other side sees a RST behind the FIN.
    fn behind_its_own_fin(world) {
        play(world, scenes::abort_after_own_fin);
    }

    /// A side aborts after the other's FIN: the other, waiting for an answer, sees a RST.
    fn after_the_peers_fin(world) {
        play(world, scenes::abort_after_peers_fin);
    }

    /// A side that does not read aborts while every buffer towards it is full.
    fn under_backpressure(world) {
        play_slowly(world, scenes::abort_under_backpressure);
    }

    /// A side aborts with every buffer on the way still full of its bytes.
    fn behind_unread_bytes(world) {
        play_slowly(world, scenes::abort_behind_unread_bytes);
    }
}
