//! The epoll backend, the reference: every operation is tried first, parked on its socket when it
//! would block, and tried again when an event says so.
//!
//! It owns its sockets and what is in flight on them. It must never let would-block or a readiness
//! event cross the seam, and never lose an edge: see [`entry::Ready`].

mod entry;
mod poller;
mod round;
mod run;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use slab::Slab;

use crate::buf::BufPool;
use crate::busy::{BusyPoll, Spin};
use crate::pipe::PipePool;
use crate::policy::Path;
use crate::table::Table;
use crate::{
    Done, Doorbell, Driver, DriverConfig, DriverLost, Ending, FarEnd, Fault, ListenOptions, Op,
    Outcome, RelayMode, Sock, Stats, Token, sock, sys,
};

use entry::{Entry, Inbound, Inlet, Outbound, Pending, Recv};
use poller::{Poller, Subject};
use round::{Pools, Received};

/// Turns of `wait` in a row that may go by without a look at new events, because operations were
/// done without one. The saved system calls are worth it; more would let busy flows starve others.
const BLIND_TURNS_MAX: u32 = 3;

/// The epoll driver. It belongs to the thread that made it; dropping it resets its connections.
pub struct Epoll {
    relay: RelayMode,
    poller: Poller,
    doorbell: Doorbell,
    socks: Table<Entry>,
    /// Sends and drains in flight.
    outgoing: Slab<Outbound>,
    /// Receives in flight.
    incoming: Slab<Recv>,
    /// Operations that can be tried. An entry may name one that has come home meanwhile, or one
    /// that was tried already; both are harmless.
    ready: VecDeque<(Sock, Side)>,
    /// The last bytes of a source, which go behind what is said about them in the same turn: whoever is
    /// woken by them knows it already.
    last: Vec<(Sock, Side)>,
    /// The closes that are in the ready queue, in the same order.
    closes: VecDeque<(Token, Ending)>,
    /// What came home without having run: operations on sockets that are closed or being closed.
    stillborn: Vec<Done>,
    pools: Pools,
    busy: BusyPoll,
    /// When the last wait ended.
    now: Duration,
    stats: Stats,
    blind_turns: u32,
}

/// Which of a socket's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inbound,
    Outbound,
    Watch,
    Close,
}

impl Epoll {
    /// Makes the driver of the calling thread.
    ///
    /// # Errors
    /// Out of descriptors or memory (`epoll_create1(2)`, `eventfd(2)`).
    pub fn new(config: &DriverConfig) -> io::Result<Self> {
        let doorbell = Doorbell::new()?;
        Ok(Self {
            relay: config.relay,
            poller: Poller::new(doorbell.fd())?,
            doorbell,
            socks: Table::default(),
            outgoing: Slab::new(),
            incoming: Slab::new(),
            ready: VecDeque::new(),
            last: Vec::new(),
            closes: VecDeque::new(),
            stillborn: Vec::new(),
            pools: Pools { pipes: PipePool::new(), bufs: BufPool::new() },
            busy: BusyPoll::new(config.busy_poll),
            now: sys::now(),
            stats: Stats::default(),
            blind_turns: 0,
        })
    }

    fn insert(&mut self, fd: OwnedFd) -> Sock {
        self.stats.socks_opened += 1;
        self.socks.insert(Entry::new(fd, self.relay))
    }

    /// Whether a socket can no longer be worked with.
    fn is_closing(&self, sock: Sock) -> bool {
        self.socks.get(sock).is_none_or(|entry| entry.is_closing)
    }

    #[track_caller]
    fn named(&mut self, sock: Sock) -> &mut Entry {
        self.socks.get_mut(sock).expect("the socket was not closed a moment ago")
    }

    #[track_caller]
    fn queue_inbound(&mut self, sock: Sock, token: Token, op: Inbound) {
        let entry = self.named(sock);
        assert!(entry.is_inbound_free(), "one inbound operation at a time");
        entry.inbound = Inlet::Taken(Pending::queued(token, op));
        self.ready.push_back((sock, Side::Inbound));
    }

    #[track_caller]
    fn queue_outbound(&mut self, sock: Sock, token: Token, op: Outbound) {
        assert!(self.named(sock).outbound.is_none(), "one outbound operation at a time");
        let is_last = matches!(&op, Outbound::Drain { lease, refill: None } if !lease.has_end());
        let place = self.keep(op);
        self.named(sock).outbound = Some(Pending::queued(token, place));
        if is_last {
            self.last.push((sock, Side::Outbound));
        } else {
            self.ready.push_back((sock, Side::Outbound));
        }
    }

    #[track_caller]
    fn queue_watch(&mut self, sock: Sock, token: Token) {
        let entry = self.named(sock);
        assert!(entry.watch.is_none(), "one watch at a time");
        entry.watch = Some(Pending::queued(token, ()));
        self.ready.push_back((sock, Side::Watch));
    }

    #[track_caller]
    fn queue_close(&mut self, sock: Sock, token: Token, how: Ending) {
        let Some(entry) = self.socks.get_mut(sock) else {
            self.stillborn.push(Done { token, outcome: Outcome::Closed });
            return;
        };
        assert!(!entry.is_closing, "a socket is closed once");
        entry.is_closing = true;
        self.ready.push_back((sock, Side::Close));
        self.closes.push_back((token, how));
    }

    /// Puts an operation into the list of those that go out and tells its place.
    fn keep(&mut self, op: Outbound) -> u32 {
        u32::try_from(self.outgoing.insert(op)).expect("operations are few")
    }

    /// A `Drain` occupies the inbound place of the source that it refills from.
    #[track_caller]
    fn lend(&mut self, source: Sock, sink: Sock) {
        let entry = self.named(source);
        assert!(entry.is_inbound_free(), "one inbound operation at a time");
        entry.inbound = Inlet::Lent(sink);
    }

    /// Asks the kernel for events once; waits for them at most `timeout` (`None`: for ever).
    fn poll(&mut self, timeout: Option<Duration>) -> Result<usize, DriverLost> {
        self.stats.waits += 1;
        self.poller.wait(timeout).map_err(|error| DriverLost { call: "epoll_wait", error })
    }

    /// Watches for events before a wait until `until`, if that is wanted now.
    fn watch_awake(&mut self, until: Option<Duration>) -> Result<usize, DriverLost> {
        let Some(end) = self.busy.begin(sys::now, until) else { return Ok(0) };
        // What is there at once was not watched for, and says nothing about the core.
        let mut count = self.poll(Some(Duration::ZERO))?;
        if count > 0 {
            return Ok(count);
        }
        let before = sys::preemptions();
        while count == 0 && sys::now() < end {
            count = self.poll(Some(Duration::ZERO))?;
        }
        let was_preempted = sys::preemptions() != before;
        self.busy.end(sys::now(), Spin { has_found: count > 0, was_preempted });
        Ok(count)
    }

    /// Waits until `until` (`None`: for ever) for events and queues the operations they wake.
    fn hear(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        self.blind_turns = 0;
        let mut count = self.watch_awake(until)?;
        if count == 0 {
            count = self.poll(until.map(|until| until.saturating_sub(sys::now())))?;
        }
        for index in 0..count {
            match self.poller.event(index) {
                (Subject::Doorbell, _) => {
                    self.doorbell.hush();
                    done.push(Done { token: Token::DOORBELL, outcome: Outcome::Rung });
                }
                (Subject::Sock(sock), mask) => self.wake(sock, mask),
            }
        }
        Ok(())
    }

    fn turn(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        let before = done.len();
        done.append(&mut self.stillborn);
        loop {
            self.run_ready(done);
            let produced = done.len() > before;
            if produced && self.blind_turns < BLIND_TURNS_MAX {
                self.blind_turns += 1;
                return Ok(());
            }
            // With results at hand, or work to do, the time to wait until has come already.
            let has_work = produced || !self.ready.is_empty();
            self.hear(if has_work { Some(Duration::ZERO) } else { until }, done)?;
            if produced || (done.len() > before && self.ready.is_empty()) {
                return Ok(());
            }
            let late = || until.is_some_and(|until| sys::now() >= until);
            if self.ready.is_empty() && late() {
                return Ok(());
            }
        }
    }

    fn wake(&mut self, sock: Sock, mask: u32) {
        // A stale name: the event is older than the close.
        let Some(entry) = self.socks.get_mut(sock) else { return };
        let woken = entry.wake(mask);
        let sides = [
            (woken.outbound, Side::Outbound),
            (woken.inbound, Side::Inbound),
            (woken.watch, Side::Watch),
        ];
        self.ready.extend(sides.into_iter().filter(|(woken, _)| *woken).map(|(_, s)| (sock, s)));
    }
}

impl Driver for Epoll {
    type Handle = OwnedFd;

    const NAME: &'static str = "epoll";

    fn now(&self) -> Duration {
        self.now
    }

    fn doorbell(&self) -> Doorbell {
        self.doorbell.clone()
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> {
        sock::listen(at, options)
    }

    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault> {
        let fd = sock::open(to).map_err(|error| Fault::from_io(&error))?;
        Ok(self.insert(fd))
    }

    fn speaks_first(&mut self, sock: Sock) {
        if let Some(entry) = self.socks.get(sock) {
            sock::speaks_first(entry.raw());
        }
    }

    fn keep_alive(&mut self, sock: Sock) {
        if let Some(entry) = self.socks.get(sock) {
            // A failure means that the connection is gone, which its operations report.
            let _ = sock::keep_alive(entry.raw());
        }
    }

    fn renew(&mut self, sock: Sock) {
        if let Some(entry) = self.socks.get_mut(sock) {
            sock::renew(entry.raw(), &mut entry.pacing);
        }
    }

    fn arrival_cpu(&self, sock: Sock) -> Option<usize> {
        sock::arrival_cpu(self.socks.get(sock)?.raw())
    }

    fn prefer_arrivals(&mut self, listener: Sock, cpu: Option<usize>) {
        if let Some(entry) = self.socks.get(listener) {
            sock::prefer_arrivals(entry.raw(), cpu);
        }
    }

    fn adopt(&mut self, handle: OwnedFd) -> Sock {
        self.insert(handle)
    }

    fn release(&mut self, sock: Sock) -> OwnedFd {
        let entry = self.socks.remove(sock).expect("the socket was closed or released");
        assert!(entry.is_quiet(), "nothing may be in flight on a socket that is given away");
        if entry.registered {
            self.poller.remove(entry.fd.as_raw_fd());
        }
        self.stats.socks_closed += 1;
        entry.fd
    }

    fn shutdown_write(&mut self, sock: Sock) {
        if let Some(entry) = self.socks.get_mut(sock) {
            entry.shutdown_write();
        }
    }

    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        sys::far_end(self.socks.get(sock)?.raw())
    }

    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        let entry = self.named(from);
        assert!(entry.is_inbound_free(), "one inbound operation at a time");
        if entry.policy.path() == Path::Splice || !entry.ready.readable || entry.is_closing {
            return 0;
        }
        let (fd, start) = (entry.raw(), buf.len());
        buf.resize(start + max, 0);
        let received = round::receive(entry, |flags| sys::recv(fd, &mut buf[start..], flags), max);
        let count = if let Received::Count(count) = received { count } else { 0 };
        buf.truncate(start + count);
        self.stats.bytes_copied += count as u64;
        count
    }

    fn recall_accept(&mut self, listener: Sock) {
        let Some(entry) = self.socks.get_mut(listener) else { return };
        // Being closed, it comes home with the close. What it has accepted was told already; the ready
        // queue may go on naming it.
        if !entry.is_closing
            && let Inlet::Taken(Pending { token, op: Inbound::Accept, .. }) = entry.inbound
        {
            entry.inbound = Inlet::Free;
            let outcome = Outcome::Failed(Fault::Cancelled);
            self.stillborn.push(Done { token, outcome });
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        if let Op::Close { sock, how } = op {
            return self.queue_close(sock, token, how);
        }
        if socks(&op).into_iter().flatten().any(|sock| self.is_closing(sock)) {
            let outcome = Outcome::Failed(Fault::Cancelled);
            return self.stillborn.push(Done { token, outcome });
        }
        match op {
            Op::Accept { listener } => self.queue_inbound(listener, token, Inbound::Accept),
            Op::Connect { sock, to } => {
                let stage = run::begin_connect(self.named(sock), &to);
                self.queue_inbound(sock, token, Inbound::Connect(stage));
            }
            Op::Recv { sock, buf, max } => {
                assert!(max > 0, "there is room to receive into");
                let place = self.incoming.insert(Recv { buf, max });
                let place = u32::try_from(place).expect("operations are few");
                self.queue_inbound(sock, token, Inbound::Recv(place));
            }
            Op::Fill { from } => self.queue_inbound(from, token, Inbound::Fill),
            Op::Send { sock, buf } => {
                self.queue_outbound(sock, token, Outbound::Send { buf, sent: 0 });
            }
            Op::Drain { lease, to, refill } => {
                assert!(!lease.is_empty(), "an empty lease is dropped, not drained");
                if let Some(source) = refill {
                    self.lend(source, to);
                }
                self.queue_outbound(to, token, Outbound::Drain { lease, refill });
            }
            Op::Watch { sock } => self.queue_watch(sock, token),
            Op::Close { .. } => unreachable!("queued above"),
        }
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        let waited = self.turn(until, done);
        self.now = sys::now();
        waited
    }

    fn stats(&self) -> Stats {
        let Pools { pipes, bufs } = &self.pools;
        Stats {
            pipes_leased: pipes.leased.get(),
            pipes_returned: pipes.returned.get(),
            pipes_small: pipes.small.get(),
            bufs_leased: bufs.leased.get(),
            bufs_returned: bufs.returned.get(),
            spins: self.busy.spins,
            spins_found: self.busy.spins_found,
            ..self.stats
        }
    }
}

/// The sockets that an operation works with.
fn socks(op: &Op) -> [Option<Sock>; 2] {
    match op {
        Op::Accept { listener: sock }
        | Op::Connect { sock, .. }
        | Op::Recv { sock, .. }
        | Op::Send { sock, .. }
        | Op::Watch { sock }
        | Op::Fill { from: sock }
        | Op::Close { sock, .. } => [Some(*sock), None],
        Op::Drain { to, refill, .. } => [Some(*to), *refill],
    }
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoll").field("relay", &self.relay).field("stats", &self.stats()).finish()
    }
}
