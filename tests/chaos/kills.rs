//! Either program is killed, again and again, under mixed load.

use std::time::{Duration, Instant};

use zproxy_tests::{Load, Rng, Site, both_backends};

use crate::length;

/// Until a program that was killed serves again.
const BACK_DEADLINE: Duration = Duration::from_secs(60);
const VISITORS: usize = 8;
const LEN_MAX: u64 = 1 << 20;

both_backends! {
    /// Client or gateway are killed at random while visitors of every kind come and go: no wrong byte
    /// and no false FIN ever, no visit breaks that was not under way at a kill, and at the end nothing
    /// is left over in programs that have survived many deaths of the other.
    fn kills_under_mixed_load(world) {
        Site::run(|net| {
            net.slow(1_000);
            let (gateway, client) = Site::plans(world, &net);
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let mut rng = Rng::seeded(&format!("kills, {}", world.backend().name()));
            let load = Load::start(site.public, VISITORS, LEN_MAX, Rng::new(rng.next()));
            let until = Instant::now() + length(12, 180);
            let mut kills = [0, 0];
            while Instant::now() < until {
                assert!(load.has_progress(rng.below(60), BACK_DEADLINE), "no progress: {kills:?}");
                let disturbance = load.disturb();
                // Mostly clients, so that one gateway lives through many of them.
                if rng.below(4) == 0 {
                    kills[0] += 1;
                    site.gateway.kill9_and_restart();
                } else {
                    kills[1] += 1;
                    site.client.kill9_and_restart();
                }
                site.expect_service(BACK_DEADLINE);
                drop(disturbance);
            }
            assert!(load.has_progress(50, BACK_DEADLINE), "no progress at the end: {kills:?}");
            site.expect_pause(&load, BACK_DEADLINE);
            println!("kills of gateway, client: {kills:?}; {:?} {:?}", load.counts(), load.by_kind());
            site.expect_no_faults(&load, &site.local);
            site.expect_calm(frames);
        });
    }
}
