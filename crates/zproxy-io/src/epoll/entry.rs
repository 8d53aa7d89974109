//! One socket: what is in flight on it, and what is believed about its readiness.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::policy::{Path, Policy};
use crate::sock::Pacing;
use crate::{Fault, Lease, RelayMode, Sock, Token, sys};

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Pending<T> {
    pub(super) token: Token,
    pub(super) op: T,
    pub(super) place: Place,
}

/// Where an operation in flight waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the ready queue, for its turn.
    Queued,
    /// On the socket, for an event.
    Parked,
}

#[derive(Debug)]
pub(super) enum Inbound {
    Accept,
    Connect(Connecting),
    /// Its place in the driver's list: only control threads and lanes receive, and every socket has
    /// room for an operation.
    Recv(u32),
    Fill,
}

/// The inbound place of a socket.
#[derive(Debug)]
pub(super) enum Inlet {
    Free,
    Taken(Pending<Inbound>),
    /// The `Drain` into this sink refills from here.
    Lent(Sock),
}

#[derive(Debug)]
pub(super) struct Recv {
    pub(super) buf: Vec<u8>,
    pub(super) max: usize,
}

#[derive(Debug)]
pub(super) enum Connecting {
    /// It was over as soon as it was begun.
    Over(Option<Fault>),
    UnderWay,
}

#[derive(Debug)]
pub(super) enum Outbound {
    Send { buf: Vec<u8>, sent: usize },
    Drain { lease: Lease, refill: Option<Sock> },
}

/// What the socket is believed to be ready for. A belief in readiness ends only when the kernel
/// says otherwise (or has shown that its queue is empty), and begins again with an event; since
/// events are edges, anything else would lose a wake-up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its direction or the connection failed: no more edges for reading.
    pub(super) read_ended: bool,
    /// Urgent data was announced and may still lie in the queue.
    pub(super) urgent: bool,
    /// Both directions have ended, or the connection failed.
    pub(super) hangup: bool,
}

impl Ready {
    fn note(&mut self, mask: u32) {
        let has = |bits: libc::c_int| mask & bits.cast_unsigned() != 0;
        let over = has(libc::EPOLLERR | libc::EPOLLHUP);
        // A call on a failed socket does not wait, so failing counts as ready.
        self.readable |= over || has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI);
        self.writable |= over || has(libc::EPOLLOUT);
        self.read_ended |= over || has(libc::EPOLLRDHUP);
        self.urgent |= has(libc::EPOLLPRI);
        self.hangup |= over;
    }
}

/// A socket. Small, because every idle flow has two: what few sockets have at a time is kept in the
/// driver's lists.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) fd: OwnedFd,
    pub(super) ready: Ready,
    /// Whether the poller knows the socket. It is told when an operation first has to wait.
    pub(super) registered: bool,
    /// How the connection died. The kernel tells an error once, to whichever call comes first, and
    /// from then on a dead socket reads like a finished one; so it is remembered here.
    pub(super) fault: Option<Fault>,
    /// The outbound direction was ended from here.
    pub(super) has_shut: bool,
    /// Bytes were spliced into it. `splice(2)` sends a pipe in batches of 16 pieces: when one has gone
    /// and the next one meets a reset, it returns the count, and the error is told to nobody.
    pub(super) was_spliced_into: bool,
    pub(super) policy: Policy,
    pub(super) pacing: Pacing,
    pub(super) inbound: Inlet,
    /// The place of the operation in the driver's list: most sockets have none, and it is large.
    pub(super) outbound: Option<Pending<u32>>,
    pub(super) watch: Option<Pending<()>>,
    /// It can no longer be worked with: its close is in the ready queue.
    pub(super) is_closing: bool,
}

impl Entry {
    pub(super) fn new(fd: OwnedFd, relay: RelayMode) -> Self {
        // Optimistic: trying costs one call, missing what is there already would cost the flow.
        let ready = Ready {
            readable: true,
            writable: true,
            read_ended: false,
            urgent: false,
            hangup: false,
        };
        Self {
            fd,
            ready,
            registered: false,
            fault: None,
            has_shut: false,
            was_spliced_into: false,
            policy: Policy::new(relay, Path::Copy),
            pacing: Pacing::default(),
            inbound: Inlet::Free,
            outbound: None,
            watch: None,
            is_closing: false,
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes note of an event and tells which parked operations it may complete; they count as
    /// queued from now on.
    pub(super) fn wake(&mut self, mask: u32) -> Woken {
        self.ready.note(mask);
        let ready = self.ready;
        let inbound = match &mut self.inbound {
            Inlet::Taken(pending) => {
                let connecting = matches!(pending.op, Inbound::Connect(_));
                (if connecting { ready.writable } else { ready.readable }) && pending.unpark()
            }
            Inlet::Free | Inlet::Lent(_) => false,
        };
        let outbound = ready.writable && self.outbound.as_mut().is_some_and(Pending::unpark);
        let watch = ready.hangup && self.watch.as_mut().is_some_and(Pending::unpark);
        Woken { inbound, outbound, watch }
    }

    /// Ends the outbound direction, if it has not ended.
    pub(super) fn shutdown_write(&mut self) {
        if !std::mem::replace(&mut self.has_shut, true) {
            // By contract a failure is reported by the operations in flight.
            let _ = sys::shutdown_write(self.raw());
        }
    }

    /// Records a failure of the connection and tells what to report: the first one.
    pub(super) fn fail(&mut self, fault: Fault) -> Fault {
        if fault.is_shortage() {
            return fault;
        }
        *self.fault.get_or_insert(fault)
    }

    /// Asks the socket for a failure that no call has reported yet.
    pub(super) fn probe_fault(&mut self) -> Option<Fault> {
        let errno = sys::option(self.raw(), libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0);
        if errno != 0 {
            self.fail(Fault::from_errno(errno));
        }
        self.known_fault()
    }

    /// The failure that some call was told of. A connection that is over although this side has not
    /// ended its direction was reset, though a splice kept that to itself.
    pub(super) fn known_fault(&mut self) -> Option<Fault> {
        if self.was_spliced_into && !self.has_shut && sys::is_tcp_closed(self.raw()) {
            self.fail(Fault::Reset);
        }
        self.fault
    }

    pub(super) fn is_inbound_free(&self) -> bool {
        matches!(self.inbound, Inlet::Free)
    }

    /// Takes the inbound operation out, if there is one.
    pub(super) fn take_inbound(&mut self) -> Option<Pending<Inbound>> {
        match std::mem::replace(&mut self.inbound, Inlet::Free) {
            Inlet::Taken(pending) => Some(pending),
            other => {
                self.inbound = other;
                None
            }
        }
    }

    /// The `Drain` that was to refill from here is over.
    pub(super) fn unlend(&mut self) {
        assert!(matches!(self.inbound, Inlet::Lent(_)), "what is given back was lent");
        self.inbound = Inlet::Free;
    }

    /// Whether nothing is in flight here.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_inbound_free()
            && self.outbound.is_none()
            && self.watch.is_none()
            && !self.is_closing
    }
}

impl<T> Pending<T> {
    pub(super) fn queued(token: Token, op: T) -> Self {
        Self { token, op, place: Place::Queued }
    }

    pub(super) fn parked(token: Token, op: T) -> Self {
        Self { token, op, place: Place::Parked }
    }

    /// From parked to queued; false when it was queued already.
    fn unpark(&mut self) -> bool {
        std::mem::replace(&mut self.place, Place::Queued) == Place::Parked
    }
}

/// The operations that an event may complete.
pub(super) struct Woken {
    pub(super) inbound: bool,
    pub(super) outbound: bool,
    pub(super) watch: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle flow costs two of these in each program.
    #[test]
    fn a_socket_is_small() {
        assert!(size_of::<Option<Entry>>() <= 88);
    }
}
