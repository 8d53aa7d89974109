//! What a data core holds, for the simulator to count.

use zproxy_io::{Driver, Stats};
use zproxy_proto::proxy_conn::Mode;

use super::Worker;
use super::accepting::Accepting;

/// What a data core holds.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    /// Listeners, closing ones included.
    pub listeners: usize,
    /// Of these, the ones that accept.
    pub accepting: usize,
    /// Public conns, closing ones included.
    pub publics: usize,
    /// Proxy_conns, closing ones included.
    pub conns: usize,
    /// Of these, the ones that are idle.
    pub idle: usize,
    /// Lanes.
    pub lanes: usize,
    /// Tunnels.
    pub tunnels: usize,
    /// Sessions.
    pub sessions: usize,
    /// The driver's counters.
    pub stats: Stats,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn census(&self) -> Census {
        let is_idle = |mode| matches!(mode, Mode::Idle);
        Census {
            listeners: self.listeners.len(),
            accepting: self.listeners.iter().filter(|(_, it)| it.state == Accepting::On).count(),
            publics: self.publics.len(),
            conns: self.conns.len(),
            idle: self.conns.iter().filter(|(_, conn)| is_idle(conn.machine.mode())).count(),
            lanes: self.lanes.len(),
            tunnels: self.tunnels.len(),
            sessions: self.sessions.len(),
            stats: self.driver.stats(),
        }
    }
}
