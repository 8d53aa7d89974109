//! The control core beside data cores that take no letter.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zproxy_io::{Doorbell, DriverConfig, Epoll, Fault, ListenOptions, Stats};
use zproxy_proto::auth::Nonce;
use zproxy_proto::control::{ClientConfig, ClientEvent, ClientSession};
use zproxy_proto::id::ClientId;
use zproxy_proto::limits::LETTERS_MAX;
use zproxy_proto::registry::PortPolicy;
use zproxy_proto::wire::{CloseTunnel, Frame, Name as TunnelName, OpenTunnel};

use super::*;
use crate::listeners;

const TOKEN: &str = "a-token-for-the-tests";

fn epoll() -> Epoll {
    Epoll::new(&DriverConfig::default()).unwrap()
}

/// A control core with one data core that does nothing by itself.
fn control<D: Driver>(driver: D) -> (Control<D>, Mailbox<Tell<D>>, Epoll, SocketAddr) {
    let other = epoll();
    let worker = Mailbox::new(other.doorbell());
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (ctl_listener, ctl_at) = listeners::own::<D>(any, "ctl").unwrap();
    let (proxy_listener, proxy_at) = listeners::own::<D>(any, "proxy").unwrap();
    let policy = PortPolicy { range: None, excluded: Vec::new(), lowest: 1024 };
    let control = Control::new(Parts {
        mailbox: Mailbox::new(driver.doorbell()),
        driver,
        workers: vec![worker.sender()],
        ctl_listener,
        proxy_listener,
        proxy_port: proxy_at.port(),
        public_bind: Ipv4Addr::LOCALHOST.into(),
        registry: Registry::new(policy),
        token: Token::parse(TOKEN).unwrap(),
        server_id: ServerId::from_random([1; 16]),
        heartbeat: Heartbeat::default(),
        drain_timeout: Duration::ZERO,
        grace: Duration::ZERO,
        random: Random::Kernel,
    });
    (control, worker, other, ctl_at)
}

/// Logs a client in by hand.
fn client<D: Driver>(control: &mut Control<D>, at: SocketAddr) -> TcpStream {
    let mut conn = TcpStream::connect(at).unwrap();
    conn.set_nonblocking(true).unwrap();
    let config = ClientConfig {
        token: Token::parse(TOKEN).unwrap(),
        client_id: ClientId::from_random([2; 16]),
        name: TunnelName::lossy("flood"),
        nonce: Nonce([3; 32]),
        resume: None,
        data_cores: 1,
    };
    let mut session = ClientSession::new(config, Duration::ZERO);
    for _ in 0..100 {
        if let Some(bytes) = session.poll_transmit() {
            conn.write_all(&bytes).unwrap();
        }
        control.turn().unwrap();
        let mut bytes = [0; 4096];
        if let Ok(count) = conn.read(&mut bytes) {
            session.handle_bytes(&bytes[..count], Duration::ZERO);
        }
        if matches!(session.poll_event(), Some(ClientEvent::Welcomed(_))) {
            return conn;
        }
    }
    panic!("not welcomed");
}

/// What opens and closes tunnels that will get these numbers.
fn open_and_close(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut words = Vec::new();
    for number in numbers {
        let name = TunnelName::lossy("again");
        let wish = OpenTunnel { name, public_port: 0, last_port: None };
        words.extend(Frame::OpenTunnel(wish).encode());
        words.extend(Frame::CloseTunnel(CloseTunnel { tunnel: TunnelId(number) }).encode());
    }
    words
}

/// A client that opens and closes tunnels as fast as it can, beside a data core that takes nothing:
/// the letters for it stop growing, the client is held back by TCP, and it is read again when the
/// data core takes them.
#[test]
fn letters_that_nobody_takes_are_bounded() {
    // A letter about a new tunnel has a listener in it.
    zproxy_io::sys::raise_descriptor_limit();
    let (mut control, worker, _other, at) = control(epoll());
    let mut conn = client(&mut control, at);
    let letters = worker.sender();
    let begun = Instant::now();
    let (mut words, mut said) = (Vec::new(), 0);
    // Ids of tunnels are counted up from 1.
    let mut numbers = 1..;
    let mut held_turns = 0;
    // Held back for so many turns in a row, it is not read any more.
    while held_turns < 200 {
        if said == words.len() {
            (words, said) = (open_and_close(numbers.by_ref().take(200)), 0);
        }
        match conn.write(&words[said..]) {
            Ok(count) => said += count,
            Err(why) => assert_eq!(why.kind(), ErrorKind::WouldBlock),
        }
        control.turn().unwrap();
        held_turns = if control.held.is_empty() { 0 } else { held_turns + 1 };
        // What one read may cause comes on top.
        assert!(letters.waiting() < LETTERS_MAX + RECV_MAX / 16, "{}", letters.waiting());
        assert!(begun.elapsed() < Duration::from_secs(60), "never held back");
        let mut answers = [0; 4096];
        let _ = conn.read(&mut answers);
    }
    assert!(letters.waiting() >= LETTERS_MAX);
    let mut taken = Vec::new();
    worker.take(&mut taken);
    drop(taken);
    control.turn().unwrap();
    assert!(control.held.is_empty(), "it is read again");
}

/// A driver that watches in which order letters and frames leave.
struct Watched {
    epoll: Epoll,
    letters: Option<Sender<Tell<Self>>>,
    /// Letters that had left when the last frame of this turn did.
    at_send: Option<usize>,
    frames_behind_letters: usize,
}

impl Watched {
    fn letters(&self) -> usize {
        self.letters.as_ref().map_or(0, Sender::waiting)
    }
}

impl Driver for Watched {
    type Handle = <Epoll as Driver>::Handle;

    const NAME: &'static str = Epoll::NAME;

    fn now(&self) -> Duration {
        self.epoll.now()
    }

    fn doorbell(&self) -> Doorbell {
        self.epoll.doorbell()
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(Self::Handle, SocketAddr)> {
        Epoll::listen(at, options)
    }

    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault> {
        self.epoll.socket(to)
    }

    fn adopt(&mut self, handle: Self::Handle) -> Sock {
        self.epoll.adopt(handle)
    }

    fn release(&mut self, sock: Sock) -> Self::Handle {
        self.epoll.release(sock)
    }

    fn shutdown_write(&mut self, sock: Sock) {
        self.epoll.shutdown_write(sock);
    }

    fn recall_accept(&mut self, listener: Sock) {
        self.epoll.recall_accept(listener);
    }

    fn submit(&mut self, token: OpToken, op: Op) {
        if let Op::Send { .. } = op {
            let letters = self.letters();
            self.at_send = Some(letters);
            self.frames_behind_letters += usize::from(letters > 0);
        }
        self.epoll.submit(token, op);
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        if let Some(at_send) = self.at_send.take() {
            assert_eq!(self.letters(), at_send, "a letter left behind the frame of its turn");
        }
        self.epoll.wait(until, done)
    }

    fn stats(&self) -> Stats {
        self.epoll.stats()
    }
}

/// What a client is told, it and its visitors act on at once; so what the data cores have to know for
/// that is in their boxes before.
#[test]
fn letters_leave_before_frames() {
    let driver = Watched { epoll: epoll(), letters: None, at_send: None, frames_behind_letters: 0 };
    let (mut control, worker, _other, at) = control(driver);
    control.driver.letters = Some(worker.sender());
    client(&mut control, at);
    assert!(control.driver.frames_behind_letters > 0, "the data core is told of a client");
}
