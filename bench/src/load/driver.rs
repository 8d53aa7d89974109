//! One thread of clients: an event loop over its connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::bulk::{Mover, Turn};
use super::client::{Phase, Role, Seen, Shared};
use super::poller::{Batch, Poller, Ready, Wait};
use super::prepare;
use super::wire::{Hello, REPLY_SIZE, REQUEST_SIZE};

/// Connections on their way at a time, so that no listener's backlog is ever full.
const CONNECTING_MAX: usize = 64;

/// A thread looks at the stage at least so often.
const LOOK_UP: Duration = Duration::from_millis(5);

/// Largest read of a small message.
const READ_SIZE: usize = 64 * 1024;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The greeting has not been sent.
    Connecting,
    /// Greeted; not a byte has come back.
    Waiting,
    /// A byte has made the whole way there and back.
    Running,
}

struct Conn {
    stream: TcpStream,
    state: State,
    wait: Wait,
    /// Of the current message: bytes sent and received, and when it began.
    sent: usize,
    received: usize,
    began: Instant,
    began_in: Phase,
    /// Of a slow reader: not before then.
    sip_at: Instant,
}

/// How a turn of a connection ended.
enum Fate {
    Goes,
    /// The answer is complete.
    Done,
    Broken(String),
}

/// The thread.
pub(super) struct Driver {
    shared: Arc<Shared>,
    /// The numbers of its connections among all of the group; the number picks the target.
    numbers: Vec<usize>,
    /// Whose connection has carried a byte once. A client that asks opens its slot again and again.
    were_ready: Vec<bool>,
    poller: Poller,
    conns: Vec<Option<Conn>>,
    opened: usize,
    ready: usize,
    mover: Mover,
    message: Vec<u8>,
    buffer: Vec<u8>,
    seen: Seen,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, numbers: Vec<usize>) -> io::Result<Self> {
        let size = match shared.role {
            Role::Echo { size } => size,
            _ => REQUEST_SIZE,
        };
        let mover = Mover::new(shared.style)?;
        Ok(Self {
            shared,
            conns: numbers.iter().map(|_| None).collect(),
            were_ready: vec![false; numbers.len()],
            numbers,
            poller: Poller::new()?,
            opened: 0,
            ready: 0,
            mover,
            message: (0..size).map(|at| (at % 253) as u8).collect(),
            buffer: vec![0; READ_SIZE],
            seen: Seen { latencies_ns: Vec::with_capacity(1 << 16), ..Seen::default() },
        })
    }

    pub(super) fn run(mut self) -> io::Result<Seen> {
        let mut events = Batch::new();
        while self.shared.stage.phase() != Phase::Over {
            while self.opened < self.conns.len() && self.opened - self.ready < CONNECTING_MAX {
                self.open(self.opened);
                self.opened += 1;
            }
            self.poller.wait(LOOK_UP, &mut events)?;
            for event in events.iter() {
                self.turn(event);
            }
            if let Role::Sip { size, pause } = self.shared.role {
                self.sip_all(size, pause);
            }
        }
        Ok(self.seen)
    }

    fn open(&mut self, slot: usize) {
        let targets = &self.shared.targets;
        match self.connect(slot, targets[self.numbers[slot] % targets.len()]) {
            Ok(conn) => self.conns[slot] = Some(conn),
            Err(why) => self.shared.stage.fail(format!("connect: {why}")),
        }
    }

    /// Connects, and greets at once if it can.
    fn connect(&self, slot: usize, target: SocketAddr) -> io::Result<Conn> {
        let began = Instant::now();
        let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), None)?;
        prepare(&socket)?;
        let is_connected = connect(&socket, target)?;
        let mut conn = Conn {
            stream: TcpStream::from(socket),
            state: State::Connecting,
            wait: Wait::Write,
            sent: 0,
            received: 0,
            began,
            began_in: self.shared.stage.phase(),
            sip_at: began,
        };
        // What is broken already is told by the first event.
        if is_connected && !matches!(self.greet(&mut conn), Fate::Broken(_)) {
            conn.wait = self.wanted(&conn);
        }
        self.poller.add(&conn.stream, slot, conn.wait)?;
        Ok(conn)
    }

    fn turn(&mut self, event: Ready) {
        let Some(mut conn) = self.conns.get_mut(event.token).and_then(Option::take) else { return };
        let was_running = conn.state == State::Running;
        let fate = match conn.state {
            State::Connecting => self.greet(&mut conn),
            State::Waiting | State::Running => self.advance(&mut conn, event),
        };
        if !was_running && (conn.state == State::Running || matches!(fate, Fate::Done)) {
            self.count_ready(event.token);
        }
        match fate {
            Fate::Goes => {
                let wait = self.wanted(&conn);
                if wait != conn.wait {
                    if let Err(why) = self.poller.change(&conn.stream, event.token, wait) {
                        self.shared.stage.fail(format!("epoll: {why}"));
                    }
                    conn.wait = wait;
                }
                self.conns[event.token] = Some(conn);
            }
            Fate::Done => {
                drop(conn);
                self.open(event.token);
            }
            Fate::Broken(why) if self.shared.role == Role::Ask => {
                drop(conn);
                if self.shared.stage.phase() == Phase::Window {
                    self.seen.errors += 1;
                }
                // A connection that never worked is a failure, one that fails among thousands a
                // count.
                if self.ready < self.conns.len() {
                    self.shared.stage.fail(why);
                } else {
                    self.open(event.token);
                }
            }
            Fate::Broken(why) => self.shared.stage.fail(why),
        }
    }

    fn count_ready(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.were_ready[slot], true) {
            self.ready += 1;
            self.shared.stage.ready.fetch_add(1, Relaxed);
        }
    }

    fn greet(&self, conn: &mut Conn) -> Fate {
        if let Ok(Some(why)) = conn.stream.take_error() {
            return Fate::Broken(format!("connect: {why}"));
        }
        let hello =
            Hello { part: self.shared.role.part(), generation: self.shared.generation }.encode();
        let mut bytes = [0; REQUEST_SIZE];
        bytes[..hello.len()].copy_from_slice(&hello);
        let len = if self.shared.role == Role::Ask { REQUEST_SIZE } else { hello.len() };
        // The empty buffer of a new socket takes this much.
        match conn.stream.write(&bytes[..len]) {
            Ok(sent) if sent == len => {}
            Ok(_) => return Fate::Broken("the greeting was cut".to_owned()),
            Err(why) if why.kind() == ErrorKind::WouldBlock => return Fate::Goes,
            Err(why) => return Fate::Broken(format!("greeting: {why}")),
        }
        conn.state = State::Waiting;
        match self.shared.role {
            Role::Echo { .. } => self.send_message(conn),
            _ => Fate::Goes,
        }
    }

    fn advance(&mut self, conn: &mut Conn, event: Ready) -> Fate {
        match self.shared.role {
            Role::Push | Role::Hold if event.is_readable => confirmed(conn),
            Role::Push => match self.mover.push(&conn.stream) {
                Turn::Moved(_) => Fate::Goes,
                Turn::Ended(_) => ended(),
            },
            Role::Pull => self.pull(conn),
            Role::Both => {
                if event.is_readable
                    && let fate @ Fate::Broken(_) = self.pull(conn)
                {
                    return fate;
                }
                if event.is_writable
                    && conn.state == State::Running
                    && let Turn::Ended(_) = self.mover.push(&conn.stream)
                {
                    return ended();
                }
                Fate::Goes
            }
            Role::Echo { .. } if event.is_readable => self.take_echo(conn),
            Role::Echo { .. } => self.send_message(conn),
            Role::Ask => self.take_answer(conn),
            Role::Hold => Fate::Goes,
            Role::Sip { size, .. } => self.sip(conn, size),
        }
    }

    fn wanted(&self, conn: &Conn) -> Wait {
        match (conn.state, self.shared.role) {
            (State::Connecting, _) => Wait::Write,
            (State::Running, Role::Push | Role::Both) => Wait::Both,
            (State::Running, Role::Sip { .. }) => Wait::Nothing,
            (_, Role::Echo { size }) if conn.sent < size => Wait::Both,
            _ => Wait::Read,
        }
    }

    fn pull(&mut self, conn: &mut Conn) -> Fate {
        match self.mover.pull(&conn.stream) {
            Turn::Moved(0) => Fate::Goes,
            Turn::Moved(bytes) => {
                conn.state = State::Running;
                self.shared.pulled.fetch_add(bytes, Relaxed);
                Fate::Goes
            }
            Turn::Ended(_) => ended(),
        }
    }

    fn send_message(&self, conn: &mut Conn) -> Fate {
        if conn.sent == 0 {
            conn.began = Instant::now();
            conn.began_in = self.shared.stage.phase();
        }
        match conn.stream.write(&self.message[conn.sent..]) {
            Ok(sent) => {
                conn.sent += sent;
                Fate::Goes
            }
            Err(why) if is_retry(&why) => Fate::Goes,
            Err(why) => Fate::Broken(format!("write: {why}")),
        }
    }

    fn take_echo(&mut self, conn: &mut Conn) -> Fate {
        let size = self.message.len();
        match conn.stream.read(&mut self.buffer) {
            Ok(0) => return ended(),
            Ok(len) => conn.received += len,
            Err(why) if is_retry(&why) => return Fate::Goes,
            Err(why) => return Fate::Broken(format!("read: {why}")),
        }
        if conn.received > size {
            return Fate::Broken("more came back than was sent".to_owned());
        }
        if conn.received == size {
            self.finish(conn);
            conn.state = State::Running;
            (conn.sent, conn.received) = (0, 0);
            return self.send_message(conn);
        }
        Fate::Goes
    }

    fn take_answer(&mut self, conn: &mut Conn) -> Fate {
        match conn.stream.read(&mut self.buffer) {
            Ok(0) if conn.received == REPLY_SIZE => {
                self.finish(conn);
                Fate::Done
            }
            Ok(0) => Fate::Broken("an answer ended early".to_owned()),
            Ok(len) => {
                conn.received += len;
                Fate::Goes
            }
            Err(why) if is_retry(&why) => Fate::Goes,
            Err(why) => Fate::Broken(format!("read: {why}")),
        }
    }

    fn finish(&mut self, conn: &Conn) {
        if self.shared.stage.phase() == Phase::Window {
            self.seen.operations += 1;
            if conn.began_in == Phase::Window {
                let lasted = conn.began.elapsed().as_nanos();
                self.seen.latencies_ns.push(u64::try_from(lasted).unwrap_or(u64::MAX));
            }
        }
    }

    fn sip(&mut self, conn: &mut Conn, size: usize) -> Fate {
        match conn.stream.read(&mut self.buffer[..size.min(READ_SIZE)]) {
            Ok(0) => ended(),
            Ok(len) => {
                conn.state = State::Running;
                self.shared.pulled.fetch_add(len as u64, Relaxed);
                Fate::Goes
            }
            Err(why) if is_retry(&why) => Fate::Goes,
            Err(why) => Fate::Broken(format!("read: {why}")),
        }
    }

    fn sip_all(&mut self, size: usize, pause: Duration) {
        let now = Instant::now();
        for slot in 0..self.conns.len() {
            let Some(mut conn) = self.conns[slot].take() else { continue };
            if conn.state == State::Running && conn.sip_at <= now {
                conn.sip_at = now + pause;
                if let Fate::Broken(why) = self.sip(&mut conn, size) {
                    self.shared.stage.fail(why);
                }
            }
            self.conns[slot] = Some(conn);
        }
    }
}

/// Tells whether it is connected already; otherwise it is under way. On loopback a connect is over when
/// it returns, and knows it when it is asked again.
fn connect(socket: &Socket, target: SocketAddr) -> io::Result<bool> {
    use rustix::io::Errno;
    for _ in 0..2 {
        match socket.connect(&target.into()) {
            Ok(()) => return Ok(true),
            Err(why) => match Errno::from_io_error(&why) {
                Some(Errno::INPROGRESS | Errno::ALREADY) => {}
                _ => return Err(why),
            },
        }
    }
    Ok(false)
}

fn confirmed(conn: &mut Conn) -> Fate {
    match conn.stream.read(&mut [0; 16]) {
        Ok(1) if conn.state == State::Waiting => {
            conn.state = State::Running;
            Fate::Goes
        }
        Ok(0) => ended(),
        Ok(_) => Fate::Broken("unexpected bytes".to_owned()),
        Err(why) if is_retry(&why) => Fate::Goes,
        Err(why) => Fate::Broken(format!("read: {why}")),
    }
}

fn ended() -> Fate {
    Fate::Broken("a connection ended that should go on".to_owned())
}

fn is_retry(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
