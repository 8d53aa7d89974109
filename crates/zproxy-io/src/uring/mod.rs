//! The io_uring backend: one ring per core, made and used on that core's own thread.
//!
//! `mod` holds the sockets, the operations in flight and the loop; `rounds` moves bytes; `group`
//! is the provided buffers; `ring` is the ring itself. An operation in flight is an [`Entry`] in a
//! slab; its index travels through the kernel in `user_data`, with the part of the operation that a
//! completion belongs to. An entry is freed when its last completion is home, so a name is never
//! reused early.

mod group;
mod ring;
mod rounds;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use slab::Slab;

pub(crate) use group::RingBuf;
pub use ring::RingError;

use crate::buf::BufPool;
use crate::busy::{BusyPoll, Spin};
use crate::pipe::PipePool;
use crate::policy::{Policy, RelayMode};
use crate::table::Table;
use crate::{
    Done, Doorbell, Driver, DriverConfig, DriverLost, Ending, Fault, ListenOptions, Op, Outcome,
    Sock, Stats, Token, sock, sys,
};
use group::Group;
use ring::{Queues, Ring};
use rounds::{Drain, Fill};

/// Which completion of an operation: the high half of `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Part {
    Main = 0,
    Refill = 1,
    Poll = 2,
}

/// `user_data` of cancellations, whose completions say nothing that is not said elsewhere.
const CANCEL: u64 = u64::MAX;

fn user_data(key: usize, part: Part) -> u64 {
    key as u64 | u64::from(part as u32) << 32
}

/// The io_uring driver.
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    socks: Table<Entity>,
    entries: Slab<Option<Entry>>,
    ready: Vec<Done>,
    bell: Doorbell,
    pipes: Rc<PipePool>,
    bufs: Rc<BufPool>,
    group: Rc<Group>,
    relay: RelayMode,
    busy: BusyPoll,
    stats: Stats,
}

/// A socket and what is in flight on it (keys of entries).
#[derive(Debug)]
struct Entity {
    fd: OwnedFd,
    inbound: Option<usize>,
    outbound: Option<usize>,
    watch: Option<usize>,
    closing: Option<(Token, Ending)>,
    policy: Policy,
    /// The last round found no room: wait for room before the next one.
    full: bool,
    /// The first fault that an operation met. The kernel tells an error once, to whoever asks first,
    /// and lets everything later look like an orderly end.
    fault: Option<Fault>,
    /// The outbound direction was ended from here.
    has_shut: bool,
    /// A fill that was begun before it was asked for.
    ahead: Ahead,
}

/// A fill of a socket that the driver begins together with the send of what came before, because it
/// is all but certain to be asked for next: one submission for both, instead of two.
#[derive(Debug)]
enum Ahead {
    No,
    /// In flight (key of the entry).
    Flying(usize),
    /// At home before it was asked for.
    Landed(Outcome),
}

/// An operation in flight.
#[derive(Debug)]
struct Entry {
    /// None for a fill that nobody has asked for yet.
    token: Option<Token>,
    places: Places,
    /// Completions that have yet to come home.
    pending: u8,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Accept { listener: Sock },
    Connect { sock: Sock, address: Box<sys::Address> },
    Recv { sock: Sock, buf: Vec<u8>, max: usize },
    Send { sock: Sock, buf: Vec<u8>, sent: usize },
    Watch { sock: Sock, seen: Option<Outcome> },
    Fill(Fill),
    Drain(Drain),
    Bell,
}

/// The places that an operation occupies on its sockets.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    inbound: Option<Sock>,
    outbound: Option<Sock>,
    watch: Option<Sock>,
}

impl Places {
    fn of(work: &Work) -> Self {
        let none = Self::default();
        match work {
            Work::Accept { listener: sock }
            | Work::Connect { sock, .. }
            | Work::Recv { sock, .. } => Self { inbound: Some(*sock), ..none },
            Work::Send { sock, .. } => Self { outbound: Some(*sock), ..none },
            Work::Watch { sock, .. } => Self { watch: Some(*sock), ..none },
            Work::Fill(fill) => Self { inbound: Some(fill.from), ..none },
            Work::Drain(drain) => Self { inbound: drain.refill, outbound: Some(drain.to), ..none },
            Work::Bell => none,
        }
    }

    fn socks(&self) -> impl Iterator<Item = Sock> {
        [self.inbound, self.outbound, self.watch].into_iter().flatten()
    }
}

/// What becomes of an entry after one of its completions was looked at.
enum Step {
    /// More completions will come.
    Wait,
    /// Submit these (linked ones together).
    Submit(Chain),
    /// It is finished.
    Finish(Outcome),
}

/// The submissions of one step.
enum Chain {
    One([squeue::Entry; 1]),
    Two([squeue::Entry; 2]),
    Three([squeue::Entry; 3]),
}

impl Chain {
    fn entries(&self) -> &[squeue::Entry] {
        match self {
            Self::One(entries) => entries,
            Self::Two(entries) => entries,
            Self::Three(entries) => entries,
        }
    }
}

fn one(entry: squeue::Entry) -> Step {
    Step::Submit(Chain::One([entry]))
}

/// The outcome of a negative result.
fn failed(result: i32) -> Step {
    Step::Finish(Outcome::Failed(Fault::from_errno(-result)))
}

/// Results that mean: try again. ERESTARTSYS (512) leaks out of a splice that a signal met in a
/// worker (Linux up to 6.18).
fn is_interrupted(result: i32) -> bool {
    matches!(-result, libc::EINTR | 512)
}

/// Errors of accept(2) that concern one connection and not the listener.
fn is_passing(errno: i32) -> bool {
    matches!(
        errno,
        libc::EAGAIN
            | libc::EINTR
            | libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ENONET
    )
}

impl Uring {
    /// Makes the ring of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it, or lacks what the driver needs.
    pub fn new(config: &DriverConfig) -> Result<Self, RingError> {
        Self::with_queues(config, Queues::default())
    }

    fn with_queues(config: &DriverConfig, queues: Queues) -> Result<Self, RingError> {
        let ring = Ring::new(config.cpu, config.relay == RelayMode::Splice, queues)?;
        let group = Group::register(&ring).map_err(RingError::Buffers)?;
        let mut driver = Self {
            ring,
            socks: Table::default(),
            entries: Slab::new(),
            ready: Vec::new(),
            bell: Doorbell::new().map_err(RingError::Doorbell)?,
            pipes: PipePool::new(),
            bufs: BufPool::new(),
            group,
            relay: config.relay,
            busy: BusyPoll::new(config.busy_poll),
            stats: Stats::default(),
        };
        driver.start(Token::DOORBELL, Work::Bell);
        Ok(driver)
    }

    /// The set-up flags that this kernel granted.
    #[must_use]
    pub fn ring_flags(&self) -> &'static str {
        self.ring.flags()
    }

    fn fd(&self, sock: Sock) -> types::Fd {
        let entity = self.socks.get(sock).expect("an operation in flight keeps its sockets");
        types::Fd(entity.fd.as_raw_fd())
    }

    fn entity(&mut self, sock: Sock) -> &mut Entity {
        self.socks.get_mut(sock).expect("an operation in flight keeps its sockets")
    }

    fn insert(&mut self, fd: OwnedFd) -> Sock {
        self.stats.socks_opened += 1;
        self.socks.insert(Entity {
            fd,
            inbound: None,
            outbound: None,
            watch: None,
            closing: None,
            policy: Policy::new(self.relay),
            full: false,
            fault: None,
            has_shut: false,
            ahead: Ahead::No,
        })
    }

    /// Whether a socket can no longer be worked with.
    fn is_closing(&self, sock: Sock) -> bool {
        self.socks.get(sock).is_none_or(|entity| entity.closing.is_some())
    }

    /// Gives an operation its entry and its places, and submits its first step.
    fn start(&mut self, token: Token, mut work: Work) {
        let places = Places::of(&work);
        if places.socks().any(|sock| self.is_closing(sock)) {
            self.ready.push(Done { token, outcome: Outcome::Failed(Fault::Cancelled) });
            return;
        }
        let key = self.entries.insert(None);
        self.occupy(places, key);
        let step = self.first_step(&mut work, key);
        let copied_ends = match &work {
            Work::Drain(drain) => drain.copied_ends(),
            _ => None,
        };
        self.settle(key, Entry { token: Some(token), places, pending: 0, work }, step);
        if let Some((to, from)) = copied_ends {
            self.fill_ahead(to, from);
        }
    }

    /// Begins the fill that will be asked for when the present drain is over.
    fn start_ahead(&mut self, from: Sock) {
        let key = self.entries.insert(None);
        let mut fill = Fill::new(from);
        let step = self.first_fill(&mut fill, key);
        self.entity(from).ahead = Ahead::Flying(key);
        let (places, work) = (Places::default(), Work::Fill(fill));
        self.settle(key, Entry { token: None, places, pending: 0, work }, step);
    }

    /// Answers a fill with the one that was begun ahead. True when there is one.
    fn join_ahead(&mut self, token: Token, from: Sock) -> bool {
        if self.is_closing(from) {
            return false;
        }
        match std::mem::replace(&mut self.entity(from).ahead, Ahead::No) {
            Ahead::No => return false,
            Ahead::Landed(outcome) => self.ready.push(Done { token, outcome }),
            Ahead::Flying(key) => {
                let places = Places { inbound: Some(from), ..Places::default() };
                self.occupy(places, key);
                let entry = self.entries[key].as_mut().expect("an entry waits for its completions");
                entry.token = Some(token);
                entry.places = places;
            }
        }
        true
    }

    /// A fill that nobody has asked for is home.
    fn land_ahead(&mut self, work: &Work, outcome: Outcome) {
        let Work::Fill(fill) = work else { unreachable!("only fills are begun ahead") };
        let from = fill.from;
        let Some(entity) = self.socks.get_mut(from) else { return };
        entity.ahead = Ahead::Landed(outcome);
        self.close_when_empty(from);
    }

    fn occupy(&mut self, places: Places, key: usize) {
        let busy = "one operation of a kind on a socket at a time";
        if let Some(sock) = places.inbound {
            assert!(self.entity(sock).inbound.replace(key).is_none(), "inbound: {busy}");
        }
        if let Some(sock) = places.outbound {
            assert!(self.entity(sock).outbound.replace(key).is_none(), "outbound: {busy}");
        }
        if let Some(sock) = places.watch {
            assert!(self.entity(sock).watch.replace(key).is_none(), "watch: {busy}");
        }
    }

    fn vacate(&mut self, places: Places) {
        if let Some(sock) = places.inbound {
            self.entity(sock).inbound = None;
        }
        if let Some(sock) = places.outbound {
            self.entity(sock).outbound = None;
        }
        if let Some(sock) = places.watch {
            self.entity(sock).watch = None;
        }
        for sock in places.socks() {
            self.close_when_empty(sock);
        }
    }

    fn first_step(&mut self, work: &mut Work, key: usize) -> Step {
        match work {
            Work::Accept { listener } => self.accept_step(*listener, key),
            Work::Connect { sock, address } => {
                let entry = opcode::Connect::new(self.fd(*sock), address.as_ptr(), address.len());
                one(entry.build().user_data(user_data(key, Part::Main)))
            }
            Work::Recv { sock, buf, max } => {
                buf.reserve(*max);
                self.recv_step(*sock, buf, *max, key)
            }
            Work::Send { sock, buf, .. } if buf.is_empty() => {
                let _ = sock;
                Step::Finish(Outcome::Sent { buf: std::mem::take(buf) })
            }
            Work::Send { sock, buf, sent } => self.send_step(*sock, &buf[*sent..], key),
            Work::Watch { sock, .. } => self.watch_step(*sock, key),
            Work::Fill(fill) => self.first_fill(fill, key),
            Work::Drain(drain) => self.first_drain(drain, key),
            Work::Bell => self.bell_step(key),
        }
    }

    fn accept_step(&self, listener: Sock, key: usize) -> Step {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(self.fd(listener)).flags(flags).build();
        one(entry.user_data(user_data(key, Part::Main)))
    }

    fn recv_step(&self, sock: Sock, buf: &mut Vec<u8>, max: usize, key: usize) -> Step {
        let space = buf.spare_capacity_mut();
        let count = u32::try_from(space.len().min(max)).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(self.fd(sock), space.as_mut_ptr().cast(), count).build();
        one(entry.user_data(user_data(key, Part::Main)))
    }

    fn send_step(&self, sock: Sock, rest: &[u8], key: usize) -> Step {
        let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(self.fd(sock), rest.as_ptr(), count).flags(flags).build();
        one(entry.user_data(user_data(key, Part::Main)))
    }

    /// A multishot poll that asks for nothing: io_uring adds errors, hang-up and the peer's FIN by
    /// itself. Being edge-triggered after its first completion, it does not spin on the FIN.
    fn watch_step(&self, sock: Sock, key: usize) -> Step {
        let entry = opcode::PollAdd::new(self.fd(sock), 0).multi(true).build();
        one(entry.user_data(user_data(key, Part::Main)))
    }

    fn bell_step(&self, key: usize) -> Step {
        let entry = opcode::PollAdd::new(types::Fd(self.bell.fd()), libc::POLLIN as u32).build();
        one(entry.user_data(user_data(key, Part::Main)))
    }

    /// Puts an entry where its step says.
    fn settle(&mut self, key: usize, mut entry: Entry, step: Step) {
        match step {
            Step::Wait => {
                assert!(entry.pending > 0, "an operation waits for nothing");
                self.entries[key] = Some(entry);
            }
            Step::Submit(chain) => {
                entry.pending += chain.entries().len() as u8;
                self.ring.push(chain.entries());
                self.entries[key] = Some(entry);
            }
            Step::Finish(outcome) => {
                assert_eq!(entry.pending, 0, "an operation ended with completions outstanding");
                self.entries.remove(key);
                match entry.token {
                    Some(token) => {
                        self.ready.push(Done { token, outcome });
                        self.vacate(entry.places);
                    }
                    None => self.land_ahead(&entry.work, outcome),
                }
            }
        }
    }

    /// One completion has come home.
    fn complete(&mut self, completion: &cqueue::Entry) {
        if completion.user_data() == CANCEL {
            return;
        }
        let key = (completion.user_data() & u64::from(u32::MAX)) as usize;
        let part = match completion.user_data() >> 32 {
            0 => Part::Main,
            1 => Part::Refill,
            _ => Part::Poll,
        };
        let (result, flags) = (completion.result(), completion.flags());
        let mut entry = self.entries[key].take().expect("an entry waits for its completions");
        if !cqueue::more(flags) {
            entry.pending -= 1;
        }
        let step = self.next_step(&mut entry, key, part, result, flags);
        self.settle(key, entry, step);
    }

    fn next_step(
        &mut self,
        entry: &mut Entry,
        key: usize,
        part: Part,
        result: i32,
        flags: u32,
    ) -> Step {
        let pending = entry.pending;
        // Only fills lack a token, and they do not use it.
        let token = entry.token.unwrap_or(Token::DOORBELL);
        match &mut entry.work {
            Work::Accept { listener } => self.on_accept(*listener, token, key, result, pending),
            Work::Connect { sock, .. } if result < 0 => self.failed_on(*sock, result),
            Work::Connect { .. } => Step::Finish(Outcome::Connected),
            Work::Recv { sock, buf, max } => self.on_recv(*sock, buf, *max, key, result),
            Work::Send { sock, buf, sent } => self.on_send(*sock, buf, sent, key, result),
            Work::Watch { sock, seen } => self.on_watch(*sock, seen, key, result, pending),
            Work::Fill(fill) => self.on_fill(fill, key, result, flags),
            Work::Drain(drain) => self.on_drain(drain, key, part, result, pending),
            Work::Bell if result < 0 && !is_interrupted(result) => failed(result),
            Work::Bell => {
                self.bell.hush();
                self.ready.push(Done { token, outcome: Outcome::Rung });
                self.bell_step(key)
            }
        }
    }

    fn on_accept(
        &mut self,
        listener: Sock,
        token: Token,
        key: usize,
        result: i32,
        pending: u8,
    ) -> Step {
        if result >= 0 {
            let fd = sys::own(result);
            let peer = sys::peer_name(fd.as_raw_fd());
            let sock = self.insert(fd);
            self.ready.push(Done { token, outcome: Outcome::Accepted { sock, peer } });
        }
        if pending > 0 {
            return Step::Wait;
        }
        if self.is_closing(listener) {
            return failed(-libc::ECANCELED);
        }
        // Without F_MORE the multishot has ended, whatever the reason: arm it again.
        if result >= 0 || is_passing(-result) {
            return self.accept_step(listener, key);
        }
        failed(result)
    }

    fn on_recv(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        max: usize,
        key: usize,
        result: i32,
    ) -> Step {
        if result >= 0 {
            let count = result as usize;
            let length = buf.len() + count;
            assert!(length <= buf.capacity(), "the kernel received more than there was space");
            // SAFETY: the kernel has written `count` bytes behind the old length.
            unsafe { buf.set_len(length) };
            return Step::Finish(Outcome::Received { buf: std::mem::take(buf), count });
        }
        let again = is_interrupted(result) || -result == libc::EAGAIN;
        if again && !self.is_closing(sock) {
            return self.recv_step(sock, buf, max, key);
        }
        self.failed_on(sock, if again { -libc::ECANCELED } else { result })
    }

    fn on_send(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        sent: &mut usize,
        key: usize,
        result: i32,
    ) -> Step {
        if result < 0 && !is_interrupted(result) && -result != libc::EAGAIN {
            return self.failed_on(sock, result);
        }
        *sent += usize::try_from(result).unwrap_or(0);
        if *sent == buf.len() {
            return Step::Finish(Outcome::Sent { buf: std::mem::take(buf) });
        }
        if self.is_closing(sock) {
            return failed(-libc::ECANCELED);
        }
        self.send_step(sock, &buf[*sent..], key)
    }

    fn on_watch(
        &mut self,
        sock: Sock,
        seen: &mut Option<Outcome>,
        key: usize,
        result: i32,
        pending: u8,
    ) -> Step {
        let mask = result.max(0);
        if mask & i32::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 && seen.is_none() {
            let errno = sys::option(self.fd(sock).0, libc::SOL_SOCKET, libc::SO_ERROR);
            let fault = match errno.unwrap_or(0) {
                0 => self.entity(sock).fault.or_else(|| self.hidden_reset(sock)),
                errno => Some(Fault::from_errno(errno)),
            };
            if let Some(fault) = fault {
                self.note_fault(sock, fault);
            }
            *seen = Some(Outcome::Hangup(fault));
            if pending > 0 {
                self.cancel(key, Part::Main);
            }
        }
        if pending > 0 {
            return Step::Wait;
        }
        match seen.take() {
            Some(outcome) => Step::Finish(outcome),
            None if self.is_closing(sock) => failed(-libc::ECANCELED),
            None if result >= 0 || is_interrupted(result) => self.watch_step(sock, key),
            None => failed(result),
        }
    }

    /// A connection that is over although this side has not ended its direction was reset, whoever
    /// else was told the error.
    fn hidden_reset(&mut self, sock: Sock) -> Option<Fault> {
        let entity = self.entity(sock);
        let is_over = !entity.has_shut && sys::is_tcp_closed(entity.fd.as_raw_fd());
        is_over.then_some(Fault::Reset)
    }

    fn cancel(&mut self, key: usize, part: Part) {
        let target = types::CancelBuilder::user_data(user_data(key, part));
        self.ring.push(&[opcode::AsyncCancel2::new(target).build().user_data(CANCEL)]);
    }

    /// Starts closing: wakes what waits on the socket, and closes when all of it is home.
    fn close(&mut self, token: Token, sock: Sock, how: Ending) {
        let Some(entity) = self.socks.get_mut(sock) else {
            self.ready.push(Done { token, outcome: Outcome::Closed });
            return;
        };
        assert!(entity.closing.is_none(), "a socket is closed once");
        entity.closing = Some((token, how));
        let ahead = match entity.ahead {
            Ahead::Flying(key) => Some(key),
            Ahead::No | Ahead::Landed(_) => None,
        };
        let keys = [entity.inbound, entity.outbound, entity.watch, ahead];
        for key in keys.into_iter().flatten() {
            let entry = self.entries[key].as_ref().expect("an operation in flight has its entry");
            let part = match &entry.work {
                Work::Fill(fill) => fill.waiting_part(),
                Work::Drain(drain) => drain.waiting_part(),
                _ => Some(Part::Main),
            };
            if let Some(part) = part {
                self.cancel(key, part);
            }
        }
        self.close_when_empty(sock);
    }

    fn close_when_empty(&mut self, sock: Sock) {
        let Some(entity) = self.socks.get(sock) else { return };
        let Some((token, how)) = entity.closing else { return };
        let is_flying = matches!(entity.ahead, Ahead::Flying(_));
        if is_flying || entity.inbound.or(entity.outbound).or(entity.watch).is_some() {
            return;
        }
        let entity = self.socks.remove(sock).expect("it was there a moment ago");
        match how {
            Ending::Clean => sock::close_clean(entity.fd),
            Ending::Reset => sock::close_reset(entity.fd),
        }
        self.stats.socks_closed += 1;
        self.ready.push(Done { token, outcome: Outcome::Closed });
    }

    /// Watches for completions before a wait until `until`, if that is wanted now. True when there
    /// are some.
    fn watch_awake(&mut self, until: Option<Duration>) -> Result<bool, DriverLost> {
        let Some(end) = self.busy.begin(self.now(), until) else { return Ok(false) };
        if self.ring.is_loaded() || self.ring.has_task_work() {
            self.ring.enter(Some(Duration::ZERO))?;
        }
        if self.ring.has_completions() {
            return Ok(true);
        }
        let before = sys::preemptions();
        let has_found = self.ring.watch_until(end);
        let was_preempted = sys::preemptions() != before;
        self.busy.end(self.now(), Spin { has_found, was_preempted });
        if self.ring.has_task_work() {
            self.ring.enter(Some(Duration::ZERO))?;
        }
        Ok(has_found)
    }

    fn reap(&mut self) {
        let reaped = self.ring.reap();
        for completion in &reaped {
            self.complete(completion);
        }
        self.ring.recycle(reaped);
    }
}

impl Driver for Uring {
    type Handle = OwnedFd;

    const NAME: &'static str = "uring";

    fn now(&self) -> Duration {
        sys::now()
    }

    fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> {
        sock::listen(at, options)
    }

    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault> {
        let fd = sock::open(to).map_err(|error| Fault::from_io(&error))?;
        Ok(self.insert(fd))
    }

    fn adopt(&mut self, handle: OwnedFd) -> Sock {
        self.insert(handle)
    }

    fn release(&mut self, sock: Sock) -> OwnedFd {
        let entity = self.socks.remove(sock).expect("a socket that this driver owns");
        let busy = entity.inbound.or(entity.outbound).or(entity.watch);
        let is_ahead = !matches!(entity.ahead, Ahead::No);
        let is_busy = is_ahead || busy.is_some() || entity.closing.is_some();
        assert!(!is_busy, "a released socket is at rest");
        self.stats.socks_closed += 1;
        entity.fd
    }

    fn shutdown_write(&mut self, sock: Sock) {
        if let Some(entity) = self.socks.get_mut(sock) {
            entity.has_shut = true;
            // The ring's SHUTDOWN always goes through a worker; the system call is quicker.
            let _ = sys::shutdown_write(entity.fd.as_raw_fd());
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        let work = match op {
            Op::Accept { listener } => Work::Accept { listener },
            Op::Connect { sock, to } => Work::Connect { sock, address: Box::new(to.into()) },
            Op::Recv { sock, buf, max } => Work::Recv { sock, buf, max },
            Op::Send { sock, buf } => Work::Send { sock, buf, sent: 0 },
            Op::Watch { sock } => Work::Watch { sock, seen: None },
            Op::Fill { from } if self.join_ahead(token, from) => return,
            Op::Fill { from } => Work::Fill(Fill::new(from)),
            Op::Drain { lease, to, refill } => Work::Drain(Drain::new(lease, to, refill)),
            Op::Close { sock, how } => return self.close(token, sock, how),
        };
        self.start(token, work);
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        loop {
            if !self.ready.is_empty() {
                // Results are at hand: submit what is queued, and let the kernel post what it has,
                // but do not sleep.
                if self.ring.is_loaded() || self.ring.has_task_work() {
                    self.ring.enter(Some(Duration::ZERO))?;
                }
                self.reap();
                done.append(&mut self.ready);
                return Ok(());
            }
            if self.watch_awake(until)? {
                self.reap();
                continue;
            }
            let patience = until.map(|until| until.saturating_sub(self.now()));
            self.ring.enter(patience)?;
            self.reap();
            if self.ready.is_empty() && patience.is_some_and(|patience| patience.is_zero()) {
                return Ok(());
            }
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            pipes_leased: self.pipes.leased.get(),
            pipes_returned: self.pipes.returned.get(),
            bufs_leased: self.bufs.leased.get() + self.group.leased.get(),
            bufs_returned: self.bufs.returned.get() + self.group.returned.get(),
            waits: self.ring.enters,
            cq_overflows: self.ring.overflows,
            spins: self.busy.spins,
            spins_found: self.busy.spins_found,
            ..self.stats
        }
    }
}

/// Brings everything home before the memory that the kernel writes to is freed.
impl Drop for Uring {
    fn drop(&mut self) {
        let everything = types::CancelBuilder::any().all();
        self.ring.push(&[opcode::AsyncCancel2::new(everything).build().user_data(CANCEL)]);
        let give_up = sys::now() + Duration::from_secs(2);
        // Entries are only counted down here; nothing is continued.
        while !self.entries.is_empty() && sys::now() < give_up {
            if self.ring.enter(Some(Duration::from_millis(50))).is_err() {
                break;
            }
            for completion in self.ring.reap() {
                self.abandon(&completion);
            }
        }
        if !self.entries.is_empty() {
            self.group.abandon();
            std::mem::forget(std::mem::take(&mut self.entries));
        }
    }
}

impl Uring {
    /// Frees an entry when its last completion is home, and what the completion carries.
    fn abandon(&mut self, completion: &cqueue::Entry) {
        if completion.user_data() == CANCEL {
            return;
        }
        let key = (completion.user_data() & u64::from(u32::MAX)) as usize;
        let entry = self.entries[key].as_mut().expect("an entry waits for its completions");
        if matches!(entry.work, Work::Accept { .. }) && completion.result() >= 0 {
            drop(sys::own(completion.result()));
        }
        if !cqueue::more(completion.flags()) {
            entry.pending -= 1;
            if entry.pending == 0 {
                self.entries.remove(key);
            }
        }
    }
}
