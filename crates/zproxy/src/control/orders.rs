//! What the data cores are told to dial: proxy_conns, which the gateway asks for, and the lanes that
//! go with them.

use std::collections::BTreeMap;
use std::time::Duration;

use zproxy_io::Driver;
use zproxy_proto::auth;
use zproxy_proto::id::ProxyId;
use zproxy_proto::limits::{DIALS_MAX, LANE_RETRY, LETTERS_MAX};
use zproxy_proto::wire::{Attach, Attached, OpenProxy};

use super::link::Link;
use super::{Control, Phase};
use crate::mailbox::Tell;

/// The lanes of this session, by data core of the client and data core of the gateway.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<(usize, u16), Order>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The data core has been told to dial it, and has not said that it lost it.
    Given,
    /// To be given at this time.
    Due(Duration),
}

impl Lanes {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// When a lane is to be dialled again.
    pub(super) fn next_retry(&self) -> Option<Duration> {
        let due = |order: &Order| match order {
            Order::Due(at) => Some(*at),
            Order::Given => None,
        };
        self.0.values().filter_map(due).min()
    }
}

impl<D: Driver> Control<'_, D> {
    /// Orders proxy_conns, spread over the data cores.
    pub(super) fn open_proxies(&mut self, wanted: OpenProxy) {
        if self.phase != Phase::Serving {
            return;
        }
        // More than that the data cores would not dial. The gateway asks again.
        let count = usize::from(wanted.count).min(DIALS_MAX * self.cores.len());
        for core in &mut self.cores {
            core.waiting = core.sender.waiting();
        }
        for _ in 0..count {
            let number = self.next_core;
            self.next_core = (number + 1) % self.cores.len();
            let core = &self.cores[number];
            if core.waiting + core.letters.len() >= LETTERS_MAX {
                continue;
            }
            if !self.lanes.0.contains_key(&(number, wanted.core)) {
                self.open_lane(number, wanted.core);
            }
            self.order(number, wanted.core, Attached::Conn);
        }
    }

    /// A lane is gone, or could not be made; without it flows end in-band.
    pub(super) fn on_lane_lost(&mut self, core: usize, gateway_core: u16) {
        let retry = self.driver.now() + LANE_RETRY;
        // One of an earlier session is not missed.
        if let Some(order) = self.lanes.0.get_mut(&(core, gateway_core)) {
            *order = Order::Due(retry);
        }
    }

    /// Orders the lanes again that were lost.
    pub(super) fn retry_lanes(&mut self, now: Duration) {
        let is_due = |order: &Order| matches!(order, Order::Due(at) if *at <= now);
        let due = self.lanes.0.iter().filter(|(_, order)| is_due(order));
        for (core, gateway_core) in due.map(|(cores, _)| *cores).collect::<Vec<_>>() {
            self.open_lane(core, gateway_core);
        }
    }

    /// With a new ctl_conn come new lanes: whatever has swallowed the old one may have swallowed them
    /// too, and nobody would notice before they have something to say.
    pub(super) fn renew_lanes(&mut self) {
        for (core, gateway_core) in self.lanes.0.keys().copied().collect::<Vec<_>>() {
            self.open_lane(core, gateway_core);
        }
    }

    fn open_lane(&mut self, core: usize, gateway_core: u16) {
        self.lanes.0.insert((core, gateway_core), Order::Given);
        self.order(core, gateway_core, Attached::Lane);
    }

    fn order(&mut self, number: usize, gateway_core: u16, what: Attached) {
        let Link::Up(ctl) = &self.link else { unreachable!("orders need a ctl_conn") };
        let (Some(door), Some(key)) = (ctl.door, ctl.session.session_key()) else { return };
        let core = &mut self.cores[number];
        // A session that lives through 2^32 proxy_conns of one data core gets no more of them; the
        // gateway would refuse a number that it has seen.
        let Some(next) = core.serial.checked_add(1) else { return };
        core.serial = next;
        let client_core = u16::try_from(number).expect("the settings bound data cores");
        let proxy = ProxyId::new(gateway_core, client_core, next);
        let mac = auth::attach_mac(key, what, door.ctl_id, proxy);
        let (to, attach) = (door.at, Attach { what, ctl_id: door.ctl_id, proxy, mac });
        core.letters.push(match what {
            Attached::Conn => Tell::Dial { to, attach, resting_max: door.resting_max },
            Attached::Lane => Tell::DialLane { to, attach },
        });
    }
}
