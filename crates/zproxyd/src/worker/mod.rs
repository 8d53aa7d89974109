//! A data core: a pinned thread with its own driver. It owns its public listeners, the public conns
//! that they accept, and the proxy_conns that the control core hands to it, all authenticated.
//!
//! `mod` is the loop and its messages, `accepting` when listeners accept and when they pause,
//! `publics` the public side (accept, wait, bind, end), `conns` the proxy_conns and their machine's
//! actions, `lanes` what is told of flows.

mod accepting;
#[cfg(feature = "sim")]
mod census;
mod conns;
mod lanes;
mod publics;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, info, warn};
use zproxy_io::{Done, Driver, DriverLost, Ending, Fault, Op, Sock, Token};
use zproxy_proto::id::{FlowId, ProxyId, TunnelId};
use zproxy_proto::lane::Renewals;
use zproxy_proto::limits::SETTLING_CONNS_MAX;
use zproxy_proto::pool::Pool;
use zproxy_proto::proxy_conn::{Input, Mode, ProxyConn, Reach};
use zproxy_relay::{
    Arrival, Arrivals, Flow, Heard, Key, Keys, Mailbox, Name, Path, PathLimit, SMALL_PIPES, Sender,
    Shortage, Slots, SmallPipes, kind,
};

#[cfg(feature = "sim")]
pub use census::Census;

use crate::config::Settings;
use crate::mailbox::{Report, SessionNo, Tell};
use crate::sorted;
use accepting::Accepting;
use lanes::LaneConn;

/// Accept of a listener; key: listener.
const ACCEPT: u8 = kind::OWNERS;
/// `Start` being sent; key: conn.
const START: u8 = kind::OWNERS + 1;
/// Key: public.
const CLOSE_PUBLIC: u8 = kind::OWNERS + 2;
/// Key: conn.
const CLOSE_CONN: u8 = kind::OWNERS + 3;
/// Key: listener.
const CLOSE_LISTENER: u8 = kind::OWNERS + 4;
/// Closing a socket that never got a place.
const CLOSE_STRAY: u8 = kind::OWNERS + 5;
/// Key: lane.
const LANE_HEARD: u8 = kind::OWNERS + 6;
/// Key: lane.
const LANE_SAID: u8 = kind::OWNERS + 7;

/// Live flows are looked at so often: for conns that died unseen and for deadlines.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Limits of time, from the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) bind_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) half_close_timeout: Option<Duration>,
    pub(crate) path: PathLimit,
}

impl Limits {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            bind_timeout: settings.bind_timeout,
            idle_timeout: settings.flow.idle_timeout,
            half_close_timeout: settings.flow.half_close_timeout,
            path: PathLimit::new(settings.flow.dead_after),
        }
    }
}

/// A public listener of one tunnel.
#[derive(Debug)]
struct Listener {
    sock: Sock,
    session: SessionNo,
    tunnel: TunnelId,
    state: Accepting,
}

/// A tunnel as this core sees it.
#[derive(Debug)]
struct Tunnel {
    name: String,
    listener: Key,
}

/// A client's session as this core sees it.
struct Session {
    client: String,
    /// Whether proxy_conns can be asked for.
    ctl: Reach,
    /// The client is stopping. Its proxy_conns are closed from here and not from there: a FIN of the
    /// client that met a new flow's `Start` would look like the end of an empty answer.
    is_parting: bool,
    pool: Pool<Key, Key>,
    /// So many visitors wait that its listeners pause.
    is_crowded: bool,
    /// What was told of that.
    crowding: Shortage,
    conns: HashMap<ProxyId, Key>,
    /// By data core of the client.
    lanes: HashMap<u16, Key>,
    /// By data core of the client.
    renewals: HashMap<u16, Renewals>,
    /// The earliest alarm in the heap for the pool.
    alarm: Option<Duration>,
}

/// A proxy_conn.
struct Conn {
    sock: Sock,
    session: SessionNo,
    proxy: ProxyId,
    machine: ProxyConn,
    life: Life,
    far_watched: bool,
    /// Looks in a row at which it was settling.
    settling_looks: u32,
    /// Asked about while no flow is on it.
    path: Path,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Idle or settling.
    Resting,
    /// The public conn of this place is on it.
    Flowing(Key),
    /// Being closed.
    Closing,
}

/// A public conn.
struct Public {
    sock: Sock,
    peer: Option<SocketAddr>,
    session: SessionNo,
    tunnel: TunnelId,
    accepted_at: Duration,
    arrival: Arrival,
    state: PublicState,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them flow, and a flow costs no allocation"
)]
enum PublicState {
    /// No proxy_conn was idle.
    Waiting,
    /// Bound to a proxy_conn.
    Flowing(Bound),
    /// Being closed.
    Closing,
}

/// A public conn with its proxy_conn.
struct Bound {
    id: FlowId,
    conn: Key,
    bound_at: Duration,
    flow: Flow,
    ended_first: Option<By>,
}

/// Who ended a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Public,
    Local,
    Client,
    Gateway,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Local => "local",
            Self::Client => "client",
            Self::Gateway => "gateway",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Serving,
    Draining,
    Stopped,
}

/// One data core.
pub(crate) struct Worker<D: Driver> {
    core: u16,
    driver: D,
    mailbox: Mailbox<Tell<D>>,
    reports: Sender<Report>,
    limits: Limits,
    arrivals: Arrivals,
    listeners: Slots<Listener>,
    tunnels: HashMap<TunnelId, Tunnel>,
    /// Listeners that are being closed.
    listeners_closing: usize,
    /// Tunnels that are reported as served when no listener is being closed any more: an old one may
    /// be on the same port.
    unreported: Vec<TunnelId>,
    sessions: HashMap<SessionNo, Session>,
    conns: Slots<Conn>,
    publics: Slots<Public>,
    /// Public conns that are not being closed.
    publics_live: usize,
    next_flow: u64,
    lanes: Slots<LaneConn>,
    /// Lanes that have something to say.
    talking: Vec<Key>,
    notices_heard: u64,
    notices_told: u64,
    outgoing: Vec<Report>,
    /// Sessions whose pool may want something after this turn.
    touched: Vec<SessionNo>,
    alarms: BinaryHeap<Reverse<(Duration, SessionNo)>>,
    next_look: Option<Duration>,
    shortage: Shortage,
    /// Times that a crowd made listeners pause.
    crowds: u64,
    pipes: SmallPipes,
    /// Spent `Start` buffers.
    spare: Vec<Vec<u8>>,
    course: Course,
    publics_reported: usize,
    /// Empty between turns.
    done: Vec<Done>,
    /// Empty between turns.
    letters: Vec<Tell<D>>,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn new(
        core: u16,
        driver: D,
        mailbox: Mailbox<Tell<D>>,
        reports: Sender<Report>,
        limits: Limits,
        arrivals: Arrivals,
    ) -> Self {
        Self {
            core,
            driver,
            mailbox,
            reports,
            limits,
            arrivals,
            listeners: Slots::default(),
            tunnels: HashMap::new(),
            listeners_closing: 0,
            unreported: Vec::new(),
            sessions: HashMap::new(),
            conns: Slots::default(),
            publics: Slots::default(),
            publics_live: 0,
            next_flow: 1,
            lanes: Slots::default(),
            talking: Vec::new(),
            notices_heard: 0,
            notices_told: 0,
            outgoing: Vec::new(),
            touched: Vec::new(),
            alarms: BinaryHeap::new(),
            next_look: None,
            shortage: Shortage::default(),
            crowds: 0,
            pipes: SmallPipes::default(),
            spare: Vec::new(),
            course: Course::Serving,
            publics_reported: usize::MAX,
            done: Vec::new(),
            letters: Vec::new(),
        }
    }

    /// Runs until told to end.
    pub(crate) fn run(mut self) {
        let lost = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(lost) => break Some(lost),
            }
        };
        self.finish(lost.map(|lost| lost.to_string()));
    }

    /// Closes everything and tells the control core.
    pub(crate) fn finish(self, error: Option<String>) {
        let core = self.core;
        let reports = self.reports.clone();
        self.log_stats();
        // The driver goes first: with it every socket of this core is closed.
        drop(self);
        reports.send(Report::Ended { core, error });
    }

    fn log_stats(&self) {
        let (listeners, publics, conns) =
            (self.listeners.len(), self.publics.len(), self.conns.len());
        let (lanes, heard, told) = (self.lanes.len(), self.notices_heard, self.notices_told);
        let arrivals = self.arrivals.seen();
        info!(
            "core={} stats listeners={listeners} paused={} crowds={} publics={publics} \
             conns={conns} settling={} lanes={lanes} notices_heard={heard} notices_told={told} \
             {arrivals} {}",
            self.core,
            self.paused(),
            self.crowds,
            self.settling(),
            self.driver.stats()
        );
    }

    /// One turn of the loop: waits, does what there is to do, tells the control core. False when it
    /// was the last.
    pub(crate) fn turn(&mut self) -> Result<bool, DriverLost> {
        let until = self.next_timer();
        self.driver.wait(until, &mut self.done)?;
        let mut done = std::mem::take(&mut self.done);
        // What lanes say comes first: it tells which bytes are the last of their flow.
        for heard in done.extract_if(.., |done| Name::of(done.token).kind == LANE_HEARD) {
            self.on_done(heard);
        }
        for done in done.drain(..) {
            self.on_done(done);
        }
        self.done = done;
        self.on_time(self.driver.now());
        self.steer(self.driver.now());
        self.poll_pools();
        self.report_drain();
        self.flush_lanes(self.driver.now());
        self.reports.send_all(&mut self.outgoing);
        Ok(self.course != Course::Stopped)
    }

    fn read_mail(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.mailbox.take(&mut letters);
        for letter in letters.drain(..) {
            self.on_letter(letter);
        }
        self.letters = letters;
    }

    fn on_done(&mut self, done: Done) {
        if done.token == Token::DOORBELL {
            return self.read_mail();
        }
        let name = Name::of(done.token);
        match name.kind {
            ACCEPT => self.on_accept(name.key, done.outcome),
            START => self.on_start_sent(name.key, done.outcome),
            kind::FILL_FAR => self.on_conn_filled(name.key, done.outcome),
            kind::WATCH_FAR => self.on_conn_watched(name.key, done.outcome),
            CLOSE_PUBLIC => drop(self.publics.remove(name.key)),
            CLOSE_CONN => drop(self.conns.remove(name.key)),
            CLOSE_LISTENER => self.on_listener_closed(name.key),
            CLOSE_STRAY => {}
            LANE_HEARD => self.on_lane_heard(name.key, done.outcome),
            LANE_SAID => self.on_lane_said(name.key, done.outcome),
            flow_kind => self.on_flow_done(name.key, flow_kind, done.outcome),
        }
    }

    fn on_letter(&mut self, letter: Tell<D>) {
        match letter {
            Tell::Session { session, client } => {
                let pool = Pool::new().with_bind_deadline(self.limits.bind_timeout);
                let (ctl, is_parting, alarm) = (Reach::Up, false, None);
                let (conns, lanes, renewals) = (HashMap::new(), HashMap::new(), HashMap::new());
                let (is_crowded, crowding) = (false, Shortage::default());
                let entry = Session {
                    client,
                    ctl,
                    is_parting,
                    pool,
                    is_crowded,
                    crowding,
                    conns,
                    lanes,
                    renewals,
                    alarm,
                };
                self.sessions.insert(session, entry);
                self.touched.push(session);
            }
            Tell::CtlLost { session } => self.on_ctl(session, Reach::Lost),
            Tell::CtlBack { session } => self.on_ctl(session, Reach::Up),
            Tell::Parting { session } => self.part(session),
            Tell::SessionOver { session } => self.end_session(session),
            Tell::Tunnel { session, tunnel, name, listener } => {
                self.open_tunnel(session, tunnel, name, listener);
            }
            Tell::TunnelOver { tunnel } => self.close_tunnel(tunnel),
            Tell::Conn { session, proxy, handle } => self.adopt(session, proxy, handle),
            Tell::Lane { session, name, handle } => self.adopt_lane(session, name, handle),
            Tell::Short => self.shed(),
            Tell::Drain => self.drain(),
            Tell::Stats => self.log_stats(),
            Tell::Stop => {
                self.course = Course::Stopped;
                self.cut_off();
            }
        }
    }

    /// Flows do not notice: proxy_conns and lanes live on. None can be asked for meanwhile. When the
    /// client is back on a new way, what idles may be dead.
    fn on_ctl(&mut self, session: SessionNo, ctl: Reach) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        entry.ctl = ctl;
        if ctl == Reach::Lost {
            entry.pool.ctl_lost();
        } else {
            for key in entry.pool.distrust() {
                self.feed(key, Input::Retire);
            }
        }
        self.touched.push(session);
    }

    fn part(&mut self, session: SessionNo) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        entry.is_parting = true;
        let all = entry.pool.clear();
        self.touched.push(session);
        for conn in all.surplus {
            self.feed(conn, Input::Retire);
        }
        for key in all.waiters {
            self.refuse_public(key, "client_stopping");
        }
    }

    fn end_session(&mut self, session: SessionNo) {
        let Some(entry) = self.sessions.remove(&session) else { return };
        mark!("session_over");
        debug!("core={} session={session} over conns={}", self.core, entry.conns.len());
        let of_session = |tunnel: &Tunnel| {
            self.listeners.get(tunnel.listener).is_some_and(|listener| listener.session == session)
        };
        let tunnels = self.tunnels.iter().filter(|(_, tunnel)| of_session(tunnel));
        let tunnels = sorted(tunnels.map(|(id, _)| *id));
        for tunnel in tunnels {
            self.close_tunnel(tunnel);
        }
        for key in sorted(entry.conns.into_values()) {
            self.close_conn(key, Ending::Reset, "session_over", By::Gateway);
        }
        for key in sorted(entry.lanes.into_values()) {
            self.lose_lane(key, "the session is over");
        }
        let waiting: Vec<Key> = self
            .publics
            .iter()
            .filter(|(_, public)| {
                public.session == session && matches!(public.state, PublicState::Waiting)
            })
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.refuse_public(key, "session_over");
        }
    }

    fn drain(&mut self) {
        if self.course != Course::Serving {
            return;
        }
        self.course = Course::Draining;
        let tunnels = sorted(self.tunnels.keys().copied());
        for tunnel in tunnels {
            self.close_tunnel(tunnel);
        }
    }

    /// While draining: what is left. A public conn counts until it is closed, and a proxy_conn until
    /// the client has released it: to end before that would cut off what is still on its way.
    fn report_drain(&mut self) {
        if self.course != Course::Draining {
            return;
        }
        let publics = self.publics.len() + self.settling();
        if self.publics_reported != publics {
            self.publics_reported = publics;
            self.outgoing.push(Report::Left { core: self.core, publics });
        }
    }

    /// Proxy_conns that the client has not released yet.
    fn settling(&self) -> usize {
        let settling = |conn: &Conn| matches!(conn.machine.mode(), Mode::Settling(_));
        self.conns.iter().filter(|(_, conn)| settling(conn)).count()
    }

    /// When something is due by itself.
    fn next_timer(&self) -> Option<Duration> {
        let paused = self.paused_until();
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        let calm = self.shortage.poll_timeout();
        let steering = self.arrivals.poll_timeout();
        let times = [paused, alarm, self.next_look, calm, self.lanes_due(), steering];
        times.into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Duration) {
        while let Some(Reverse((at, session))) = self.alarms.peek().copied()
            && at <= now
        {
            self.alarms.pop();
            self.on_alarm(session, at, now);
        }
        if self.next_look.is_some_and(|at| at <= now) {
            self.look(now);
        }
        self.resume_accepting(now);
    }

    /// A pool's time has come.
    fn on_alarm(&mut self, session: SessionNo, at: Duration, now: Duration) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.alarm != Some(at) {
            return;
        }
        entry.alarm = None;
        if !entry.is_crowded && entry.crowding.is_over(now) {
            info!("core={} client={} accepting again", self.core, entry.client);
        }
        let due = entry.pool.handle_timeout(now);
        for key in due.waiters {
            mark!("no_proxy_conn");
            self.refuse_public(key, "no_proxy_conn");
        }
        for key in due.surplus {
            self.feed(key, Input::Retire);
        }
        self.touched.push(session);
    }

    /// Tells what the pools want, once per turn, and sets their alarms.
    fn poll_pools(&mut self) {
        let now = self.driver.now();
        let mut touched = std::mem::take(&mut self.touched);
        for session in touched.drain(..) {
            self.poll_crowd(session, now);
            let Some(entry) = self.sessions.get_mut(&session) else { continue };
            let is_served = entry.ctl == Reach::Up && !entry.is_parting;
            if is_served && self.course == Course::Serving {
                let count = entry.pool.poll_wanted(now);
                if count > 0 {
                    self.outgoing.push(Report::Want { session, core: self.core, count });
                }
            }
            let calm = entry.crowding.poll_timeout().filter(|_| !entry.is_crowded);
            let due = entry.pool.poll_timeout().into_iter().chain(calm).min();
            if let Some(at) = due
                && entry.alarm.is_none_or(|alarm| at < alarm)
            {
                entry.alarm = Some(at);
                self.alarms.push(Reverse((at, session)));
            }
        }
        self.touched = touched;
    }

    /// Looks at every flow: see [`Flow::look`].
    fn look(&mut self, now: Duration) {
        if self.pipes.is_news(&self.driver.stats()) {
            warn!("core={} {SMALL_PIPES}", self.core);
        }
        let (mut overdue, mut dead) = (Vec::new(), Vec::new());
        for (key, public) in self.publics.iter_mut() {
            let PublicState::Flowing(bound) = &mut public.state else { continue };
            let keys = Keys { flow: key, far: bound.conn };
            let still = LOOK_INTERVAL * bound.flow.look(&mut self.driver, keys);
            let end = bound.flow.look_at_paths(&self.driver, &self.limits.path, now);
            dead.extend(end.map(|end| (bound.conn, bound.id, end)));
            let conn = self.conns.get(bound.conn).expect("a flow keeps its conn");
            let limit = if conn.machine.is_half_closed() {
                self.limits.half_close_timeout
            } else {
                self.limits.idle_timeout
            };
            if limit.is_some_and(|limit| still >= limit) {
                overdue.push(bound.conn);
            }
        }
        let is_settling = self.look_at_settling(&mut overdue);
        for conn in overdue {
            mark!("gateway.overdue");
            self.feed(conn, Input::Deadline);
        }
        for (conn, flow, end) in dead {
            mark!("gateway.dead_path");
            debug!("core={} flow={flow} {end:?} end acknowledges nothing", self.core);
            self.on_heard(conn, Heard::Failed(end, Fault::TimedOut), 0);
        }
        for conn in self.look_at_resting(now) {
            mark!("gateway.dead_path_at_rest");
            self.feed(conn, Input::ProxyFailed);
        }
        self.look_at_lanes(now);
        self.next_look = (self.publics_live > 0 || is_settling).then_some(now + LOOK_INTERVAL);
    }

    /// A client may deliver the last bytes slowly, but not hold a proxy_conn for ever, nor very many of
    /// them. Tells whether any is settling.
    fn look_at_settling(&mut self, overdue: &mut Vec<Key>) -> bool {
        let mut settling = Vec::new();
        for (key, conn) in self.conns.iter_mut() {
            if !matches!(conn.machine.mode(), Mode::Settling(_)) {
                conn.settling_looks = 0;
                continue;
            }
            settling.push((conn.session, conn.settling_looks, key));
            conn.settling_looks += 1;
            let still = LOOK_INTERVAL * conn.settling_looks;
            if self.limits.half_close_timeout.is_some_and(|limit| still >= limit) {
                overdue.push(key);
            }
        }
        let is_any = !settling.is_empty();
        overdue.append(&mut surplus(settling));
        is_any
    }

    /// Proxy_conns without a flow whose other end has vanished.
    fn look_at_resting(&mut self, now: Duration) -> Vec<Key> {
        let (driver, limit) = (&self.driver, &self.limits.path);
        let resting = self.conns.iter_mut().filter(|(_, conn)| conn.life == Life::Resting);
        let is_dead = |conn: &mut Conn| conn.path.is_dead(driver, conn.sock, limit, now);
        resting.filter_map(|(key, conn)| is_dead(conn).then_some(key)).collect()
    }

    fn submit_close(&mut self, kind: u8, key: Key, sock: Sock, how: Ending) {
        self.driver.submit(Name { kind, key }.token(), Op::Close { sock, how });
    }

    /// Descriptors are short: idle proxy_conns give some back.
    fn shed(&mut self) {
        let now = self.driver.now();
        let mut surplus = Vec::new();
        for session in sorted(self.sessions.keys().copied()) {
            let entry = self.sessions.get_mut(&session).expect("it was there a moment ago");
            surplus.extend(entry.pool.shed(now));
            self.touched.push(session);
        }
        for conn in surplus {
            mark!("shed");
            self.feed(conn, Input::Retire);
        }
    }

    /// Closes a socket that has no place.
    fn close_stray(&mut self, sock: Sock) {
        self.driver
            .submit(Token(u64::from(CLOSE_STRAY) << 56), Op::Close { sock, how: Ending::Reset });
    }
}

/// Which of the settling proxy_conns (their session, their looks) are too many for their session: those
/// with the most looks.
fn surplus(mut settling: Vec<(SessionNo, u32, Key)>) -> Vec<Key> {
    if settling.len() <= SETTLING_CONNS_MAX {
        return Vec::new();
    }
    settling.sort_unstable();
    let of_sessions = settling.chunk_by(|one, other| one.0 == other.0);
    let excess = of_sessions.flat_map(|of| of.iter().skip(SETTLING_CONNS_MAX));
    excess.map(|(.., key)| *key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a session that has too many settling proxy_conns the oldest go; another one's stay, however
    /// old they are.
    #[test]
    fn the_oldest_settling_conns_of_the_session_go() {
        let (greedy, modest) = (SessionNo(1), SessionNo(2));
        let mut slots = Slots::default();
        let mut settling = Vec::new();
        let mut keys = Vec::new();
        for number in 0..SETTLING_CONNS_MAX as u32 + 10 {
            let key = slots.insert(());
            keys.push(key);
            settling.push((greedy, 10_000 - number, key));
            if number < 100 {
                settling.push((modest, 20_000, slots.insert(())));
            }
        }
        let mut gone = surplus(settling.clone());
        gone.sort_unstable();
        assert_eq!(gone, keys[..10]);
        settling.truncate(SETTLING_CONNS_MAX);
        assert_eq!(surplus(settling), Vec::new());
    }
}
