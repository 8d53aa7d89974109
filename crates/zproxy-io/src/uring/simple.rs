//! Accepting, receiving and sending for the control threads, watching, and the doorbell.

use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::Uring;
use super::entry::{Key, Part, Step, failed, is_interrupted, is_passing};
use crate::{Done, Fault, Outcome, Sock, Token, sock, sys};

impl Uring {
    pub(super) fn accept_step(&mut self, listener: Sock, key: Key) -> Step {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = opcode::AcceptMulti::new(self.fd(listener)).flags(flags).build();
        self.queue(entry, key, Part::Main)
    }

    pub(super) fn recv_step(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        max: usize,
        key: Key,
    ) -> Step {
        let space = buf.spare_capacity_mut();
        let count = u32::try_from(space.len().min(max)).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(self.fd(sock), space.as_mut_ptr().cast(), count).build();
        self.queue(entry, key, Part::Main)
    }

    /// Sends at once what finds room, and leaves the rest to the ring. What is said in the same turn
    /// as the last bytes of a source goes right before them, in one system call: whoever is woken by it
    /// finds both.
    pub(super) fn first_send(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        sent: &mut usize,
        key: Key,
    ) -> Step {
        if !self.last.is_empty() {
            return self.send_step(sock, buf, key);
        }
        let result = sys::result_of(sys::send(self.fd(sock).0, buf));
        self.on_send(sock, buf, sent, key, result)
    }

    pub(super) fn send_step(&mut self, sock: Sock, rest: &[u8], key: Key) -> Step {
        let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(self.fd(sock), rest.as_ptr(), count).flags(flags).build();
        self.queue(entry, key, Part::Main)
    }

    /// A multishot poll that asks for nothing: io_uring adds errors, hang-up and the peer's FIN by
    /// itself. Being edge-triggered after its first completion, it does not spin on the FIN.
    pub(super) fn watch_step(&mut self, sock: Sock, key: Key) -> Step {
        let entry = opcode::PollAdd::new(self.fd(sock), 0).multi(true).build();
        self.queue(entry, key, Part::Main)
    }

    pub(super) fn bell_step(&mut self, key: Key) -> Step {
        let entry = opcode::PollAdd::new(types::Fd(self.bell.fd()), libc::POLLIN as u32).build();
        self.queue(entry, key, Part::Main)
    }

    pub(super) fn on_accept(
        &mut self,
        listener: Sock,
        token: Token,
        key: Key,
        result: i32,
        pending: u8,
        ends: bool,
    ) -> Step {
        if result >= 0 {
            let fd = sys::own(result);
            let peer = sys::peer_name(fd.as_raw_fd());
            let entity = self.entity(listener);
            let of_listener = entity.pacing.of(entity.fd.as_raw_fd());
            sock::accepted(fd.as_raw_fd(), peer.as_ref(), of_listener);
            let sock = self.insert(fd);
            self.ready.push(Done { token, outcome: Outcome::Accepted { sock, peer } });
        }
        if pending > 0 {
            return Step::Wait;
        }
        if ends {
            return failed(-libc::ECANCELED);
        }
        // Without F_MORE the multishot has ended, whatever the reason: arm it again.
        if result >= 0 || is_passing(-result) {
            return self.accept_step(listener, key);
        }
        failed(result)
    }

    /// A connect that had to wait is over, one way or the other.
    pub(super) fn on_writable(&mut self, sock: Sock, result: i32) -> Step {
        if result < 0 {
            return self.failed_on(sock, result);
        }
        let errno = sys::option(self.fd(sock).0, libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0);
        match errno {
            0 if result & i32::from(libc::POLLHUP) != 0 => self.failed_on(sock, -libc::ECONNRESET),
            0 => Step::Finish(Outcome::Connected),
            errno => self.failed_on(sock, -errno),
        }
    }

    pub(super) fn on_recv(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        max: usize,
        key: Key,
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

    pub(super) fn on_send(
        &mut self,
        sock: Sock,
        buf: &mut Vec<u8>,
        sent: &mut usize,
        key: Key,
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

    pub(super) fn on_watch(
        &mut self,
        sock: Sock,
        seen: &mut Option<Option<Fault>>,
        key: Key,
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
            *seen = Some(fault);
            if pending > 0 {
                self.cancel(key, Part::Main);
            }
        }
        if pending > 0 {
            return Step::Wait;
        }
        match seen.take() {
            Some(fault) => Step::Finish(Outcome::Hangup(fault)),
            None if self.is_closing(sock) => failed(-libc::ECANCELED),
            None if result >= 0 || is_interrupted(result) => self.watch_step(sock, key),
            None => failed(result),
        }
    }

    /// A connection that is over although this side has not ended its direction was reset, whoever
    /// else was told the error.
    pub(super) fn hidden_reset(&mut self, sock: Sock) -> Option<Fault> {
        let entity = self.entity(sock);
        let is_over = !entity.has_shut && sys::is_tcp_closed(entity.fd.as_raw_fd());
        is_over.then_some(Fault::Reset)
    }
}
