//! A driver, what is in flight in it, and what came home. It checks on the way that every operation
//! comes home exactly once, and at the end that all sums add up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use zproxy_io::{Done, Driver, Ending, Lease, ListenOptions, Op, Outcome, RelayMode, Sock, Token};

use super::far::{self, Meets};
use super::kit::Kit;

/// After so long without anything happening, a case has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// A driver that does nothing for so long has nothing to do.
const STILLNESS: Duration = Duration::from_millis(30);

pub(crate) struct World<D: Driver> {
    pub(crate) driver: D,
    door: Option<Door>,
    tokens: u64,
    flying: HashMap<Token, &'static str>,
    home: VecDeque<Done>,
    socks: HashSet<Sock>,
}

/// Where the far ends connect to.
#[derive(Clone, Copy)]
struct Door {
    addr: SocketAddr,
    accepting: Token,
}

impl<D: Driver> World<D> {
    pub(crate) fn new<K: Kit<Driver = D>>(relay: RelayMode) -> Self {
        Self {
            driver: K::driver(relay),
            door: None,
            tokens: 0,
            flying: HashMap::new(),
            home: VecDeque::new(),
            socks: HashSet::new(),
        }
    }

    pub(crate) fn submit(&mut self, op: Op) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.flying.insert(token, name(&op));
        self.driver.submit(token, op);
        token
    }

    pub(crate) fn socket(&mut self, to: &SocketAddr) -> Sock {
        let sock = self.driver.socket(to).expect("a socket can be opened");
        self.socks.insert(sock);
        sock
    }

    pub(crate) fn adopt(&mut self, handle: D::Handle) -> Sock {
        let sock = self.driver.adopt(handle);
        self.socks.insert(sock);
        sock
    }

    pub(crate) fn release(&mut self, sock: Sock) -> D::Handle {
        assert!(self.socks.remove(&sock));
        self.driver.release(sock)
    }

    /// Opens a listening socket; nothing accepts on it yet.
    pub(crate) fn listen(&mut self) -> (Sock, SocketAddr) {
        let loopback = "127.0.0.1:0".parse().expect("an address");
        let (handle, addr) = D::listen(loopback, ListenOptions::default()).expect("a free port");
        (self.adopt(handle), addr)
    }

    /// A connection: the driver's end, accepted, and the far end, on real sockets.
    pub(crate) fn pair(&mut self) -> (Sock, TcpStream) {
        let door = self.door();
        let far = far::connect(door.addr);
        let (sock, peer) = self.accepted(door);
        assert_eq!(peer, far.local_addr().ok(), "the address is the far end's");
        (sock, far)
    }

    /// A connection: the driver's end, accepted, and the far end, of the driver's kind.
    pub(crate) fn meet(&mut self) -> (Sock, D::Far)
    where
        D: Meets,
    {
        let door = self.door();
        let far = self.driver.meet(door.addr);
        (self.accepted(door).0, far)
    }

    fn door(&mut self) -> Door {
        if let Some(door) = self.door {
            return door;
        }
        let (listener, addr) = self.listen();
        let accepting = self.submit(Op::Accept { listener });
        *self.door.insert(Door { addr, accepting })
    }

    fn accepted(&mut self, door: Door) -> (Sock, Option<SocketAddr>) {
        let outcome = self.outcome(door.accepting);
        let Outcome::Accepted { sock, peer } = outcome else { panic!("not accepted: {outcome:?}") };
        (sock, peer)
    }

    /// Waits for something to happen and takes note of it.
    #[track_caller]
    pub(crate) fn turn(&mut self) {
        let happened = self.wait(PATIENCE);
        assert!(happened, "nothing happened for {PATIENCE:?}; in flight: {:?}", self.flying);
    }

    /// Waits up to `time`; tells whether something happened.
    #[track_caller]
    pub(crate) fn wait(&mut self, time: Duration) -> bool {
        let until = self.driver.now() + time;
        let mut done = Vec::new();
        self.driver.wait(Some(until), &mut done).expect("the driver lives");
        assert!(
            !done.is_empty() || self.driver.now() >= until,
            "a wait without result returned early"
        );
        let happened = !done.is_empty();
        for one in done {
            self.arrive(one);
        }
        happened
    }

    /// Runs until nothing has happened for a while; tells whether something did before.
    pub(crate) fn settle(&mut self) -> bool {
        let mut happened = false;
        while self.wait(STILLNESS) {
            happened = true;
        }
        happened
    }

    #[track_caller]
    fn arrive(&mut self, done: Done) {
        if done.token == Token::DOORBELL {
            assert!(matches!(done.outcome, Outcome::Rung));
        } else if let Outcome::Accepted { sock, .. } = done.outcome {
            assert!(self.flying.contains_key(&done.token), "accepted for nobody");
            self.socks.insert(sock);
        } else {
            let known = self.flying.remove(&done.token);
            assert!(known.is_some(), "{done:?} came home twice, or was never sent");
        }
        self.home.push_back(done);
    }

    /// What came home, oldest first, and was not asked for yet.
    pub(crate) fn next_home(&mut self) -> Option<Done> {
        self.home.pop_front()
    }

    /// What came home for `token`, if anything did.
    pub(crate) fn take(&mut self, token: Token) -> Option<Outcome> {
        let place = self.home.iter().position(|done| done.token == token)?;
        self.home.remove(place).map(|done| done.outcome)
    }

    /// Waits until `token` comes home.
    #[track_caller]
    pub(crate) fn outcome(&mut self, token: Token) -> Outcome {
        loop {
            if let Some(outcome) = self.take(token) {
                return outcome;
            }
            self.turn();
        }
    }

    /// Submits and waits.
    #[track_caller]
    pub(crate) fn run(&mut self, op: Op) -> Outcome {
        let token = self.submit(op);
        self.outcome(token)
    }

    /// Runs a `Fill` that must find bytes.
    #[track_caller]
    pub(crate) fn fill(&mut self, from: Sock) -> Lease {
        match self.run(Op::Fill { from }) {
            Outcome::Filled(lease) => lease,
            other => panic!("not filled: {other:?}"),
        }
    }

    /// Whether an operation is still in flight.
    pub(crate) fn is_flying(&self, token: Token) -> bool {
        self.flying.contains_key(&token)
    }

    /// Checks that an operation waits.
    #[track_caller]
    pub(crate) fn assert_waits(&mut self, token: Token) {
        self.settle();
        assert!(self.is_flying(token), "it came home: {:?}", self.take(token));
    }

    /// Submits a close.
    #[track_caller]
    pub(crate) fn start_close(&mut self, sock: Sock, how: Ending) -> Token {
        assert!(self.socks.remove(&sock), "only an open socket is closed");
        self.submit(Op::Close { sock, how })
    }

    /// Closes, and gives what came home before, in order.
    #[track_caller]
    pub(crate) fn close(&mut self, sock: Sock, how: Ending) -> Vec<Done> {
        let token = self.start_close(sock, how);
        while self.flying.contains_key(&token) {
            self.turn();
        }
        let place = self.home.iter().position(|done| done.token == token);
        let place = place.expect("a close comes home");
        let closed = self.home.remove(place).expect("it was found there");
        assert!(matches!(closed.outcome, Outcome::Closed), "{closed:?}");
        self.home.drain(..place).collect()
    }

    /// Submits the closes of many sockets at once and waits for all; `check` sees what came home
    /// before the close of its socket.
    #[track_caller]
    pub(crate) fn close_all(
        &mut self,
        socks: impl Iterator<Item = Sock>,
        how: Ending,
        check: impl Fn(&Done),
    ) {
        let mut closing = HashSet::new();
        for sock in socks {
            closing.insert(self.start_close(sock, how));
        }
        while !closing.is_empty() {
            while let Some(done) = self.home.pop_front() {
                match done.outcome {
                    Outcome::Closed => assert!(closing.remove(&done.token)),
                    _ => check(&done),
                }
            }
            if !closing.is_empty() {
                self.turn();
            }
        }
    }

    /// Closes everything and checks the sums.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.home.clear();
        for sock in std::mem::take(&mut self.socks) {
            self.socks.insert(sock);
            self.close(sock, Ending::Reset);
        }
        self.home.clear();
        assert!(self.flying.is_empty(), "still in flight: {:?}", self.flying);
        let stats = self.driver.stats();
        assert_eq!(stats.socks_opened, stats.socks_closed, "sockets leak: {stats:?}");
        assert_eq!(stats.pipes_leased, stats.pipes_returned, "pipes leak: {stats:?}");
        assert_eq!(stats.bufs_leased, stats.bufs_returned, "buffers leak: {stats:?}");
        assert_eq!(stats.cq_overflows, 0, "{stats:?}");
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Accept { .. } => "Accept",
        Op::Connect { .. } => "Connect",
        Op::Recv { .. } => "Recv",
        Op::Send { .. } => "Send",
        Op::Watch { .. } => "Watch",
        Op::Fill { .. } => "Fill",
        Op::Drain { .. } => "Drain",
        Op::Close { .. } => "Close",
    }
}
