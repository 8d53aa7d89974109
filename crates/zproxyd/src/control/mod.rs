//! The control core: a thread that owns every ctl_conn, both listeners of the gateway, and
//! registration. It authenticates whatever dials in and hands proxy_conns to the data core that they
//! name; data cores never see an unauthenticated peer.
//!
//! `mod` is the loop and the connections that came in; `doors` the listeners, and who may come in;
//! `sessions` what an authenticated client may do; `post` what the data cores are told.

mod doors;
mod post;
mod sessions;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, error, info, warn};
use zproxy_io::{Done, Driver, DriverLost, Ending, Op, Outcome, Sock, Token as OpToken};
use zproxy_ops::signals::{Stop, Wish};
use zproxy_proto::auth::{self, Token};
use zproxy_proto::control::{End, GatewayEvent, GatewaySession, Heartbeat};
use zproxy_proto::id::{CtlId, ServerId, TunnelId};
use zproxy_proto::limits::{PROXY_OPENING_SIZE, STRANGER_RECV_MAX};
use zproxy_proto::registry::Registry;
use zproxy_proto::strangers::{Left, Pass, Strangers};
use zproxy_proto::wire::{self, Attached, GoAway, OpenProxy};
use zproxy_relay::{Key, Mailbox, Name, Sender, Shortage, Slots};

use crate::mailbox::{Report, SessionNo, Tell};
use crate::random::Random;
use crate::sorted;
use doors::{Counts, Door, DoorKind};
use post::Post;
use sessions::{Opening, Session};

const ACCEPT: u8 = 0;
const RECV: u8 = 1;
const SEND: u8 = 2;
const CLOSE: u8 = 3;
const CLOSE_DOOR: u8 = 4;
const CLOSE_STRAY: u8 = 5;

/// The most that is taken from a ctl_conn at once.
const RECV_MAX: usize = 16 << 10;
/// While draining, progress is logged so often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// While the data cores have too many letters to take, that is looked at so often.
const FULL_INTERVAL: Duration = Duration::from_millis(1);

/// Alarms of peers that are gone are dropped when there are so many.
const ALARMS_STALE_MAX: usize = 512;

/// What the control core is made with.
pub(crate) struct Parts<D: Driver> {
    pub(crate) driver: D,
    pub(crate) mailbox: Mailbox<Report>,
    pub(crate) workers: Vec<Sender<Tell<D>>>,
    pub(crate) ctl_listener: D::Handle,
    pub(crate) proxy_listener: D::Handle,
    pub(crate) proxy_port: u16,
    pub(crate) public_bind: std::net::IpAddr,
    pub(crate) registry: Registry,
    pub(crate) token: Token,
    pub(crate) server_id: ServerId,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) drain_timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) random: Random,
}

/// A connection behind a door.
struct Peer {
    sock: Sock,
    addr: Option<SocketAddr>,
    kind: PeerKind,
    /// As long as it is a stranger.
    pass: Option<Pass>,
    is_sending: bool,
    is_closing: bool,
    /// The earliest alarm in the heap for this peer.
    alarm: Option<Duration>,
}

enum PeerKind {
    /// A ctl_conn, in whichever phase.
    Ctl { machine: Box<GatewaySession>, session: Option<SessionNo>, said_goodbye: bool },
    /// A proxy_conn or a lane that has not attached yet.
    Proxy { head: Vec<u8>, deadline: Duration },
}

/// What the control core did for the data cores.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// `OpenProxy` frames sent to clients.
    pub(super) orders: u64,
    /// Proxy_conns that were authenticated and handed over.
    pub(super) proxy_conns: u64,
    /// Lanes that were authenticated and handed over.
    pub(super) lanes: u64,
}

enum Course {
    Serving,
    Draining { until: Duration, left: Vec<usize>, logged_at: Duration },
    Stopped,
}

/// The control core.
pub(crate) struct Control<D: Driver> {
    driver: D,
    mailbox: Mailbox<Report>,
    post: Post<D>,
    /// Ctl_conns that are not read while the post is full.
    held: Vec<Key>,
    doors: Slots<Door>,
    peers: Slots<Peer>,
    strangers: Strangers<Key>,
    registry: Registry,
    sessions: HashMap<SessionNo, Session>,
    by_ctl_id: HashMap<CtlId, SessionNo>,
    /// Tunnels that not every data core serves yet.
    opening: HashMap<TunnelId, Opening>,
    alarms: BinaryHeap<Reverse<(Duration, Key)>>,
    token: Token,
    server_id: ServerId,
    heartbeat: Heartbeat,
    proxy_port: u16,
    public_bind: std::net::IpAddr,
    drain_timeout: Duration,
    grace: Duration,
    /// Sessions whose client has stopped in good order, and until when their flows may end.
    parting: VecDeque<(Duration, SessionNo)>,
    shortage: Shortage,
    counts: Counts,
    counts_logged_at: Duration,
    traffic: Traffic,
    random: Random,
    course: Course,
    failure: Option<String>,
    /// Empty between turns.
    done: Vec<Done>,
    /// Empty between turns.
    reports: Vec<Report>,
}

impl<D: Driver> Control<D> {
    pub(crate) fn new(parts: Parts<D>) -> Self {
        let mut control = Self {
            driver: parts.driver,
            mailbox: parts.mailbox,
            post: Post::new(parts.workers),
            held: Vec::new(),
            doors: Slots::default(),
            peers: Slots::default(),
            strangers: Strangers::new(),
            registry: parts.registry,
            sessions: HashMap::new(),
            by_ctl_id: HashMap::new(),
            opening: HashMap::new(),
            alarms: BinaryHeap::new(),
            token: parts.token,
            server_id: parts.server_id,
            heartbeat: parts.heartbeat,
            proxy_port: parts.proxy_port,
            public_bind: parts.public_bind,
            drain_timeout: parts.drain_timeout,
            grace: parts.grace,
            parting: VecDeque::new(),
            shortage: Shortage::default(),
            counts: Counts::default(),
            counts_logged_at: Duration::ZERO,
            traffic: Traffic::default(),
            random: parts.random,
            course: Course::Serving,
            failure: None,
            done: Vec::new(),
            reports: Vec::new(),
        };
        control.open_door(DoorKind::Ctl, parts.ctl_listener);
        control.open_door(DoorKind::Proxy, parts.proxy_listener);
        control
    }

    /// Runs until every data core has ended. The error says what made the gateway fail.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let lost = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(lost) => break Some(lost),
            }
        };
        self.finish(lost.map(|lost| lost.to_string()))
    }

    /// Sends the data cores home. The error says what made the gateway fail.
    pub(crate) fn finish(self, lost: Option<String>) -> Result<(), String> {
        self.post.tell_all_now(|| Tell::Stop);
        self.log_stats();
        match lost.or(self.failure) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    fn log_stats(&self) {
        let (doors, peers, sessions) = (self.doors.len(), self.peers.len(), self.sessions.len());
        let Traffic { orders, proxy_conns, lanes } = self.traffic;
        let stats = self.driver.stats();
        info!(
            "control stats doors={doors} peers={peers} sessions={sessions} orders={orders} \
             proxy_conns={proxy_conns} lanes={lanes} {stats}"
        );
    }

    /// One turn of the loop: waits, does what there is to do, tells the data cores. False when it
    /// was the last.
    pub(crate) fn turn(&mut self) -> Result<bool, DriverLost> {
        let until = self.next_timer();
        self.driver.wait(until, &mut self.done)?;
        let mut done = std::mem::take(&mut self.done);
        for done in done.drain(..) {
            self.on_done(done);
        }
        self.done = done;
        self.make_room();
        self.on_time(self.driver.now());
        self.post.send();
        self.read_held();
        Ok(!matches!(self.course, Course::Stopped))
    }

    fn read_mail(&mut self) {
        let mut reports = std::mem::take(&mut self.reports);
        self.mailbox.take(&mut reports);
        for report in reports.drain(..) {
            self.on_report(report);
        }
        self.reports = reports;
    }

    fn on_done(&mut self, done: Done) {
        if done.token == OpToken::DOORBELL {
            return self.read_mail();
        }
        let name = Name::of(done.token);
        match name.kind {
            ACCEPT => self.on_accept(name.key, done.outcome),
            RECV => self.on_received(name.key, done.outcome),
            SEND => self.on_sent(name.key, &done.outcome),
            CLOSE => drop(self.peers.remove(name.key)),
            CLOSE_DOOR => drop(self.doors.remove(name.key)),
            _ => {}
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn census(&self) -> [usize; 4] {
        let is_up = |session: &&Session| session.peer.is_some();
        let up = self.sessions.values().filter(is_up).count();
        [self.doors.len(), self.peers.len(), self.sessions.len(), up]
    }

    #[cfg(feature = "sim")]
    pub(crate) fn stats(&self) -> zproxy_io::Stats {
        self.driver.stats()
    }

    fn tell(&mut self, core: u16, letter: Tell<D>) {
        self.post.tell(core, letter);
    }

    fn tell_all(&mut self, letter: impl Fn() -> Tell<D>) {
        self.post.tell_all(letter);
    }

    /// When the data cores have taken enough of their letters, ctl_conns are read again.
    fn read_held(&mut self) {
        if self.post.is_full() {
            return;
        }
        for key in std::mem::take(&mut self.held) {
            if self.peers.get(key).is_some_and(|peer| !peer.is_closing) {
                self.receive(key, Vec::new());
            }
        }
    }

    fn receive(&mut self, key: Key, buf: Vec<u8>) {
        let Some(peer) = self.peers.get(key) else { return };
        let max = match &peer.kind {
            PeerKind::Ctl { session: Some(_), .. } => RECV_MAX,
            PeerKind::Ctl { session: None, .. } => STRANGER_RECV_MAX,
            // Not a byte more than the opening: what follows belongs to a data core.
            PeerKind::Proxy { head, .. } => PROXY_OPENING_SIZE - head.len(),
        };
        let op = Op::Recv { sock: peer.sock, buf, max };
        self.driver.submit(Name { kind: RECV, key }.token(), op);
    }

    fn on_received(&mut self, key: Key, outcome: Outcome) {
        let now = self.driver.now();
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.is_closing {
            return;
        }
        let (mut buf, count) = match outcome {
            Outcome::Received { buf, count } => (buf, count),
            _ => (Vec::new(), 0),
        };
        if count == 0 {
            self.on_peer_gone(key);
            return;
        }
        match &mut peer.kind {
            PeerKind::Ctl { machine, .. } => {
                machine.handle_bytes(&buf, now);
                buf.clear();
                self.advance(key);
                if self.post.is_full() {
                    self.held.push(key);
                } else if self.peers.get(key).is_some_and(|peer| !peer.is_closing) {
                    self.receive(key, buf);
                }
            }
            PeerKind::Proxy { head, .. } => {
                head.extend_from_slice(&buf);
                match wire::decode_proxy_opening(head) {
                    Ok(Some(attach)) => self.attach(key, &attach),
                    Ok(None) => self.receive(key, Vec::new()),
                    Err(error) => self.turn_away(key, &error.to_string()),
                }
            }
        }
    }

    /// The connection has ended or failed.
    fn on_peer_gone(&mut self, key: Key) {
        let Some(peer) = self.peers.get(key) else { return };
        match &peer.kind {
            PeerKind::Ctl { session: Some(_), .. } => self.lose_ctl(key, "the connection ended"),
            _ => self.turn_away(key, "it left before it was authenticated"),
        }
    }

    /// Gives an authenticated proxy_conn or lane to its data core.
    fn attach(&mut self, key: Key, attach: &wire::Attach) {
        let session = self.by_ctl_id.get(&attach.ctl_id).copied();
        let session = session.and_then(|no| self.sessions.get_mut(&no).map(|entry| (no, entry)));
        let Some((no, entry)) = session else {
            self.turn_away(key, "it names no session");
            return;
        };
        let genuine = auth::verify_attach_mac(&entry.key, attach);
        let core = attach.proxy.gateway_core();
        let is_in_range = usize::from(core) < self.post.cores()
            && attach.proxy.client_core() < entry.client_cores;
        if !genuine || !is_in_range {
            self.turn_away(key, "its proof is wrong");
            return;
        }
        if self.post.is_full_for(core) {
            // The data core asks for others when it is itself again.
            self.note_leaving(key, Left::Known);
            self.close_peer(key, Ending::Reset);
            return;
        }
        if !entry.replay.accept(attach.proxy) {
            self.turn_away(key, "its id was used before");
            return;
        }
        self.note_leaving(key, Left::Known);
        let peer = self.peers.remove(key).expect("it was found by its key");
        let handle = self.driver.release(peer.sock);
        let (session, name) = (no, attach.proxy);
        let letter = match attach.what {
            Attached::Conn => {
                self.traffic.proxy_conns += 1;
                Tell::Conn { session, proxy: name, handle }
            }
            Attached::Lane => {
                self.traffic.lanes += 1;
                Tell::Lane { session, name, handle }
            }
        };
        self.tell(core, letter);
    }

    fn close_peer(&mut self, key: Key, how: Ending) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.is_closing {
            return;
        }
        peer.is_closing = true;
        let sock = peer.sock;
        self.note_leaving(key, Left::Failed);
        self.driver.submit(Name { kind: CLOSE, key }.token(), Op::Close { sock, how });
    }

    /// Lets a ctl_conn's machine have its way: events, bytes to send, the next alarm, the end.
    fn advance(&mut self, key: Key) {
        loop {
            let Some(peer) = self.peers.get_mut(key) else { return };
            let PeerKind::Ctl { machine, .. } = &mut peer.kind else { return };
            match machine.poll_event() {
                Some(GatewayEvent::Ended(end)) => self.on_ended(key, &end),
                Some(event) => self.on_event(key, event),
                None => break,
            }
        }
        let Some(peer) = self.peers.get_mut(key) else { return };
        let PeerKind::Ctl { machine, .. } = &mut peer.kind else { return };
        if peer.is_closing {
            return;
        }
        if !peer.is_sending {
            if let Some(buf) = machine.poll_transmit() {
                peer.is_sending = true;
                let op = Op::Send { sock: peer.sock, buf };
                // The data cores hear first of what the client is told: it, and its visitors, may act on
                // it at once, and would be given proxy_conns of the way that the client has left.
                self.post.send();
                self.driver.submit(Name { kind: SEND, key }.token(), op);
            } else if machine.is_ended() {
                self.close_peer(key, Ending::Clean);
                return;
            }
        }
        self.set_alarm(key);
    }

    fn on_sent(&mut self, key: Key, outcome: &Outcome) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.is_sending = false;
        if peer.is_closing {
            return;
        }
        match outcome {
            Outcome::Sent { .. } => self.advance(key),
            _ => self.on_peer_gone(key),
        }
    }

    fn on_ended(&mut self, key: Key, end: &End) {
        let Some(peer) = self.peers.get(key) else { return };
        let addr = peer.addr.map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
        match &peer.kind {
            PeerKind::Ctl { session: Some(_), .. } => {
                // A peer that was silent or does not read will not read the rest either.
                let how = match end {
                    End::Silent | End::Backlog => Ending::Reset,
                    _ => Ending::Clean,
                };
                let why = end.to_string();
                if how == Ending::Reset {
                    self.lose_ctl(key, &why);
                } else {
                    self.detach(key, &why);
                }
            }
            _ => {
                // One of them is named; a flood must not flood the log.
                if matches!(end, End::Refused { .. }) && !self.counts.is_refusal_named {
                    self.counts.is_refusal_named = true;
                    warn!("peer={addr} {end}");
                } else {
                    debug!("peer={addr} turned away: {end}");
                }
                self.counts.turned_away += 1;
            }
        }
    }

    fn next_timer(&self) -> Option<Duration> {
        let paused = self.doors.iter().filter_map(|(_, door)| door.paused_until);
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        let drain = match &self.course {
            Course::Draining { until, .. } => Some(*until),
            Course::Serving | Course::Stopped => None,
        };
        let expiry = self.registry.poll_timeout();
        let calm = self.shortage.poll_timeout();
        let parted = self.parting.front().map(|(until, _)| *until);
        let held = (!self.held.is_empty()).then(|| self.driver.now() + FULL_INTERVAL);
        // Whoever came in this turn is listened to in the next, and then somebody makes room.
        let crowd = self.strangers.is_crowded().then_some(Duration::ZERO);
        paused
            .chain(alarm)
            .chain(drain)
            .chain(expiry)
            .chain(calm)
            .chain(parted)
            .chain(crowd)
            .chain(held)
            .min()
    }

    fn set_alarm(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let due = match &peer.kind {
            PeerKind::Ctl { machine, .. } => machine.poll_timeout(),
            PeerKind::Proxy { deadline, .. } => Some(*deadline),
        };
        if let Some(at) = due
            && peer.alarm.is_none_or(|alarm| at < alarm)
        {
            peer.alarm = Some(at);
            self.alarms.push(Reverse((at, key)));
        }
        // Alarms of peers that are gone stay until their time. A flood must not pile them up.
        if self.alarms.len() > ALARMS_STALE_MAX + 2 * self.peers.len() {
            let peers = &self.peers;
            self.alarms.retain(|Reverse((at, key))| {
                peers.get(*key).is_some_and(|peer| peer.alarm == Some(*at))
            });
        }
    }

    fn on_time(&mut self, now: Duration) {
        while let Some(Reverse((at, key))) = self.alarms.peek().copied()
            && at <= now
        {
            self.alarms.pop();
            self.on_alarm(key, at, now);
        }
        for (key, door) in self.doors.iter_mut() {
            if door.paused_until.is_some_and(|until| until <= now) {
                door.paused_until = None;
                let accept = Name { kind: ACCEPT, key };
                self.driver.submit(accept.token(), Op::Accept { listener: door.sock });
            }
        }
        if self.shortage.is_over(now) {
            info!("accepting clients again");
        }
        self.expire_sessions(now);
        self.end_parted(now);
        self.log_counts(now);
        self.drain_on(now);
    }

    fn on_alarm(&mut self, key: Key, at: Duration, now: Duration) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.alarm != Some(at) || peer.is_closing {
            return;
        }
        peer.alarm = None;
        match &mut peer.kind {
            PeerKind::Ctl { machine, .. } => {
                let was_ended = machine.is_ended();
                machine.handle_timeout(now);
                if was_ended {
                    self.close_peer(key, Ending::Reset);
                } else {
                    self.advance(key);
                }
            }
            PeerKind::Proxy { deadline, .. } if *deadline <= now => {
                self.turn_away(key, "it was silent for too long");
            }
            PeerKind::Proxy { .. } => self.set_alarm(key),
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Want { session, core, count } => {
                self.order(session, OpenProxy { core, count });
            }
            Report::Short => self.on_short(),
            Report::Serving { tunnel } => self.on_serving(tunnel),
            Report::Left { core, publics } => {
                if let Course::Draining { left, .. } = &mut self.course {
                    left[usize::from(core)] = publics;
                }
            }
            Report::Ended { core, error } => {
                if let Some(error) = error {
                    error!("data core {core} failed: {error}");
                    self.failure = Some(format!("data core {core} failed: {error}"));
                }
                self.course = Course::Stopped;
            }
            Report::Asked(Wish::Stats) => {
                self.log_stats();
                self.tell_all(|| Tell::Stats);
            }
            Report::Asked(Wish::Stop(Stop::Drain)) => self.drain(),
            Report::Asked(Wish::Stop(Stop::Now)) => {
                info!("stopping at once");
                self.course = Course::Stopped;
            }
        }
    }

    /// Asks a client for proxy_conns; without a ctl_conn the data core asks again when there is one.
    fn order(&mut self, session: SessionNo, order: OpenProxy) {
        let Some(key) = self.sessions.get(&session).and_then(|entry| entry.peer) else { return };
        let Some(machine) = self.machine(key) else { return };
        machine.open_proxy(order);
        self.traffic.orders += 1;
        self.advance(key);
    }

    fn drain(&mut self) {
        if !matches!(self.course, Course::Serving) {
            return;
        }
        let now = self.driver.now();
        let until = now + self.drain_timeout;
        info!("draining for at most {} s", self.drain_timeout.as_secs_f64());
        let left = vec![usize::MAX; self.post.cores()];
        self.course = Course::Draining { until, left, logged_at: Duration::ZERO };
        let ctl_doors = self.doors.iter().filter(|(_, door)| door.kind == DoorKind::Ctl);
        let closing: Vec<(Key, Sock)> = ctl_doors.map(|(key, door)| (key, door.sock)).collect();
        for (key, sock) in closing {
            let name = Name { kind: CLOSE_DOOR, key };
            self.driver.submit(name.token(), Op::Close { sock, how: Ending::Clean });
        }
        let drain_ms = u64::try_from(self.drain_timeout.as_millis()).unwrap_or(u64::MAX);
        let clients = self.sessions.values().filter_map(|entry| entry.peer);
        let clients = sorted(clients);
        for key in clients {
            if let Some(peer) = self.peers.get_mut(key)
                && let PeerKind::Ctl { machine, .. } = &mut peer.kind
            {
                machine.go_away(GoAway { reason: "the gateway is stopping".into(), drain_ms });
            }
            self.advance(key);
        }
        self.tell_all(|| Tell::Drain);
    }

    fn drain_on(&mut self, now: Duration) {
        let Course::Draining { until, left, logged_at } = &mut self.course else { return };
        if left.contains(&usize::MAX) && now < *until {
            return;
        }
        let flows: usize = left.iter().filter(|&&count| count != usize::MAX).sum();
        if flows == 0 {
            info!("drained");
            self.course = Course::Stopped;
        } else if now >= *until {
            warn!("drain timeout: {flows} flows are cut off");
            self.course = Course::Stopped;
        } else if now >= *logged_at + PROGRESS_INTERVAL {
            *logged_at = now;
            info!("draining: {flows} flows left");
        }
    }
}
