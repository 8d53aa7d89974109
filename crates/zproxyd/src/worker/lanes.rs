//! The lanes: over each of them a data core of a client tells this one how flows on their
//! proxy_conns end, and hears the same. While there is none, ends are told in-band.

use std::time::Duration;

use tracing::{debug, warn};
use zproxy_io::{Driver, Ending, Op, Outcome};
use zproxy_proto::id::ProxyId;
use zproxy_proto::lane::{Lane, Notice};
use zproxy_proto::proxy_conn::{Input, Reach, Role};
use zproxy_relay::{Key, Line, Name, Path};

use super::{By, CLOSE_STRAY, LANE_HEARD, LANE_SAID, Worker};
use crate::mailbox::SessionNo;
use crate::sorted;

/// A lane to one data core of one client.
pub(super) struct LaneConn {
    session: SessionNo,
    machine: Lane,
    line: Line,
    path: Path,
}

/// Whether a notice is wanted at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    Urgent,
    /// Nobody waits for it.
    Patient,
}

impl<D: Driver> Worker<D> {
    /// Takes over an authenticated lane. It replaces an older one: the client would not dial if that
    /// was well.
    pub(super) fn adopt_lane(&mut self, session: SessionNo, name: ProxyId, handle: D::Handle) {
        let sock = self.driver.adopt(handle);
        let now = self.driver.now();
        let Some(entry) = self.sessions.get_mut(&session) else {
            self.close_stray(sock);
            return;
        };
        // Each of them is news for every proxy_conn of the session.
        if !entry.renewals.entry(name.client_core()).or_default().admit(now) {
            mark!("lane_rationed");
            debug!("core={} session={session} too many lanes of one data core", self.core);
            self.close_stray(sock);
            return;
        }
        if let Some(&old) = entry.lanes.get(&name.client_core()) {
            self.lose_lane(old, "the client has dialled another one");
        }
        let machine = Lane::new(Role::Gateway, name);
        let (line, path) = (Line::new(sock), Path::default());
        let key = self.lanes.insert(LaneConn { session, machine, line, path });
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.lanes.insert(name.client_core(), key);
        }
        self.hear(key, Vec::new());
        self.feed_client_core(session, name.client_core(), Input::LaneBack);
    }

    /// Whether a client's data core can be told of its flows.
    pub(super) fn reach_of(&self, session: SessionNo, proxy: ProxyId) -> Reach {
        let entry = self.sessions.get(&session);
        let has_lane = entry.is_some_and(|it| it.lanes.contains_key(&proxy.client_core()));
        if has_lane { Reach::Up } else { Reach::Lost }
    }

    fn hear(&mut self, key: Key, buf: Vec<u8>) {
        let lane = self.lanes.get(key).expect("a lane that is heard is live");
        lane.line.hear(&mut self.driver, Name { kind: LANE_HEARD, key }, buf);
    }

    /// Bytes have come on a lane, or its end.
    pub(super) fn on_lane_heard(&mut self, key: Key, outcome: Outcome) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let buf = match outcome {
            Outcome::Received { buf, count: 1.. } => buf,
            Outcome::Received { .. } => return self.lose_lane(key, "the client has closed it"),
            _ => return self.lose_lane(key, "it failed"),
        };
        lane.machine.handle_bytes(&buf);
        loop {
            // A notice may end the session's last conn, but not the lane.
            let Some(lane) = self.lanes.get_mut(key) else { return };
            match lane.machine.next_notice() {
                Ok(Some(notice)) => {
                    let session = lane.session;
                    self.on_notice(session, notice);
                }
                Ok(None) => break,
                Err(violation) => {
                    let session = lane.session;
                    warn!("core={} session={session} lane: {violation}", self.core);
                    return self.lose_lane(key, "the client broke the protocol");
                }
            }
        }
        self.hear(key, buf);
    }

    fn on_notice(&mut self, session: SessionNo, notice: Notice) {
        self.notices_heard += 1;
        let (proxy, input) = notice.input();
        // It may come late, for a proxy_conn that is gone.
        let Some(entry) = self.sessions.get(&session) else { return };
        let Some(key) = entry.conns.get(&proxy).copied() else { return };
        if let Input::PeerFin(..) = input {
            self.note_first_end(key, By::Local);
        }
        self.feed(key, input);
    }

    /// Tells the client's data core something about a flow. Without a lane it is lost, as the
    /// machines of the proxy_conns expect.
    pub(super) fn tell(&mut self, session: SessionNo, notice: Notice, haste: Haste) {
        let entry = self.sessions.get(&session);
        let client_core = notice.proxy().client_core();
        let Some(&key) = entry.and_then(|it| it.lanes.get(&client_core)) else { return };
        let lane = self.lanes.get_mut(key).expect("a session's lanes are live");
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
                self.lose_lane(key, "the client does not read");
                return false;
            }
            if !lane.line.is_due(now) {
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
        let (driver, limit) = (&self.driver, &self.limits.path);
        let is_dead = |lane: &mut LaneConn| lane.path.is_dead(driver, lane.line.sock(), limit, now);
        let dead = self.lanes.iter_mut().filter_map(|(key, lane)| is_dead(lane).then_some(key));
        for key in dead.collect::<Vec<_>>() {
            mark!("gateway.dead_lane");
            self.lose_lane(key, "the client acknowledges nothing");
        }
    }

    /// When a lane has something to say that has waited for long enough.
    pub(super) fn lanes_due(&self) -> Option<Duration> {
        let lanes = self.talking.iter().filter_map(|&key| self.lanes.get(key));
        lanes.filter_map(|lane| lane.line.poll_timeout()).min()
    }

    pub(super) fn on_lane_said(&mut self, key: Key, outcome: Outcome) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match outcome {
            Outcome::Sent { buf } => lane.line.on_said(buf),
            _ => self.lose_lane(key, "it failed"),
        }
    }

    /// Closes a lane. Its flows go on and end in-band.
    pub(super) fn lose_lane(&mut self, key: Key, why: &str) {
        let Some(lane) = self.lanes.remove(key) else { return };
        let (session, client_core) = (lane.session, lane.machine.client_core());
        debug!("core={} session={session} lane of core {client_core} closed: {why}", self.core);
        let token = Name { kind: CLOSE_STRAY, key }.token();
        self.driver.submit(token, Op::Close { sock: lane.line.sock(), how: Ending::Reset });
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.lanes.remove(&client_core);
            self.feed_client_core(session, client_core, Input::LaneLost);
        }
    }

    fn feed_client_core(&mut self, session: SessionNo, client_core: u16, input: Input) {
        let Some(entry) = self.sessions.get(&session) else { return };
        let theirs = entry.conns.iter().filter(|(proxy, _)| proxy.client_core() == client_core);
        for key in sorted(theirs.map(|(_, key)| *key)) {
            self.feed(key, input);
        }
    }
}
