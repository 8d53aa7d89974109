//! The LocalServer of every measurement: one service that plays the part a connection's greeting
//! asks for.
//!
//! Front threads accept and answer whatever is about latency; bulk transfer is handed over to
//! threads of its own, so that a chunk never stands between two small messages.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use slab::Slab;

use super::bulk::{Mover, Style, Turn};
use super::crew::{Crew, Place};
use super::poller::{Batch, Poller, Ready, Wait};
use super::prepare;
use super::wire::{HELLO_SIZE, Hello, Part, REPLY_SIZE, REQUEST_SIZE};
use crate::cpus;

/// A thread looks up at least so often.
const LOOK_UP: Duration = Duration::from_secs(1);

/// Largest read of a front thread.
const READ_SIZE: usize = 64 * 1024;

/// Connections waiting to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

const LISTENER: usize = usize::MAX;
const BELL: usize = usize::MAX - 1;

/// What the service counted, by measurement.
pub(crate) struct Tally {
    received: Vec<AtomicU64>,
    open: Vec<AtomicU64>,
}

impl Tally {
    fn new() -> Self {
        let zeros = || (0..=u8::MAX).map(|_| AtomicU64::new(0)).collect();
        Self { received: zeros(), open: zeros() }
    }

    /// Payload bytes that arrived at the service in this measurement.
    pub(crate) fn received_bytes(&self, generation: u8) -> u64 {
        self.received[usize::from(generation)].load(Relaxed)
    }

    /// Starts a measurement at zero.
    pub(crate) fn reset(&self, generation: u8) {
        self.received[usize::from(generation)].store(0, Relaxed);
        self.open[usize::from(generation)].store(0, Relaxed);
    }

    /// Waits until the measurement's connections have all ended, or the time is over. Hands out how
    /// many are left.
    pub(crate) fn settle(&self, generation: u8, within: Duration) -> u64 {
        let until = Instant::now() + within;
        loop {
            let left = self.open[usize::from(generation)].load(Relaxed);
            if left == 0 || Instant::now() >= until {
                return left;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A greeted connection; counted as open while it lives.
struct Greeted {
    stream: TcpStream,
    hello: Hello,
    tally: Arc<Tally>,
}

impl Greeted {
    fn new(stream: TcpStream, hello: Hello, tally: &Arc<Tally>) -> Self {
        tally.open[usize::from(hello.generation)].fetch_add(1, Relaxed);
        Self { stream, hello, tally: Arc::clone(tally) }
    }

    fn count(&self, bytes: u64) {
        self.tally.received[usize::from(self.hello.generation)].fetch_add(bytes, Relaxed);
    }
}

impl Drop for Greeted {
    fn drop(&mut self) {
        let open = &self.tally.open[usize::from(self.hello.generation)];
        // A connection of 256 measurements ago may outlive the reset of its counter.
        let _ = open.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
    }
}

/// The running service. Its threads live as long as the process.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// What it counts.
    pub(crate) tally: Arc<Tally>,
}

impl Server {
    /// Starts it with the threads of this crew.
    pub(crate) fn start(crew: &Crew, style: Style) -> io::Result<Self> {
        let places = crew.fronts();
        let mut listeners = Vec::new();
        let mut addr = SocketAddr::from(([127, 0, 0, 1], 0));
        for place in &places {
            let listener = listen(addr, *place)?;
            addr = listener.local_addr()?;
            listeners.push(listener);
        }
        let tally = Arc::new(Tally::new());
        let mut doors = Vec::new();
        for number in 0..crew.movers() {
            let (sender, conns) = mpsc::channel();
            let (bell, ear) = UnixStream::pair()?;
            bell.set_nonblocking(true)?;
            ear.set_nonblocking(true)?;
            let bulk = Bulk::new(conns, ear, style)?;
            spawn(format!("serve-bulk-{number}"), move || bulk.run())?;
            doors.push(Door { sender, bell: Arc::new(bell) });
        }
        for ((number, place), listener) in places.into_iter().enumerate().zip(listeners) {
            let front = Front::new(listener, Arc::clone(&tally), doors.clone())?;
            spawn(format!("serve-front-{number}"), move || {
                cpus::settle(place)?;
                front.run()
            })?;
        }
        Ok(Self { addr, tally })
    }
}

/// A listener of one front thread, which prefers what arrives on its CPU.
fn listen(at: SocketAddr, place: Place) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    // What it accepts has that too.
    prepare(&socket)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    if let Some(cpu) = place.and_then(|cpu| u32::try_from(cpu).ok()) {
        sockopt::set_socket_incoming_cpu(&socket, cpu)?;
    }
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn spawn(name: String, body: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(why) = body() {
            eprintln!("zproxy-bench: thread {name} failed: {why}");
            std::process::exit(1);
        }
    })?;
    Ok(())
}

/// The way to a bulk thread.
#[derive(Clone)]
struct Door {
    sender: Sender<Greeted>,
    bell: Arc<UnixStream>,
}

impl Door {
    fn hand_over(&self, conn: Greeted) {
        if self.sender.send(conn).is_ok() {
            // A full bell rings already.
            let _ = (&*self.bell).write(&[1]);
        }
    }
}

enum State {
    Greeting { bytes: [u8; HELLO_SIZE], stream: TcpStream, len: usize },
    Echo { conn: Greeted, backlog: Vec<u8>, sent: usize },
    Request { conn: Greeted, len: usize },
    Hold { conn: Greeted },
}

/// What to do with a connection after an event.
enum Next {
    Keep(State, Wait),
    Bulk(Greeted),
    Close,
}

/// Accepts, greets, echoes and answers.
struct Front {
    poller: Poller,
    listener: TcpListener,
    tally: Arc<Tally>,
    doors: Vec<Door>,
    door_next: usize,
    /// Each with what its socket waits for now.
    conns: Slab<Option<(State, Wait)>>,
    buffer: Vec<u8>,
}

impl Front {
    fn new(listener: TcpListener, tally: Arc<Tally>, doors: Vec<Door>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, Wait::Accept)?;
        let buffer = vec![0; READ_SIZE];
        Ok(Self { poller, listener, tally, doors, door_next: 0, conns: Slab::new(), buffer })
    }

    fn run(mut self) -> io::Result<()> {
        let mut ready = Batch::new();
        loop {
            self.poller.wait(LOOK_UP, &mut ready)?;
            for event in ready.iter() {
                if event.token == LISTENER {
                    self.accept()?;
                } else {
                    self.turn(event)?;
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        // Bounded, so that a flood of connections leaves room for those that are there.
        for _ in 0..64 {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let stream = match accept_with(&self.listener, flags) {
                Ok(stream) => TcpStream::from(stream),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED) => continue,
                Err(why) => return Err(why.into()),
            };
            let state = State::Greeting { bytes: [0; HELLO_SIZE], stream, len: 0 };
            let token = self.conns.insert(None);
            // The greeting is often there already.
            match self.read(state) {
                Next::Keep(state, wait) => {
                    self.poller.add(state.stream(), token, wait)?;
                    self.conns[token] = Some((state, wait));
                }
                Next::Bulk(conn) => {
                    self.conns.remove(token);
                    self.hand_over(conn);
                }
                Next::Close => {
                    self.conns.remove(token);
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, event: Ready) -> io::Result<()> {
        let Some((state, waited)) = self.conns.get_mut(event.token).and_then(Option::take) else {
            return Ok(());
        };
        let next = match state {
            State::Echo { conn, backlog, sent } if !backlog.is_empty() => {
                echo_on(conn, backlog, sent)
            }
            state => self.read(state),
        };
        match next {
            Next::Keep(state, wait) => {
                if wait != waited {
                    self.poller.change(state.stream(), event.token, wait)?;
                }
                self.conns[event.token] = Some((state, wait));
            }
            Next::Bulk(conn) => {
                self.conns.remove(event.token);
                // The socket moves to another epoll instance, so it has to leave this one: it is
                // not closed here.
                self.poller.remove(&conn.stream)?;
                self.hand_over(conn);
            }
            Next::Close => {
                self.conns.remove(event.token);
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, conn: Greeted) {
        self.door_next = (self.door_next + 1) % self.doors.len();
        self.doors[self.door_next].hand_over(conn);
    }

    fn read(&mut self, state: State) -> Next {
        let len = match state.stream().read(&mut self.buffer) {
            Ok(0) => return Next::Close,
            Ok(len) => len,
            Err(why) if is_retry(&why) => return Next::Keep(state, Wait::Read),
            Err(_) => return Next::Close,
        };
        let (state, rest) = match state {
            State::Greeting { mut bytes, stream, len: had } => {
                let taken = len.min(HELLO_SIZE - had);
                bytes[had..had + taken].copy_from_slice(&self.buffer[..taken]);
                if had + taken < HELLO_SIZE {
                    let state = State::Greeting { bytes, stream, len: had + taken };
                    return Next::Keep(state, Wait::Read);
                }
                let Some(hello) = Hello::decode(bytes) else { return Next::Close };
                match greet(Greeted::new(stream, hello, &self.tally)) {
                    Next::Keep(state, _) => (state, taken..len),
                    Next::Bulk(conn) => {
                        conn.count((len - taken) as u64);
                        return Next::Bulk(conn);
                    }
                    Next::Close => return Next::Close,
                }
            }
            state => (state, 0..len),
        };
        let rest = &self.buffer[rest];
        match state {
            State::Echo { conn, .. } => echo(conn, rest),
            State::Request { conn, len } => answer(conn, len + rest.len()),
            state => Next::Keep(state, Wait::Read),
        }
    }
}

impl State {
    fn stream(&self) -> &TcpStream {
        match self {
            Self::Greeting { stream, .. } => stream,
            Self::Echo { conn, .. } | Self::Request { conn, .. } | Self::Hold { conn } => {
                &conn.stream
            }
        }
    }
}

fn is_retry(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn greet(conn: Greeted) -> Next {
    match conn.hello.part {
        Part::Echo => Next::Keep(State::Echo { conn, backlog: Vec::new(), sent: 0 }, Wait::Read),
        Part::Answer => Next::Keep(State::Request { conn, len: HELLO_SIZE }, Wait::Read),
        Part::Hold => match confirm(&conn) {
            true => Next::Keep(State::Hold { conn }, Wait::Read),
            false => Next::Close,
        },
        Part::Sink => match confirm(&conn) {
            true => Next::Bulk(conn),
            false => Next::Close,
        },
        Part::Source | Part::Both => Next::Bulk(conn),
    }
}

/// One byte into the empty buffer of a new socket always fits.
fn confirm(conn: &Greeted) -> bool {
    matches!((&conn.stream).write(b"+"), Ok(1))
}

fn echo(conn: Greeted, bytes: &[u8]) -> Next {
    if bytes.is_empty() {
        return Next::Keep(State::Echo { conn, backlog: Vec::new(), sent: 0 }, Wait::Read);
    }
    match (&conn.stream).write(bytes) {
        Ok(sent) if sent == bytes.len() => {
            Next::Keep(State::Echo { conn, backlog: Vec::new(), sent: 0 }, Wait::Read)
        }
        Ok(sent) => {
            let backlog = bytes[sent..].to_vec();
            Next::Keep(State::Echo { conn, backlog, sent: 0 }, Wait::Write)
        }
        Err(why) if is_retry(&why) => {
            Next::Keep(State::Echo { conn, backlog: bytes.to_vec(), sent: 0 }, Wait::Write)
        }
        Err(_) => Next::Close,
    }
}

fn echo_on(conn: Greeted, backlog: Vec<u8>, sent: usize) -> Next {
    match (&conn.stream).write(&backlog[sent..]) {
        Ok(more) if sent + more == backlog.len() => {
            Next::Keep(State::Echo { conn, backlog: Vec::new(), sent: 0 }, Wait::Read)
        }
        Ok(more) => Next::Keep(State::Echo { conn, backlog, sent: sent + more }, Wait::Write),
        Err(why) if is_retry(&why) => Next::Keep(State::Echo { conn, backlog, sent }, Wait::Write),
        Err(_) => Next::Close,
    }
}

fn answer(conn: Greeted, len: usize) -> Next {
    if len < REQUEST_SIZE {
        return Next::Keep(State::Request { conn, len }, Wait::Read);
    }
    // The reply fits the empty buffer of the socket; closing sends it and then the FIN.
    let _ = (&conn.stream).write(&[b'r'; REPLY_SIZE]);
    Next::Close
}

/// Moves bulk.
struct Bulk {
    poller: Poller,
    arrivals: Receiver<Greeted>,
    ear: UnixStream,
    conns: Slab<Greeted>,
    mover: Mover,
}

impl Bulk {
    fn new(arrivals: Receiver<Greeted>, ear: UnixStream, style: Style) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&ear, BELL, Wait::Read)?;
        Ok(Self { poller, arrivals, ear, conns: Slab::new(), mover: Mover::new(style)? })
    }

    fn run(mut self) -> io::Result<()> {
        let mut ready = Batch::new();
        loop {
            self.poller.wait(LOOK_UP, &mut ready)?;
            for event in ready.iter() {
                if event.token == BELL {
                    self.welcome()?;
                } else {
                    self.turn(event);
                }
            }
        }
    }

    fn welcome(&mut self) -> io::Result<()> {
        while matches!(self.ear.read(&mut [0; 64]), Ok(len) if len > 0) {}
        while let Ok(conn) = self.arrivals.try_recv() {
            let wait = match conn.hello.part {
                Part::Source => Wait::Write,
                Part::Both => Wait::Both,
                _ => Wait::Read,
            };
            let slot = self.conns.vacant_entry();
            self.poller.add(&conn.stream, slot.key(), wait)?;
            slot.insert(conn);
        }
        Ok(())
    }

    fn turn(&mut self, event: Ready) {
        let Some(conn) = self.conns.get(event.token) else { return };
        let mut has_ended = false;
        if event.is_readable && conn.hello.part != Part::Source {
            let turn = self.mover.pull(&conn.stream);
            let (Turn::Moved(bytes) | Turn::Ended(bytes)) = turn;
            conn.count(bytes);
            has_ended |= matches!(turn, Turn::Ended(_));
        }
        if event.is_writable && conn.hello.part != Part::Sink {
            has_ended |= matches!(self.mover.push(&conn.stream), Turn::Ended(_));
        }
        if has_ended {
            self.conns.remove(event.token);
        }
    }
}
