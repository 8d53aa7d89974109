//! What a data core holds, for the simulator to count.

use zproxy_io::{Driver, Stats};

use super::Worker;
use super::conns::Conn;

/// What a data core holds.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    /// Proxy_conns.
    pub conns: usize,
    /// Of these, the ones that are idle.
    pub idle: usize,
    /// Names of proxy_conns.
    pub names: usize,
    /// Proxy_conns that are not open yet.
    pub dialling: usize,
    /// Lanes.
    pub lanes: usize,
    /// Flows.
    pub flows: usize,
    /// Closes that have not come home.
    pub closing: usize,
    /// The driver's counters.
    pub stats: Stats,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn census(&self) -> Census {
        Census {
            conns: self.conns.len(),
            idle: self.conns.iter().filter(|(_, conn)| Conn::is_idle(conn)).count(),
            names: self.by_id.len(),
            dialling: self.dialling,
            lanes: self.lanes.len(),
            flows: self.flows.len(),
            closing: self.closing,
            stats: self.driver.stats(),
        }
    }
}
