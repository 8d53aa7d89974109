//! The seam: what the machines above may ask of the kernel.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Done, Doorbell, Epoll, Fault, Op, RelayMode, Sock, Token, Uring};

/// A way to drive sockets from one thread. A driver belongs to the thread that made it.
///
/// 1. Every submitted [`Op`] yields exactly one [`Done`], and only out of [`Driver::wait`].
/// 2. Would-block never crosses the seam.
/// 3. Bytes that were taken and not yet put live in a [`crate::Lease`], which moves through the
///    operations by value: one flow's bytes cannot reach another.
/// 4. A pipe or buffer is leased only while bytes move; a waiting operation holds none.
/// 5. Teardown is a join inside [`Op::Close`].
pub trait Driver {
    /// A socket on its way from one driver to another.
    type Handle: Send + 'static;

    /// `uring` or `epoll`, as in `--backend`.
    const NAME: &'static str;

    /// Monotonic time since an arbitrary start, as it was when the last [`Driver::wait`] ended; comparable
    /// between the drivers of one process. So everything in one turn of a loop happens at one time.
    fn now(&self) -> Duration;

    /// The bell that wakes this driver out of [`Driver::wait`] from any thread.
    fn doorbell(&self) -> Doorbell;

    /// Opens a listening socket and tells its actual address. Options inherited by accepted
    /// connections: no delay, keep-alive, urgent data in line, reset when the process dies.
    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(Self::Handle, SocketAddr)>;

    /// Opens a socket to be connected to an address of the family of `to`.
    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault>;

    /// Says that bytes will be sent on a fresh socket as soon as it is connected: the last packet of
    /// the handshake can wait for them, and the peer is woken once instead of twice. Only a hint.
    fn speaks_first(&mut self, sock: Sock) {
        let _ = sock;
    }

    /// From now on the kernel asks after the other end of a connection while that is silent, and fails it
    /// when there is no answer. Accepted connections have that from their listener; one that was
    /// dialled and does not live long does well without these system calls.
    fn keep_alive(&mut self, sock: Sock) {
        let _ = sock;
    }

    /// The next bytes on a connection belong to somebody else: what the kernel has learnt of its path in
    /// a bad hour shall not slow them. Only a hint.
    fn renew(&mut self, sock: Sock) {
        let _ = sock;
    }

    /// The CPU on which the kernel handled the last packet of a connection (`SO_INCOMING_CPU`, Linux
    /// 3.19). `None` where that is not known.
    fn arrival_cpu(&self, sock: Sock) -> Option<usize> {
        let _ = sock;
        None
    }

    /// Of the listeners that share an address ([`ListenOptions::reuse_port`]), this one gets what arrives
    /// on that CPU; `None`: its share of what no listener wants. Only a hint: it has no effect before
    /// Linux 6.2 (`SO_INCOMING_CPU`).
    fn prefer_arrivals(&mut self, listener: Sock, cpu: Option<usize>) {
        let _ = (listener, cpu);
    }

    /// Takes over a socket from another driver.
    fn adopt(&mut self, handle: Self::Handle) -> Sock;

    /// Gives a socket away. Nothing may be in flight on it.
    ///
    /// # Panics
    /// When an operation is in flight.
    fn release(&mut self, sock: Sock) -> Self::Handle;

    /// Ends the outbound direction (FIN after what was sent). Failures mean that the connection is
    /// gone, which the operations in flight report.
    fn shutdown_write(&mut self, sock: Sock);

    /// What the kernel knows of the far end of a connection; none when it does not tell.
    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        let _ = sock;
        None
    }

    /// Appends bytes to `buf` that are there already, at most `max`, so that they can travel with
    /// something else, and tells how many. Never waits, may find none although there are some, and
    /// leaves ends and failures to the next operation that takes from the socket.
    ///
    /// # Panics
    /// When an inbound operation is in flight on the socket.
    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        let _ = (from, buf, max);
        0
    }

    /// Brings the `Accept` in flight on a listener home, which stays open: connections wait in the
    /// kernel until `Accept` is submitted again. What it accepts until then comes first, and there may
    /// be as much of that as the kernel's queue holds; then it ends with [`Fault::Cancelled`], unless
    /// something else ends it before. Does nothing when none is in flight.
    fn recall_accept(&mut self, listener: Sock);

    /// Queues an operation. Never blocks and never fails; failures are outcomes.
    fn submit(&mut self, token: Token, op: Op);

    /// Runs queued operations and waits until something is done or `until` has come; appends to
    /// `done`.
    ///
    /// # Errors
    /// When the kernel object behind the driver is unusable. The thread cannot go on.
    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost>;

    /// The counters so far.
    fn stats(&self) -> Stats;
}

/// What the kernel knows of the far end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarEnd {
    /// Since it last acknowledged anything, something was sent there that asks for it: bytes, a FIN, or
    /// a probe. True for a round trip each time.
    pub owes: bool,
    /// Since it last acknowledged anything.
    pub silence: Duration,
}

/// A driver that a data core can make for itself.
pub trait Open: Driver + Sized {
    /// Makes the driver of the calling thread.
    ///
    /// # Errors
    /// When the kernel does not offer what the driver needs; the text says what to change.
    fn open(config: &DriverConfig) -> io::Result<Self>;
}

/// Settings of one driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverConfig {
    /// The CPU that the thread is pinned to, if it is; a ring's worker threads stay there too.
    pub cpu: Option<usize>,
    /// Which path bytes may take.
    pub relay: RelayMode,
    /// Before it sleeps, the driver watches for results so long, unless others want the CPU; zero:
    /// it sleeps at once.
    pub busy_poll: Duration,
}

impl Open for Uring {
    fn open(config: &DriverConfig) -> io::Result<Self> {
        Self::new(config).map_err(io::Error::other)
    }
}

impl Open for Epoll {
    fn open(config: &DriverConfig) -> io::Result<Self> {
        Self::new(config)
    }
}

/// How a listening socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// Several sockets may listen on the address and the kernel spreads connections over them
    /// (`SO_REUSEPORT`, Linux 3.9).
    pub reuse_port: bool,
}

/// The kernel object behind a driver became unusable.
#[derive(Debug)]
pub struct DriverLost {
    /// The call that failed.
    pub call: &'static str,
    /// Its error.
    pub error: io::Error,
}

impl std::fmt::Display for DriverLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed: {}", self.call, self.error)
    }
}

impl std::error::Error for DriverLost {}

/// What a driver counted since it was made. Sums add up: sockets opened = closed + open, leases
/// taken = returned + live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sockets opened, accepted or adopted.
    pub socks_opened: u64,
    /// Sockets closed or released.
    pub socks_closed: u64,
    /// Pipes leased.
    pub pipes_leased: u64,
    /// Pipes that came back, empty (reused) or not (destroyed).
    pub pipes_returned: u64,
    /// Pipes that came too small to be of use (`fs.pipe-user-pages-soft`); bytes were copied instead.
    pub pipes_small: u64,
    /// Buffers leased.
    pub bufs_leased: u64,
    /// Buffers that came back.
    pub bufs_returned: u64,
    /// Bytes put by splicing.
    pub bytes_spliced: u64,
    /// Bytes put by copying through user space.
    pub bytes_copied: u64,
    /// Rounds (drains) that put everything they held.
    pub rounds_full: u64,
    /// Rounds that put only a part because the sink was full.
    pub rounds_short: u64,
    /// Splices handed to a kernel worker thread (io_uring only).
    pub worker_splices: u64,
    /// System calls of `wait` (ring enters or epoll waits).
    pub waits: u64,
    /// Entries queued for submission (io_uring only).
    pub submissions: u64,
    /// Completions that overflowed the completion queue (io_uring only; survived, but slow).
    pub cq_overflows: u64,
    /// Times that it watched for results before sleeping (`--busy-poll`).
    pub spins: u64,
    /// Of these, the times that there was something before it slept.
    pub spins_found: u64,
}

/// As a log line shows it: `name=count`, all of them.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socks_opened={} socks_closed={}", self.socks_opened, self.socks_closed)?;
        write!(f, " pipes_leased={} pipes_returned={}", self.pipes_leased, self.pipes_returned)?;
        write!(f, " pipes_small={}", self.pipes_small)?;
        write!(f, " bufs_leased={} bufs_returned={}", self.bufs_leased, self.bufs_returned)?;
        write!(f, " bytes_spliced={} bytes_copied={}", self.bytes_spliced, self.bytes_copied)?;
        write!(f, " rounds_full={} rounds_short={}", self.rounds_full, self.rounds_short)?;
        write!(f, " worker_splices={} waits={}", self.worker_splices, self.waits)?;
        write!(f, " submissions={} cq_overflows={}", self.submissions, self.cq_overflows)?;
        write!(f, " spins={} spins_found={}", self.spins, self.spins_found)
    }
}
