//! The local services of one data core and their addresses.
//!
//! A name is resolved when a flow needs it and the last answer has become old, so a service that
//! moves is found again, and a burst of flows asks once.

use std::sync::Arc;
use std::time::Duration;

use zproxy_ops::values::HostPort;
use zproxy_relay::Key;

use crate::resolver::{self, Addresses};

/// An answer of the resolver is used for so long.
const FRESH: Duration = Duration::from_secs(10);
/// A failed resolution is believed for so long.
const FAILED_FRESH: Duration = Duration::from_secs(1);

/// One local service.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    at: HostPort,
    addresses: Addresses,
    /// It is an address, which needs no resolution.
    is_literal: bool,
    fresh_until: Option<Duration>,
    /// Flows that wait for the resolver's answer; not empty exactly while it is being asked.
    waiting: Vec<Key>,
}

/// What is known when a flow asks.
#[derive(Debug)]
pub(crate) enum Known {
    /// Try these, in this order. Empty: the name does not resolve.
    Addresses(Addresses),
    /// The flow will be named by [`Target::answer`]; the resolver is to be asked now.
    Ask(HostPort),
    /// The flow will be named by [`Target::answer`]; the resolver is being asked.
    Asked,
}

impl Target {
    pub(crate) fn new(at: HostPort) -> Self {
        let literal = resolver::literal(&at);
        let addresses = literal.into_iter().collect();
        let is_literal = literal.is_some();
        Self { at, addresses, is_literal, fresh_until: None, waiting: Vec::new() }
    }

    pub(crate) fn at(&self) -> &HostPort {
        &self.at
    }

    /// The addresses for a flow.
    pub(crate) fn addresses(&mut self, flow: Key, now: Duration) -> Known {
        if self.is_literal || self.fresh_until.is_some_and(|until| now < until) {
            return Known::Addresses(Arc::clone(&self.addresses));
        }
        self.waiting.push(flow);
        if self.waiting.len() == 1 { Known::Ask(self.at.clone()) } else { Known::Asked }
    }

    /// The resolver's answer; gives the flows that waited for it.
    pub(crate) fn answer(&mut self, addresses: Addresses, now: Duration) -> Vec<Key> {
        let fresh = if addresses.is_empty() { FAILED_FRESH } else { FRESH };
        self.fresh_until = Some(now + fresh);
        self.addresses = addresses;
        std::mem::take(&mut self.waiting)
    }
}
