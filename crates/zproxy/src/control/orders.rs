//! What the data cores are told to dial: proxy_conns, which the gateway asks for, and the lanes that
//! go with them.

use std::collections::BTreeMap;
use std::time::Duration;

use zproxy_io::Driver;
use zproxy_proto::auth;
use zproxy_proto::id::ProxyId;
use zproxy_proto::limits::{DIALS_MAX, LANE_RETRY};
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

/// The data cores of the client (of so many) that serve a data core of the gateway (of so many). As few
/// as keep all of them busy: the fewer lanes there are, the more notices travel together, and what one
/// core of each side does stays with these two.
fn partners(
    gateway_core: u16,
    gateway_cores: usize,
    cores: usize,
) -> impl ExactSizeIterator<Item = usize> + Clone {
    let pairs = gateway_cores.clamp(1, cores);
    (usize::from(gateway_core) % pairs..cores).step_by(pairs)
}

impl<D: Driver> Control<'_, D> {
    /// Orders proxy_conns, spread evenly over the data cores that serve that core of the gateway.
    pub(super) fn open_proxies(&mut self, wanted: OpenProxy) {
        let Link::Up(ctl) = &self.link else { return };
        let Some(door) = ctl.door.filter(|_| self.phase == Phase::Serving) else { return };
        let partners = partners(wanted.core, door.gateway_cores, self.cores.len());
        for number in partners.clone() {
            let core = &mut self.cores[number];
            core.waiting = core.sender.waiting();
        }
        // More than that the data cores would not dial. The gateway asks again.
        let count = usize::from(wanted.count).min(DIALS_MAX * partners.len());
        for _ in 0..count {
            let has_room = |number: &usize| !self.cores[*number].is_full();
            let ready = partners.clone().filter(has_room);
            let next = ready.min_by_key(|number| self.cores[*number].serial);
            let Some(number) = next else { break };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(gateway_core: u16, gateway_cores: usize, cores: usize) -> Vec<usize> {
        partners(gateway_core, gateway_cores, cores).collect()
    }

    /// With as many cores on both sides each has one partner; else those of the smaller side share
    /// those of the larger one evenly, and none is left out.
    #[test]
    fn every_core_has_partners() {
        assert_eq!([of(0, 2, 2), of(1, 2, 2)], [[0], [1]]);
        assert_eq!([of(0, 2, 5), of(1, 2, 5)], [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!([of(0, 5, 2), of(1, 5, 2), of(4, 5, 2)], [[0], [1], [0]]);
        assert_eq!(of(7, 1, 3), [0, 1, 2]);
        for (gateway_cores, cores) in [(1, 1), (3, 4), (4, 3), (32, 2), (2, 32), (7, 7)] {
            let mut served = vec![0; cores];
            for gateway_core in 0..gateway_cores as u16 {
                let partners = of(gateway_core, gateway_cores, cores);
                assert!(!partners.is_empty());
                partners.iter().for_each(|core| served[*core] += 1);
            }
            let (least, most) = (served.iter().min(), served.iter().max());
            assert!(least >= Some(&1) && most <= least.map(|least| least + 1).as_ref());
        }
    }
}
