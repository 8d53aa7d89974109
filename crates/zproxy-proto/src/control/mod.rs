//! The two ends of a ctl_conn: handshake, heartbeat, and which frame may come when.
//!
//! A session is fed with [`GatewaySession::handle_bytes`] and [`GatewaySession::handle_timeout`],
//! and asked with `poll_event`, `poll_transmit` and `poll_timeout` until each says `None` (the same
//! for [`ClientSession`]). Its owner takes bytes to send only when the earlier ones are sent: so a
//! peer that does not read is noticed, at [`CTL_SEND_BACKLOG_MAX`]. After the event `Ended` the
//! owner sends what is left to send and closes.

mod client;
mod gateway;
mod heart;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

pub use client::{ClientConfig, ClientEvent, ClientSession};
pub use gateway::{GatewayConfig, GatewayEvent, GatewaySession, Session};

use crate::limits::{
    CTL_SEND_BACKLOG_MAX, HEARTBEAT_DEADLINE, HEARTBEAT_INTERVAL, HEARTBEAT_MAX, HEARTBEAT_MIN,
};
use crate::wire::{Frame, Reason, RefusedCode, WireError};

/// How a ctl_conn is kept alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between two pings.
    pub interval: Duration,
    /// Silence that means death.
    pub deadline: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: HEARTBEAT_INTERVAL, deadline: HEARTBEAT_DEADLINE }
    }
}

impl Heartbeat {
    /// Both times from milliseconds, brought within the limits. The deadline leaves room for at
    /// least two pings.
    #[must_use]
    pub fn from_ms(interval_ms: u64, deadline_ms: u64) -> Self {
        let fit = |ms| Duration::from_millis(ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        let interval = fit(interval_ms);
        Self { interval, deadline: fit(deadline_ms).max(interval * 2) }
    }
}

/// Why a ctl_conn is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The gateway refused the client (seen from either side).
    Refused {
        /// For the program.
        code: RefusedCode,
        /// For a person.
        reason: Reason,
    },
    /// The peer broke the protocol.
    Violation(Violation),
    /// The handshake took longer than [`crate::limits::HANDSHAKE_DEADLINE`].
    HandshakeTimeout,
    /// The peer was silent for longer than the heartbeat deadline.
    Silent,
    /// The peer does not read.
    Backlog,
    /// The gateway welcomed us without knowing the token: it is not ours.
    GatewayUnproven,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, reason } => write!(f, "refused ({code}): {reason}"),
            Self::Violation(violation) => violation.fmt(f),
            Self::HandshakeTimeout => write!(f, "the handshake took too long"),
            Self::Silent => write!(f, "nothing was heard within the heartbeat deadline"),
            Self::Backlog => write!(f, "the peer does not read"),
            Self::GatewayUnproven => {
                write!(f, "the gateway could not prove that it knows the token")
            }
        }
    }
}

/// How a peer broke the protocol on a ctl_conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Bytes that are not what the protocol says.
    Wire(WireError),
    /// A frame that may not come now, or not from this side.
    Unexpected(&'static str),
    /// A frame with a number that is out of range.
    OutOfRange(&'static str),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire(error) => error.fmt(f),
            Self::Unexpected(frame) => write!(f, "{frame} was not expected"),
            Self::OutOfRange(frame) => write!(f, "{frame} with a number out of range"),
        }
    }
}

impl From<WireError> for Violation {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// Bytes that wait to be sent.
#[derive(Debug, Default)]
struct Outgoing(Vec<u8>);

impl Outgoing {
    fn push(&mut self, frame: &Frame) {
        frame.encode_into(&mut self.0);
    }

    fn is_full(&self) -> bool {
        self.0.len() > CTL_SEND_BACKLOG_MAX
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then(|| std::mem::take(&mut self.0))
    }
}
