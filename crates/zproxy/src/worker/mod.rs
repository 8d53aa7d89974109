//! A data core of the client: owns proxy_conns and local conns, and moves bytes between them.
//!
//! A proxy_conn (`conns`) always has a fill outstanding: in idle mode it brings the next `Start`, in
//! data mode it is the first step of the inbound pump. [`ProxyConn`] decides what its modes mean.
//! A flow (`flows`) lives from its `Start` to its end, beside its proxy_conn: operations on the local
//! conn are named by the flow, those that wait on the proxy_conn by the proxy_conn. What the gateway
//! and this data core tell each other of flows travels on `lanes`.
//!
//! [`ProxyConn`]: zproxy_proto::proxy_conn::ProxyConn

#[cfg(feature = "sim")]
mod census;
mod conns;
mod lanes;
mod local;

use std::collections::HashMap;
use std::time::Duration;

use tracing::{debug, error, info, warn};
use zproxy_io::{Done, Driver, DriverLost, Ending, Fault, Op, Sock, Token};
use zproxy_ops::values::HostPort;
use zproxy_proto::id::{ProxyId, TunnelId};
use zproxy_proto::limits::ABORT_DEADLINE;
use zproxy_proto::proxy_conn::Input;
use zproxy_proto::wire::AbortCode;
use zproxy_relay::{
    Heard, Key, Keys, Mailbox, Name, PathLimit, SMALL_PIPES, Sender, Slots, SmallPipes, kind,
};

#[cfg(feature = "sim")]
pub use census::Census;

use crate::config::Settings;
use crate::deadlines::Deadlines;
use crate::flows::{By, End, FlowLimits, Looks};
use crate::mailbox::{Report, Tell};
use crate::resolver::Resolver;
use crate::targets::Target;
use conns::Conn;
use lanes::LaneConn;
use local::{Local, Stage};

/// A proxy_conn is being connected.
const CONNECT_PROXY: u8 = kind::OWNERS;
/// The opening of a proxy_conn is being sent.
const OPENING: u8 = kind::OWNERS + 1;
/// A local conn is being connected.
const CONNECT_LOCAL: u8 = kind::OWNERS + 2;
/// Closing is only counted: what it belonged to has been forgotten by then.
const CLOSE: u8 = kind::OWNERS + 3;
/// A lane is being connected; key: lane.
const CONNECT_LANE: u8 = kind::OWNERS + 4;
/// Key: lane.
const LANE_HEARD: u8 = kind::OWNERS + 5;
/// Key: lane.
const LANE_SAID: u8 = kind::OWNERS + 6;

/// A local service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// The tunnel's name.
    pub(crate) name: String,
    pub(crate) target: Target,
}

impl Service {
    pub(crate) fn new(name: String, local: HostPort) -> Self {
        Self { name, target: Target::new(local) }
    }
}

/// What a worker is made with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Index of the data core.
    pub(crate) core: usize,
    pub(crate) services: Vec<Service>,
    pub(crate) limits: FlowLimits,
    pub(crate) resolver: Resolver,
}

impl Plan {
    pub(crate) fn new(core: usize, settings: &Settings, resolver: &Resolver) -> Self {
        let limits = FlowLimits {
            connect: settings.connect_timeout,
            idle: settings.flow.idle_timeout,
            half_close: settings.flow.half_close_timeout,
            path: PathLimit::new(settings.flow.dead_after),
        };
        let services = settings.tunnels.iter();
        let services = services
            .map(|tunnel| Service::new(tunnel.name.clone(), tunnel.local.clone()))
            .collect();
        Self { core, services, limits, resolver: resolver.clone() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// One data core.
pub(crate) struct Worker<D: Driver> {
    core: usize,
    driver: D,
    mailbox: Mailbox<Tell>,
    control: Sender<Report>,
    /// Collected for the control thread until the end of the turn.
    reports: Vec<Report>,
    resolver: Resolver,
    services: Vec<Service>,
    /// Which service a tunnel id of this session means.
    tunnels: HashMap<TunnelId, usize>,
    conns: Slots<Conn>,
    by_id: HashMap<ProxyId, Key>,
    lanes: Slots<LaneConn>,
    /// The lane to each data core of the gateway.
    lane_of: HashMap<u16, Key>,
    /// Lanes that have something to say.
    talking: Vec<Key>,
    notices_heard: u64,
    notices_told: u64,
    /// Proxy_conns that are not open yet.
    dialling: usize,
    /// Whether the last one could not be opened.
    is_proxy_unreachable: bool,
    flows: Slots<Local>,
    looks: Looks,
    pipes: SmallPipes,
    proxy_dials: Deadlines,
    lane_dials: Deadlines,
    local_dials: Deadlines,
    aborts: Deadlines,
    /// Closes that have not come home.
    closing: usize,
    phase: Phase,
    /// The numbers of flows and proxy_conns last reported.
    reported: Option<(usize, usize)>,
    /// Empty between turns.
    done: Vec<Done>,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn new(
        plan: Plan,
        driver: D,
        mailbox: Mailbox<Tell>,
        control: Sender<Report>,
    ) -> Self {
        Self {
            core: plan.core,
            driver,
            mailbox,
            control,
            reports: Vec::new(),
            resolver: plan.resolver,
            services: plan.services,
            tunnels: HashMap::new(),
            conns: Slots::default(),
            by_id: HashMap::new(),
            lanes: Slots::default(),
            lane_of: HashMap::new(),
            talking: Vec::new(),
            notices_heard: 0,
            notices_told: 0,
            dialling: 0,
            is_proxy_unreachable: false,
            flows: Slots::default(),
            looks: Looks::new(plan.limits),
            pipes: SmallPipes::default(),
            proxy_dials: Deadlines::new(plan.limits.connect),
            lane_dials: Deadlines::new(plan.limits.connect),
            local_dials: Deadlines::new(plan.limits.connect),
            aborts: Deadlines::new(ABORT_DEADLINE),
            closing: 0,
            phase: Phase::Serving,
            reported: None,
            done: Vec::new(),
        }
    }

    /// Serves until it is told to stop.
    pub(crate) fn run(mut self) {
        let result = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(lost) => break Err(lost),
            }
        };
        self.log_stats();
        if let Err(lost) = result {
            error!("thread=data-{} {lost}", self.core);
            // Whoever hears of the panic ends the program.
            panic!("{lost}");
        }
    }

    fn log_stats(&self) {
        let (conns, flows, closing) = (self.conns.len(), self.flows.len(), self.closing);
        let (lanes, heard, told) = (self.lanes.len(), self.notices_heard, self.notices_told);
        info!(
            "core={} stats conns={conns} flows={flows} closing={closing} lanes={lanes} \
             notices_heard={heard} notices_told={told} {}",
            self.core,
            self.driver.stats()
        );
    }

    /// One turn of the loop: waits, does what there is to do, tells the control thread. False when
    /// it was the last.
    pub(crate) fn turn(&mut self) -> Result<bool, DriverLost> {
        let until = self.next_deadline();
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
        self.on_time();
        self.flush_lanes(self.driver.now());
        self.report();
        let is_over = self.closing == 0 && self.lanes.is_empty();
        Ok(self.phase != Phase::Stopping || !is_over)
    }

    fn report(&mut self) {
        let (flows, conns) = (self.flows.len(), self.conns.len());
        if self.phase == Phase::Draining && self.reported != Some((flows, conns)) {
            self.reported = Some((flows, conns));
            self.reports.push(Report::Left { core: self.core, flows, conns });
        }
        self.control.send_all(&mut self.reports);
    }

    fn on_done(&mut self, done: Done) {
        if done.token == Token::DOORBELL {
            return self.read_mail();
        }
        let Name { kind, key } = Name::of(done.token);
        match kind {
            CONNECT_PROXY => self.on_proxy_connected(key, &done.outcome),
            OPENING => self.on_opening_sent(key, &done.outcome),
            CONNECT_LOCAL => self.on_local_connected(key, &done.outcome),
            CLOSE => self.closing -= 1,
            CONNECT_LANE => self.on_lane_connected(key, &done.outcome),
            LANE_HEARD => self.on_lane_heard(key, done.outcome),
            LANE_SAID => self.on_lane_said(key, done.outcome),
            kind::FILL_FAR | kind::WATCH_FAR => self.on_conn(key, kind, done.outcome),
            _ => self.on_flow(key, kind, done.outcome),
        }
    }

    fn close(&mut self, sock: Sock, how: Ending) {
        self.closing += 1;
        // The key means nothing here; any will do.
        let token = Token(u64::from(CLOSE) << 56);
        self.driver.submit(token, Op::Close { sock, how });
    }

    // --- what the control thread says ------------------------------------------------------------

    fn read_mail(&mut self) {
        let mut letters = Vec::new();
        self.mailbox.take(&mut letters);
        for letter in letters {
            match letter {
                Tell::Dial { to, attach, resting_max } => {
                    self.dial_proxy(to, attach, resting_max);
                }
                Tell::Tunnel { id, number } => self.on_tunnel(id, number),
                Tell::DialLane { to, attach } => self.dial_lane(to, attach),
                Tell::CtlLost => self.on_ctl_lost(),
                Tell::SessionOver => {
                    self.drop_session(End::Reset, By::Gateway);
                    self.drop_lanes();
                }
                Tell::Resolved { number, addresses } => self.on_resolved(number, &addresses),
                Tell::Drain => self.drain(),
                Tell::Stats => self.log_stats(),
                Tell::Stop => {
                    self.phase = Phase::Stopping;
                    self.drop_session(End::Shutdown, By::Zproxy);
                    self.leave_lanes();
                }
            }
        }
    }

    fn on_tunnel(&mut self, id: TunnelId, number: usize) {
        self.tunnels.insert(id, number);
        let waits = |flow: &Local| matches!(flow.stage, Stage::Unknown { tunnel } if tunnel == id);
        let keys = self.flows.iter().filter(|(_, flow)| waits(flow)).map(|(key, _)| key);
        for key in keys.collect::<Vec<_>>() {
            self.find_target(key, number);
        }
    }

    /// Conns that are not attached would come with the name of a ctl_conn that is no more.
    fn on_ctl_lost(&mut self) {
        for key in self.conn_keys(Conn::is_opening) {
            self.drop_conn(key, Ending::Reset);
        }
        self.drop_connecting_lanes();
    }

    fn conn_keys(&self, wanted: impl Fn(&Conn) -> bool) -> Vec<Key> {
        self.conns.iter().filter(|(_, conn)| wanted(conn)).map(|(key, _)| key).collect()
    }

    /// Closes everything that belongs to the session.
    fn drop_session(&mut self, end: End, by: By) {
        let flows: Vec<_> = self.flows.iter().map(|(key, _)| key).collect();
        for key in flows {
            self.finish(key, end, by);
        }
        // Idle ones too: a `Start` may be on its way to one, and a FIN would answer it with the end
        // of an empty stream.
        for key in self.conn_keys(|_| true) {
            self.drop_conn(key, Ending::Reset);
        }
        self.tunnels.clear();
    }

    /// Flows that have begun may finish; a `Start` that comes now is refused.
    fn drain(&mut self) {
        self.phase = Phase::Draining;
        for key in self.conn_keys(Conn::is_opening) {
            self.drop_conn(key, Ending::Reset);
        }
    }

    // --- time -----------------------------------------------------------------------------------

    fn next_deadline(&mut self) -> Option<Duration> {
        let (conns, flows, lanes) = (&self.conns, &self.flows, &self.lanes);
        let connecting = |key| lanes.get(key).is_some_and(LaneConn::is_connecting);
        let opening = |key| conns.get(key).is_some_and(Conn::is_opening);
        let dialling = |key| flows.get(key).is_some_and(Local::is_dialling);
        let aborting = |key| conns.get(key).is_some_and(Conn::is_aborting);
        let deadlines = [
            self.proxy_dials.next(opening),
            self.local_dials.next(dialling),
            self.aborts.next(aborting),
            self.looks.next(),
            self.lane_dials.next(connecting),
            self.lanes_due(),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        let now = self.driver.now();
        while let Some(key) = self.proxy_dials.pop_due(now) {
            if self.conns.get(key).is_some_and(Conn::is_opening) {
                self.fail_opening(key, Fault::TimedOut);
            }
        }
        while let Some(key) = self.lane_dials.pop_due(now) {
            if self.lanes.get(key).is_some_and(LaneConn::is_connecting) {
                self.note_unreachable(Fault::TimedOut);
                self.lose_lane(key, "the gateway does not answer");
            }
        }
        while let Some(key) = self.local_dials.pop_due(now) {
            if let Some(flow) = self.flows.get(key).filter(|flow| flow.is_dialling()) {
                let code = match flow.stage {
                    Stage::Unknown { .. } => AbortCode::NoTunnel,
                    _ => AbortCode::Timeout,
                };
                self.fail_start(key, code);
            }
        }
        while let Some(key) = self.aborts.pop_due(now) {
            if self.conns.get(key).is_some_and(Conn::is_aborting) {
                self.handle(key, Input::Deadline);
            }
        }
        if self.looks.is_due(now) {
            self.look(now);
        }
    }

    fn look(&mut self, now: Duration) {
        if self.pipes.is_news(&self.driver.stats()) {
            warn!("core={} {SMALL_PIPES}", self.core);
        }
        let (mut overdue, mut dead) = (Vec::new(), Vec::new());
        for (key, local) in self.flows.iter_mut() {
            if let Stage::Flowing { flow, .. } = &mut local.stage {
                let keys = Keys { flow: key, far: local.conn };
                let still = flow.look(&mut self.driver, keys);
                let end = flow.look_at_paths(&self.driver, self.looks.path(), now);
                dead.extend(end.map(|end| (key, local.conn, end)));
                let conn = self.conns.get(local.conn);
                let is_half_closed = conn.is_some_and(Conn::is_half_closed);
                if self.looks.is_overdue(still, is_half_closed) {
                    overdue.push(local.conn);
                }
            }
        }
        for conn in overdue {
            mark!("client.overdue");
            self.handle(conn, Input::Deadline);
        }
        for (key, conn, end) in dead {
            mark!("client.dead_path");
            if let Some(local) = self.flows.get(key) {
                debug!("flow={} {end:?} end acknowledges nothing", local.id());
            }
            self.on_heard(key, conn, Heard::Failed(end, Fault::TimedOut));
        }
        for conn in self.look_at_resting(now) {
            mark!("client.dead_path_at_rest");
            self.handle(conn, Input::ProxyFailed);
        }
        self.look_at_lanes(now);
        if !self.flows.is_empty() {
            self.looks.want(now);
        }
    }

    /// Proxy_conns without a flow whose other end has vanished.
    fn look_at_resting(&mut self, now: Duration) -> Vec<Key> {
        let (driver, limit) = (&self.driver, self.looks.path());
        let resting = self.conns.iter_mut().filter(|(_, conn)| conn.is_resting());
        let is_dead = |conn: &mut Conn| conn.path.is_dead(driver, conn.sock, limit, now);
        resting.filter_map(|(key, conn)| is_dead(conn).then_some(key)).collect()
    }
}
