//! How bytes move: fills and drains, as steps of ring submissions.
//!
//! A fill of small messages waits in a receive whose buffer the kernel picks when bytes have come, or,
//! when its socket has been waited on often, for news of its vigil. Any other waits in a poll of its
//! own. News and polls are followed by recv(2) or splice(2): the kernel uses the buffers of a group in
//! turn, so large ones would be cold each time.
//!
//! Copied bytes are sent at once by send(2), so that a round is over without a completion, and the
//! next wait submits the next receive, if there is one to submit; only a sink without room gets a send
//! on the ring, which waits. Spliced bytes are drained in one of two ways:
//!
//! * *inline*: `splice(2)` from this thread, out of the pipe and into it again, without waiting; a
//!   ring poll waits for room when the sink is full. No worker thread is woken.
//! * *chained* (`--relay splice`): the ring splices exactly what the pipe holds into the sink, and
//!   (soft link) splices more from the source into the emptied pipe. A short drain breaks the chain,
//!   so nothing more is taken while the sink is full: that is the backpressure.
//!
//! Sockets and pipes are non-blocking throughout: a chained splice runs in a worker thread, and one
//! that blocked there would hold its pipe and starve the others.

use std::os::fd::AsRawFd;

use io_uring::{cqueue, opcode, squeue, types};

use super::entry::{Key, Part, Places, Step, Work, failed, is_interrupted, user_data};
use super::group::{BUF_SIZE, Group};
use super::{Entity, Uring};
use crate::buf::Buf;
use crate::lease::Store;
use crate::pipe::Pipe;
use crate::policy::Path;
use crate::{Done, Driver, Fault, Lease, Outcome, Sock, SourceNow, Token, sys};

/// Taking bytes from a socket.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) from: Sock,
    stage: FillStage,
}

#[derive(Debug)]
enum FillStage {
    /// A receive into whichever buffer of the group is free when bytes come.
    Receive,
    /// Waiting for bytes without a buffer.
    Poll,
    /// Bytes have come and are being spliced into a pipe.
    Splice(Box<Pipe>),
}

impl Fill {
    pub(super) fn new(from: Sock) -> Self {
        Self { from, stage: FillStage::Receive }
    }

    /// The submission to cancel so that the fill comes home; none when it comes by itself.
    pub(super) fn waiting_part(&self) -> Option<Part> {
        match self.stage {
            FillStage::Receive | FillStage::Poll => Some(Part::Main),
            FillStage::Splice(_) => None,
        }
    }

    fn places(&self) -> Places {
        Places { inbound: Some(self.from), ..Places::default() }
    }
}

/// Putting the bytes of a lease into a socket.
#[derive(Debug)]
pub(super) struct Drain {
    pub(super) to: Sock,
    pub(super) refill: Option<Sock>,
    lease: Option<Lease>,
    stage: DrainStage,
}

#[derive(Debug)]
enum DrainStage {
    /// A send.
    Send,
    /// Waiting for room, to splice inline.
    Room,
    /// A splice chain and what its parts have said so far.
    Chain { polls: bool, put: Option<i32>, taken: Option<i32> },
    /// Everything copied was put (so many bytes); more is being spliced into a fresh pipe.
    Refill { put: usize, pipe: Pipe },
}

impl Drain {
    pub(super) fn new(lease: Lease, to: Sock, refill: Option<Sock>) -> Self {
        let stage = DrainStage::Send;
        Self { to, refill, lease: Some(lease), stage }
    }

    /// The places that it occupies: its refill is the inbound operation of the source.
    pub(super) fn places(&self) -> Places {
        Places { inbound: self.refill, outbound: Some(self.to), watch: None }
    }

    /// The submission to cancel so that the drain comes home; none when it comes by itself.
    pub(super) fn waiting_part(&self) -> Option<Part> {
        match self.stage {
            DrainStage::Send | DrainStage::Room => Some(Part::Main),
            DrainStage::Chain { polls: true, .. } => Some(Part::Poll),
            DrainStage::Chain { polls: false, .. } | DrainStage::Refill { .. } => None,
        }
    }

    /// What waits to be put, if it is in a buffer.
    fn held(&mut self) -> &[u8] {
        match &self.lease().store {
            Store::Buf(buf) => buf.held(),
            Store::Ring(buf) => buf.held(),
            Store::Pipe(_) => unreachable!("a pipe is spliced"),
        }
    }

    /// So much of what is in a buffer was put.
    fn note_put(&mut self, count: usize) {
        match &mut self.lease().store {
            Store::Buf(buf) => buf.note_out(count),
            Store::Ring(buf) => buf.note_out(count),
            Store::Pipe(_) => unreachable!("a pipe is spliced"),
        }
    }

    fn lease(&mut self) -> &mut Lease {
        self.lease.as_mut().expect("a drain has its lease until it is finished")
    }
}

/// Boxes for drains that wait, which the last bytes of every short flow do.
#[derive(Debug, Default)]
#[allow(clippy::vec_box, reason = "it is the boxes that are kept")]
pub(super) struct Spare(Vec<Box<Drain>>);

impl Spare {
    /// More wait seldom at once.
    const MAX: usize = 64;

    pub(super) fn keep(&mut self, drain: Drain) -> Box<Drain> {
        match self.0.pop() {
            Some(mut place) => {
                *place = drain;
                place
            }
            None => Box::new(drain),
        }
    }

    pub(super) fn take_back(&mut self, mut drain: Box<Drain>) {
        drain.lease = None;
        if self.0.len() < Self::MAX {
            self.0.push(drain);
        }
    }
}

fn splice(from: types::Fd, to: types::Fd, count: usize) -> squeue::Entry {
    // SPLICE_F_MORE is never set: it corks the socket even with TCP_NODELAY.
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    opcode::Splice::new(from, -1, to, -1, count).flags(flags).build()
}

fn link(entry: squeue::Entry) -> squeue::Entry {
    entry.flags(squeue::Flags::IO_LINK)
}

/// The fault that a non-waiting take met. An empty socket or a chain that was broken before its
/// refill is none. Nor is 0: behind urgent data a splice says that the stream has ended while bytes
/// are left, so the end is believed only of a receive.
fn fault_of_take(result: i32) -> Option<Fault> {
    let is_fault =
        result < 0 && !is_interrupted(result) && !matches!(-result, libc::EAGAIN | libc::ECANCELED);
    is_fault.then(|| Fault::from_errno(-result))
}

impl Entity {
    /// A splice took so many bytes, and may have left some: a pipe is full of pieces before it is full
    /// of bytes.
    fn note_spliced(&mut self, taken: usize) {
        self.has_more = true;
        self.policy.note_spliced(taken);
    }
}

impl Uring {
    /// Begins a fill. In a conversation it takes what is there or waits for the vigil, and is nothing
    /// but a token.
    pub(super) fn start_fill(&mut self, token: Token, from: Sock) {
        let fill = Fill::new(from);
        if !self.is_open(token, fill.places()) {
            return;
        }
        let entity = self.entity(from);
        assert!(entity.is_inbound_vacant(), "one inbound operation at a time");
        if entity.policy.path() != Path::Splice {
            entity.policy.note_fill();
            if self.keeps_vigil(from) {
                let entity = self.entity(from);
                if entity.has_more || entity.vigil.has_news {
                    self.fill_now(token, from);
                } else {
                    entity.parked = Some(token);
                }
                return;
            }
        }
        self.start(token, Work::Fill(fill));
    }

    /// Takes what is there, or lets the fill wait for the vigil.
    pub(super) fn fill_now(&mut self, token: Token, from: Sock) {
        if let Some(outcome) = self.take_copied(from) {
            self.ready.push(Done { token, outcome });
        } else if self.doubts(from) {
            self.entity(from).parked = Some(token);
        } else {
            // The vigil is over, and edges tell nothing any more.
            let mut fill = Fill::new(from);
            let places = fill.places();
            let key = self.occupy(places);
            let step = self.poll_fill(&mut fill, key);
            self.enter_first(token, places, step, |_| Work::Fill(fill));
        }
    }

    /// The first step of a fill without a vigil.
    pub(super) fn first_fill(&mut self, fill: &mut Fill, key: Key) -> Step {
        let entity = self.entity(fill.from);
        match entity.policy.path() {
            // A receive on the ring waits by itself.
            Path::Receive => self.receive(fill, key),
            Path::Copy if entity.has_more || entity.vigil.has_news => self.copy_now(fill, key),
            Path::Copy | Path::Splice => self.poll_fill(fill, key),
        }
    }

    fn receive(&mut self, fill: &mut Fill, key: Key) -> Step {
        let entity = self.entity(fill.from);
        // Where nothing is left, trying before there is news would be in vain.
        let flags = if entity.has_more { 0 } else { sys::RECV_POLL_FIRST };
        let entry = opcode::Recv::new(self.fd(fill.from), std::ptr::null_mut(), BUF_SIZE as u32)
            .buf_group(Group::id())
            .ioprio(flags)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        fill.stage = FillStage::Receive;
        self.queue(entry, key, Part::Main)
    }

    fn poll_fill(&mut self, fill: &mut Fill, key: Key) -> Step {
        let events = libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI;
        fill.stage = FillStage::Poll;
        let entry = opcode::PollAdd::new(self.fd(fill.from), events as u32).build();
        self.queue(entry, key, Part::Main)
    }

    pub(super) fn on_fill(&mut self, fill: &mut Fill, key: Key, result: i32, flags: u32) -> Step {
        let stage = std::mem::replace(&mut fill.stage, FillStage::Poll);
        match stage {
            FillStage::Receive => self.on_received(fill, key, result, flags),
            FillStage::Poll if result < 0 && !is_interrupted(result) => {
                self.failed_on(fill.from, result)
            }
            FillStage::Poll => self.take_polled(fill, key),
            FillStage::Splice(mut pipe) => {
                let taken = usize::try_from(result).unwrap_or(0);
                if taken > 0 {
                    pipe.note_in(taken);
                    self.entity(fill.from).note_spliced(taken);
                    return Step::Finish(Outcome::Filled(Lease::new(Store::Pipe(*pipe))));
                }
                match fault_of_take(result) {
                    Some(_) => self.failed_on(fill.from, result),
                    // The pipe was empty, so the socket gave nothing: a false alarm, the end, or
                    // urgent data, at which a splice stops and a receive does not.
                    None => self.copy_now(fill, key),
                }
            }
        }
    }

    fn on_received(&mut self, fill: &mut Fill, key: Key, result: i32, flags: u32) -> Step {
        let count = usize::try_from(result).unwrap_or(0);
        // An unused buffer goes straight back.
        let buf = cqueue::buffer_select(flags).map(|id| self.group.take(id, count));
        match (result, buf) {
            (1.., Some(buf)) => {
                let entity = self.entity(fill.from);
                entity.has_more = cqueue::sock_nonempty(flags);
                entity.policy.note_copied(count, BUF_SIZE);
                // Less than there was room for, and yet something is left: most likely the end.
                let may_end = entity.has_more && count < BUF_SIZE;
                Step::Finish(self.filled(fill.from, Store::Ring(buf), may_end))
            }
            (0, _) => Step::Finish(self.ended(fill.from)),
            _ if -result == libc::ENOBUFS => {
                self.group.ran_out();
                self.again(fill, |driver, fill| driver.copy_now(fill, key))
            }
            _ if is_interrupted(result) || -result == libc::EAGAIN => {
                self.again(fill, |driver, fill| driver.first_fill(fill, key))
            }
            _ => self.failed_on(fill.from, result),
        }
    }

    /// A fill has come home with bytes, and tells whether the stream ends behind them.
    fn filled(&mut self, from: Sock, store: Store, may_end: bool) -> Outcome {
        let mut lease = Lease::new(store);
        if may_end && self.is_at_end(from) {
            lease.add_end();
        }
        Outcome::Filled(lease)
    }

    fn is_at_end(&mut self, sock: Sock) -> bool {
        match sys::is_at_end(self.fd(sock).0) {
            Ok(is_at_end) => is_at_end && matches!(self.ended(sock), Outcome::Eof),
            Err(error) => {
                self.note_fault(sock, Fault::from_io(&error));
                false
            }
        }
    }

    /// A receive said that the stream has ended. A reset says so too when somebody else, a send or
    /// a watch, was told of it first: the kernel tells an error once.
    fn ended(&mut self, sock: Sock) -> Outcome {
        let entity = self.entity(sock);
        // What is in flight may have been told; its completion is still on the way.
        let may_hide = entity.outbound.is_some() || entity.was_spliced_into;
        let hidden = if may_hide { self.hidden_reset(sock) } else { None };
        self.entity(sock).fault.or(hidden).map_or(Outcome::Eof, Outcome::Failed)
    }

    /// An operation failed on a socket, which later operations on it have to know.
    pub(super) fn failed_on(&mut self, sock: Sock, result: i32) -> Step {
        Step::Finish(self.fault_on(sock, result))
    }

    fn fault_on(&mut self, sock: Sock, result: i32) -> Outcome {
        let fault = Fault::from_errno(-result);
        self.note_fault(sock, fault);
        Outcome::Failed(fault)
    }

    pub(super) fn note_fault(&mut self, sock: Sock, fault: Fault) {
        if fault != Fault::Cancelled
            && !fault.is_shortage()
            && let Some(entity) = self.socks.get_mut(sock)
        {
            entity.fault.get_or_insert(fault);
        }
    }

    /// Goes on with a fill unless its socket is being closed.
    fn again(&mut self, fill: &mut Fill, step: impl FnOnce(&mut Self, &mut Fill) -> Step) -> Step {
        if self.is_closing(fill.from) { failed(-libc::ECANCELED) } else { step(self, fill) }
    }

    /// There are bytes (or an end): take them through a pipe, or a heap buffer where there is none.
    fn take_polled(&mut self, fill: &mut Fill, key: Key) -> Step {
        if self.is_closing(fill.from) {
            return failed(-libc::ECANCELED);
        }
        if self.entity(fill.from).policy.path() != Path::Splice {
            return self.copy_now(fill, key);
        }
        let Ok(pipe) = self.pipes.lease() else { return self.copy_now(fill, key) };
        if !self.is_chained(fill.from) {
            return self.splice_now(fill, key, pipe);
        }
        let entry = splice(self.fd(fill.from), types::Fd(pipe.write_end()), pipe.size());
        fill.stage = FillStage::Splice(Box::new(pipe));
        self.stats.worker_splices += 1;
        self.queue(entry, key, Part::Main)
    }

    /// Takes what is there into a pipe, at once.
    fn splice_now(&mut self, fill: &mut Fill, key: Key, mut pipe: Pipe) -> Step {
        match sys::splice(self.fd(fill.from).0, pipe.write_end(), pipe.size()) {
            Ok(taken @ 1..) => {
                pipe.note_in(taken);
                self.entity(fill.from).note_spliced(taken);
                Step::Finish(Outcome::Filled(Lease::new(Store::Pipe(pipe))))
            }
            // A false alarm, the end or urgent data: a receive tells which.
            Ok(_) => self.copy_now(fill, key),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => self.copy_now(fill, key),
                // The kernel tells an error once: nobody must ask again.
                errno => self.failed_on(fill.from, -errno.unwrap_or(libc::EIO)),
            },
        }
    }

    /// Takes what is there into a heap buffer, at once.
    pub(super) fn copy_now(&mut self, fill: &mut Fill, key: Key) -> Step {
        match self.take_copied(fill.from) {
            Some(outcome) => Step::Finish(outcome),
            None => self.again(fill, |driver, fill| driver.poll_fill(fill, key)),
        }
    }

    /// What a receive into a heap buffer comes to at once; nothing when there is nothing to take.
    fn take_copied(&mut self, from: Sock) -> Option<Outcome> {
        let mut buf = self.bufs.lease();
        let space = buf.space().len();
        let entity = self.entity(from);
        entity.vigil.has_news = false;
        let count = match sys::recv(entity.fd.as_raw_fd(), buf.space(), libc::MSG_DONTWAIT) {
            Ok(0) => return Some(self.ended(from)),
            Ok(count) => count,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                entity.has_more = false;
                return None;
            }
            Err(error) => {
                return Some(self.fault_on(from, -error.raw_os_error().unwrap_or(libc::EIO)));
            }
        };
        buf.note_in(count);
        entity.has_more = count == space;
        entity.policy.note_copied(count, space);
        let may_end = count < space && entity.vigil.is_over();
        if entity.policy.path() == Path::Splice {
            // Splices look before they wait.
            self.end_vigil(from);
        } else if count < space {
            self.doubts(from);
        }
        self.has_moved_much |= count == space;
        Some(self.filled(from, Store::Buf(buf), may_end))
    }

    /// The usual round: all that a buffer holds finds room at once, and nothing is spliced. Nothing comes
    /// of it when the round is another one.
    pub(super) fn put_at_once(&mut self, drain: &mut Drain) -> Option<Outcome> {
        assert!(!drain.lease().is_empty(), "a drain has something to put");
        if matches!(drain.lease().store, Store::Pipe(_)) {
            return None;
        }
        if let Some(from) = drain.refill {
            let source = self.entity(from);
            assert!(source.is_inbound_vacant(), "one inbound operation at a time");
            if source.policy.path() == Path::Splice {
                return None;
            }
        }
        let entity = self.entity(drain.to);
        assert!(entity.outbound.is_none(), "one outbound operation at a time");
        if entity.full {
            return None;
        }
        let fd = entity.fd.as_raw_fd();
        let has_end = drain.lease().has_end();
        if drain.refill.is_none() && !has_end {
            // The last of its source: what is said about that goes to the kernel right before it.
            return None;
        }
        let held = drain.held();
        let length = held.len();
        let result = if has_end { sys::send_more(fd, held) } else { sys::send(fd, held) };
        let put = match result {
            Ok(put) => put,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                entity.full = true;
                return None;
            }
            Err(error) => {
                return Some(self.fault_on(drain.to, -error.raw_os_error().unwrap_or(libc::EIO)));
            }
        };
        drain.note_put(put);
        self.stats.bytes_copied += put as u64;
        self.note_left(drain, length - put);
        let lease = drain.lease.take().filter(|_| put < length);
        Some(Outcome::Drained { put, refilled: 0, lease, source: SourceNow::Open })
    }

    pub(super) fn first_drain(&mut self, drain: &mut Drain, key: Key) -> Step {
        assert!(!drain.lease().is_empty(), "a drain has something to put");
        if !matches!(drain.lease().store, Store::Pipe(_)) {
            self.put_copied(drain, key)
        } else if self.is_chained(drain.to) {
            self.chain_step(drain, key)
        } else if self.entity(drain.to).full {
            self.await_room(drain, key)
        } else {
            self.splice_inline(drain, key)
        }
    }

    /// Sends what the buffer holds: at once what finds room at once, and when there is none, through
    /// the ring, which waits for it. A slow sink does not keep a buffer of the group.
    fn put_copied(&mut self, drain: &mut Drain, key: Key) -> Step {
        let to = self.fd(drain.to);
        let is_full = self.entity(drain.to).full;
        if !is_full && drain.refill.is_some() {
            let result = sys::result_of(sys::send(to.0, drain.held()));
            return self.on_sent(drain, key, result);
        }
        if let (true, Store::Ring(_)) = (is_full, &drain.lease().store) {
            let copy = self.copy_out(drain.held());
            drain.lease = Some(Lease::new(Store::Buf(copy)));
        }
        drain.stage = DrainStage::Send;
        let held = drain.held();
        let patience = if is_full { 0 } else { libc::MSG_DONTWAIT };
        let entry = opcode::Send::new(to, held.as_ptr(), held.len() as u32)
            .flags(libc::MSG_NOSIGNAL | patience)
            .build();
        if is_full {
            return self.queue(entry, key, Part::Main);
        }
        self.last.push(entry.user_data(user_data(key, Part::Main)));
        Step::Submitted(1)
    }

    fn is_chained(&mut self, sock: Sock) -> bool {
        self.entity(sock).policy.is_splice_only()
    }

    fn await_room(&mut self, drain: &mut Drain, key: Key) -> Step {
        drain.stage = DrainStage::Room;
        let entry = opcode::PollAdd::new(self.fd(drain.to), libc::POLLOUT as u32).build();
        self.queue(entry, key, Part::Main)
    }

    fn on_room(&mut self, drain: &mut Drain, key: Key, result: i32) -> Step {
        if result < 0 && !is_interrupted(result) {
            return self.failed_on(drain.to, result);
        }
        let from_closing = drain.refill.is_some_and(|from| self.is_closing(from));
        if from_closing || self.is_closing(drain.to) {
            return failed(-libc::ECANCELED);
        }
        self.splice_inline(drain, key)
    }

    /// Puts what the pipe holds, as far as there is room, and refills it when it is empty.
    fn splice_inline(&mut self, drain: &mut Drain, key: Key) -> Step {
        self.entity(drain.to).was_spliced_into = true;
        let to = self.fd(drain.to).0;
        let Store::Pipe(pipe) = &mut drain.lease().store else { unreachable!("a pipe") };
        let put = match sys::splice(pipe.read_end(), to, pipe.held()) {
            Ok(put) => put,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                return self.await_room(drain, key);
            }
            Err(error) => {
                return self.failed_on(drain.to, -error.raw_os_error().unwrap_or(libc::EIO));
            }
        };
        assert!(put > 0, "a pipe with bytes in it is not at its end");
        self.has_moved_much = true;
        pipe.note_out(put);
        let left = pipe.held();
        self.stats.bytes_spliced += put as u64;
        self.note_left(drain, left);
        if left > 0 {
            return self.drained(drain, put, 0, SourceNow::Open);
        }
        let lease = drain.lease.take().expect("it was there a moment ago");
        let Store::Pipe(pipe) = lease.store else { unreachable!("a pipe") };
        self.refill_inline(drain, put, pipe)
    }

    /// Everything was put: takes more, if the source is worth splicing and has something.
    fn refill_inline(&mut self, drain: &mut Drain, put: usize, mut pipe: Pipe) -> Step {
        let Some(from) = drain.refill.filter(|&from| self.is_spliced(from)) else {
            return self.drained(drain, put, 0, SourceNow::Open);
        };
        let result = match sys::splice(self.fd(from).0, pipe.write_end(), pipe.size()) {
            Ok(taken) => i32::try_from(taken).expect("a pipe holds less than 2 GiB"),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        let taken = self.note_taken(drain, result);
        if taken > 0 {
            pipe.note_in(taken);
            drain.lease = Some(Lease::new(Store::Pipe(pipe)));
        }
        let source = self.source_after(drain, result);
        self.drained(drain, put, taken, source)
    }

    /// Whether more may be spliced from a source now.
    fn is_spliced(&mut self, from: Sock) -> bool {
        !self.is_closing(from) && self.entity(from).policy.path() == Path::Splice
    }

    fn copy_out(&self, held: &[u8]) -> Buf {
        let mut copy = self.bufs.lease();
        copy.space()[..held.len()].copy_from_slice(held);
        copy.note_in(held.len());
        copy
    }

    /// `[wait for room →] drain exactly what the pipe holds [→ refill it]`.
    fn chain_step(&mut self, drain: &mut Drain, key: Key) -> Step {
        let refill = drain.refill.filter(|&from| self.is_spliced(from));
        let entity = self.entity(drain.to);
        entity.was_spliced_into = true;
        let polls = entity.full;
        let to = self.fd(drain.to);
        let Store::Pipe(pipe) = &drain.lease().store else { unreachable!("a pipe is spliced") };
        let put = splice(types::Fd(pipe.read_end()), to, pipe.held());
        let put = put.user_data(user_data(key, Part::Main));
        let (write_end, size) = (types::Fd(pipe.write_end()), pipe.size());
        let poll = opcode::PollAdd::new(to, libc::POLLOUT as u32).build();
        let poll = link(poll.user_data(user_data(key, Part::Poll)));
        let take = refill.map(|from| {
            splice(self.fd(from), write_end, size).user_data(user_data(key, Part::Refill))
        });
        self.stats.worker_splices += 1 + u64::from(take.is_some());
        drain.stage = DrainStage::Chain { polls, put: None, taken: None };
        // Together, so that no submission tears them apart.
        match (polls, take) {
            (false, None) => self.ring.push(&[put]),
            (false, Some(take)) => self.ring.push(&[link(put), take]),
            (true, None) => self.ring.push(&[poll, put]),
            (true, Some(take)) => self.ring.push(&[poll, link(put), take]),
        }
        Step::Submitted(1 + u8::from(polls) + u8::from(refill.is_some()))
    }

    pub(super) fn on_drain(
        &mut self,
        drain: &mut Drain,
        key: Key,
        part: Part,
        result: i32,
        pending: u8,
    ) -> Step {
        match &mut drain.stage {
            DrainStage::Send => self.on_sent(drain, key, result),
            DrainStage::Room => self.on_room(drain, key, result),
            DrainStage::Refill { .. } => self.on_refilled(drain, result),
            DrainStage::Chain { polls, put, taken } => {
                match part {
                    Part::Main => *put = Some(result),
                    Part::Refill => *taken = Some(result),
                    Part::Poll => *polls = false,
                    Part::Cancel | Part::Vigil => unreachable!("these are nobody's part"),
                }
                if pending > 0 {
                    return Step::Wait;
                }
                let put = put.expect("every chain drains");
                let taken = *taken;
                self.on_chain(drain, key, put, taken)
            }
        }
    }

    fn on_sent(&mut self, drain: &mut Drain, key: Key, result: i32) -> Step {
        let closing = self.is_closing(drain.to);
        if -result == libc::EAGAIN || is_interrupted(result) {
            self.entity(drain.to).full = true;
            return if closing { failed(-libc::ECANCELED) } else { self.put_copied(drain, key) };
        }
        let Ok(put @ 1..) = usize::try_from(result) else {
            return self.failed_on(drain.to, result);
        };
        drain.note_put(put);
        self.stats.bytes_copied += put as u64;
        let left = drain.lease().len();
        self.note_left(drain, left);
        if left > 0 {
            return self.drained(drain, put, 0, SourceNow::Open);
        }
        drain.lease = None;
        if let Some(from) = drain.refill.filter(|&from| self.is_spliced(from))
            && let Ok(pipe) = self.pipes.lease()
        {
            if !self.is_chained(drain.to) {
                return self.refill_inline(drain, put, pipe);
            }
            let entry = splice(self.fd(from), types::Fd(pipe.write_end()), pipe.size());
            drain.stage = DrainStage::Refill { put, pipe };
            self.stats.worker_splices += 1;
            return self.queue(entry, key, Part::Main);
        }
        self.drained(drain, put, 0, SourceNow::Open)
    }

    fn on_refilled(&mut self, drain: &mut Drain, result: i32) -> Step {
        let stage = std::mem::replace(&mut drain.stage, DrainStage::Send);
        let DrainStage::Refill { put, mut pipe } = stage else { unreachable!("it refilled") };
        let taken = self.note_taken(drain, result);
        if taken > 0 {
            pipe.note_in(taken);
            drain.lease = Some(Lease::new(Store::Pipe(pipe)));
        }
        let source = self.source_after(drain, result);
        self.drained(drain, put, taken, source)
    }

    fn on_chain(&mut self, drain: &mut Drain, key: Key, put: i32, taken: Option<i32>) -> Step {
        let refilled = taken.map_or(0, |taken| self.note_taken(drain, taken));
        let source = taken.map_or(SourceNow::Open, |taken| self.source_after(drain, taken));
        let Store::Pipe(pipe) = &mut drain.lease().store else { unreachable!("a pipe") };
        pipe.note_in(refilled);
        let Ok(count @ 1..) = usize::try_from(put) else {
            assert_eq!(refilled, 0, "a drain that failed breaks its chain");
            if -put != libc::EAGAIN && !is_interrupted(put) {
                return self.failed_on(drain.to, put);
            }
            self.entity(drain.to).full = true;
            let closing = drain.refill.is_some_and(|from| self.is_closing(from));
            return if closing || self.is_closing(drain.to) {
                failed(-libc::ECANCELED)
            } else {
                self.chain_step(drain, key)
            };
        };
        pipe.note_out(count);
        let left = pipe.held() - refilled;
        self.stats.bytes_spliced += count as u64;
        self.note_left(drain, left);
        if drain.lease().is_empty() {
            drain.lease = None;
        }
        self.drained(drain, count, refilled, source)
    }

    /// What a refill said about the source.
    fn source_after(&mut self, drain: &Drain, result: i32) -> SourceNow {
        let Some(fault) = fault_of_take(result) else { return SourceNow::Open };
        if let Some(from) = drain.refill {
            self.note_fault(from, fault);
        }
        SourceNow::Failed(fault)
    }

    /// Tells the source's policy what a splice took.
    fn note_taken(&mut self, drain: &Drain, result: i32) -> usize {
        let taken = usize::try_from(result).unwrap_or(0);
        if let Some(from) = drain.refill
            && -result != libc::ECANCELED
        {
            self.entity(from).note_spliced(taken);
        }
        taken
    }

    /// A round has ended with `left` of its bytes not put.
    fn note_left(&mut self, drain: &mut Drain, left: usize) {
        self.entity(drain.to).full = left > 0;
        if left > 0 {
            self.stats.rounds_short += 1;
            return;
        }
        self.stats.rounds_full += 1;
        if drain.lease().has_end() {
            self.shutdown_write(drain.to);
        }
    }

    fn drained(
        &mut self,
        drain: &mut Drain,
        put: usize,
        refilled: usize,
        source: SourceNow,
    ) -> Step {
        let lease = drain.lease.take();
        Step::Finish(Outcome::Drained { put, refilled, lease, source })
    }
}
