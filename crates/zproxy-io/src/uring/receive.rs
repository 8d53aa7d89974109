//! Receives that go on: a socket of small messages is received from by one submission for as long as
//! its messages are small, so that a message costs neither a submission nor a poll of its own.
//!
//! A fill begins the receive, or takes over the one that an earlier fill has left behind. The kernel
//! does not wait to be asked, so bytes may come while nobody fills; they are held here, in order and
//! out of the group's buffers, and the next fills get them first. So that a source which is faster
//! than its sink does not fill the memory, the receive is recalled once a small buffer's worth is
//! held, and also when the socket's bytes take another path. Nothing else may read from the socket
//! before the last completion of a recalled receive is home and everything held has been given out.

use std::collections::VecDeque;
use std::rc::Rc;

use io_uring::{cqueue, opcode, squeue};

use super::Uring;
use super::entry::{Entry, Key, Part, Step, Work, is_interrupted};
use super::group::{BUF_SIZE, Group, RingBuf};
use super::rounds::{Fill, FillStage};
use crate::buf::{Buf, BufPool};
use crate::lease::Store;
use crate::policy::Path;
use crate::{Done, Fault, Lease, Outcome, Sock, Token, sys};

/// A receive that no fill waits for.
#[derive(Debug)]
pub(super) struct Receive {
    from: Sock,
    /// It is being cancelled, and will not be used again.
    is_recalled: bool,
    /// Bytes that came before they were asked for. Boxed, because seldom any do.
    held: Option<Box<Held>>,
    /// What it ended with behind them before somebody asked: 0 is the end of the stream.
    end: Option<i32>,
}

#[derive(Debug, Default)]
struct Held(VecDeque<Buf>);

impl Receive {
    /// The one that a fill leaves behind.
    pub(super) fn left_by(fill: &Fill) -> Self {
        Self { from: fill.from, is_recalled: fill.is_recalled(), held: None, end: None }
    }

    pub(super) fn is_recalled(&self) -> bool {
        self.is_recalled
    }

    pub(super) fn from(&self) -> Sock {
        self.from
    }

    /// Whether everything that came has been given out.
    fn is_spent(&self) -> bool {
        self.held.is_none() && self.end.is_none()
    }
}

impl Held {
    fn len(&self) -> usize {
        self.0.iter().map(|buf| buf.held().len()).sum()
    }

    fn push(&mut self, pool: &Rc<BufPool>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let put = self.0.back_mut().map_or(0, |buf| buf.append(bytes));
            if put == 0 {
                self.0.push_back(pool.lease());
            }
            bytes = &bytes[put..];
        }
    }
}

impl Uring {
    /// Begins a receive: one that goes on if the last message was small. Of a socket that is new a
    /// stream may come, and the kernel would take much of it in small pieces before it is told.
    pub(super) fn receive(&mut self, fill: &mut Fill, key: Key) -> Step {
        let entity = self.entity(fill.from);
        // Where nothing is left, trying before there is news would be in vain.
        let patience = if entity.has_more { 0 } else { sys::RECV_POLL_FIRST };
        // A length is for one receive only (Linux 6.17).
        let (length, mode) =
            if entity.is_small { (0, sys::RECV_MULTISHOT) } else { (BUF_SIZE as u32, 0) };
        let entry = opcode::Recv::new(self.fd(fill.from), std::ptr::null_mut(), length)
            .buf_group(Group::id())
            .ioprio(mode | patience)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        fill.stage = FillStage::Receive { is_recalled: false };
        self.queue(entry, key, Part::Main)
    }

    /// As [`Self::start`], for a fill of a socket whose receive may have gone on.
    pub(super) fn start_fill(&mut self, token: Token, from: Sock) {
        let Some(key) = self.socks.get(from).and_then(|entity| entity.receive) else {
            return self.start(token, Work::Fill(Fill::new(from)));
        };
        if self.is_closing(from) {
            let outcome = Outcome::Failed(Fault::Cancelled);
            return self.ready.push(Done { token, outcome });
        }
        let entry = self.entries[key as usize].as_mut().expect("a receive has its entry");
        let Work::Receive(receive) = &mut entry.work else { unreachable!("a receive") };
        let bytes = receive.held.as_mut().and_then(|held| held.0.pop_front());
        receive.held.take_if(|held| held.0.is_empty());
        let end = if bytes.is_none() { receive.end.take() } else { None };
        if bytes.is_none() && end.is_none() {
            let stage = FillStage::Receive { is_recalled: receive.is_recalled };
            entry.work = Work::Fill(Fill { from, stage });
            entry.token = token;
            let entity = self.entity(from);
            entity.receive = None;
            assert!(entity.inbound.replace(key).is_none(), "one fill of a socket at a time");
            return;
        }
        if entry.pending == 0 && receive.is_spent() {
            self.entries.remove(key as usize);
            self.entity(from).receive = None;
        }
        let outcome = match (bytes, end) {
            (Some(buf), _) => {
                self.note_received(from, buf.held().len());
                Outcome::Filled(Lease::new(Store::Buf(buf)))
            }
            (None, end) => self.end_of(from, end.unwrap_or(0)),
        };
        self.ready.push(Done { token, outcome });
    }

    /// The receive that a fill waits for has brought something.
    pub(super) fn on_received(
        &mut self,
        fill: &mut Fill,
        key: Key,
        result: i32,
        flags: u32,
    ) -> Step {
        let goes_on = cqueue::more(flags);
        match self.buffer_of(result, flags) {
            Some(buf) => {
                let entity = self.entity(fill.from);
                entity.has_more = cqueue::sock_nonempty(flags);
                entity.is_small = buf.held().len() < BUF_SIZE;
                self.note_received(fill.from, buf.held().len());
                let outcome = Outcome::Filled(Lease::new(Store::Ring(buf)));
                if !goes_on {
                    return Step::Finish(outcome);
                }
                if self.entity(fill.from).policy.path() != Path::Receive
                    && let FillStage::Receive { is_recalled } = &mut fill.stage
                    && !std::mem::replace(is_recalled, true)
                {
                    self.cancel(key, Part::Main);
                }
                Step::Yield(outcome)
            }
            None if goes_on => Step::Wait,
            None if -result == libc::ENOBUFS => {
                self.group.ran_out();
                self.again(fill, |driver, fill| driver.copy_now(fill, key))
            }
            None if is_passing(result) => {
                self.again(fill, |driver, fill| driver.first_fill(fill, key))
            }
            None => Step::Finish(self.end_of(fill.from, result)),
        }
    }

    /// A receive has brought something that nobody waits for.
    pub(super) fn on_unasked(&mut self, key: Key, mut entry: Entry, result: i32, flags: u32) {
        let Work::Receive(receive) = &mut entry.work else { unreachable!("a receive") };
        let from = receive.from;
        let buf = self.buffer_of(result, flags);
        let is_closing = self.is_closing(from);
        if !is_closing {
            if let Some(buf) = &buf {
                let held = receive.held.get_or_insert_default();
                held.push(&self.bufs, buf.held());
                let is_much = held.len() >= BUF_SIZE;
                if is_much
                    && entry.pending > 0
                    && !std::mem::replace(&mut receive.is_recalled, true)
                {
                    self.cancel(key, Part::Main);
                }
            } else if -result == libc::ENOBUFS {
                self.group.ran_out();
            } else if entry.pending == 0 && !is_passing(result) {
                if result < 0 {
                    self.note_fault(from, Fault::from_errno(-result));
                }
                receive.end = Some(result);
            }
        }
        if entry.pending > 0 || !receive.is_spent() {
            self.entries[key as usize] = Some(entry);
            return;
        }
        self.entries.remove(key as usize);
        self.entity(from).receive = None;
        self.close_when_empty(from);
    }

    /// Its socket is being closed: what is held is given up, for nobody will ask for it.
    pub(super) fn stop_receive(&mut self, key: Key) {
        let entry = self.entries[key as usize].as_mut().expect("a receive has its entry");
        let Work::Receive(receive) = &mut entry.work else { unreachable!("a receive") };
        (receive.held, receive.end) = (None, None);
        if entry.pending > 0 {
            return self.cancel(key, Part::Main);
        }
        let from = receive.from;
        self.entries.remove(key as usize);
        self.entity(from).receive = None;
    }

    /// The buffer that a completion has brought. An unused one goes straight back.
    fn buffer_of(&self, result: i32, flags: u32) -> Option<RingBuf> {
        let count = usize::try_from(result).unwrap_or(0);
        let buf = cqueue::buffer_select(flags).map(|id| self.group.take(id, count));
        buf.filter(|_| count > 0)
    }

    /// Bytes of a receive are given out.
    fn note_received(&mut self, from: Sock, count: usize) {
        let policy = &mut self.entity(from).policy;
        // Of what was held when the path had changed, nothing is to be learnt.
        if policy.path() == Path::Receive {
            policy.note_copied(count.min(BUF_SIZE), BUF_SIZE);
        }
    }

    fn end_of(&mut self, from: Sock, result: i32) -> Outcome {
        let step = if result == 0 { self.ended(from) } else { self.failed_on(from, result) };
        let Step::Finish(outcome) = step else { unreachable!("an end is final") };
        outcome
    }
}

/// Results that do not concern the connection.
fn is_passing(result: i32) -> bool {
    is_interrupted(result) || matches!(-result, libc::EAGAIN | libc::ECANCELED)
}
