//! The harness of the end-to-end tests: the real programs, started as processes on real sockets.
//!
//! Every test runs on both backends ([`both_backends!`]) in a [`World`] of its own: a temporary
//! directory, a token, and addresses that nobody else uses. Whatever a test starts is stopped when
//! its guard drops, and says what it logged when the test fails. Nothing waits for ever, and
//! nothing sleeps in the hope that something will have happened by then.
#![forbid(unsafe_code)]

pub mod clock;
pub mod exchange;
pub mod ledger;
pub mod liar;
pub mod load;
pub mod local;
pub mod net;
pub mod netns;
pub mod pair;
pub mod pattern;
pub mod proc;
pub mod program;
pub mod programs;
pub mod rig;
pub mod scenes;
pub mod site;
pub mod soak;
pub mod stats;
pub mod visits;
pub mod wire;
pub mod world;

pub use clock::{eventually, eventually_some};
pub use exchange::{Exchange, exchange};
pub use load::Load;
pub use local::{Listener, LocalServer};
pub use netns::Net;
pub use pair::Pair;
pub use pattern::{Direction, Pattern, Rng};
pub use program::{Program, Transcript};
pub use programs::{Client, ClientPlan, Forward, Gateway, GatewayPlan, Tunnel};
pub use rig::{Flow, Rig};
pub use site::Site;
pub use stats::Stats;
pub use visits::Visit;
pub use wire::{Road, Wire};
pub use world::{Backend, Relay, World};

/// Turns each `fn name(world) { … }` into a module with two tests, `uring` and `epoll`.
#[macro_export]
macro_rules! both_backends {
    ($( $(#[$meta:meta])* fn $name:ident($world:ident) $body:block )*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn scenario($world: &$crate::World) $body

            #[test]
            fn uring() {
                let exe = env!("CARGO_BIN_EXE_zproxy-under-test");
                $crate::World::run($crate::Backend::Uring, exe, scenario);
            }

            #[test]
            fn epoll() {
                let exe = env!("CARGO_BIN_EXE_zproxy-under-test");
                $crate::World::run($crate::Backend::Epoll, exe, scenario);
            }
        }
    )*};
}
