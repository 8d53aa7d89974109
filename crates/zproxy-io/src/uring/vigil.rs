//! A standing poll on a socket that has been waited on more than a few times.
//!
//! A submission for every wait costs more than the wait itself. So a socket whose small fills keep
//! waiting (a proxy_conn, a connection that is a conversation) gets one multishot poll for all of
//! them: news are completions, and a fill that finds none is a token parked on the socket, with no entry
//! and nothing in the kernel.
//!
//! News are edges, as epoll's are, so a fill may be parked only when nothing is left to take. A take
//! that got less than it had room for says so, with two exceptions:
//!
//! * Behind the end of a stream no edges follow. From then on fills wait in polls of their own again,
//!   which look before they wait.
//! * A take stops at urgent data, and what the poll tells of that cannot be relied on (the kernel passes
//!   on what it was woken with, which names urgent data always). So a socket that was believed empty
//!   is doubted, and looked at once more a moment later.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{cqueue, opcode};

use super::Uring;
use super::entry::{Part, user_data};
use crate::{Sock, sys};

/// What a vigil is kept for. Errors and hang-up come by themselves.
const EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
/// News after which there may be no more.
const LAST: libc::c_short = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
/// Doubted sockets are looked at together, so often at most, and each after one to two such times.
const PAUSE: Duration = Duration::from_millis(20);
/// Sockets looked at between two waits.
const LOOKS_MAX: usize = 64;

/// The standing poll of a socket.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    stage: Stage,
    /// Something has come since the last take.
    pub(super) has_news: bool,
    /// Edges no longer say when to look.
    is_over: bool,
    is_doubted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Absent,
    Kept,
    /// Cancelled, and on its way home.
    Ending,
}

impl Vigil {
    pub(super) fn is_absent(&self) -> bool {
        self.stage == Stage::Absent
    }

    /// Whether what has come may have been the end.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    fn is_kept(&self) -> bool {
        self.stage == Stage::Kept && !self.is_over
    }

    fn hear(&mut self, result: i32, is_last: bool) {
        self.has_news = true;
        self.is_over |= result.max(0) & i32::from(LAST) != 0;
        if is_last {
            self.stage = Stage::Absent;
        }
    }
}

/// Sockets that are believed empty, and when to look at each, the first first.
#[derive(Debug, Default)]
pub(super) struct Doubts(VecDeque<(Duration, Sock)>);

impl Doubts {
    /// When the driver has to be awake for them.
    pub(super) fn due(&self) -> Option<Duration> {
        self.0.front().map(|&(due, _)| due)
    }

    fn add(&mut self, now: Duration, sock: Sock) {
        let pause = PAUSE.as_nanos() as u64;
        let due = (now.as_nanos() as u64 / pause + 2) * pause;
        self.0.push_back((Duration::from_nanos(due), sock));
    }

    fn next(&mut self, now: Duration) -> Option<Sock> {
        self.0.pop_front_if(|&mut (due, _)| due <= now).map(|(_, sock)| sock)
    }
}

impl Uring {
    /// Whether a fill that waits now may be parked; begins a vigil when it is due.
    pub(super) fn keeps_vigil(&mut self, sock: Sock) -> bool {
        let entity = self.entity(sock);
        if !entity.vigil.is_absent() || entity.vigil.is_over {
            return entity.vigil.is_kept();
        }
        if !entity.policy.is_conversation() {
            return false;
        }
        entity.vigil.stage = Stage::Kept;
        let poll = opcode::PollAdd::new(self.fd(sock), EVENTS).multi(true).build();
        self.ring.push(&[poll.user_data(user_data(sock.index, Part::Vigil))]);
        true
    }

    pub(super) fn end_vigil(&mut self, sock: Sock) {
        let vigil = &mut self.entity(sock).vigil;
        if vigil.stage == Stage::Kept {
            vigil.stage = Stage::Ending;
            self.cancel(sock.index, Part::Vigil);
        }
    }

    /// News of a vigil, or its end.
    pub(super) fn on_vigil(&mut self, completion: &cqueue::Entry, index: u32) {
        let sock = self.socks.name(index).expect("a socket outlives its vigil");
        let is_last = !cqueue::more(completion.flags());
        let entity = self.entity(sock);
        entity.vigil.hear(completion.result(), is_last);
        if entity.closing.is_some() {
            self.close_when_empty(sock);
        } else if let Some(token) = entity.parked.take() {
            self.fill_now(token, sock);
        }
    }

    /// A take has left nothing behind, as far as it can tell: that will be looked into, if a vigil is
    /// kept. False when there is none.
    pub(super) fn doubts(&mut self, sock: Sock) -> bool {
        let vigil = &mut self.entity(sock).vigil;
        let is_kept = vigil.is_kept();
        if is_kept && !std::mem::replace(&mut vigil.is_doubted, true) {
            self.doubts.add(self.now, sock);
        }
        is_kept
    }

    /// Looks at the doubted sockets whose time has come.
    pub(super) fn look_again(&mut self, now: Duration) {
        for _ in 0..LOOKS_MAX {
            let Some(sock) = self.doubts.next(now) else { return };
            let Some(entity) = self.socks.get_mut(sock) else { continue };
            entity.vigil.is_doubted = false;
            if entity.closing.is_none() && sys::has_unread(entity.fd.as_raw_fd()) {
                // Whoever fills next tries.
                entity.vigil.has_news = true;
                if let Some(token) = entity.parked.take() {
                    self.fill_now(token, sock);
                }
            }
        }
    }
}
