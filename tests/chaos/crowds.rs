//! Very many visitors at once, and hundreds that have all the time in the world.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};
use zproxy_tests::net::connect;
use zproxy_tests::netns::GATEWAY_OUTSIDE;
use zproxy_tests::site::PUBLIC_PORT;
use zproxy_tests::visits::Kind;
use zproxy_tests::world::heavy_turn;
use zproxy_tests::{Direction, Load, Pair, Pattern, Rng, Site, Visit, both_backends, eventually};

use crate::IS_FULL;

const CROWD: usize = 8_000;
const REQUEST_SIZE: usize = 8;
const ANSWER_SIZE: usize = 600;
/// Until the last of the crowd knows how it ended.
const CROWD_DEADLINE: Duration = Duration::from_secs(120);
/// Threads that hold a part of the crowd each.
const HANDS: usize = 4;

/// As many as come at once, if this process may hold both ends of each.
fn crowd() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX).saturating_sub(1_000).min(CROWD)
}

/// A visitor of a crowd: says its number, expects the answer of that number, and stays.
struct Visitor {
    conn: Socket,
    number: u64,
    asked: usize,
    answered: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Served,
    /// Reset before a byte of the answer came.
    Reset,
}

impl Visitor {
    fn new(public: SocketAddr, number: u64) -> Self {
        let conn = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        conn.set_nonblocking(true).expect("no waiting");
        match conn.connect(&public.into()) {
            Ok(()) => {}
            // EINPROGRESS has no name of its own.
            Err(why) => assert_eq!(why.raw_os_error(), Some(115), "{why}"),
        }
        Self { conn, number, asked: 0, answered: 0 }
    }

    /// Goes on as far as that needs no waiting.
    fn advance(&mut self) -> Fate {
        if self.asked < REQUEST_SIZE {
            match (&self.conn).write(&self.number.to_be_bytes()[self.asked..]) {
                Ok(n) => self.asked += n,
                Err(why) => return self.fate_of(&why),
            }
        }
        let mut buf = [0; ANSWER_SIZE + 1];
        match (&self.conn).read(&mut buf) {
            Ok(0) => panic!("visitor {}: a FIN at byte {}", self.number, self.answered),
            Ok(n) => {
                let pattern = Pattern::new(self.number, Direction::Down);
                let checked = pattern.check(self.answered as u64, &buf[..n]);
                assert_eq!(checked, Ok(()), "visitor {}", self.number);
                self.answered += n;
            }
            Err(why) => return self.fate_of(&why),
        }
        assert!(self.answered <= ANSWER_SIZE, "visitor {}: surplus bytes", self.number);
        if self.answered == ANSWER_SIZE { Fate::Served } else { Fate::Open }
    }

    fn fate_of(&self, why: &std::io::Error) -> Fate {
        match why.kind() {
            ErrorKind::WouldBlock | ErrorKind::NotConnected => Fate::Open,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe if self.answered == 0 => Fate::Reset,
            _ => panic!("visitor {} after {} bytes: {why}", self.number, self.answered),
        }
    }
}

/// A LocalServer that answers thousands from one thread.
struct Host {
    addr: SocketAddr,
    open: Arc<AtomicUsize>,
    /// When this end is dropped, the thread hears of it at the other one.
    _leash: UnixStream,
}

/// What an event of a host is about, if not the guest of that number.
const ARRIVAL: u64 = u64::MAX;
const END: u64 = u64::MAX - 1;
/// Events that a host takes at a time.
const EVENTS: usize = 256;

impl Host {
    fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        listener.listen(4_096).expect("a queue");
        let listener = TcpListener::from(listener);
        let addr = listener.local_addr().expect("its address");
        let (leash, end) = UnixStream::pair().expect("two sockets");
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        thread::spawn(move || host(&listener, &end, &counted));
        Self { addr, open, _leash: leash }
    }
}

/// Serves all guests, until the other end of `end` is dropped.
fn host(listener: &TcpListener, end: &UnixStream, open: &AtomicUsize) {
    listener.set_nonblocking(true).expect("no waiting");
    let poller = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a poller");
    let heed = |what: BorrowedFd<'_>, number: u64| {
        let number = epoll::EventData::new_u64(number);
        epoll::add(&poller, what, number, epoll::EventFlags::IN).expect("it can be waited for");
    };
    heed(listener.as_fd(), ARRIVAL);
    heed(end.as_fd(), END);
    let mut guests: HashMap<u64, (TcpStream, Vec<u8>)> = HashMap::new();
    let mut next = 0;
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&poller, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(why) => panic!("waiting for events: {why}"),
        }
        for event in &events {
            match event.data.u64() {
                END => return,
                ARRIVAL => {
                    while let Ok((conn, _)) = listener.accept() {
                        conn.set_nonblocking(true).expect("no waiting");
                        heed(conn.as_fd(), next);
                        guests.insert(next, (conn, Vec::new()));
                        next += 1;
                    }
                }
                number => {
                    let (conn, request) = guests.get_mut(&number).expect("a guest who is there");
                    if !serve(conn, request) {
                        // A process that is just being started by another test has the conn as well,
                        // for a moment, so that closing it here would not end its events.
                        epoll::delete(&poller, &*conn).expect("it was waited for");
                        guests.remove(&number);
                    }
                }
            }
        }
        open.store(guests.len(), Ordering::Release);
    }
}

/// Reads what a guest has said, and answers when that is a whole request; false when he is gone.
fn serve(conn: &mut TcpStream, request: &mut Vec<u8>) -> bool {
    let mut buf = [0; REQUEST_SIZE];
    match conn.read(&mut buf[..]) {
        Ok(0) => false,
        Ok(n) => {
            request.extend_from_slice(&buf[..n]);
            if let Ok(number) = <[u8; REQUEST_SIZE]>::try_from(&request[..]) {
                let pattern = Pattern::new(u64::from_be_bytes(number), Direction::Down);
                // Far less than an empty send buffer takes.
                return conn.write_all(pattern.at(0, ANSWER_SIZE)).is_ok();
            }
            true
        }
        Err(why) => why.kind() == ErrorKind::WouldBlock,
    }
}

/// How a crowd has ended.
struct Outcome {
    served: usize,
    reset: usize,
    /// From the first to the last one's arrival.
    arrival: Duration,
    /// They are still there.
    _visitors: Vec<Visitor>,
}

/// Lets so many visitors come at once and stay until all know their fate.
fn arrive(public: SocketAddr, count: usize) -> Outcome {
    let begun = Instant::now();
    let hold = |hand: usize| {
        let numbers = (hand..count).step_by(HANDS);
        let mut visitors: Vec<Visitor> =
            numbers.map(|number| Visitor::new(public, number as u64)).collect();
        let arrival = begun.elapsed();
        let mut fates = vec![Fate::Open; visitors.len()];
        eventually("all are served or reset", CROWD_DEADLINE, || {
            for (visitor, fate) in visitors.iter_mut().zip(&mut fates) {
                if *fate == Fate::Open {
                    *fate = visitor.advance();
                }
            }
            !fates.contains(&Fate::Open)
        });
        let served = fates.iter().filter(|fate| **fate == Fate::Served).count();
        Outcome { served, reset: fates.len() - served, arrival, _visitors: visitors }
    };
    thread::scope(|scope| {
        let hold = &hold;
        let hands: Vec<_> = (0..HANDS).map(|hand| scope.spawn(move || hold(hand))).collect();
        let parts = hands.into_iter().map(|hand| hand.join().expect("a part of the crowd"));
        parts
            .reduce(|mut all, part| {
                all.served += part.served;
                all.reset += part.reset;
                all.arrival = all.arrival.max(part.arrival);
                all._visitors.extend(part._visitors);
                all
            })
            .expect("hands")
    })
}

/// Slow readers, and as many slow writers.
const SLOW: usize = if IS_FULL { 200 } else { 100 };
/// What one of them reads, a few KiB at a time, and writes, a few bytes at a time.
const SLOW_READ_SIZE: u64 = if IS_FULL { 24 << 20 } else { 4 << 20 };
const SLOW_WRITE_SIZE: u64 = if IS_FULL { 80_000 } else { 20_000 };
/// Memory of a program for a slow flow: less than a socket buffer, far less than what waits to be read.
const SLOW_FLOW_BYTES_MAX: u64 = 150_000;
const PATIENCE: Duration = Duration::from_secs(60);

both_backends! {
    /// Thousands arrive within a moment and stay: more than may wait for proxy_conns, so that accepting
    /// pauses and the others wait in the kernel. Each of them is served with its own bytes, whoever
    /// comes again is served, and nothing is left of any of them.
    fn thousands_arrive_at_once(world) {
        let _turn = heavy_turn();
        Site::run(|net| {
            let (gateway, client) = Site::plans(world, &net);
            let host = net.client.within(Host::start);
            let client = client.local(&host.addr.to_string());
            // On two busy cores the last ones wait longer than a visitor would in everyday life.
            let mut pair = Pair::start(world, gateway.args(["--bind-timeout", "60"]), client);
            let public = (GATEWAY_OUTSIDE, PUBLIC_PORT).into();
            drop(arrive(public, 10));
            let frames = pair.frames();
            let count = crowd();
            let first = arrive(public, count);
            let Outcome { served, reset, arrival, .. } = first;
            println!("{count} arrived within {arrival:?}: {served} served, {reset} reset");
            let refused = pair.gateway.err.matching(|line| line.contains("flow=none"));
            assert_eq!((served, reset), (count, 0), "{:?}", refused.first());
            let [gateway, client] = pair.ledgers();
            assert_eq!((gateway.flows(), client.flows()), (served as u64, served as u64));
            drop(first);
            if count == CROWD {
                let paused = |line: &str| line.contains("accepting paused: ");
                assert!(!pair.gateway.err.matching(paused).is_empty(), "no pause was needed");
                let over = |line: &str| line.contains("accepting again");
                pair.gateway.err.wait_for("the end of the pause", PATIENCE, over);
            }
            eventually("all have left", PATIENCE, || host.open.load(Ordering::Acquire) == 0);
            pair.expect_rest(frames);
            // So many can wait while proxy_conns come.
            let again = arrive(public, count.min(1_000));
            assert_eq!(again.reset, 0);
            drop(again);
            pair.expect_rest(frames);
        });
    }

    /// Hundreds of slow readers and slow writers: each gets all of its bytes in the end, memory stays
    /// bounded, and visitors who are in a hurry are served meanwhile.
    fn hundreds_are_slow(world) {
        let _turn = heavy_turn();
        Site::run(|net| {
            let (gateway, client) = Site::plans(world, &net);
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let before = site.ledgers().map(|ledger| ledger.resident_bytes);
            let public = site.public;
            // All are there before the first begins: a quick one would be gone before the last comes.
            let conns: Vec<_> = (0..2 * SLOW).map(|_| connect(public)).collect();
            let (readers, writers) = conns.split_at(SLOW);
            eventually("all slow flows are there", PATIENCE, || {
                site.ledgers()[0].flows() >= 2 * SLOW as u64
            });
            thread::scope(|scope| {
                let kinds = [
                    (Kind::SlowReader, readers, 1_000, SLOW_READ_SIZE),
                    (Kind::SlowWriter, writers, SLOW_WRITE_SIZE, 1_000),
                ];
                let mut visits = Vec::new();
                for (kind, conns, up, down) in kinds {
                    for (conn, flow) in conns.iter().zip(0..) {
                        let visit = Visit { kind, flow, up, down };
                        visits.push(scope.spawn(move || visit.make_over(conn)));
                    }
                }
                let load = Load::start(public, 2, 200_000, Rng::seeded("hundreds are slow"));
                assert!(load.has_progress(20, PATIENCE), "those in a hurry wait for the slow ones");
                let during = site.ledgers();
                let flows = during[0].flows();
                for (now, then) in during.iter().zip(before) {
                    let grown = now.resident_bytes.saturating_sub(then);
                    let allowed = (32 << 20) + flows * SLOW_FLOW_BYTES_MAX;
                    assert!(grown <= allowed, "{grown} bytes for {flows} flows");
                }
                for made in visits.into_iter().map(|visit| visit.join().expect("a slow visitor")) {
                    assert!(made.is_ok(), "{made:?}");
                }
                assert!(load.pause(PATIENCE), "visits do not end");
                assert_eq!(load.faults(), Vec::<String>::new());
            });
            drop(conns);
            site.expect_calm(frames);
        });
    }
}
