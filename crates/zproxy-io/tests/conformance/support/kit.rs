//! How a driver under test is made.

use std::time::Duration;

use super::far::Meets;
use zproxy_io::{Driver, DriverConfig, Epoll, RelayMode, Uring};

/// Makes drivers of one kind.
pub(crate) trait Kit {
    type Driver: Meets;

    /// Why this machine cannot run the driver, if so.
    fn obstacle() -> Option<String>;

    fn driver(relay: RelayMode) -> Self::Driver;
}

/// Long enough to find what another thread does at once.
const BUSY_POLL: Duration = Duration::from_millis(2);

fn config(relay: RelayMode) -> DriverConfig {
    DriverConfig { relay, ..DriverConfig::default() }
}

fn busy(relay: RelayMode) -> DriverConfig {
    DriverConfig { busy_poll: BUSY_POLL, ..config(relay) }
}

pub(crate) struct EpollKit;

impl Kit for EpollKit {
    type Driver = Epoll;

    fn obstacle() -> Option<String> {
        None
    }

    fn driver(relay: RelayMode) -> Epoll {
        Epoll::new(&config(relay)).expect("epoll is always there")
    }
}

pub(crate) struct UringKit;

impl Kit for UringKit {
    type Driver = Uring;

    fn obstacle() -> Option<String> {
        Uring::new(&DriverConfig::default()).err().map(|error| error.to_string())
    }

    fn driver(relay: RelayMode) -> Uring {
        Uring::new(&config(relay)).expect("a ring was possible")
    }
}

/// epoll that watches awake before it sleeps.
pub(crate) struct BusyEpollKit;

impl Kit for BusyEpollKit {
    type Driver = Epoll;

    fn obstacle() -> Option<String> {
        None
    }

    fn driver(relay: RelayMode) -> Epoll {
        Epoll::new(&busy(relay)).expect("epoll is always there")
    }
}

/// A ring that watches awake before it sleeps.
pub(crate) struct BusyUringKit;

impl Kit for BusyUringKit {
    type Driver = Uring;

    fn obstacle() -> Option<String> {
        UringKit::obstacle()
    }

    fn driver(relay: RelayMode) -> Uring {
        Uring::new(&busy(relay)).expect("a ring was possible")
    }
}

/// Set where the machine must have every driver: then a missing one is a failure.
const REQUIRE_URING: &str = "ZPROXY_REQUIRE_URING";

/// Whether this machine has the driver of `K`; says so when it has not.
pub(crate) fn has_driver<K: Kit>() -> bool {
    let Some(obstacle) = K::obstacle() else { return true };
    let is_required = std::env::var_os(REQUIRE_URING).is_some();
    assert!(
        !is_required,
        "no {} here although {REQUIRE_URING} is set: {obstacle}",
        K::Driver::NAME
    );
    eprintln!("skipped: no {} here: {obstacle}", K::Driver::NAME);
    false
}

/// Runs a case with `K`, unless the machine forbids its driver.
pub(crate) fn judge<K: Kit>(case: fn()) {
    zproxy_io::sys::raise_descriptor_limit();
    zproxy_io::sys::ignore_sigpipe();
    if has_driver::<K>() {
        case();
    }
}
