//! Readiness, level-triggered, on one thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// What a socket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    Read,
    Write,
    Both,
    /// A listener that several threads watch: one of them is woken per connection.
    Accept,
}

impl Wait {
    fn flags(self) -> EventFlags {
        match self {
            Self::Nothing => EventFlags::empty(),
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Both => EventFlags::IN | EventFlags::OUT,
            Self::Accept => EventFlags::IN | EventFlags::EXCLUSIVE,
        }
    }
}

/// One event: whose, and what is possible now. An error counts as both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) token: usize,
    pub(crate) is_readable: bool,
    pub(crate) is_writable: bool,
}

/// Room for events. It belongs to the thread that waits, which the poller itself does not.
pub(crate) struct Batch {
    events: Vec<Event>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { events: Vec::with_capacity(EVENTS_MAX) }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Ready> {
        self.events.iter().map(|event| {
            let flags = event.flags;
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Ready {
                token: event.data.u64() as usize,
                is_readable: broken || flags.contains(EventFlags::IN),
                is_writable: broken || flags.contains(EventFlags::OUT),
            }
        })
    }
}

/// An epoll instance.
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    pub(crate) fn add(&self, socket: impl AsFd, token: usize, wait: Wait) -> io::Result<()> {
        let data = EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, socket, data, wait.flags())?)
    }

    pub(crate) fn change(&self, socket: impl AsFd, token: usize, wait: Wait) -> io::Result<()> {
        let data = EventData::new_u64(token as u64);
        Ok(epoll::modify(&self.epoll, socket, data, wait.flags())?)
    }

    pub(crate) fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for at most `timeout` and takes what happened into `batch`, which is emptied first.
    pub(crate) fn wait(&self, timeout: Duration, batch: &mut Batch) -> io::Result<()> {
        batch.events.clear();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut batch.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }
}
