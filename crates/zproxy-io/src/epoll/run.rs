//! Trying operations: each either completes or is parked on its socket.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::lease::Store;
use crate::sock::Pacing;
use crate::{Done, Ending, Fault, Lease, Outcome, Sock, SourceNow, Token, sock, sys};

use super::entry::{Connecting, Entry, Inbound, Inlet, Outbound, Pending, Recv};
use super::poller::Interest;
use super::round::{self, Put, Received, Taken};
use super::{Epoll, Side};

/// Connections accepted in one turn; the listener then queues up again behind everybody else.
const ACCEPTS_PER_TURN_MAX: usize = 64;

impl Epoll {
    /// Tries every operation that is in the ready queue now, once. What they queue in turn waits
    /// for the next turn.
    pub(super) fn run_ready(&mut self, done: &mut Vec<Done>) {
        self.ready.extend(self.last.drain(..));
        for _ in 0..self.ready.len() {
            let Some((sock, side)) = self.ready.pop_front() else { return };
            match side {
                Side::Inbound => self.run_inbound(sock, done),
                Side::Outbound => self.run_outbound(sock, done),
                Side::Watch => self.run_watch(sock, done),
                Side::Close => self.run_close(sock, done),
            }
        }
    }

    fn run_inbound(&mut self, sock: Sock, done: &mut Vec<Done>) {
        let Some(entry) = self.socks.get_mut(sock) else { return };
        let Some(Pending { token, op, .. }) = entry.take_inbound() else { return };
        let step = match op {
            Inbound::Accept => self.accept(sock, token, done),
            Inbound::Connect(stage) => connect(entry, stage),
            Inbound::Recv(place) => match receive(entry, &mut self.incoming[place as usize]) {
                Some(outcome) => {
                    self.incoming.remove(place as usize);
                    Step::Home(outcome)
                }
                None => Step::Park(Inbound::Recv(place)),
            },
            Inbound::Fill => match round::take(entry, &self.pools, None) {
                Taken::Bytes(lease) => Step::Home(Outcome::Filled(lease)),
                Taken::Empty => Step::Park(Inbound::Fill),
                Taken::Eof => Step::Home(Outcome::Eof),
                Taken::Failed(fault) => Step::Home(Outcome::Failed(fault)),
            },
        };
        match step {
            Step::Home(outcome) => done.push(Done { token, outcome }),
            Step::Again(op) => {
                self.entry(sock).inbound = Inlet::Taken(Pending::queued(token, op));
                self.ready.push_back((sock, Side::Inbound));
            }
            Step::Park(op) => {
                let listening = matches!(op, Inbound::Accept);
                let interest = if listening { Interest::Listener } else { Interest::Stream };
                match self.register(sock, interest) {
                    Ok(()) => {
                        self.entry(sock).inbound = Inlet::Taken(Pending::parked(token, op));
                    }
                    Err(fault) => {
                        self.forget(&op);
                        done.push(Done { token, outcome: Outcome::Failed(fault) });
                    }
                }
            }
        }
    }

    /// Gives up what the driver keeps of an operation that does not wait after all.
    fn forget(&mut self, op: &Inbound) {
        if let Inbound::Recv(place) = op {
            self.incoming.remove(*place as usize);
        }
    }

    fn run_outbound(&mut self, sock: Sock, done: &mut Vec<Done>) {
        let Some(entry) = self.socks.get_mut(sock) else { return };
        let Some(Pending { token, op: place, .. }) = entry.outbound.take() else { return };
        let step = match self.outgoing.remove(place as usize) {
            Outbound::Send { buf, sent } => send(entry, buf, sent),
            Outbound::Drain { lease, refill } => self.drain(sock, lease, refill),
        };
        let (outcome, refill) = match step {
            Step::Home(outcome) => (outcome, None),
            Step::Again(op) | Step::Park(op) => match self.register(sock, Interest::Stream) {
                Ok(()) => {
                    let place = self.keep(op);
                    self.entry(sock).outbound = Some(Pending::parked(token, place));
                    return;
                }
                Err(fault) => (Outcome::Failed(fault), op.refill()),
            },
        };
        self.unlend(refill);
        done.push(Done { token, outcome });
    }

    fn run_watch(&mut self, sock: Sock, done: &mut Vec<Done>) {
        let Some(entry) = self.socks.get_mut(sock) else { return };
        let Some(Pending { token, .. }) = entry.watch.take() else { return };
        if entry.ready.hangup || entry.fault.is_some() {
            let outcome = Outcome::Hangup(entry.probe_fault());
            done.push(Done { token, outcome });
            return;
        }
        match self.register(sock, Interest::Stream) {
            Ok(()) => self.entry(sock).watch = Some(Pending::parked(token, ())),
            Err(fault) => done.push(Done { token, outcome: Outcome::Failed(fault) }),
        }
    }

    /// Brings home what is in flight, then closes.
    fn run_close(&mut self, sock: Sock, done: &mut Vec<Done>) {
        let (token, how) = self.closes.pop_front().expect("it was queued together with this");
        let entry = self.socks.remove(sock).expect("a socket is there until it is closed");
        let mut cancel = |token| {
            done.push(Done { token, outcome: Outcome::Failed(Fault::Cancelled) });
        };
        match entry.inbound {
            Inlet::Free => {}
            Inlet::Taken(pending) => {
                cancel(pending.token);
                self.forget(&pending.op);
            }
            Inlet::Lent(sink) => {
                let sink = self.socks.get_mut(sink);
                if let Some(pending) = sink.and_then(|sink| sink.outbound.take()) {
                    cancel(pending.token);
                    self.outgoing.remove(pending.op as usize);
                }
            }
        }
        if let Some(pending) = entry.outbound {
            cancel(pending.token);
            let refill = self.outgoing.remove(pending.op as usize).refill();
            self.unlend(refill);
        }
        if let Some(pending) = entry.watch {
            cancel(pending.token);
        }
        match how {
            Ending::Clean => sock::close_clean(entry.fd),
            Ending::Reset => sock::close_reset(entry.fd),
        }
        self.stats.socks_closed += 1;
        done.push(Done { token, outcome: Outcome::Closed });
    }

    fn accept(&mut self, listener: Sock, token: Token, done: &mut Vec<Done>) -> Step<Inbound> {
        let entry = self.entry(listener);
        let fd = entry.raw();
        let pacing = entry.pacing.of(fd);
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            match accept_one(fd, pacing) {
                Accepting::Accepted(conn, peer) => {
                    let sock = self.insert(conn);
                    done.push(Done { token, outcome: Outcome::Accepted { sock, peer } });
                }
                Accepting::Gone => {}
                Accepting::Empty => {
                    self.entry(listener).ready.readable = false;
                    return Step::Park(Inbound::Accept);
                }
                // Connections may be waiting, and no further edge will tell of them, so the
                // listener stays readable for the next `Accept`.
                Accepting::Failed(fault) => return Step::Home(Outcome::Failed(fault)),
            }
        }
        Step::Again(Inbound::Accept)
    }

    fn drain(&mut self, sink: Sock, mut lease: Lease, refill: Option<Sock>) -> Step<Outbound> {
        let put = match round::put(self.entry(sink), &mut lease) {
            Put::Some(put) => put,
            Put::Blocked => return Step::Park(Outbound::Drain { lease, refill }),
            Put::Failed(fault) => {
                self.unlend(refill);
                return Step::Home(Outcome::Failed(fault));
            }
        };
        self.unlend(refill);
        if matches!(lease.store, Store::Pipe(_)) {
            self.stats.bytes_spliced += put as u64;
        } else {
            self.stats.bytes_copied += put as u64;
        }
        if !lease.is_empty() {
            self.stats.rounds_short += 1;
            let (lease, source) = (Some(lease), SourceNow::Open);
            return Step::Home(Outcome::Drained { put, refilled: 0, lease, source });
        }
        self.stats.rounds_full += 1;
        if lease.has_end() {
            self.entry(sink).shutdown_write();
        }
        let taken = match refill {
            Some(source) => {
                let source = self.socks.get_mut(source).expect("a lent source is not closed");
                round::take(source, &self.pools, Some(lease))
            }
            None => Taken::Empty,
        };
        let (lease, source) = match taken {
            Taken::Bytes(lease) => (Some(lease), SourceNow::Open),
            Taken::Empty => (None, SourceNow::Open),
            Taken::Eof => (None, SourceNow::Eof),
            Taken::Failed(fault) => (None, SourceNow::Failed(fault)),
        };
        let refilled = lease.as_ref().map_or(0, Lease::len);
        Step::Home(Outcome::Drained { put, refilled, lease, source })
    }

    /// Gives the inbound place of a drain's source back.
    fn unlend(&mut self, source: Option<Sock>) {
        if let Some(entry) = source.and_then(|source| self.socks.get_mut(source)) {
            entry.unlend();
        }
    }

    /// Makes the poller know the socket. What it is ready for now comes as the first event.
    fn register(&mut self, sock: Sock, interest: Interest) -> Result<(), Fault> {
        let entry = self.socks.get_mut(sock).expect("an operation runs on an open socket");
        if !entry.registered {
            let added = self.poller.add(entry.raw(), sock, interest);
            added.map_err(|error| Fault::from_io(&error))?;
            entry.registered = true;
        }
        Ok(())
    }

    fn entry(&mut self, sock: Sock) -> &mut Entry {
        self.socks.get_mut(sock).expect("an operation runs on an open socket")
    }
}

/// What became of a try.
enum Step<T> {
    /// Done.
    Home(Outcome),
    /// Not done, but can go on at once.
    Again(T),
    /// Has to wait for an event.
    Park(T),
}

impl Outbound {
    /// The source whose inbound place this occupies.
    fn refill(&self) -> Option<Sock> {
        match self {
            Self::Send { .. } => None,
            Self::Drain { refill, .. } => *refill,
        }
    }
}

/// Connects as far as that needs no waiting.
pub(super) fn begin_connect(entry: &mut Entry, to: &SocketAddr) -> Connecting {
    match sock::connect(entry.raw(), to) {
        Ok(true) => Connecting::Over(None),
        Ok(false) => {
            entry.ready.writable = false;
            Connecting::UnderWay
        }
        Err(error) => Connecting::Over(Some(Fault::from_io(&error))),
    }
}

fn connect(entry: &mut Entry, stage: Connecting) -> Step<Inbound> {
    match stage {
        Connecting::Over(None) => Step::Home(Outcome::Connected),
        Connecting::Over(Some(fault)) => Step::Home(Outcome::Failed(fault)),
        Connecting::UnderWay if !entry.ready.writable => {
            Step::Park(Inbound::Connect(Connecting::UnderWay))
        }
        Connecting::UnderWay => match entry.probe_fault() {
            Some(fault) => Step::Home(Outcome::Failed(fault)),
            None if entry.ready.hangup => Step::Home(Outcome::Failed(Fault::Reset)),
            None => Step::Home(Outcome::Connected),
        },
    }
}

/// None: it has to wait.
fn receive(entry: &mut Entry, recv: &mut Recv) -> Option<Outcome> {
    let (mut buf, max) = (std::mem::take(&mut recv.buf), recv.max);
    let start = buf.len();
    let fd = entry.raw();
    loop {
        if !entry.ready.readable {
            recv.buf = buf;
            return None;
        }
        buf.resize(start + max, 0);
        let found = round::receive(entry, |flags| sys::recv(fd, &mut buf[start..], flags), max);
        let count = match found {
            Received::Count(count) => count,
            Received::Eof => 0,
            Received::Again | Received::Empty => {
                buf.truncate(start);
                continue;
            }
            Received::Failed(fault) => return Some(Outcome::Failed(fault)),
        };
        buf.truncate(start + count);
        return Some(Outcome::Received { buf, count });
    }
}

fn send(entry: &mut Entry, buf: Vec<u8>, mut sent: usize) -> Step<Outbound> {
    let fd = entry.raw();
    while sent < buf.len() {
        match round::send(entry, buf.len() - sent, || sys::send(fd, &buf[sent..])) {
            Put::Some(count) => sent += count,
            Put::Blocked => return Step::Park(Outbound::Send { buf, sent }),
            Put::Failed(fault) => return Step::Home(Outcome::Failed(fault)),
        }
    }
    Step::Home(Outcome::Sent { buf })
}

/// What accept(2) said.
enum Accepting {
    Accepted(OwnedFd, Option<SocketAddr>),
    /// The connection had failed before it was taken, or the call was interrupted: go on.
    Gone,
    Empty,
    Failed(Fault),
}

fn accept_one(listener: RawFd, pacing: Pacing) -> Accepting {
    let error = match sys::accept(listener) {
        Ok((conn, peer)) => {
            sock::accepted(conn.as_raw_fd(), peer.as_ref(), pacing);
            return Accepting::Accepted(conn, peer);
        }
        Err(error) => error,
    };
    if round::is_would_block(&error) {
        return Accepting::Empty;
    }
    match error.raw_os_error() {
        // accept(2) passes on errors of the new connection and asks to try again.
        Some(
            libc::EINTR
            | libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EPERM
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::EOPNOTSUPP
            | libc::ETIMEDOUT,
        ) => Accepting::Gone,
        _ => Accepting::Failed(Fault::from_io(&error)),
    }
}
