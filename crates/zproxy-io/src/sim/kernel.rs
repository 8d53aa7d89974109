//! The state of the simulated kernel: its clock, what will happen, machines, processes and sockets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::Fault;

use super::conn::Conn;
use super::driver::{DriverState, Ops};
use super::sabotage::Sabotage;
use super::{Random, Weather};

/// A socket of the simulated kernel. Never used again.
pub(super) type SockId = usize;
/// A connection. Never used again.
pub(super) type ConnId = usize;
/// A process. Never used again.
pub(super) type ProcessId = usize;

/// Sockets get ports from here up when they dial.
const EPHEMERAL_PORT_MIN: u16 = 32_768;
/// A SYN is sent again so often before the kernel gives up: for about two minutes.
const SYN_RETRIES: u32 = 6;

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A dial's SYN arrives.
    Syn { sock: SockId, attempt: u32 },
    /// A dial is answered.
    Answer { sock: SockId },
    /// A dial is refused.
    Refuse { sock: SockId },
    /// The third packet of a handshake: the connection can be accepted.
    Enter { listener: SockId, conn: ConnId },
    /// The first segment on its way to this end may arrive.
    Arrive { conn: ConnId, to: usize },
    /// A keep-alive finds out about the other end.
    Probe { conn: ConnId, side: usize },
    /// An orphan is given up.
    Linger { conn: ConnId, side: usize },
    /// An operation that was put off is tried again.
    Nudge { sock: SockId },
}

/// What a process may do, and who it is.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) host: IpAddr,
    pub(super) is_alive: bool,
    /// Out of something until then.
    pub(super) short: Option<(Duration, Fault)>,
    /// Not scheduled until then.
    pub(super) frozen_until: Duration,
    /// Open sockets.
    pub(super) socks: usize,
    pub(super) sabotage: Option<Sabotage>,
}

/// A socket.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) process: ProcessId,
    /// Who hears of it: a driver, an app, or for a handle nobody.
    pub(super) owner: Owner,
    pub(super) kind: Kind,
    pub(super) ops: Ops,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    Driver(usize, crate::Sock),
    App,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Not connected.
    Fresh,
    /// Being connected.
    Dialling {
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Could not be connected.
    Failed(Fault),
    Stream {
        conn: ConnId,
        side: usize,
    },
    Listener(Listener),
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) at: SocketAddr,
    reuse_port: bool,
    /// The CPU whose arrivals it prefers.
    pub(super) prefers: Option<usize>,
    pub(super) backlog: VecDeque<ConnId>,
    /// Connections whose third packet is under way.
    pub(super) embryos: usize,
    pub(super) backlog_max: usize,
}

/// A connection between two machines is down.
#[derive(Clone, Copy, Debug)]
struct Gap {
    from: IpAddr,
    to: IpAddr,
    until: Duration,
}

/// Every machine has two CPUs, and its network card spreads connections over them.
pub(super) fn arrival_cpu(from: SocketAddr) -> usize {
    // The top bit of a multiplicative hash, by the golden ratio.
    usize::from(from.port().wrapping_mul(40_503) >> 15)
}

/// See the module.
pub(super) struct Kernel {
    pub(super) now: Duration,
    pub(super) random: Random,
    pub(super) weather: Weather,
    pub(super) events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    pub(super) next_event: u64,
    pub(super) processes: Vec<Process>,
    /// The process that runs now.
    pub(super) running: ProcessId,
    pub(super) socks: Vec<Option<Box<Socket>>>,
    pub(super) conns: Vec<Option<Box<Conn>>>,
    pub(super) listeners: BTreeMap<(IpAddr, u16), Vec<SockId>>,
    next_port: u16,
    gaps: Vec<Gap>,
    pub(super) drivers: Vec<DriverState>,
    /// Sockets of apps that something happened to.
    pub(super) app_news: VecDeque<SockId>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) trace: u64,
}

impl Kernel {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            // Not zero, so that subtracting a little is possible.
            now: Duration::from_secs(1_000),
            random: Random::new(seed),
            weather,
            events: BinaryHeap::new(),
            next_event: 0,
            processes: Vec::new(),
            running: 0,
            socks: Vec::new(),
            conns: Vec::new(),
            listeners: BTreeMap::new(),
            next_port: EPHEMERAL_PORT_MIN,
            gaps: Vec::new(),
            drivers: Vec::new(),
            app_news: VecDeque::new(),
            counts: BTreeMap::new(),
            trace: 0xCBF2_9CE4_8422_2325,
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Takes something that happened into the trace.
    pub(super) fn note(&mut self, word: u64) {
        self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }

    pub(super) fn at(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at.max(self.now), self.next_event, event)));
        self.next_event += 1;
    }

    /// Lets everything happen that is due.
    pub(super) fn run_events(&mut self) {
        while let Some(Reverse((at, _, event))) = self.events.peek().copied()
            && at <= self.now
        {
            self.events.pop();
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Syn { sock, attempt } => self.on_syn(sock, attempt),
            Event::Answer { sock } => self.on_answer(sock),
            Event::Refuse { sock } => self.fail_dial(sock, Fault::Refused),
            Event::Enter { listener, conn } => self.on_enter(listener, conn),
            Event::Arrive { conn, to } => self.on_arrive(conn, to),
            Event::Probe { conn, side } => self.on_probe(conn, side),
            Event::Linger { conn, side } => self.on_linger(conn, side),
            Event::Nudge { sock } => self.notify(sock),
        }
    }

    // --- processes and sockets --------------------------------------------------------------------

    pub(super) fn process(&mut self, id: ProcessId) -> &mut Process {
        &mut self.processes[id]
    }

    /// What the process is out of now.
    pub(super) fn shortage(&self, id: ProcessId) -> Option<Fault> {
        self.processes[id].short.filter(|(until, _)| *until > self.now).map(|(_, fault)| fault)
    }

    pub(super) fn sock(&mut self, id: SockId) -> &mut Socket {
        self.socks[id].as_mut().expect("an open socket")
    }

    pub(super) fn find(&mut self, id: SockId) -> Option<&mut Socket> {
        self.socks.get_mut(id)?.as_deref_mut()
    }

    pub(super) fn insert(&mut self, process: ProcessId, owner: Owner, kind: Kind) -> SockId {
        self.processes[process].socks += 1;
        self.socks.push(Some(Box::new(Socket { process, owner, kind, ops: Ops::default() })));
        self.socks.len() - 1
    }

    /// Takes a socket out of the table; what it was connected to is the caller's.
    pub(super) fn forget(&mut self, id: SockId) -> Option<Box<Socket>> {
        let socket = self.socks.get_mut(id)?.take()?;
        self.processes[socket.process].socks -= 1;
        Some(socket)
    }

    pub(super) fn stream(&self, id: SockId) -> Option<(ConnId, usize)> {
        match self.socks.get(id)?.as_deref()?.kind {
            Kind::Stream { conn, side } => Some((conn, side)),
            _ => None,
        }
    }

    // --- the network ------------------------------------------------------------------------------

    pub(super) fn latency(&mut self) -> Duration {
        let (least, most) = (self.weather.latency_min, self.weather.latency_max);
        let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX - 1);
        least + Duration::from_micros(self.random.below(span + 1))
    }

    pub(super) fn cut(&mut self, from: IpAddr, to: IpAddr, until: Duration) {
        self.gaps.push(Gap { from, to, until });
    }

    /// Until when nothing gets from one machine to another, if so.
    pub(super) fn gap(&self, from: IpAddr, to: IpAddr) -> Option<Duration> {
        let hits = self.gaps.iter().filter(|gap| gap.from == from && gap.to == to);
        hits.map(|gap| gap.until).filter(|until| *until > self.now).max()
    }

    // --- dialling ---------------------------------------------------------------------------------

    pub(super) fn listen(
        &mut self,
        process: ProcessId,
        owner: Owner,
        at: SocketAddr,
        reuse_port: bool,
    ) -> std::io::Result<(SockId, SocketAddr)> {
        if let Some(fault) = self.shortage(process) {
            let errno = if fault == Fault::NoMemory { libc::ENOBUFS } else { libc::EMFILE };
            return Err(std::io::Error::from_raw_os_error(errno));
        }
        let host = self.processes[process].host;
        let port = match at.port() {
            0 => self.free_port(host),
            port => port,
        };
        let others = self.listeners.entry((host, port)).or_default().clone();
        let sharing = |id: &SockId| match self.socks[*id].as_deref().map(|sock| &sock.kind) {
            Some(Kind::Listener(listener)) => listener.reuse_port,
            _ => true,
        };
        if !others.is_empty() && (!reuse_port || !others.iter().all(sharing)) {
            return Err(std::io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let at = SocketAddr::new(at.ip(), port);
        let (backlog, backlog_max) = (VecDeque::new(), 4096);
        let prefers = None;
        let listener = Listener { at, reuse_port, prefers, backlog, embryos: 0, backlog_max };
        let id = self.insert(process, owner, Kind::Listener(listener));
        self.listeners.entry((host, port)).or_default().push(id);
        Ok((id, at))
    }

    fn free_port(&mut self, host: IpAddr) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_PORT_MIN);
            if self.listeners.get(&(host, port)).is_none_or(Vec::is_empty) {
                return port;
            }
        }
    }

    pub(super) fn dial(&mut self, id: SockId, to: SocketAddr) {
        let host = self.processes[self.socks[id].as_ref().expect("open").process].host;
        let from = SocketAddr::new(host, self.free_port(host));
        let socket = self.sock(id);
        assert!(matches!(socket.kind, Kind::Fresh), "a fresh socket is connected");
        socket.kind = Kind::Dialling { from, to };
        let at = self.now + self.latency();
        self.at(at, Event::Syn { sock: id, attempt: 0 });
    }

    fn on_syn(&mut self, id: SockId, attempt: u32) {
        let Some(Socket { kind: Kind::Dialling { from, to }, .. }) = self.find(id) else { return };
        let (from, to) = (*from, *to);
        let is_dark = self.gap(from.ip(), to.ip()).or(self.gap(to.ip(), from.ip())).is_some();
        let is_there = self.processes.iter().any(|it| it.host == to.ip());
        if !is_there && !is_dark {
            return self.fail_dial(id, Fault::Unreachable);
        }
        let listeners = self.listeners.get(&(to.ip(), to.port()));
        let listeners = listeners.cloned().unwrap_or_default();
        if listeners.is_empty() && !is_dark {
            self.count("refused");
            let at = self.now + self.latency();
            return self.at(at, Event::Refuse { sock: id });
        }
        let cpu = Some(arrival_cpu(from));
        let prefers = |id: &&SockId| match &self.socks[**id].as_ref().expect("open").kind {
            Kind::Listener(it) => it.prefers == cpu,
            _ => false,
        };
        let chosen = match (listeners.iter().find(prefers), listeners.len()) {
            (Some(preferring), _) => Some(*preferring),
            (None, 0) => None,
            (None, len) => Some(listeners[self.random.place(len)]),
        };
        let has_room = chosen.is_some_and(|chosen| match &self.sock(chosen).kind {
            Kind::Listener(it) => it.backlog.len() + it.embryos < it.backlog_max,
            _ => false,
        });
        if is_dark || !has_room {
            self.count("syn_lost");
            if attempt >= SYN_RETRIES {
                return self.fail_dial(id, Fault::TimedOut);
            }
            let at = self.now + Duration::from_secs(1 << attempt);
            return self.at(at, Event::Syn { sock: id, attempt: attempt + 1 });
        }
        let listener = chosen.expect("there is one");
        let conn = self.open_conn(id, from, to);
        if let Kind::Listener(it) = &mut self.sock(listener).kind {
            it.embryos += 1;
        }
        let answered = self.now + self.latency();
        self.at(answered, Event::Answer { sock: id });
        let entered = answered + self.latency();
        self.at(entered, Event::Enter { listener, conn });
    }

    /// The dialler is connected.
    fn on_answer(&mut self, id: SockId) {
        let Some((conn, side)) = self.stream(id) else { return };
        let conn = self.conns[conn].as_mut().expect("a stream has its connection");
        conn.ends[side].is_connected = true;
        self.notify(id);
    }

    pub(super) fn fail_dial(&mut self, id: SockId, fault: Fault) {
        if let Some(socket) = self.find(id)
            && matches!(socket.kind, Kind::Dialling { .. })
        {
            socket.kind = Kind::Failed(fault);
            self.notify(id);
        }
    }

    fn on_enter(&mut self, listener: SockId, conn: ConnId) {
        let Some(Socket { kind: Kind::Listener(it), .. }) = self.find(listener) else {
            // The listener is closed: the connection dies with it.
            return self.reset_end(conn, 1);
        };
        it.embryos -= 1;
        it.backlog.push_back(conn);
        self.notify(listener);
    }

    /// Something happened to a socket: whoever owns it may go on.
    pub(super) fn notify(&mut self, id: SockId) {
        let Some(socket) = self.find(id) else { return };
        match socket.owner {
            Owner::Nobody => {}
            Owner::App => self.app_news.push_back(id),
            Owner::Driver(driver, _) => self.notify_driver(driver, id),
        }
    }

    /// Closes a listener: who waits in it is reset.
    pub(super) fn close_listener(&mut self, id: SockId, listener: Listener, host: IpAddr) {
        let key = (host, listener.at.port());
        if let Some(list) = self.listeners.get_mut(&key) {
            list.retain(|other| *other != id);
        }
        for conn in listener.backlog {
            self.count("backlog_reset");
            self.reset_end(conn, 1);
        }
    }
}
