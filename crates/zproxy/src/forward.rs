//! `zproxy forward`: one hop. Listen here, connect there, relay.
//!
//! One worker per data core, each with its own `SO_REUSEPORT` listener for every route. Nothing is
//! shared on the data path.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::{info, warn};
use zproxy_io::{Done, Driver, DriverLost, Ending, Fault, Op, Outcome, Sock, Token};
use zproxy_relay::{Direction, End, Flow, Heard, Key, Keys, Mailbox, Name, Sender, Slots, kind};

use crate::dial::{Dial, DialFault};
use crate::limits::{ACCEPT_PAUSE, LOOK_INTERVAL};
use crate::resolver::Resolver;
use crate::targets::{Known, Target};

const ACCEPT: u8 = kind::OWNERS;
const CONNECT: u8 = kind::OWNERS + 1;
const CLOSE_NEAR: u8 = kind::OWNERS + 2;
const CLOSE_FAR: u8 = kind::OWNERS + 3;
const CLOSE_LISTENER: u8 = kind::OWNERS + 4;

/// Limits of time for the flows of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) half_close_timeout: Option<Duration>,
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Tell<H> {
    /// Listen with this socket for the route of this number.
    Listen { route: usize, listener: H },
    /// The resolver's answer for a route.
    Resolved { route: usize, addresses: Vec<SocketAddr> },
    /// No new connections; end when the last flow has.
    Drain,
    /// End now.
    Stop,
}

/// What a worker reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// So many flows are left while draining.
    Left { worker: usize, flows: usize },
    /// The worker has ended.
    Ended { worker: usize },
}

struct Listener {
    sock: Sock,
    route: usize,
    /// Out of descriptors: accept again at this time.
    paused_until: Option<Duration>,
}

struct Link {
    route: usize,
    peer: Option<SocketAddr>,
    near: Sock,
    accepted_at: Duration,
    state: State,
}

enum State {
    Resolving,
    Dialling(Dial),
    Flowing { flow: Box<Flow>, bound_at: Duration },
    /// Both conns are being closed; so many are left.
    Closing(u8),
}

/// One data core of `zproxy forward`.
pub(crate) struct Worker<D: Driver> {
    pub(crate) number: usize,
    pub(crate) driver: D,
    pub(crate) mailbox: Mailbox<Tell<D::Handle>>,
    pub(crate) reports: Sender<Report>,
    pub(crate) resolver: Resolver,
    pub(crate) targets: Vec<Target>,
    pub(crate) limits: Limits,
    pub(crate) listeners: Slots<()>,
    state: WorkerState,
}

/// The part of a worker that starts empty.
#[derive(Default)]
struct WorkerState {
    listeners: Slots<Listener>,
    links: Slots<Link>,
    next_look: Option<Duration>,
    is_draining: bool,
    is_stopped: bool,
}
