//! How a driver under test is made.

use zproxy_io::{Driver, Epoll, RelayMode, Uring, UringConfig};

/// Makes drivers of one kind.
pub(crate) trait Kit {
    type Driver: Driver;

    /// Why this machine cannot run the driver, if so.
    fn obstacle() -> Option<String>;

    fn driver(relay: RelayMode) -> Self::Driver;
}

pub(crate) struct EpollKit;

impl Kit for EpollKit {
    type Driver = Epoll;

    fn obstacle() -> Option<String> {
        None
    }

    fn driver(relay: RelayMode) -> Epoll {
        Epoll::new(relay).expect("epoll is always there")
    }
}

pub(crate) struct UringKit;

impl Kit for UringKit {
    type Driver = Uring;

    fn obstacle() -> Option<String> {
        Uring::new(&UringConfig::default()).err().map(|error| error.to_string())
    }

    fn driver(relay: RelayMode) -> Uring {
        Uring::new(&UringConfig { relay, ..UringConfig::default() }).expect("a ring was possible")
    }
}

/// Runs a case with `K`, unless the machine forbids its driver.
pub(crate) fn judge<K: Kit>(case: fn()) {
    zproxy_io::sys::raise_descriptor_limit();
    zproxy_io::sys::ignore_sigpipe();
    match K::obstacle() {
        None => case(),
        Some(obstacle) => eprintln!("skipped: no {} here: {obstacle}", K::Driver::NAME),
    }
}
