//! The soak itself, briefly: `cargo soak --minutes N` is the real one.

use zproxy_tests::both_backends;
use zproxy_tests::soak::{self, Settings};

both_backends! {
    /// A few seconds of load, kills and cuts with a look at every law.
    fn a_soak_of_seconds(world) {
        soak::run(world, Settings::seconds(3));
    }
}
