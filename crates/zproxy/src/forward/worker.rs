//! One data core of `zproxy forward`.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tracing::{debug, error, info, warn};
use zproxy_io::{Done, Driver, DriverLost, Ending, Fault, Op, Outcome, Sock, Token};
use zproxy_ops::values::HostPort;
use zproxy_relay::{
    self as relay, Arrival, Arrivals, Direction, Flow, Heard, Key, Keys, Mailbox, Name,
    SMALL_PIPES, Slots, SmallPipes, kind,
};

use super::Event;
use crate::accept::{Accepting, Then};
use crate::deadlines::Deadlines;
use crate::dial::{Dial, DialFault};
use crate::flows::{By, End, Ended, FlowLimits, Looks};
use crate::resolver::{Addresses, Resolver};
use crate::targets::{Known, Target};

const ACCEPT: u8 = kind::OWNERS;
const CONNECT: u8 = kind::OWNERS + 1;
/// Closing is only counted: what it belonged to has been forgotten by then.
const CLOSE: u8 = kind::OWNERS + 2;

/// One route: where it listens and where it leads.
#[derive(Clone, Debug)]
pub(super) struct Route {
    at: SocketAddr,
    target: Target,
}

impl Route {
    pub(super) fn new(at: SocketAddr, to: HostPort) -> Self {
        Self { at, target: Target::new(to) }
    }
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Tell<H> {
    /// Listen with this socket for the route of this number.
    Listen { route: usize, listener: H },
    /// The resolver's answer for a route.
    Resolved { route: usize, addresses: Addresses },
    /// No new connections; end when the last flow has.
    Drain,
    /// Log what was counted.
    Stats,
    /// End now.
    Stop,
}

struct Listener {
    sock: Sock,
    route: usize,
    accepting: Accepting,
}

struct Link {
    /// Number of the flow on this worker.
    serial: u64,
    route: usize,
    peer: Option<SocketAddr>,
    near: Sock,
    accepted_at: Duration,
    arrival: Arrival,
    state: State,
}

impl Link {
    fn is_dialling(&self) -> bool {
        matches!(self.state, State::Dialling(_))
    }
}

enum State {
    /// Waiting for the resolver, then for the far end.
    Dialling(Option<Dial>),
    Flowing {
        flow: Box<Flow>,
        bound_at: Duration,
        /// The direction that ended first.
        first_end: Option<Direction>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// What a worker is made with, beside its driver and its mailbox.
pub(super) struct Parts {
    pub(super) number: usize,
    pub(super) tell: mpsc::Sender<Event>,
    pub(super) resolver: Resolver,
    pub(super) routes: Vec<Route>,
    pub(super) limits: FlowLimits,
    pub(super) arrivals: Arrivals,
}

pub(super) struct Worker<D: Driver> {
    number: usize,
    driver: D,
    mailbox: Mailbox<Tell<D::Handle>>,
    tell: mpsc::Sender<Event>,
    resolver: Resolver,
    routes: Vec<Route>,
    looks: Looks,
    arrivals: Arrivals,
    pipes: SmallPipes,
    listeners: Slots<Listener>,
    links: Slots<Link>,
    dial_deadlines: Deadlines,
    /// Closes that have not come home.
    closing: usize,
    next_serial: u64,
    phase: Phase,
    /// The number of flows last reported.
    reported: Option<usize>,
}

impl<D: Driver> Worker<D> {
    pub(super) fn new(driver: D, mailbox: Mailbox<Tell<D::Handle>>, parts: Parts) -> Self {
        Self {
            number: parts.number,
            driver,
            mailbox,
            tell: parts.tell,
            resolver: parts.resolver,
            routes: parts.routes,
            looks: Looks::new(parts.limits),
            arrivals: parts.arrivals,
            pipes: SmallPipes::default(),
            listeners: Slots::default(),
            links: Slots::default(),
            dial_deadlines: Deadlines::new(parts.limits.connect),
            closing: 0,
            next_serial: 0,
            phase: Phase::Serving,
            reported: None,
        }
    }

    /// Serves until everything has ended.
    pub(super) fn run(mut self) {
        let result = self.serve();
        self.log_stats();
        if let Err(lost) = result {
            error!("thread=data-{} {lost}", self.number);
            // Whoever hears of the panic ends the program.
            panic!("{lost}");
        }
    }

    fn log_stats(&self) {
        let (listeners, flows, closing) = (self.listeners.len(), self.links.len(), self.closing);
        let arrivals = self.arrivals.seen();
        info!(
            "core={} stats listeners={listeners} flows={flows} closing={closing} {arrivals} {}",
            self.number,
            self.driver.stats()
        );
    }

    fn serve(&mut self) -> Result<(), DriverLost> {
        let mut done = Vec::new();
        while !self.is_over() {
            let until = self.next_deadline();
            self.driver.wait(until, &mut done)?;
            for done in done.drain(..) {
                self.on_done(done);
            }
            self.on_time(self.driver.now());
            self.steer(self.driver.now());
            self.report();
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.phase != Phase::Serving && self.links.is_empty() && self.closing == 0
    }

    fn report(&mut self) {
        if self.phase == Phase::Draining && self.reported != Some(self.links.len()) {
            let flows = self.links.len();
            self.reported = Some(flows);
            let _ = self.tell.send(Event::Left { worker: self.number, flows });
        }
    }

    // --- time -----------------------------------------------------------------------------------

    fn next_deadline(&mut self) -> Option<Duration> {
        let links = &self.links;
        let dial = self.dial_deadlines.next(|key| links.get(key).is_some_and(Link::is_dialling));
        let pauses =
            self.listeners.iter().filter_map(|(_, listener)| listener.accepting.poll_timeout());
        let steering = self.arrivals.poll_timeout();
        pauses.chain(dial).chain(self.looks.next()).chain(steering).min()
    }

    /// Tells the kernel which connections this core prefers, if that has changed.
    fn steer(&mut self, now: Duration) {
        if self.arrivals.poll(now) {
            let cpu = self.arrivals.preferred();
            debug!("core={} prefers arrivals of cpu={cpu:?}", self.number);
            for (_, listener) in self.listeners.iter() {
                self.driver.prefer_arrivals(listener.sock, cpu);
            }
        }
    }

    fn on_time(&mut self, now: Duration) {
        while let Some(key) = self.dial_deadlines.pop_due(now) {
            if self.links.get(key).is_some_and(Link::is_dialling) {
                self.fail_dial(key, DialFault::TimedOut);
            }
        }
        for (key, listener) in self.listeners.iter_mut() {
            if listener.accepting.is_due(now, &self.routes[listener.route].at) {
                let token = Name { kind: ACCEPT, key }.token();
                self.driver.submit(token, Op::Accept { listener: listener.sock });
            }
        }
        if self.looks.is_due(now) {
            self.look(now);
        }
    }

    fn look(&mut self, now: Duration) {
        if self.pipes.is_news(&self.driver.stats()) {
            warn!("{SMALL_PIPES}");
        }
        let (mut overdue, mut dead) = (Vec::new(), Vec::new());
        for (key, link) in self.links.iter_mut() {
            if let State::Flowing { flow, .. } = &mut link.state {
                let still = flow.look(&mut self.driver, Keys { flow: key, far: key });
                let end = flow.look_at_paths(&self.driver, self.looks.path(), now);
                if let Some(end) = end {
                    dead.push((key, end));
                } else if self.looks.is_overdue(still, flow.is_half_closed()) {
                    overdue.push(key);
                }
            }
        }
        for key in overdue {
            self.finish(key, End::Idle, By::Zproxy);
        }
        for (key, end) in dead {
            debug!("{end:?} end of a flow acknowledges nothing");
            self.fail(key, end, Fault::TimedOut);
        }
        if !self.links.is_empty() {
            self.looks.want(now);
        }
    }

    // --- what the others say --------------------------------------------------------------------

    fn read_mail(&mut self) {
        let mut letters = Vec::new();
        self.mailbox.take(&mut letters);
        for letter in letters {
            match letter {
                Tell::Listen { route, listener } => self.listen(route, listener),
                Tell::Resolved { route, addresses } => {
                    let now = self.driver.now();
                    let target = &mut self.routes[route].target;
                    for key in target.answer(Arc::clone(&addresses), now) {
                        self.dial(key, Arc::clone(&addresses));
                    }
                }
                Tell::Drain => self.drain(),
                Tell::Stats => self.log_stats(),
                Tell::Stop => self.stop(),
            }
        }
    }

    fn listen(&mut self, route: usize, handle: D::Handle) {
        let sock = self.driver.adopt(handle);
        let key = self.listeners.insert(Listener { sock, route, accepting: Accepting::default() });
        self.driver.submit(Name { kind: ACCEPT, key }.token(), Op::Accept { listener: sock });
    }

    fn drain(&mut self) {
        self.phase = Phase::Draining;
        let listeners = std::mem::take(&mut self.listeners);
        for (_, listener) in listeners.iter() {
            self.close(listener.sock, Ending::Clean);
        }
    }

    fn stop(&mut self) {
        self.drain();
        self.phase = Phase::Stopping;
        let keys: Vec<_> = self.links.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.finish(key, End::Shutdown, By::Zproxy);
        }
    }

    // --- what the kernel says -------------------------------------------------------------------

    fn on_done(&mut self, done: Done) {
        if done.token == Token::DOORBELL {
            return self.read_mail();
        }
        let Name { kind, key } = Name::of(done.token);
        match kind {
            ACCEPT => self.on_accept(key, done.outcome),
            CONNECT => self.on_connect(key, done.outcome),
            CLOSE => self.closing -= 1,
            _ => self.on_flow(key, kind, done.outcome),
        }
    }

    fn on_accept(&mut self, key: Key, outcome: Outcome) {
        let now = self.driver.now();
        let listener = self.listeners.get_mut(key);
        match (outcome, listener) {
            (Outcome::Accepted { sock, peer }, Some(listener)) => {
                let route = listener.route;
                self.open(route, sock, peer, now);
            }
            // The listener was closed meanwhile.
            (Outcome::Accepted { sock, .. }, None) => self.close(sock, Ending::Reset),
            (Outcome::Failed(fault), Some(listener)) => {
                let at = self.routes[listener.route].at;
                if listener.accepting.on_failed(fault, now, &at) == Then::Again {
                    let accept = Op::Accept { listener: listener.sock };
                    self.driver.submit(Name { kind: ACCEPT, key }.token(), accept);
                }
            }
            (Outcome::Failed(_), None) => {}
            (other, _) => unreachable!("not the result of an accept: {other:?}"),
        }
    }

    fn open(&mut self, route: usize, near: Sock, peer: Option<SocketAddr>, now: Duration) {
        self.next_serial += 1;
        let serial = self.next_serial;
        let arrival = self.arrivals.enter(|| self.driver.arrival_cpu(near));
        let state = State::Dialling(None);
        let accepted_at = now;
        let link = Link { serial, route, peer, near, accepted_at, arrival, state };
        let key = self.links.insert(link);
        self.dial_deadlines.set(key, now);
        match self.routes[route].target.addresses(key, now) {
            Known::Addresses(addresses) => self.dial(key, addresses),
            Known::Ask(target) => {
                let mail = self.mailbox.sender();
                self.resolver
                    .ask(target, move |addresses| mail.send(Tell::Resolved { route, addresses }));
            }
            Known::Asked => {}
        }
    }

    fn dial(&mut self, key: Key, addresses: Addresses) {
        // The link may have met its deadline while the resolver was at work.
        let Some(link) = self.links.get_mut(key) else { return };
        let connect = Name { kind: CONNECT, key }.token();
        match Dial::start(&mut self.driver, addresses, false, connect) {
            Ok(dial) => link.state = State::Dialling(Some(dial)),
            Err(fault) => self.fail_dial(key, fault),
        }
    }

    fn on_connect(&mut self, key: Key, outcome: Outcome) {
        let Some(link) = self.links.get_mut(key) else { return };
        let State::Dialling(Some(dial)) = &mut link.state else {
            unreachable!("only a dial connects")
        };
        match outcome {
            Outcome::Connected => {
                let far = dial.sock;
                self.bind(key, far);
            }
            Outcome::Failed(fault) => {
                let (connect, close) = (Name { kind: CONNECT, key }, Name { kind: CLOSE, key });
                self.closing += 1;
                let next = dial.next(&mut self.driver, fault, connect.token(), close.token());
                if let Err(fault) = next {
                    link.state = State::Dialling(None);
                    self.fail_dial(key, fault);
                }
            }
            other => unreachable!("not the result of a connect: {other:?}"),
        }
    }

    fn bind(&mut self, key: Key, far: Sock) {
        let now = self.driver.now();
        let link = self.links.get_mut(key).expect("its dial has just succeeded");
        let mut flow = Box::new(Flow::of_equals(link.near, far));
        flow.dialled = Some(relay::End::Far);
        let keys = Keys { flow: key, far: key };
        flow.start_outbound(&mut self.driver, keys);
        flow.start_inbound(&mut self.driver, keys);
        for heard in
            [flow.open_outbound(&mut self.driver, keys), flow.open_inbound(&mut self.driver, keys)]
        {
            assert_eq!(heard, Heard::Nothing, "nothing has come yet");
        }
        link.state = State::Flowing { flow, bound_at: now, first_end: None };
        self.looks.want(now);
    }

    fn on_flow(&mut self, key: Key, kind: u8, outcome: Outcome) {
        let Some(link) = self.links.get_mut(key) else { return };
        let State::Flowing { flow, first_end, .. } = &mut link.state else {
            unreachable!("only a flow moves bytes")
        };
        let keys = Keys { flow: key, far: key };
        match flow.on_done(&mut self.driver, keys, kind, outcome) {
            Heard::Nothing | Heard::Ending(..) => {}
            Heard::Ended(direction) => match *first_end {
                Some(first) => self.finish(key, End::Clean, ended_by(first)),
                None => {
                    *first_end = Some(direction);
                    let sink = match direction {
                        Direction::Outbound => flow.far(),
                        Direction::Inbound => flow.near(),
                    };
                    self.driver.shutdown_write(sink);
                }
            },
            Heard::Failed(end, fault) => self.fail(key, end, fault),
        }
    }

    fn fail(&mut self, key: Key, end: relay::End, fault: Fault) {
        let by = match end {
            relay::End::Near => By::Public,
            relay::End::Far => By::Local,
        };
        self.finish(key, fault.into(), by);
    }

    // --- ends -----------------------------------------------------------------------------------

    fn fail_dial(&mut self, key: Key, fault: DialFault) {
        let link = self.links.get(key).expect("it is dialling");
        let to = self.routes[link.route].target.at();
        debug!("flow={}.{} dial={to} failed: {fault}", self.number, link.serial);
        self.finish(key, fault.into(), By::Local);
    }

    /// The flow has ended: writes its line and closes its conns.
    fn finish(&mut self, key: Key, end: End, by: By) {
        let link = self.links.remove(key).expect("a flow ends once");
        self.arrivals.leave(link.arrival);
        let now = self.driver.now();
        let how = if end == End::Clean { Ending::Clean } else { Ending::Reset };
        self.close(link.near, how);
        let (mut inward, mut outward, mut bind) = (0, 0, None);
        match link.state {
            State::Dialling(None) => {}
            State::Dialling(Some(dial)) => self.close(dial.sock, Ending::Reset),
            State::Flowing { flow, bound_at, .. } => {
                self.close(flow.far(), how);
                (inward, outward) = (flow.outbound.put(), flow.inbound.put());
                bind = Some(bound_at.saturating_sub(link.accepted_at));
            }
        }
        let flow = format_args!("{}.{}", self.number, link.serial).to_string();
        let lived = now.saturating_sub(link.accepted_at);
        let tunnel = &self.routes[link.route].at;
        Ended { flow: &flow, tunnel, public: link.peer, inward, outward, lived, bind, end, by }
            .log();
    }

    fn close(&mut self, sock: Sock, how: Ending) {
        self.closing += 1;
        // The key means nothing here; any will do.
        let token = Token(u64::from(CLOSE) << 56);
        self.driver.submit(token, Op::Close { sock, how });
    }
}

/// Who ended a flow whose this direction ended first.
fn ended_by(first: Direction) -> By {
    match first {
        Direction::Outbound => By::Public,
        Direction::Inbound => By::Local,
    }
}
