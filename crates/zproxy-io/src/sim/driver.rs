//! Operations in flight on simulated sockets: when they run, and when their results come home.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::buf::BufPool;
use crate::lease::Store;
use crate::table::Table;
use crate::{Done, Ending, Fault, Lease, Op, Outcome, Sock, SourceNow, Stats, Token};

use super::Sabotage;
use super::conn::{Read, Write};
use super::kernel::{Event, Kernel, Kind, Owner, ProcessId, SockId};
use super::sabotage::Last;

/// What is in flight on one socket.
#[derive(Debug, Default)]
pub(super) struct Ops {
    inbound: Option<(Token, Inbound)>,
    outbound: Option<(Token, Outbound)>,
    watch: Option<Token>,
    /// The sink whose `Drain` refills from here and so occupies the inbound place.
    lent_to: Option<SockId>,
    close: Option<(Token, Ending)>,
    /// The outbound direction was ended from here.
    has_shut: bool,
    /// It is in its driver's list.
    is_listed: bool,
}

#[derive(Debug)]
enum Inbound {
    Accept {
        /// It was recalled, and comes home then.
        ends_at: Option<Duration>,
    },
    Connect,
    Recv {
        buf: Vec<u8>,
        max: usize,
    },
    Fill,
}

#[derive(Debug)]
enum Outbound {
    Send { buf: Vec<u8>, sent: usize },
    Drain { lease: Lease, refill: Option<SockId> },
}

/// A result on its way home.
#[derive(Debug)]
struct Home {
    at: Duration,
    socks: [Option<SockId>; 2],
    done: Done,
}

/// What the kernel keeps for one driver.
#[derive(Debug)]
pub(super) struct DriverState {
    pub(super) process: ProcessId,
    table: Table<SockId>,
    /// Sockets whose operations may go on.
    ready: Vec<SockId>,
    homes: Vec<Home>,
    pub(super) bell: Arc<AtomicBool>,
    /// When a ring is heard.
    heard_at: Option<Duration>,
    /// What the last `wait` was asked for.
    until: Option<Duration>,
    /// The last `wait` had nothing to give.
    is_asleep: bool,
    /// Its thread is busy, or not scheduled, until then.
    not_before: Duration,
    pub(super) bufs: Rc<BufPool>,
    pub(super) stats: Stats,
    last: Last,
    is_open: bool,
}

impl DriverState {
    pub(super) fn new(process: ProcessId) -> Self {
        Self {
            process,
            table: Table::default(),
            ready: Vec::new(),
            homes: Vec::new(),
            bell: Arc::default(),
            heard_at: None,
            until: None,
            is_asleep: false,
            not_before: Duration::ZERO,
            bufs: BufPool::new(),
            stats: Stats::default(),
            last: Last::default(),
            is_open: true,
        }
    }
}

/// What taking found.
enum Taken {
    Bytes(Lease),
    Empty,
    Eof,
    Failed(Fault),
}

impl Ops {
    fn is_inbound_free(&self) -> bool {
        self.inbound.is_none() && self.lent_to.is_none()
    }
}

impl Kernel {
    // --- what a driver's owner asks for -----------------------------------------------------------

    pub(super) fn own(&mut self, driver: usize, id: SockId) -> Sock {
        let state = &mut self.drivers[driver];
        state.stats.socks_opened += 1;
        let sock = state.table.insert(id);
        self.sock(id).owner = Owner::Driver(driver, sock);
        sock
    }

    pub(super) fn id(&self, driver: usize, sock: Sock) -> Option<SockId> {
        self.drivers[driver].table.get(sock).copied()
    }

    pub(super) fn disown(&mut self, driver: usize, sock: Sock) -> SockId {
        let id = self.drivers[driver].table.remove(sock).expect("a socket that this driver owns");
        let ops = &self.sock(id).ops;
        let is_quiet = ops.is_inbound_free() && ops.outbound.is_none() && ops.watch.is_none();
        let is_quiet = is_quiet && ops.close.is_none();
        let is_told = self.drivers[driver].homes.iter().all(|home| !home.socks.contains(&Some(id)));
        assert!(is_quiet && is_told, "a released socket is at rest");
        self.drivers[driver].stats.socks_closed += 1;
        self.sock(id).owner = Owner::Nobody;
        id
    }

    pub(super) fn submit(&mut self, driver: usize, token: Token, op: Op) {
        if let Op::Close { sock, how } = op {
            return self.submit_close(driver, token, sock, how);
        }
        let (first, second) = match &op {
            Op::Accept { listener: sock }
            | Op::Connect { sock, .. }
            | Op::Recv { sock, .. }
            | Op::Send { sock, .. }
            | Op::Watch { sock }
            | Op::Fill { from: sock }
            | Op::Close { sock, .. } => (*sock, None),
            Op::Drain { to, refill, .. } => (*to, *refill),
        };
        let mut is_open = |sock: Sock| {
            let id = self.id(driver, sock);
            id.filter(|id| self.sock(*id).ops.close.is_none())
        };
        let (first, source) = match (is_open(first), second.map(is_open)) {
            (Some(first), None) => (first, None),
            (Some(first), Some(Some(source))) => (first, Some(source)),
            _ => {
                let done = Done { token, outcome: Outcome::Failed(Fault::Cancelled) };
                return self.bring_home(driver, [None; 2], done);
            }
        };
        let one = "one operation of a kind on a socket at a time";
        match op {
            Op::Accept { .. } => self.begin(first, token, Inbound::Accept { ends_at: None }),
            Op::Connect { to, .. } => {
                self.begin(first, token, Inbound::Connect);
                self.dial(first, to);
            }
            Op::Recv { buf, max, .. } => {
                assert!(max > 0, "there is room to receive into");
                self.begin(first, token, Inbound::Recv { buf, max });
            }
            Op::Fill { .. } => self.begin(first, token, Inbound::Fill),
            Op::Send { mut buf, .. } => {
                let process = self.drivers[driver].process;
                if let Some(Sabotage::Edit(edit)) = &mut self.process(process).sabotage {
                    edit(&mut buf);
                }
                let ops = &mut self.sock(first).ops;
                assert!(ops.outbound.is_none(), "outbound: {one}");
                ops.outbound = Some((token, Outbound::Send { buf, sent: 0 }));
            }
            Op::Drain { lease, .. } => {
                assert!(!lease.is_empty(), "an empty lease is dropped, not drained");
                if let Some(source) = source {
                    let ops = &mut self.sock(source).ops;
                    assert!(ops.is_inbound_free(), "inbound: {one}");
                    ops.lent_to = Some(first);
                }
                let ops = &mut self.sock(first).ops;
                assert!(ops.outbound.is_none(), "outbound: {one}");
                ops.outbound = Some((token, Outbound::Drain { lease, refill: source }));
            }
            Op::Watch { .. } => {
                let ops = &mut self.sock(first).ops;
                assert!(ops.watch.replace(token).is_none(), "watch: {one}");
            }
            Op::Close { .. } => unreachable!("handled above"),
        }
        self.list(driver, first);
    }

    fn begin(&mut self, id: SockId, token: Token, op: Inbound) {
        let ops = &mut self.sock(id).ops;
        let is_free = ops.is_inbound_free();
        assert!(is_free, "inbound: one operation of a kind on a socket at a time");
        ops.inbound = Some((token, op));
    }

    /// A recalled accept goes on for a moment: the kernel may be at it just now.
    pub(super) fn recall_accept(&mut self, driver: usize, listener: Sock) {
        let Some(id) = self.id(driver, listener) else { return };
        let at = self.now + Duration::from_micros(self.random.between(0, 3_000));
        if let Some((_, Inbound::Accept { ends_at })) = &mut self.sock(id).ops.inbound
            && ends_at.is_none()
        {
            *ends_at = Some(at);
            self.at(at, Event::Nudge { sock: id });
        }
    }

    fn submit_close(&mut self, driver: usize, token: Token, sock: Sock, how: Ending) {
        let Some(id) = self.id(driver, sock) else {
            let done = Done { token, outcome: Outcome::Closed };
            return self.bring_home(driver, [None; 2], done);
        };
        let ops = &mut self.sock(id).ops;
        assert!(ops.close.replace((token, how)).is_none(), "a socket is closed once");
        self.list(driver, id);
    }

    pub(super) fn shutdown_write(&mut self, driver: usize, sock: Sock) {
        if let Some(id) = self.id(driver, sock) {
            self.end_outbound(driver, id);
        }
    }

    fn end_outbound(&mut self, driver: usize, id: SockId) {
        if std::mem::replace(&mut self.sock(id).ops.has_shut, true) {
            return;
        }
        let process = self.drivers[driver].process;
        let Self { processes, random, .. } = self;
        let sabotage = processes[process].sabotage.as_ref();
        if sabotage.is_some_and(|it| it.forgets_fin(random)) {
            return self.count("sabotage");
        }
        if let Some(stream) = self.stream(id) {
            self.shut(stream);
        }
    }

    pub(super) fn take_now(
        &mut self,
        driver: usize,
        sock: Sock,
        buf: &mut Vec<u8>,
        max: usize,
    ) -> usize {
        let Some(id) = self.id(driver, sock) else { return 0 };
        assert!(self.sock(id).ops.is_inbound_free(), "inbound: something is in flight");
        let defer = self.weather.defer;
        let Some(stream) = self.stream(id) else { return 0 };
        if max == 0 || self.random.chance(defer) {
            return 0;
        }
        let start = buf.len();
        let room = self.shorten(max);
        buf.resize(start + room, 0);
        let count = match self.read(stream, &mut buf[start..]) {
            Read::Some(count) => count,
            Read::Empty | Read::Eof | Read::Failed(_) => 0,
        };
        buf.truncate(start + count);
        if count > 0 {
            self.count("taken_now");
        }
        count
    }

    // --- running operations -------------------------------------------------------------------------

    fn list(&mut self, driver: usize, id: SockId) {
        let ops = &mut self.sock(id).ops;
        if !std::mem::replace(&mut ops.is_listed, true) {
            self.drivers[driver].ready.push(id);
        }
    }

    /// Something happened to a socket of a driver.
    pub(super) fn notify_driver(&mut self, driver: usize, id: SockId) {
        let eager = self.weather.eager;
        if self.random.chance(eager) {
            self.run(driver, id);
        } else {
            self.list(driver, id);
        }
    }

    /// Tries what is in the driver's list, in any order.
    fn run_ready(&mut self, driver: usize) {
        let mut ready = std::mem::take(&mut self.drivers[driver].ready);
        while !ready.is_empty() {
            let id = ready.swap_remove(self.random.place(ready.len()));
            if let Some(socket) = self.find(id) {
                socket.ops.is_listed = false;
                self.run(driver, id);
            }
        }
    }

    fn run(&mut self, driver: usize, id: SockId) {
        if self.sock(id).ops.close.is_some() {
            return self.run_close(driver, id);
        }
        let first = self.random.place(3);
        for side in (first..first + 3).map(|side| side % 3) {
            let ops = &self.sock(id).ops;
            let is_any = [ops.inbound.is_some(), ops.outbound.is_some(), ops.watch.is_some()][side];
            let defer = self.weather.defer;
            if is_any && self.random.chance(defer) {
                self.count("deferred");
                let at = self.now + Duration::from_micros(self.random.between(1, 3_000));
                self.at(at, Event::Nudge { sock: id });
                continue;
            }
            match side {
                0 => self.run_inbound(driver, id),
                1 => self.run_outbound(driver, id),
                _ => self.run_watch(driver, id),
            }
        }
    }

    fn run_inbound(&mut self, driver: usize, id: SockId) {
        let Some((token, op)) = self.sock(id).ops.inbound.take() else { return };
        let outcome = match op {
            Inbound::Accept { ends_at } => {
                let outcome = self.run_accept(driver, id, token, ends_at);
                outcome.ok_or(Inbound::Accept { ends_at })
            }
            Inbound::Connect => self.connected(id).ok_or(Inbound::Connect),
            Inbound::Recv { mut buf, max } => {
                let start = buf.len();
                let room = self.shorten(max);
                buf.resize(start + room, 0);
                let stream = self.stream(id).expect("only a connected socket receives");
                match self.read(stream, &mut buf[start..]) {
                    Read::Some(count) => {
                        buf.truncate(start + count);
                        Ok(Outcome::Received { buf, count })
                    }
                    Read::Eof => {
                        buf.truncate(start);
                        Ok(Outcome::Received { buf, count: 0 })
                    }
                    Read::Failed(fault) => Ok(Outcome::Failed(fault)),
                    Read::Empty => {
                        buf.truncate(start);
                        Err(Inbound::Recv { buf, max })
                    }
                }
            }
            Inbound::Fill => match self.take(driver, id) {
                Taken::Bytes(lease) => Ok(Outcome::Filled(lease)),
                Taken::Empty => Err(Inbound::Fill),
                Taken::Eof => Ok(Outcome::Eof),
                Taken::Failed(fault) => Ok(Outcome::Failed(fault)),
            },
        };
        match outcome {
            Ok(outcome) => self.bring_home(driver, [Some(id), None], Done { token, outcome }),
            Err(op) => self.sock(id).ops.inbound = Some((token, op)),
        }
    }

    /// Accepts what waits; an outcome ends accepting.
    fn run_accept(
        &mut self,
        driver: usize,
        id: SockId,
        token: Token,
        ends_at: Option<Duration>,
    ) -> Option<Outcome> {
        loop {
            if ends_at.is_some_and(|at| at <= self.now) {
                return Some(Outcome::Failed(Fault::Cancelled));
            }
            let process = self.drivers[driver].process;
            let Kind::Listener(listener) = &self.sock(id).kind else {
                unreachable!("only a listener accepts")
            };
            let conn = *listener.backlog.front()?;
            if let Some(fault) = self.shortage(process) {
                self.count("accept_short");
                return Some(Outcome::Failed(fault));
            }
            let peer = self.conn(conn).ends[0].addr;
            let is_dead = self.conn(conn).ends[1].fault.is_some();
            let accepted = self.accept(id, Owner::Nobody).expect("one waits");
            let sock = self.own(driver, accepted);
            // Who has gone already cannot always be asked for his name.
            let is_known = !is_dead || self.random.chance(500);
            let peer: Option<SocketAddr> = is_known.then_some(peer);
            let done = Done { token, outcome: Outcome::Accepted { sock, peer } };
            self.bring_home(driver, [Some(id), None], done);
            if ends_at.is_some() {
                self.count("accepted_after_recall");
            }
        }
    }

    fn connected(&mut self, id: SockId) -> Option<Outcome> {
        match self.sock(id).kind {
            Kind::Failed(fault) => Some(Outcome::Failed(fault)),
            Kind::Stream { conn, side } => {
                let end = &self.conn(conn).ends[side];
                match end.fault {
                    Some(fault) => Some(Outcome::Failed(fault)),
                    None => end.is_connected.then_some(Outcome::Connected),
                }
            }
            _ => None,
        }
    }

    fn run_outbound(&mut self, driver: usize, id: SockId) {
        let Some((token, op)) = self.sock(id).ops.outbound.take() else { return };
        let mut socks = [Some(id), None];
        let outcome = match op {
            Outbound::Send { buf, sent } => self.run_send(id, buf, sent),
            Outbound::Drain { lease, refill } => {
                socks[1] = refill;
                self.run_drain(driver, id, lease, refill)
            }
        };
        match outcome {
            Ok(outcome) => {
                if let Some(source) = socks[1] {
                    self.sock(source).ops.lent_to = None;
                }
                self.bring_home(driver, socks, Done { token, outcome });
            }
            Err(op) => self.sock(id).ops.outbound = Some((token, op)),
        }
    }

    fn run_send(&mut self, id: SockId, buf: Vec<u8>, mut sent: usize) -> Result<Outcome, Outbound> {
        let stream = self.stream(id).expect("only a connected socket sends");
        while sent < buf.len() {
            let count = self.shorten(buf.len() - sent);
            match self.write(stream, &buf[sent..sent + count]) {
                Write::Some(count) => sent += count,
                Write::Full => return Err(Outbound::Send { buf, sent }),
                Write::Failed(fault) => return Ok(Outcome::Failed(fault)),
            }
        }
        Ok(Outcome::Sent { buf })
    }

    fn run_drain(
        &mut self,
        driver: usize,
        id: SockId,
        mut lease: Lease,
        refill: Option<SockId>,
    ) -> Result<Outcome, Outbound> {
        let stream = self.stream(id).expect("only a connected socket is drained into");
        let Store::Buf(buf) = &mut lease.store else { unreachable!("a lease of this driver") };
        let held = buf.held().len();
        let most = self.shorten(held);
        let put = match self.put(driver, id, stream, &buf.held()[..most]) {
            Write::Some(put) => put,
            Write::Full => {
                self.count("sink_full");
                return Err(Outbound::Drain { lease, refill });
            }
            Write::Failed(fault) => return Ok(Outcome::Failed(fault)),
        };
        buf.note_out(put);
        self.drivers[driver].stats.bytes_copied += put as u64;
        if put < held {
            self.drivers[driver].stats.rounds_short += 1;
            self.count("short_drain");
            if let Some((0, true)) =
                refill.and_then(|it| self.stream(it)).map(|it| self.readable(it))
            {
                self.count("residue_at_end");
            }
            let (lease, source) = (Some(lease), SourceNow::Open);
            return Ok(Outcome::Drained { put, refilled: 0, lease, source });
        }
        self.drivers[driver].stats.rounds_full += 1;
        if lease.has_end() {
            self.count("end_with_bytes");
            self.end_outbound(driver, id);
        }
        let process = self.drivers[driver].process;
        let Self { processes, random, .. } = self;
        let sabotage = processes[process].sabotage.as_ref();
        if sabotage.is_some_and(|it| it.leaks(random)) {
            self.count("sabotage");
            std::mem::forget(lease);
        } else {
            drop(lease);
        }
        let taken = match refill {
            Some(source) => self.take(driver, source),
            None => Taken::Empty,
        };
        let (lease, source) = match taken {
            Taken::Bytes(lease) => (Some(lease), SourceNow::Open),
            Taken::Empty => (None, SourceNow::Open),
            Taken::Eof => (None, SourceNow::Eof),
            Taken::Failed(fault) => (None, SourceNow::Failed(fault)),
        };
        let refilled = lease.as_ref().map_or(0, Lease::len);
        Ok(Outcome::Drained { put, refilled, lease, source })
    }

    /// Puts relayed bytes, or what a saboteur makes of them.
    fn put(&mut self, driver: usize, id: SockId, stream: (usize, usize), bytes: &[u8]) -> Write {
        let process = self.drivers[driver].process;
        let Self { processes, drivers, random, .. } = self;
        let sabotage = processes[process].sabotage.as_ref();
        let last = &mut drivers[driver].last;
        let wrong = sabotage.and_then(|it| it.on_put(bytes, id, last, random));
        let Some(wrong) = wrong.filter(|wrong| wrong != bytes) else {
            return self.write(stream, bytes);
        };
        if wrong.is_empty() {
            self.count("sabotage");
            return Write::Some(bytes.len());
        }
        match self.write(stream, &wrong) {
            Write::Some(count) if count == wrong.len() => {
                self.count("sabotage");
                Write::Some(bytes.len())
            }
            Write::Some(count) => Write::Some(count.min(bytes.len())),
            other => other,
        }
    }

    fn take(&mut self, driver: usize, id: SockId) -> Taken {
        let stream = self.stream(id).expect("only a connected socket is taken from");
        let (there, is_ended) = self.readable(stream);
        if there == 0 && !is_ended {
            return Taken::Empty;
        }
        let mut buf = self.drivers[driver].bufs.lease();
        let space = buf.space();
        let most = self.shorten(space.len().min(there).max(1));
        match self.read(stream, &mut space[..most]) {
            Read::Some(count) => {
                buf.note_in(count);
                if count < there {
                    self.count("short_fill");
                }
                let mut lease = Lease::new(Store::Buf(buf));
                // The end may be known with the last bytes, or be told of by the next fill.
                if self.is_at_end(stream) && self.random.chance(700) {
                    self.count("end_known");
                    lease.add_end();
                }
                Taken::Bytes(lease)
            }
            Read::Empty => Taken::Empty,
            Read::Eof => Taken::Eof,
            Read::Failed(fault) => Taken::Failed(fault),
        }
    }

    /// How many of `most` bytes an operation moves.
    fn shorten(&mut self, most: usize) -> usize {
        let (short, tiny) = (self.weather.short, self.weather.tiny);
        if most <= 1 || !self.random.chance(short) {
            return most;
        }
        if self.random.chance(tiny) { 1 } else { 1 + self.random.place(most) }
    }

    fn run_watch(&mut self, driver: usize, id: SockId) {
        let Some(token) = self.sock(id).ops.watch else { return };
        let Some(stream) = self.stream(id) else { return };
        if let Some(fault) = self.hangup(stream) {
            self.sock(id).ops.watch = None;
            let done = Done { token, outcome: Outcome::Hangup(fault) };
            self.bring_home(driver, [Some(id), None], done);
        }
    }

    /// Brings home what is in flight, then closes.
    fn run_close(&mut self, driver: usize, id: SockId) {
        // Taken first: what succeeds now may make this socket's driver run again.
        let (token, how) = self.sock(id).ops.close.take().expect("called for a close");
        // What is in flight may still succeed at the last moment.
        if self.random.chance(300) {
            self.run_inbound(driver, id);
            self.run_outbound(driver, id);
        }
        let ops = std::mem::take(&mut self.sock(id).ops);
        let mut cancelled: Vec<(Token, Option<SockId>)> = Vec::new();
        cancelled.extend(ops.inbound.map(|(token, _)| (token, None)));
        cancelled.extend(ops.watch.map(|token| (token, None)));
        if let Some((token, op)) = ops.outbound {
            let source = match op {
                Outbound::Send { .. } => None,
                Outbound::Drain { refill, .. } => refill,
            };
            if let Some(source) = source {
                self.sock(source).ops.lent_to = None;
            }
            cancelled.push((token, source));
        }
        if let Some(sink) = ops.lent_to {
            let (token, _) = self.sock(sink).ops.outbound.take().expect("it refills from here");
            cancelled.push((token, Some(sink)));
        }
        for (token, other) in cancelled {
            let done = Done { token, outcome: Outcome::Failed(Fault::Cancelled) };
            self.bring_home(driver, [Some(id), other], done);
        }
        let Owner::Driver(_, sock) = self.sock(id).owner else { unreachable!("a driver's socket") };
        self.drivers[driver].table.remove(sock);
        let process = self.drivers[driver].process;
        let Self { processes, random, .. } = self;
        let sabotage = processes[process].sabotage.as_ref();
        if sabotage.is_some_and(|it| it.forgets_close(random)) {
            self.count("sabotage");
        } else {
            self.drivers[driver].stats.socks_closed += 1;
            self.close_sock(id, how);
        }
        self.bring_home(driver, [Some(id), None], Done { token, outcome: Outcome::Closed });
    }

    /// Closes a socket on which nothing is in flight.
    pub(super) fn close_sock(&mut self, id: SockId, how: Ending) {
        let Some(socket) = self.forget(id) else { return };
        let host = self.processes[socket.process].host;
        match socket.kind {
            Kind::Fresh | Kind::Dialling { .. } | Kind::Failed(_) => {}
            Kind::Stream { conn, side } => self.close_end(conn, side, how),
            Kind::Listener(listener) => self.close_listener(id, listener, host),
        }
    }

    // --- results ------------------------------------------------------------------------------------

    fn bring_home(&mut self, driver: usize, socks: [Option<SockId>; 2], done: Done) {
        let late = self.weather.late;
        let mut at = self.now;
        if self.random.chance(late) {
            self.count("late");
            at += Duration::from_micros(self.random.between(1, 3_000));
        }
        let homes = &mut self.drivers[driver].homes;
        // A close comes after everything else on its socket, and a listener's results in their order.
        for other in homes.iter().filter(|other| comes_before(other, &done, socks)) {
            at = at.max(other.at);
        }
        homes.push(Home { at, socks, done });
    }

    /// When this driver's `wait` will have something to give, or is to end.
    pub(super) fn wake_time(&mut self, driver: usize) -> Option<Duration> {
        if self.drivers[driver].is_asleep && !self.drivers[driver].ready.is_empty() {
            self.run_ready(driver);
        }
        self.listen_for_bell(driver);
        let now = self.now;
        let state = &self.drivers[driver];
        let process = &self.processes[state.process];
        if !process.is_alive {
            return None;
        }
        let home = state.homes.iter().map(|home| home.at).min();
        let wake = if state.is_asleep {
            [home, state.heard_at, state.until].into_iter().flatten().min()?
        } else {
            now
        };
        Some(wake.max(state.not_before).max(process.frozen_until))
    }

    fn listen_for_bell(&mut self, driver: usize) {
        if self.drivers[driver].heard_at.is_some()
            || !self.drivers[driver].bell.load(Ordering::Acquire)
        {
            return;
        }
        let deaf = self.weather.deaf;
        let mut at = self.now;
        if self.random.chance(deaf) {
            self.count("late_bell");
            at += Duration::from_micros(self.random.between(1, 5_000));
        }
        self.drivers[driver].heard_at = Some(at);
    }

    pub(super) fn wait(&mut self, driver: usize, until: Option<Duration>, done: &mut Vec<Done>) {
        self.run_ready(driver);
        self.listen_for_bell(driver);
        let now = self.now;
        let state = &mut self.drivers[driver];
        assert!(state.is_open, "a driver that was dropped does not wait");
        state.stats.waits += 1;
        state.until = until;
        let before = done.len();
        if state.heard_at.is_some_and(|at| at <= now) {
            state.heard_at = None;
            state.bell.store(false, Ordering::Release);
            done.push(Done { token: Token::DOORBELL, outcome: Outcome::Rung });
        }
        self.collect(driver, done);
        let state = &mut self.drivers[driver];
        state.is_asleep = done.len() == before;
        let preempt = self.weather.preempt;
        let pause = if self.random.chance(preempt) {
            self.count("preempted");
            self.random.between(100, 20_000)
        } else {
            self.random.between(0, 10)
        };
        self.drivers[driver].not_before = now + Duration::from_micros(pause);
        self.note(driver as u64 ^ 0xD0);
        self.note(now.as_nanos() as u64);
        for it in &done[before..] {
            self.note(it.token.0);
            self.note(weight(&it.outcome));
        }
    }

    /// Moves what is home by now to `done`.
    fn collect(&mut self, driver: usize, done: &mut Vec<Done>) {
        let now = self.now;
        let shuffle = self.weather.shuffle;
        let is_shuffled = self.random.chance(shuffle);
        let homes = std::mem::take(&mut self.drivers[driver].homes);
        let (arrived, coming): (Vec<Home>, Vec<Home>) =
            homes.into_iter().partition(|home| home.at <= now);
        self.drivers[driver].homes = coming;
        if !is_shuffled || arrived.len() < 2 {
            return done.extend(arrived.into_iter().map(|home| home.done));
        }
        self.count("shuffled");
        let mut order: Vec<(u64, usize)> = Vec::with_capacity(arrived.len());
        for (place, home) in arrived.iter().enumerate() {
            let drawn = self.random.below(1 << 32);
            let before = arrived[..place].iter().zip(&order);
            let before = before.filter(|(other, _)| comes_before(other, &home.done, home.socks));
            let least = before.map(|(_, (key, _))| *key + 1).max().unwrap_or(0);
            order.push((drawn.max(least), place));
        }
        let mut arrived: Vec<Option<Home>> = arrived.into_iter().map(Some).collect();
        order.sort_unstable();
        let taken = order.into_iter().map(|(_, place)| arrived[place].take().expect("once"));
        done.extend(taken.map(|home| home.done));
    }

    /// The driver is dropped: everything that it holds is reset, as when a process dies.
    pub(super) fn drop_driver(&mut self, driver: usize) {
        self.drivers[driver].is_open = false;
        self.drivers[driver].homes.clear();
        for id in 0..self.socks.len() {
            let is_own = self.socks[id]
                .as_ref()
                .is_some_and(|it| matches!(it.owner, Owner::Driver(of, _) if of == driver));
            if is_own {
                self.sock(id).ops = Ops::default();
                self.close_sock(id, Ending::Reset);
            }
        }
    }
}

/// Whether `other` has to come home before `done`, which was brought home after it.
fn comes_before(other: &Home, done: &Done, socks: [Option<SockId>; 2]) -> bool {
    let is_shared = other.socks.iter().flatten().any(|sock| socks.contains(&Some(*sock)));
    is_shared && (matches!(done.outcome, Outcome::Closed) || other.done.token == done.token)
}

/// A number that tells outcomes apart, for the trace.
fn weight(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Accepted { sock, .. } => 1 << 32 | u64::from(sock.index),
        Outcome::Connected => 2 << 32,
        Outcome::Received { count, .. } => 3 << 32 | *count as u64,
        Outcome::Sent { .. } => 4 << 32,
        Outcome::Hangup(fault) => 5 << 32 | u64::from(fault.is_some()),
        Outcome::Filled(lease) => 6 << 32 | lease.len() as u64,
        Outcome::Eof => 7 << 32,
        Outcome::Drained { put, refilled, .. } => 8 << 32 | (*put as u64) << 20 | *refilled as u64,
        Outcome::Closed => 9 << 32,
        Outcome::Rung => 10 << 32,
        Outcome::Failed(_) => 11 << 32,
    }
}
