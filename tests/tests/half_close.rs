//! FIN stays FIN: the other direction goes on for as long as it has something to say.

use zproxy_tests::scenes::{self, End};
use zproxy_tests::{Rig, both_backends};

both_backends! {
    /// After the public side's FIN the local side still answers, and every byte arrives.
    fn public_first(world) {
        let rig = Rig::tunnel(world);
        let rest = rig.rest();
        for request_size in [0, 1, 100_000, 5_000_000] {
            scenes::half_close(&rig, End::Public, request_size);
        }
        rig.expect_rest(&rest);
    }

    /// After the local side's FIN the public side still speaks, and every byte arrives.
    fn local_first(world) {
        let rig = Rig::tunnel(world);
        let rest = rig.rest();
        for request_size in [0, 1, 100_000, 5_000_000] {
            scenes::half_close(&rig, End::Local, request_size);
        }
        rig.expect_rest(&rest);
    }

    /// FINs that cross each other lose nothing, and the proxy_conn is fit for the next flow.
    fn crossing_fins(world) {
        let rig = Rig::tunnel(world);
        let rest = rig.rest();
        scenes::crossing_fins(&rig, 300);
        rig.expect_rest(&rest);
    }

    /// All ways of closing in turn over the same few proxy_conns never confuse one flow with another.
    fn every_order_in_turn(world) {
        let rig = Rig::tunnel(world);
        for round in 0..15 {
            scenes::half_close(&rig, End::BOTH[round % 2], 10_000);
            scenes::crossing_fins(&rig, 3);
            scenes::wordless_visits(&rig, 2);
        }
    }
}
