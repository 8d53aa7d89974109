//! A gate that counts instead of timing: what a driver does for a given transfer stays within a
//! stated budget, whatever the mood of the machine.
//!
//! One thread plays both far ends and the layer above the driver, on real loopback sockets, so that
//! what is ready when the driver looks does not depend on a scheduler. A count above its ceiling
//! means that a round has become dearer, not that the machine was busy.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use zproxy_io::{
    Done, Driver, DriverConfig, Epoll, Op, Outcome, Sock, SourceNow, Stats, Token, Uring,
};

/// What a transfer may cost at most, with `--relay auto`.
struct Budget {
    /// System calls of `wait`.
    waits: u64,
    /// Entries submitted to the ring.
    submissions: u64,
    /// Calls of the allocator, by the driver: what it keeps for the next message is allocated once.
    allocations: u64,
    /// Drains, whether or not they put everything.
    rounds: u64,
    /// Pipes and buffers leased.
    leases: u64,
    /// Bytes that went through user space.
    bytes_copied: u64,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// There and back, in messages of some KiB.
const ECHO: Echo = Echo { count: 64, size: 16 << 10 };
/// There and back, in messages that fit a small buffer.
const SMALL_ECHO: Echo = Echo { count: 1_000, size: 64 };
/// One way, as fast as it goes: the bulk path.
const BULK_SIZE: u64 = 64 * MIB;

// What was measured (Linux 6.18, the same in every run), and why there is a margin.
//
// Echo of 16 KiB: 64 messages make 128 hops, each one round with one buffer; the margin is room for
// four messages that the kernel hands over in two parts.
//  * uring: a hop is one wait, by the vigil of its socket; receive and send are system calls of their
//    own. The first message of each direction is taken in two parts, of which the first tells that a
//    small buffer is too small. Submitted are the polls of the first fills, then a vigil a socket.
//  * epoll: a hop is one wait; receive and send are system calls of their own. Each direction has
//    tried once in vain before the first message came, with a buffer.
const ECHO_URING: Budget = Budget {
    waits: 128 + 4,
    submissions: 6 + 4,
    allocations: 5 + 4,
    rounds: 130 + 4,
    leases: 130 + 4,
    bytes_copied: 2 * MIB,
};
const ECHO_EPOLL: Budget = Budget {
    waits: 128 + 4,
    submissions: 0,
    allocations: 1 + 3,
    rounds: 128 + 4,
    leases: 130 + 4,
    bytes_copied: 2 * MIB,
};

// Echo of 64 B: 2,000 hops, and no message comes in parts. The margin is for the ends.
//  * uring: as above.
//  * epoll: as above.
const SMALL_URING: Budget = Budget {
    waits: 2_000 + 4,
    submissions: 6 + 4,
    allocations: 5 + 4,
    rounds: 2_000,
    leases: 2_000 + 4,
    bytes_copied: 128_000,
};
const SMALL_EPOLL: Budget = Budget {
    waits: 2_000 + 4,
    submissions: 0,
    allocations: 1 + 3,
    rounds: 2_000,
    leases: 2_002 + 4,
    bytes_copied: 128_000,
};

// Bulk: rounds of a whole pipe (1 MiB) out of one pipe; 67 and 66 were measured, and the margin of a
// quarter is for a kernel whose windows open more slowly, so that the first rounds are smaller. The
// first buffers are copied, until a large one was full: 68 KiB and 64 KiB were measured, four large
// buffers are allowed, with a lease each.
//  * uring: splices inline, and enters only when a far end must let go first: 1 enter.
//  * epoll: looks for news after every fourth turn without: 17 waits.
const BULK_URING: Budget = Budget {
    waits: 8,
    submissions: 8,
    allocations: 5 + 5,
    rounds: 80,
    leases: 8,
    bytes_copied: 256 * KIB,
};
const BULK_EPOLL: Budget = Budget {
    waits: 24,
    submissions: 0,
    allocations: 2 + 5,
    rounds: 80,
    leases: 8,
    bytes_copied: 256 * KIB,
};

/// An echo costs no more than its messages need.
#[test]
fn echo_uring() {
    on_uring(|driver| Relay::new(driver).echo(ECHO), &ECHO_URING);
}

/// As above, with the reference.
#[test]
fn echo_epoll() {
    on_epoll(|driver| Relay::new(driver).echo(ECHO), &ECHO_EPOLL);
}

/// A small message costs a wait, a submission and a send a hop, and no memory.
#[test]
fn small_echo_uring() {
    on_uring(|driver| Relay::new(driver).echo(SMALL_ECHO), &SMALL_URING);
}

/// As above, with the reference.
#[test]
fn small_echo_epoll() {
    on_epoll(|driver| Relay::new(driver).echo(SMALL_ECHO), &SMALL_EPOLL);
}

/// A bulk transfer is spliced but for its beginning, in large rounds.
#[test]
fn bulk_uring() {
    on_uring(|driver| Relay::new(driver).bulk(), &BULK_URING);
}

/// As above, with the reference.
#[test]
fn bulk_epoll() {
    on_epoll(|driver| Relay::new(driver).bulk(), &BULK_EPOLL);
}

fn on_uring(transfer: fn(Uring) -> Cost, budget: &Budget) {
    match Uring::new(&DriverConfig::default()) {
        Ok(driver) => judge(&transfer(driver), budget),
        Err(obstacle) => {
            let is_required = std::env::var_os("ZPROXY_REQUIRE_URING").is_some();
            assert!(!is_required, "no uring here although it is required: {obstacle}");
            eprintln!("skipped: no uring here: {obstacle}");
        }
    }
}

fn on_epoll(transfer: fn(Epoll) -> Cost, budget: &Budget) {
    let driver = Epoll::new(&DriverConfig::default()).expect("epoll is always there");
    judge(&transfer(driver), budget);
}

fn judge(cost: &Cost, budget: &Budget) {
    let Cost { stats, allocations } = cost;
    println!("{stats} allocations={allocations}");
    let counts = [
        ("waits", stats.waits, budget.waits),
        ("submissions", stats.submissions, budget.submissions),
        ("allocations", *allocations, budget.allocations),
        ("rounds", stats.rounds_full + stats.rounds_short, budget.rounds),
        ("leases", stats.pipes_leased + stats.bufs_leased, budget.leases),
        ("bytes_copied", stats.bytes_copied, budget.bytes_copied),
        // The quick path and the bulk path both do without threads of the kernel.
        ("worker_splices", stats.worker_splices, 0),
        ("cq_overflows", stats.cq_overflows, 0),
    ];
    let over: Vec<_> = counts.into_iter().filter(|(_, count, ceiling)| count > ceiling).collect();
    assert!(over.is_empty(), "over budget (name, count, ceiling): {over:?}; {stats}");
}

/// So many messages of this size, there and back, one at a time.
#[derive(Clone, Copy)]
struct Echo {
    count: u64,
    size: usize,
}

/// What a transfer cost.
struct Cost {
    stats: Stats,
    allocations: u64,
}

/// The system's allocator, counting per thread what it is asked for.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note_allocation() {
    // A thread that is ending may have no counter any more; nothing is judged then.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged, and the counter neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note_allocation();
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note_allocation();
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note_allocation();
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is that of the system's allocator.
        unsafe { System.dealloc(place, layout) }
    }
}

/// A driver between two far ends, with a pump each way.
struct Relay<D: Driver> {
    driver: D,
    done: Vec<Done>,
    allocations: u64,
    /// From where to where, by token.
    pumps: [(Sock, Sock); 2],
    left: TcpStream,
    right: TcpStream,
    before: Stats,
}

/// After so long without any result, the transfer has stalled.
const PATIENCE: Duration = Duration::from_secs(10);

impl<D: Driver<Handle = OwnedFd>> Relay<D> {
    fn new(mut driver: D) -> Self {
        let (near_left, left) = pair();
        let (near_right, right) = pair();
        let (near_left, near_right) = (driver.adopt(near_left), driver.adopt(near_right));
        let pumps = [(near_left, near_right), (near_right, near_left)];
        for (token, (from, _)) in (0..).map(Token).zip(pumps) {
            driver.submit(token, Op::Fill { from });
        }
        let mut done = Vec::new();
        // Both fills wait in the kernel before anything is counted.
        driver.wait(Some(Duration::ZERO), &mut done).expect("the driver lives");
        assert!(done.is_empty(), "nothing has been sent yet: {done:?}");
        let before = driver.stats();
        Self { driver, done, allocations: 0, pumps, left, right, before }
    }

    /// Waits for results and goes on after each.
    fn turn(&mut self) {
        let allocations = ALLOCATIONS.get();
        let until = self.driver.now() + PATIENCE;
        self.driver.wait(Some(until), &mut self.done).expect("the driver lives");
        assert!(!self.done.is_empty(), "nothing happened for {PATIENCE:?}");
        for Done { token, outcome } in self.done.drain(..) {
            let (from, to) = self.pumps[usize::try_from(token.0).expect("a number of a pump")];
            let lease = match outcome {
                Outcome::Filled(lease) => Some(lease),
                Outcome::Drained { lease, source: SourceNow::Open, .. } => lease,
                other => panic!("the streams stay open: {other:?}"),
            };
            let op = match lease {
                Some(lease) => Op::Drain { lease, to, refill: Some(from) },
                None => Op::Fill { from },
            };
            self.driver.submit(token, op);
        }
        self.allocations += ALLOCATIONS.get() - allocations;
    }

    /// Messages from left to right and back, one at a time.
    fn echo(mut self, echo: Echo) -> Cost {
        let mut message = vec![0x5a; echo.size];
        for _ in 0..echo.count {
            self.left.write_all(&message).expect("room for one message");
            self.receive(&mut message, |relay| &relay.right);
            self.right.write_all(&message).expect("room for one message");
            self.receive(&mut message, |relay| &relay.left);
        }
        self.cost(2 * echo.count * echo.size as u64)
    }

    fn receive(&mut self, message: &mut [u8], end: fn(&Self) -> &TcpStream) {
        let mut came = 0;
        while came < message.len() {
            match moved(end(self).read(&mut message[came..])) {
                0 => self.turn(),
                count => came += count,
            }
        }
    }

    /// A stream from left to right; each end does all it can between two turns.
    fn bulk(mut self) -> Cost {
        let (chunk, mut sink) = (vec![0xa5; 256 << 10], vec![0; 256 << 10]);
        let (mut sent, mut came) = (0, 0);
        while came < BULK_SIZE {
            loop {
                let left = usize::try_from(BULK_SIZE - sent).expect("64 bits");
                let count = moved((&self.left).write(&chunk[..chunk.len().min(left)]));
                sent += count as u64;
                if count == 0 {
                    break;
                }
            }
            loop {
                let count = moved((&self.right).read(&mut sink));
                came += count as u64;
                if count == 0 {
                    break;
                }
            }
            if came < BULK_SIZE {
                self.turn();
            }
        }
        self.cost(BULK_SIZE)
    }

    /// What the transfer cost, once the driver knows that its last bytes were put.
    fn cost(mut self, size: u64) -> Cost {
        let put = |stats: Stats| stats.bytes_spliced + stats.bytes_copied;
        while put(self.driver.stats()) < size {
            self.turn();
        }
        let (now, before) = (self.driver.stats(), self.before);
        assert_eq!(put(now), size, "every byte is counted once: {now}");
        let stats = Stats {
            waits: now.waits - before.waits,
            submissions: now.submissions - before.submissions,
            ..now
        };
        Cost { stats, allocations: self.allocations }
    }
}

/// Bytes that a call moved; none when it would have had to wait.
fn moved(result: std::io::Result<usize>) -> usize {
    match result {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("a far end failed: {error}"),
    }
}

/// The driver's end of a connection, and the far one.
fn pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let far = TcpStream::connect(listener.local_addr().expect("its address")).expect("a backlog");
    let (near, _) = listener.accept().expect("it has connected");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_nonblocking(true).expect("a socket");
    }
    (near.into(), far)
}
