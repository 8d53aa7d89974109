//! The epoll instance: who is registered, and waiting.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::{Sock, sys};

/// Events taken from the kernel in one call; more wait for the next.
const EVENTS_MAX: usize = 512;
/// The key of the doorbell. No socket has it: indices count descriptors and stay small.
const DOORBELL_KEY: u64 = u64::MAX;

/// What an event speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Doorbell,
    Sock(Sock),
}

/// What a socket wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// New connections.
    Listener,
    /// Everything about a stream.
    Stream,
}

impl Interest {
    fn mask(self) -> u32 {
        let mask = match self {
            Self::Listener => libc::EPOLLIN,
            Self::Stream => libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI,
        };
        (mask | libc::EPOLLET).cast_unsigned()
    }
}

pub(super) struct Poller {
    epoll: OwnedFd,
    events: Box<[libc::epoll_event]>,
    heard: usize,
    clock: Clock,
}

/// How fine the kernel lets us wait.
enum Clock {
    /// `epoll_pwait2(2)`, Linux 5.11.
    Nanos,
    /// `epoll_wait(2)`.
    Millis,
}

impl Poller {
    pub(super) fn new(doorbell: RawFd) -> io::Result<Self> {
        let epoll = sys::epoll_create()?;
        let listening = libc::EPOLLIN.cast_unsigned();
        sys::epoll_add(epoll.as_raw_fd(), doorbell, listening, DOORBELL_KEY)?;
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX].into_boxed_slice();
        Ok(Self { epoll, events, heard: 0, clock: Clock::Nanos })
    }

    /// Registers a socket. What it is ready for at this moment is the first event, so nothing that
    /// came earlier is missed.
    pub(super) fn add(&self, fd: RawFd, sock: Sock, interest: Interest) -> io::Result<()> {
        let key = u64::from(sock.generation) << 32 | u64::from(sock.index);
        sys::epoll_add(self.epoll.as_raw_fd(), fd, interest.mask(), key)
    }

    /// Only for sockets that live on elsewhere: a close unregisters by itself.
    pub(super) fn remove(&self, fd: RawFd) {
        sys::epoll_remove(self.epoll.as_raw_fd(), fd);
    }

    /// Waits for events, at most `timeout` long (`None`: for ever). Interruptions are no events.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        self.heard = 0;
        let result = match self.clock {
            Clock::Nanos => self.wait_nanos(timeout),
            Clock::Millis => self.wait_millis(timeout),
        };
        self.heard = match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.heard)
    }

    fn wait_nanos(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        match sys::epoll_pwait2(self.epoll.as_raw_fd(), &mut self.events, timeout) {
            // An old kernel, or a seccomp filter that does not know the call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.clock = Clock::Millis;
                self.wait_millis(timeout)
            }
            result => result,
        }
    }

    fn wait_millis(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let millis = timeout.map_or(-1, |time| {
            // Rounded up: a wait that ends early would only be repeated.
            libc::c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        });
        sys::epoll_wait(self.epoll.as_raw_fd(), &mut self.events, millis)
    }

    /// One event of the last [`Self::wait`], and its mask.
    pub(super) fn event(&self, index: usize) -> (Subject, u32) {
        assert!(index < self.heard);
        let libc::epoll_event { events, u64: key } = self.events[index];
        if key == DOORBELL_KEY {
            return (Subject::Doorbell, events);
        }
        let generation = u32::try_from(key >> 32).expect("the upper half of 64 bits");
        let index = u32::try_from(key & u64::from(u32::MAX)).expect("the lower half of 64 bits");
        (Subject::Sock(Sock { index, generation }), events)
    }
}
