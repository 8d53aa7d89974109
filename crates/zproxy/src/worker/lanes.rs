//! The lanes: over each of them this data core and one of the gateway tell each other how flows on
//! their proxy_conns end. While there is none, ends are told in-band.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, warn};
use zproxy_io::{Driver, Ending, Op, Outcome};
use zproxy_proto::id::ProxyId;
use zproxy_proto::lane::{Lane, Notice};
use zproxy_proto::proxy_conn::{Input, Reach, Role};
use zproxy_proto::wire::{Attach, encode_proxy_opening};
use zproxy_relay::{Key, Line, Name, Path};

use super::{CONNECT_LANE, LANE_HEARD, LANE_SAID, Phase, Worker};
use crate::mailbox::Report;

/// A lane to one data core of the gateway.
pub(super) struct LaneConn {
    machine: Lane,
    line: Line,
    stage: Stage,
    path: Path,
}

enum Stage {
    /// Being connected; this is to be said first. Notices wait.
    Connecting(Attach),
    Open,
    /// Closed as soon as everything is said.
    Leaving,
}

/// Whether a notice is wanted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    Urgent,
    /// Nobody waits for it.
    Patient,
}

impl LaneConn {
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting(_))
    }
}

impl<D: Driver> Worker<D> {
    /// Dials a lane, which replaces an older one. From now on notices for the gateway's data core wait
    /// in it.
    pub(super) fn dial_lane(&mut self, to: SocketAddr, attach: Attach) {
        let gateway_core = attach.proxy.gateway_core();
        if self.phase == Phase::Stopping {
            return;
        }
        if let Some(&old) = self.lane_of.get(&gateway_core) {
            self.remove_lane(old, Ending::Reset);
            self.handle_gateway_core(gateway_core, Input::LaneLost);
        }
        let sock = match self.driver.socket(&to) {
            Ok(sock) => sock,
            Err(fault) => {
                self.note_unreachable(fault);
                return self.reports.push(Report::LaneLost { core: self.core, gateway_core });
            }
        };
        self.driver.keep_alive(sock);
        let machine = Lane::new(Role::Client, attach.proxy);
        let (stage, line, path) = (Stage::Connecting(attach), Line::new(sock), Path::default());
        let key = self.lanes.insert(LaneConn { machine, line, stage, path });
        self.lane_of.insert(gateway_core, key);
        self.lane_dials.set(key, self.driver.now());
        let token = Name { kind: CONNECT_LANE, key }.token();
        self.driver.speaks_first(sock);
        self.driver.submit(token, Op::Connect { sock, to });
        self.handle_gateway_core(gateway_core, Input::LaneBack);
    }

    /// Whether a data core of the gateway can be told of its flows.
    pub(super) fn reach_of(&self, proxy: ProxyId) -> Reach {
        let has_lane = self.lane_of.contains_key(&proxy.gateway_core());
        if has_lane { Reach::Up } else { Reach::Lost }
    }

    pub(super) fn on_lane_connected(&mut self, key: Key, outcome: &Outcome) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let Stage::Connecting(attach) = &lane.stage else {
            unreachable!("a lane is connected once")
        };
        match outcome {
            Outcome::Connected => {
                let opening = encode_proxy_opening(attach).to_vec();
                lane.stage = Stage::Open;
                let is_loaded = lane.machine.has_outgoing();
                lane.line.say(&mut self.driver, Name { kind: LANE_SAID, key }, opening);
                if is_loaded {
                    lane.line.urge();
                }
                lane.line.hear(&mut self.driver, Name { kind: LANE_HEARD, key }, Vec::new());
            }
            Outcome::Failed(fault) => {
                let fault = *fault;
                self.note_unreachable(fault);
                self.lose_lane(key, "it could not be connected");
            }
            other => unreachable!("not the result of a connect: {other:?}"),
        }
    }

    /// Bytes have come on a lane, or its end.
    pub(super) fn on_lane_heard(&mut self, key: Key, outcome: Outcome) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let buf = match outcome {
            Outcome::Received { buf, count: 1.. } => buf,
            Outcome::Received { .. } => return self.lose_lane(key, "the gateway has closed it"),
            _ => return self.lose_lane(key, "it failed"),
        };
        lane.machine.handle_bytes(&buf);
        loop {
            let Some(lane) = self.lanes.get_mut(key) else { return };
            match lane.machine.next_notice() {
                Ok(Some(notice)) => self.on_notice(notice),
                Ok(None) => {
                    return lane.line.hear(&mut self.driver, Name { kind: LANE_HEARD, key }, buf);
                }
                Err(violation) => {
                    warn!("thread=data-{} lane: {violation}", self.core);
                    return self.lose_lane(key, "the gateway broke the protocol");
                }
            }
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        self.notices_heard += 1;
        let (proxy, input) = notice.input();
        // It may come late, for a proxy_conn that is gone.
        if let Some(&key) = self.by_id.get(&proxy) {
            self.handle(key, input);
        }
    }

    /// Tells the gateway's data core something about a flow. Without a lane it is lost, as the
    /// machines of the proxy_conns expect.
    pub(super) fn tell(&mut self, notice: Notice, haste: Haste) {
        let gateway_core = notice.proxy().gateway_core();
        let Some(&key) = self.lane_of.get(&gateway_core) else { return };
        let lane = self.lanes.get_mut(key).expect("lanes in the index are live");
        if !lane.machine.has_outgoing() {
            self.talking.push(key);
        }
        lane.machine.push(notice);
        self.notices_told += 1;
        match haste {
            Haste::Urgent => lane.line.urge(),
            Haste::Patient => lane.line.defer(self.driver.now()),
        }
    }

    /// Ends a turn: sends what is due. Keeps the lanes that have more to say.
    pub(super) fn flush_lanes(&mut self, now: Duration) {
        let mut talking = std::mem::take(&mut self.talking);
        talking.retain(|&key| {
            let Some(lane) = self.lanes.get_mut(key) else { return false };
            if lane.machine.is_backlogged() {
                self.lose_lane(key, "the gateway does not read");
                return false;
            }
            if lane.is_connecting() || !lane.line.is_due(now) {
                return true;
            }
            let buf = lane.machine.take_outgoing(lane.line.take_spare());
            lane.line.say(&mut self.driver, Name { kind: LANE_SAID, key }, buf);
            false
        });
        // What was told meanwhile, of conns whose lane was lost, is on other lanes.
        talking.append(&mut self.talking);
        self.talking = talking;
    }

    /// Closes the lanes whose other end has vanished: flows end in-band then.
    pub(super) fn look_at_lanes(&mut self, now: Duration) {
        let (driver, limit) = (&self.driver, self.looks.path());
        let open = self.lanes.iter_mut().filter(|(_, lane)| !lane.is_connecting());
        let is_dead = |lane: &mut LaneConn| lane.path.is_dead(driver, lane.line.sock(), limit, now);
        let dead = open.filter_map(|(key, lane)| is_dead(lane).then_some(key));
        for key in dead.collect::<Vec<_>>() {
            mark!("client.dead_lane");
            self.lose_lane(key, "the gateway acknowledges nothing");
        }
    }

    /// When a lane has something to say that has waited for long enough.
    pub(super) fn lanes_due(&self) -> Option<Duration> {
        let lanes = self.talking.iter().filter_map(|&key| self.lanes.get(key));
        let open = lanes.filter(|lane| !lane.is_connecting());
        open.filter_map(|lane| lane.line.poll_timeout()).min()
    }

    pub(super) fn on_lane_said(&mut self, key: Key, outcome: Outcome) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match outcome {
            Outcome::Sent { buf } => lane.line.on_said(buf),
            _ => return self.lose_lane(key, "it failed"),
        }
        if matches!(lane.stage, Stage::Leaving) && !lane.machine.has_outgoing() {
            self.remove_lane(key, Ending::Clean);
        }
    }

    /// Closes every lane as soon as everything is said.
    pub(super) fn leave_lanes(&mut self) {
        for key in self.lanes.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let lane = self.lanes.get_mut(key).expect("it has just been listed");
            if lane.is_connecting() {
                self.remove_lane(key, Ending::Reset);
            } else if lane.machine.has_outgoing() || lane.line.is_sending() {
                lane.stage = Stage::Leaving;
                lane.line.urge();
            } else {
                self.remove_lane(key, Ending::Clean);
            }
        }
    }

    /// Closes the lanes of a session that is over.
    pub(super) fn drop_lanes(&mut self) {
        for key in self.lanes.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            self.remove_lane(key, Ending::Reset);
        }
    }

    /// Lanes that are not attached would come with the name of a ctl_conn that is no more.
    pub(super) fn drop_connecting_lanes(&mut self) {
        let connecting = self.lanes.iter().filter(|(_, lane)| lane.is_connecting());
        for key in connecting.map(|(key, _)| key).collect::<Vec<_>>() {
            self.lose_lane(key, "the ctl_conn is lost");
        }
    }

    /// Closes a lane and asks for another one. Flows go on and end in-band.
    pub(super) fn lose_lane(&mut self, key: Key, why: &str) {
        let Some(lane) = self.lanes.get(key) else { return };
        let gateway_core = lane.machine.gateway_core();
        debug!("thread=data-{} lane to core {gateway_core} closed: {why}", self.core);
        self.remove_lane(key, Ending::Reset);
        self.reports.push(Report::LaneLost { core: self.core, gateway_core });
        self.handle_gateway_core(gateway_core, Input::LaneLost);
    }

    fn remove_lane(&mut self, key: Key, how: Ending) {
        let lane = self.lanes.remove(key).expect("a lane is closed once");
        self.lane_of.remove(&lane.machine.gateway_core());
        self.close(lane.line.sock(), how);
    }

    fn handle_gateway_core(&mut self, gateway_core: u16, input: Input) {
        // Also those whose opening is still on its way: they have their machine.
        for key in self.conn_keys(|conn| conn.proxy.gateway_core() == gateway_core) {
            self.handle(key, input);
        }
    }
}
