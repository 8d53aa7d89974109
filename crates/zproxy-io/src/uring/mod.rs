//! The io_uring backend: one ring per core, made and used on that core's own thread.
//!
//! `mod` holds the sockets and the loop; `entry` is an operation in flight; `simple` accepts,
//! receives and sends; `rounds` moves bytes; `vigil` waits for news of a socket for good; `closing`
//! brings everything home; `group` is the provided buffers; `ring` is the ring itself. An operation in
//! flight is an [`Entry`] in a list; its index travels through the kernel in `user_data`, with the part
//! of the operation that a completion belongs to. An entry is freed when its last completion is home, so a name is never
//! reused early.

mod closing;
mod entry;
mod group;
mod restrict;
mod ring;
mod rounds;
mod simple;
#[cfg(test)]
mod tests;
mod vigil;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};

pub(crate) use group::RingBuf;
pub use ring::RingError;

use crate::buf::BufPool;
use crate::busy::{BusyPoll, Spin};
use crate::pipe::PipePool;
use crate::policy::{Path, Policy, RelayMode};
use crate::probe::RingRefusal;
use crate::sock::Pacing;
use crate::table::Table;
use crate::{
    Done, Doorbell, Driver, DriverConfig, DriverLost, Ending, FarEnd, Fault, ListenOptions, Op,
    Outcome, Sock, Stats, Token, sock, sys,
};
use entry::{
    Entries, Entry, Key, Part, Places, Step, Work, failed, is_interrupted, named_by, user_data,
};
use group::Group;
use ring::{Queues, Ring};
use rounds::{Drain, Spare};
use vigil::{Doubts, Vigil};

/// Results of one turn; more completions wait for the next one.
const RESULTS_PER_TURN: usize = 16;
/// So many turns with results may pass between two looks at what else has happened.
const BLIND_TURNS_MAX: u8 = 4;

/// The io_uring driver.
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    socks: Table<Entity>,
    entries: Entries,
    ready: Vec<Done>,
    /// Submissions that go to the kernel behind all others of their turn.
    last: Vec<squeue::Entry>,
    /// What drains that waited were kept in.
    spare: Spare,
    bell: Doorbell,
    pipes: Rc<PipePool>,
    bufs: Rc<BufPool>,
    group: Rc<Group>,
    relay: RelayMode,
    busy: BusyPoll,
    doubts: Doubts,
    /// When the last wait ended.
    now: Duration,
    /// Turns since the ring was last entered.
    turns_blind: u8,
    /// A round since then took longer than a look at who else waits.
    has_moved_much: bool,
    stats: Stats,
}

/// A socket and what is in flight on it (keys of entries).
#[derive(Debug)]
struct Entity {
    fd: OwnedFd,
    inbound: Option<Key>,
    /// A fill that waits for the vigil. It is what is inbound then, and has nothing in the kernel.
    parked: Option<Token>,
    outbound: Option<Key>,
    watch: Option<Key>,
    closing: Option<(Token, Ending)>,
    vigil: Vigil,
    policy: Policy,
    pacing: Pacing,
    /// The last take left more behind, or none was tried yet: the next one need not wait for news.
    has_more: bool,
    /// The last round found no room: wait for room before the next one.
    full: bool,
    /// The first fault that an operation met. The kernel tells an error once, to whoever asks first,
    /// and lets everything later look like an orderly end.
    fault: Option<Fault>,
    /// The outbound direction was ended from here.
    has_shut: bool,
    /// Bytes were spliced into it. `splice(2)` sends a pipe in batches of 16 pieces: when one has gone
    /// and the next one meets a reset, it returns the count, and the error is told to nobody.
    was_spliced_into: bool,
}

impl Entity {
    fn is_inbound_vacant(&self) -> bool {
        self.inbound.is_none() && self.parked.is_none()
    }
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
        let group =
            Group::register(&ring).map_err(|error| match ring::is_out_of_memory(&error) {
                true => RingError::Setup(RingRefusal::NoMemory),
                false => RingError::Buffers(error),
            })?;
        ring.enable()?;
        let mut driver = Self {
            ring,
            socks: Table::default(),
            entries: Entries::default(),
            ready: Vec::new(),
            last: Vec::new(),
            spare: Spare::default(),
            bell: Doorbell::new().map_err(RingError::Doorbell)?,
            pipes: PipePool::new(),
            bufs: BufPool::new(),
            group,
            relay: config.relay,
            busy: BusyPoll::new(config.busy_poll),
            doubts: Doubts::default(),
            now: sys::now(),
            turns_blind: 0,
            has_moved_much: false,
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
            parked: None,
            outbound: None,
            watch: None,
            closing: None,
            vigil: Vigil::default(),
            policy: Policy::new(self.relay, Path::Receive),
            pacing: Pacing::default(),
            has_more: true,
            full: false,
            fault: None,
            has_shut: false,
            was_spliced_into: false,
        })
    }

    /// Whether a socket can no longer be worked with.
    fn is_closing(&self, sock: Sock) -> bool {
        self.socks.get(sock).is_none_or(|entity| entity.closing.is_some())
    }

    /// Takes the first step of an operation. What is not finished by it gets an entry.
    fn start(&mut self, token: Token, mut work: Work) {
        let places = Places::of(&work);
        if !self.is_open(token, places) {
            return;
        }
        let key = self.occupy(places);
        let step = self.first_step(&mut work, key);
        self.enter_first(token, places, step, |_| work);
    }

    /// As [`Self::start`]; a drain seldom waits, and then nothing is kept of it.
    fn start_drain(&mut self, token: Token, mut drain: Drain) {
        let places = drain.places();
        if !self.is_open(token, places) {
            return;
        }
        if let Some(outcome) = self.put_at_once(&mut drain) {
            self.ready.push(Done { token, outcome });
            return;
        }
        let key = self.occupy(places);
        let step = self.first_drain(&mut drain, key);
        self.enter_first(token, places, step, |spare| Work::Drain(spare.keep(drain)));
    }

    /// As [`Self::start`]; what the kernel answers at once needs no poll.
    fn start_connect(&mut self, token: Token, sock: Sock, to: &SocketAddr) {
        let work = Work::Connect { sock };
        let places = Places::of(&work);
        if !self.is_open(token, places) {
            return;
        }
        let key = self.occupy(places);
        let fd = self.fd(sock);
        let step = match sock::connect(fd.0, to) {
            Ok(true) => Step::Finish(Outcome::Connected),
            Ok(false) => {
                let entry = opcode::PollAdd::new(fd, libc::POLLOUT as u32).build();
                self.queue(entry, key, Part::Main)
            }
            Err(error) => self.failed_on(sock, -error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.enter_first(token, places, step, |_| work);
    }

    /// Whether an operation's sockets can be worked with; if not, it has failed.
    fn is_open(&mut self, token: Token, places: Places) -> bool {
        let is_open = !places.socks().any(|sock| self.is_closing(sock));
        if !is_open {
            self.ready.push(Done { token, outcome: Outcome::Failed(Fault::Cancelled) });
        }
        is_open
    }

    fn enter_first(
        &mut self,
        token: Token,
        places: Places,
        step: Step,
        work: impl FnOnce(&mut Spare) -> Work,
    ) {
        match step {
            Step::Finish(outcome) => {
                self.ready.push(Done { token, outcome });
                self.leave(places);
            }
            Step::Submitted(pending) => {
                let work = work(&mut self.spare);
                self.entries.insert(Entry { token, pending, work });
            }
            Step::Wait => unreachable!("a first step has nothing to wait for"),
        }
    }

    /// Queues a submission for the operation with this key.
    fn queue(&mut self, entry: squeue::Entry, key: Key, part: Part) -> Step {
        self.ring.push(&[entry.user_data(user_data(key, part))]);
        Step::Submitted(1)
    }

    /// Takes an operation's places for the entry that comes next.
    fn occupy(&mut self, places: Places) -> Key {
        let key = self.entries.vacant_key();
        let busy = "one operation of a kind on a socket at a time";
        if let Some(sock) = places.inbound {
            let entity = self.entity(sock);
            let is_vacant = entity.inbound.replace(key).is_none() && entity.parked.is_none();
            assert!(is_vacant, "inbound: {busy}");
        }
        if let Some(sock) = places.outbound {
            assert!(self.entity(sock).outbound.replace(key).is_none(), "outbound: {busy}");
        }
        if let Some(sock) = places.watch {
            assert!(self.entity(sock).watch.replace(key).is_none(), "watch: {busy}");
        }
        key
    }

    fn leave(&mut self, places: Places) {
        if let Some(sock) = places.inbound {
            self.entity(sock).inbound = None;
        }
        if let Some(sock) = places.outbound {
            self.entity(sock).outbound = None;
        }
        if let Some(sock) = places.watch {
            self.entity(sock).watch = None;
        }
    }

    fn vacate(&mut self, places: Places) {
        self.leave(places);
        for sock in places.socks() {
            self.close_when_empty(sock);
        }
    }

    fn first_step(&mut self, work: &mut Work, key: Key) -> Step {
        match work {
            Work::Accept { listener, .. } => self.accept_step(*listener, key),
            Work::Connect { .. } => unreachable!("a connect has a start of its own"),
            Work::Recv { sock, buf, max } => {
                buf.reserve(*max);
                self.recv_step(*sock, buf, *max, key)
            }
            Work::Send { sock, buf, .. } if buf.is_empty() => {
                let _ = sock;
                Step::Finish(Outcome::Sent { buf: std::mem::take(buf) })
            }
            Work::Send { sock, buf, sent } => self.first_send(*sock, buf, sent, key),
            Work::Watch { sock, .. } => self.watch_step(*sock, key),
            Work::Fill(fill) => self.first_fill(fill, key),
            Work::Drain(_) => unreachable!("a drain has a start of its own"),
            Work::Bell => self.bell_step(key),
        }
    }

    /// Puts an entry where its step says.
    fn settle(&mut self, key: Key, mut entry: Entry, step: Step) {
        match step {
            Step::Wait => assert!(entry.pending > 0, "an operation waits for nothing"),
            Step::Submitted(count) => entry.pending += count,
            Step::Finish(outcome) => {
                assert_eq!(entry.pending, 0, "an operation ended with completions outstanding");
                self.entries.remove(key);
                self.ready.push(Done { token: entry.token, outcome });
                self.vacate(Places::of(&entry.work));
                if let Work::Drain(drain) = entry.work {
                    self.spare.take_back(drain);
                }
                return;
            }
        }
        *self.entries.place(key) = Some(entry);
    }

    /// One completion has come home.
    fn complete(&mut self, completion: &cqueue::Entry) {
        let (key, part) = named_by(completion.user_data());
        let (result, flags) = (completion.result(), completion.flags());
        if part == Part::Vigil {
            return self.on_vigil(completion, key);
        }
        if part == Part::Cancel {
            return self.on_cancelled(key, result);
        }
        let mut entry = self.entries.place(key).take().expect("an entry waits for its completions");
        if !cqueue::more(flags) {
            entry.pending -= 1;
        }
        let step = self.next_step(&mut entry, key, part, result, flags);
        self.settle(key, entry, step);
    }

    fn next_step(
        &mut self,
        entry: &mut Entry,
        key: Key,
        part: Part,
        result: i32,
        flags: u32,
    ) -> Step {
        let (token, pending) = (entry.token, entry.pending);
        match &mut entry.work {
            Work::Accept { listener, is_recalled } => {
                let ends = *is_recalled || self.is_closing(*listener);
                self.on_accept(*listener, token, key, result, pending, ends)
            }
            Work::Connect { sock } => self.on_writable(*sock, result),
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

    /// Watches for completions before a wait until `until`, if that is wanted now. True when there
    /// are some.
    fn watch_awake(&mut self, until: Option<Duration>) -> Result<bool, DriverLost> {
        let Some(end) = self.busy.begin(sys::now, until) else { return Ok(false) };
        if self.is_loaded() {
            self.enter(Some(Duration::ZERO))?;
        }
        if self.ring.has_completions() {
            return Ok(true);
        }
        let before = sys::preemptions();
        let has_found = self.ring.watch_until(end);
        let was_preempted = sys::preemptions() != before;
        self.busy.end(sys::now(), Spin { has_found, was_preempted });
        if self.ring.has_task_work() {
            self.enter(Some(Duration::ZERO))?;
        }
        Ok(has_found)
    }

    /// Whether there is something for the kernel to do, apart from waiting.
    fn is_loaded(&mut self) -> bool {
        !self.last.is_empty() || self.ring.is_loaded() || self.ring.has_task_work()
    }

    fn enter(&mut self, patience: Option<Duration>) -> Result<(), DriverLost> {
        for entry in self.last.drain(..) {
            self.ring.push(&[entry]);
        }
        self.turns_blind = 0;
        self.has_moved_much = false;
        self.ring.enter(patience)
    }

    /// Looks at the completions that have arrived, but at no more than give a turn's worth of
    /// results: what a result holds is used while it is in the cache.
    fn reap(&mut self) {
        while self.ready.len() < RESULTS_PER_TURN
            && let Some(completion) = self.ring.next_completion()
        {
            self.complete(&completion);
        }
    }

    fn turn(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        loop {
            if !self.ready.is_empty() {
                // Results are at hand, so there is no sleeping, and what they lead to goes to the
                // kernel together with what is queued already; unless that would take long.
                let is_due = self.has_moved_much || self.turns_blind == BLIND_TURNS_MAX;
                if !is_due {
                    self.turns_blind += 1;
                } else if self.is_loaded() {
                    self.enter(Some(Duration::ZERO))?;
                }
                self.reap();
                if done.is_empty() {
                    // Both lists are kept; what they hold stays where it is.
                    std::mem::swap(done, &mut self.ready);
                } else {
                    done.append(&mut self.ready);
                }
                return Ok(());
            }
            if self.ring.has_completions() || self.watch_awake(until)? {
                self.reap();
                continue;
            }
            let wake_at = until.into_iter().chain(self.doubts.due()).min();
            let now = if wake_at.is_some() { sys::now() } else { self.now };
            self.look_again(now);
            if !self.ready.is_empty() {
                continue;
            }
            self.enter(wake_at.map(|wake_at| wake_at.saturating_sub(now)))?;
            self.reap();
            if self.ready.is_empty() && until.is_some_and(|until| until <= now) {
                return Ok(());
            }
        }
    }
}

impl Driver for Uring {
    type Handle = OwnedFd;

    const NAME: &'static str = "uring";

    fn now(&self) -> Duration {
        self.now
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

    fn speaks_first(&mut self, sock: Sock) {
        sock::speaks_first(self.fd(sock).0);
    }

    fn keep_alive(&mut self, sock: Sock) {
        if let Some(entity) = self.socks.get(sock) {
            // A failure means that the connection is gone, which its operations report.
            let _ = sock::keep_alive(entity.fd.as_raw_fd());
        }
    }

    fn renew(&mut self, sock: Sock) {
        if let Some(entity) = self.socks.get_mut(sock) {
            sock::renew(entity.fd.as_raw_fd(), &mut entity.pacing);
        }
    }

    fn arrival_cpu(&self, sock: Sock) -> Option<usize> {
        sock::arrival_cpu(self.socks.get(sock)?.fd.as_raw_fd())
    }

    fn prefer_arrivals(&mut self, listener: Sock, cpu: Option<usize>) {
        if let Some(entity) = self.socks.get(listener) {
            sock::prefer_arrivals(entity.fd.as_raw_fd(), cpu);
        }
    }

    fn adopt(&mut self, handle: OwnedFd) -> Sock {
        self.insert(handle)
    }

    fn release(&mut self, sock: Sock) -> OwnedFd {
        let entity = self.socks.remove(sock).expect("a socket that this driver owns");
        let busy = entity.inbound.or(entity.outbound).or(entity.watch);
        let is_busy = busy.is_some()
            || entity.parked.is_some()
            || entity.closing.is_some()
            || !entity.vigil.is_absent();
        assert!(!is_busy, "a released socket is at rest");
        self.stats.socks_closed += 1;
        entity.fd
    }

    fn shutdown_write(&mut self, sock: Sock) {
        if let Some(entity) = self.socks.get_mut(sock)
            && !std::mem::replace(&mut entity.has_shut, true)
        {
            // The ring's SHUTDOWN always goes through a worker; the system call is quicker.
            let _ = sys::shutdown_write(entity.fd.as_raw_fd());
        }
    }

    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        sys::far_end(self.socks.get(sock)?.fd.as_raw_fd())
    }

    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        let entity = self.entity(from);
        assert!(entity.is_inbound_vacant(), "one inbound operation at a time");
        if entity.policy.path() == Path::Splice || entity.closing.is_some() {
            return 0;
        }
        let (fd, start) = (entity.fd.as_raw_fd(), buf.len());
        buf.resize(start + max, 0);
        let result = sys::recv(fd, &mut buf[start..], libc::MSG_DONTWAIT);
        let count = *result.as_ref().unwrap_or(&0);
        buf.truncate(start + count);
        self.entity(from).has_more = count == max;
        self.stats.bytes_copied += count as u64;
        if let Err(error) = result
            && !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
        {
            // The kernel tells an error once: the next operation has to know.
            self.note_fault(from, Fault::from_io(&error));
        }
        count
    }

    fn recall_accept(&mut self, listener: Sock) {
        let Some(entity) = self.socks.get(listener) else { return };
        // Being closed, it is on its way home.
        let (Some(key), None) = (entity.inbound, entity.closing) else { return };
        let entry = self.entries.place(key).as_mut();
        let entry = entry.expect("an operation in flight has its entry");
        if let Work::Accept { is_recalled, .. } = &mut entry.work
            && !std::mem::replace(is_recalled, true)
        {
            self.cancel(key, Part::Main);
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        let work = match op {
            Op::Accept { listener } => Work::Accept { listener, is_recalled: false },
            Op::Connect { sock, to } => return self.start_connect(token, sock, &to),
            Op::Recv { sock, buf, max } => Work::Recv { sock, buf, max },
            Op::Send { sock, buf } => Work::Send { sock, buf, sent: 0 },
            Op::Watch { sock } => Work::Watch { sock, seen: None },
            Op::Fill { from } => return self.start_fill(token, from),
            Op::Drain { lease, to, refill } => {
                return self.start_drain(token, Drain::new(lease, to, refill));
            }
            Op::Close { sock, how } => return self.close(token, sock, how),
        };
        self.start(token, work);
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        let waited = self.turn(until, done);
        self.now = sys::now();
        waited
    }

    fn stats(&self) -> Stats {
        Stats {
            pipes_leased: self.pipes.leased.get(),
            pipes_returned: self.pipes.returned.get(),
            pipes_small: self.pipes.small.get(),
            bufs_leased: self.bufs.leased.get() + self.group.leased.get(),
            bufs_returned: self.bufs.returned.get() + self.group.returned.get(),
            waits: self.ring.enters,
            submissions: self.ring.submissions,
            cq_overflows: self.ring.overflows,
            spins: self.busy.spins,
            spins_found: self.busy.spins_found,
            ..self.stats
        }
    }
}
