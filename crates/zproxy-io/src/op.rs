//! Operations and their results: the vocabulary of the seam.

use std::net::SocketAddr;

use crate::{Fault, Lease};

/// Names an operation to the one who submitted it. The driver hands it back unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// The token of [`Outcome::Rung`], which nobody submits.
    pub const DOORBELL: Self = Self(u64::MAX);
}

/// A socket that a driver owns. Valid only with that driver and until its [`Op::Close`] completes;
/// the generation makes a stale name detectable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sock {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// How a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// What is in the send buffer is still delivered, then FIN.
    Clean,
    /// RST, at once; what is in the send buffer is lost.
    Reset,
}

/// One request to the kernel. Each yields exactly one [`Done`] out of [`crate::Driver::wait`]
/// (`Accept` yields one per connection until it ends).
///
/// On one socket at most one inbound (`Accept`, `Connect`, `Recv`, `Fill`, the refill of a
/// `Drain`), one outbound (`Send`, `Drain`) and one `Watch` may be in flight at a time; drivers
/// assert it.
#[derive(Debug)]
#[allow(missing_docs, reason = "the text of a variant speaks of its fields")]
pub enum Op {
    /// Accept connections until something goes wrong: [`Outcome::Accepted`] each, then one
    /// [`Outcome::Failed`] when accepting has stopped. Submit again to go on.
    /// [`crate::Driver::recall_accept`] makes it stop.
    Accept { listener: Sock },
    /// Connect a fresh socket: [`Outcome::Connected`] or [`Outcome::Failed`]. A time limit is the
    /// caller's: closing the socket brings the operation home.
    Connect { sock: Sock, to: SocketAddr },
    /// Append 1..=`max` bytes to `buf`: [`Outcome::Received`] (0 bytes is the end of the stream).
    Recv { sock: Sock, buf: Vec<u8>, max: usize },
    /// Send all of `buf`: [`Outcome::Sent`] when the last byte is in the socket's send buffer.
    Send { sock: Sock, buf: Vec<u8> },
    /// Wait until the connection has failed or both directions have ended: [`Outcome::Hangup`].
    /// No bytes move and a mere FIN of the peer does not complete it.
    Watch { sock: Sock },
    /// Wait for bytes and take some into a fresh lease: [`Outcome::Filled`], or [`Outcome::Eof`]. The
    /// lease may know that the stream has ended behind its bytes ([`Lease::has_end`]).
    /// While it waits, no pipe and no buffer is held.
    Fill { from: Sock },
    /// Put bytes of `lease` into `to`. Ends when it put at least one: [`Outcome::Drained`]. When it
    /// could put all of them and `refill` names a source, more is taken from there if that needs no
    /// waiting, so that one operation is a whole round. Naming a source says that it will be filled
    /// again, and a driver may begin that early: until a `Fill` of it has come home, no other inbound
    /// operation is asked of it and it is not released. Closing it is always possible.
    /// When the lease has an end ([`Lease::add_end`]) and all of it was put, the outbound direction of
    /// `to` has ended as by [`crate::Driver::shutdown_write`]: the last bytes and the FIN can be one
    /// packet, which wakes the peer once. Such a drain names no source.
    Drain { lease: Lease, to: Sock, refill: Option<Sock> },
    /// Close the socket: [`Outcome::Closed`]. May be submitted at any time; every other operation
    /// in flight on the socket comes home first (with its result, or failed with
    /// [`Fault::Cancelled`]), and so does a `Drain` that merely refills from it.
    Close { sock: Sock, how: Ending },
}

/// What a round learned about the socket it would take more from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNow {
    /// Nothing special: submit the next `Fill` or, when the lease holds bytes, the next `Drain`.
    Open,
    /// The peer has ended this direction; the lease (if any) holds the last bytes.
    Eof,
    /// The source failed; bytes in the lease were taken before that.
    Failed(Fault),
}

/// The result of one operation.
#[derive(Debug)]
#[allow(missing_docs, reason = "the text of a variant speaks of its fields")]
pub enum Outcome {
    /// A connection was accepted; more will follow under the same token. The address is absent when
    /// the peer had gone before it could be asked for.
    Accepted { sock: Sock, peer: Option<SocketAddr> },
    /// The socket is connected.
    Connected,
    /// `buf` came back with `count` more bytes; 0 means that the peer has ended the stream.
    Received { buf: Vec<u8>, count: usize },
    /// Everything was sent; the buffer comes back for reuse (its content is unspecified).
    Sent { buf: Vec<u8> },
    /// The watched connection failed (`Some`) or both its directions have ended (`None`).
    Hangup(Option<Fault>),
    /// At least one byte was taken.
    Filled(Lease),
    /// The stream that was to be taken from has ended.
    Eof,
    /// `put` ≥ 1 bytes left the lease for the sink. `lease` is what is waiting to be put now: what
    /// was left over, or (after everything was put) what the refill took, `refilled` bytes.
    Drained { put: usize, refilled: usize, lease: Option<Lease>, source: SourceNow },
    /// The socket is closed and its name is void.
    Closed,
    /// Somebody rang this driver's doorbell (token [`Token::DOORBELL`]).
    Rung,
    /// The operation failed. Bytes of a `Drain` that were not put are lost with it.
    Failed(Fault),
}

/// A completed operation.
#[derive(Debug)]
pub struct Done {
    /// The token given with the operation.
    pub token: Token,
    /// What became of it.
    pub outcome: Outcome,
}
