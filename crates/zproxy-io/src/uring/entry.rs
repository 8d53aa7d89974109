//! Operations in flight: what the driver keeps of each until its last completion is home.

use super::rounds::{Drain, Fill};
use crate::{Chunks, Fault, Outcome, Sock, Token};

/// Which completion of an operation: the high half of `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Part {
    Main = 0,
    Refill = 1,
    Poll = 2,
    /// A cancellation of another part.
    Cancel = 3,
    /// The vigil of a socket. It belongs to no operation: its key is the socket's place.
    Vigil = 4,
}

/// What a completion belongs to.
pub(super) fn user_data(key: Key, part: Part) -> u64 {
    u64::from(key) | u64::from(part as u32) << 32
}

/// What [`user_data`] was made of.
pub(super) fn named_by(user_data: u64) -> (Key, Part) {
    let part = match user_data >> 32 {
        0 => Part::Main,
        1 => Part::Refill,
        2 => Part::Poll,
        4 => Part::Vigil,
        _ => Part::Cancel,
    };
    (user_data as Key, part)
}

/// The place of an operation in the driver's slab.
pub(super) type Key = u32;

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) token: Token,
    /// Completions that have yet to come home.
    pub(super) pending: u8,
    pub(super) work: Work,
}

/// All operations in flight. Their names are places, which are used again and never move: a list that
/// doubled would hold as much again for nothing when many flows are idle.
#[derive(Debug, Default)]
pub(super) struct Entries {
    places: Chunks<Option<Entry>>,
    free: Vec<Key>,
}

impl Entries {
    /// The name that the next entry will have.
    pub(super) fn vacant_key(&mut self) -> Key {
        if self.free.is_empty() {
            let key = Key::try_from(self.places.push(None)).expect("operations are few");
            self.free.push(key);
        }
        *self.free.last().expect("there is one now")
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let key = self.vacant_key();
        self.free.pop();
        self.places[key as usize] = Some(entry);
    }

    /// The entry is over: its name is free, and what is left in its place is dropped.
    pub(super) fn remove(&mut self, key: Key) {
        self.places[key as usize] = None;
        self.free.push(key);
    }

    /// The place of a name; empty while its entry is being looked at.
    pub(super) fn place(&mut self, key: Key) -> &mut Option<Entry> {
        &mut self.places[key as usize]
    }

    /// The entry with a name, if there is one.
    pub(super) fn get(&self, key: Key) -> Option<&Entry> {
        self.places.get(key as usize)?.as_ref()
    }

    /// Whether nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }
}

#[derive(Debug)]
pub(super) enum Work {
    Accept {
        listener: Sock,
        /// It is being cancelled, and not armed again.
        is_recalled: bool,
    },
    /// Waiting until it is writable.
    Connect {
        sock: Sock,
    },
    Recv {
        sock: Sock,
        buf: Vec<u8>,
        max: usize,
    },
    Send {
        sock: Sock,
        buf: Vec<u8>,
        sent: usize,
    },
    Watch {
        sock: Sock,
        /// The connection is over, and why; what is left is to bring the poll home.
        seen: Option<Option<Fault>>,
    },
    Fill(Fill),
    /// Boxed, because a drain rarely waits and is large.
    Drain(Box<Drain>),
    Bell,
}

/// The places that an operation occupies on its sockets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    pub(super) inbound: Option<Sock>,
    pub(super) outbound: Option<Sock>,
    pub(super) watch: Option<Sock>,
}

impl Places {
    pub(super) fn of(work: &Work) -> Self {
        let none = Self::default();
        match work {
            Work::Accept { listener: sock, .. }
            | Work::Connect { sock, .. }
            | Work::Recv { sock, .. } => Self { inbound: Some(*sock), ..none },
            Work::Send { sock, .. } => Self { outbound: Some(*sock), ..none },
            Work::Watch { sock, .. } => Self { watch: Some(*sock), ..none },
            Work::Fill(fill) => Self { inbound: Some(fill.from), ..none },
            Work::Drain(drain) => drain.places(),
            Work::Bell => none,
        }
    }

    pub(super) fn socks(&self) -> impl Iterator<Item = Sock> {
        [self.inbound, self.outbound, self.watch].into_iter().flatten()
    }
}

/// What becomes of an entry after one of its completions was looked at.
pub(super) enum Step {
    /// More completions of earlier submissions will come.
    Wait,
    /// So many submissions were queued for it.
    Submitted(u8),
    /// It is finished.
    Finish(Outcome),
}

/// The outcome of a negative result.
pub(super) fn failed(result: i32) -> Step {
    Step::Finish(Outcome::Failed(Fault::from_errno(-result)))
}

/// Results that mean: try again. ERESTARTSYS (512) leaks out of a splice that a signal met in a
/// worker (Linux up to 6.18).
pub(super) fn is_interrupted(result: i32) -> bool {
    matches!(-result, libc::EINTR | 512)
}

/// Errors of accept(2) that concern one connection and not the listener.
pub(super) fn is_passing(errno: i32) -> bool {
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
