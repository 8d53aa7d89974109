//! A gateway in the hands of a test: it does nothing by itself and says only what it is told to.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tempfile::TempDir;
use zproxy_io::{DriverConfig, Open, Uring};
use zproxy_proto::auth::{self, Nonce, Ticket, Token};
use zproxy_proto::control::{GatewayConfig, GatewayEvent, GatewaySession, Heartbeat, Session};
use zproxy_proto::id::{CtlId, FlowId, ProxyId, ServerId, TunnelId};
use zproxy_proto::lane::{self, Notice};
use zproxy_proto::limits::PROXY_OPENING_SIZE;
use zproxy_proto::proxy_conn::Role;
use zproxy_proto::wire::{self, Attached, OpenProxy, Start, TunnelOpen};

/// Nothing here takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a token for tests";
/// The only tunnel.
pub(crate) const TUNNEL: TunnelId = TunnelId(7);

/// Runs a test on every backend that this machine offers.
pub(crate) fn on_every_backend(test: impl Fn(&'static str)) {
    test("epoll");
    match Uring::open(&DriverConfig::default()) {
        Ok(_) => test("uring"),
        Err(why) => eprintln!("not on uring: {why}"),
    }
}

/// A running client and the gateway that it dials.
pub(crate) struct World {
    pub(crate) client: Child,
    /// Lines of its stdout.
    pub(crate) lines: Receiver<String>,
    /// Lines of its stderr, and those that were taken from there.
    log_lines: Receiver<String>,
    logged: RefCell<String>,
    _dir: TempDir,
    ctl_listener: TcpListener,
    proxy_listener: TcpListener,
    lane: Option<Lane>,
    sessions: u8,
}

impl World {
    /// Starts a client with one tunnel to `local`.
    pub(crate) fn start(backend: &str, local: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ctl_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = ctl_listener.local_addr().unwrap();
        let mut client = start_client(backend, dir.path(), server, local);
        let lines = lines_of(client.stdout.take().unwrap());
        let log_lines = lines_of(client.stderr.take().unwrap());
        Self {
            client,
            lines,
            log_lines,
            logged: RefCell::default(),
            _dir: dir,
            ctl_listener,
            proxy_listener,
            lane: None,
            sessions: 0,
        }
    }

    /// The next line on stdout.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line on stdout")
    }

    /// Everything that it has logged, once it has ended.
    fn log(&self) -> String {
        while self.take_log_line(PATIENCE) {}
        self.logged.borrow().clone()
    }

    /// Waits for a line of its log; false when there is none in time, or none any more.
    fn take_log_line(&self, within: Duration) -> bool {
        let Ok(line) = self.log_lines.recv_timeout(within) else { return false };
        let mut logged = self.logged.borrow_mut();
        logged.push_str(&line);
        logged.push('\n');
        true
    }

    /// Waits until it has logged this.
    pub(crate) fn await_log(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.logged.borrow().contains(text) {
            let is_more = self.take_log_line(until.saturating_duration_since(Instant::now()));
            assert!(is_more, "it never logged {text:?}");
        }
    }

    /// Waits for a ctl_conn and shakes hands.
    pub(crate) fn accept(&mut self) -> Ctl {
        self.sessions += 1;
        let stream = accept(&self.ctl_listener);
        let config = GatewayConfig {
            token: Token::parse(TOKEN).unwrap(),
            server_id: ServerId::from_random([1; 16]),
            nonce: Nonce([self.sessions; 32]),
            data_cores: 1,
            heartbeat: Heartbeat::default(),
        };
        let (began, session) = (Instant::now(), GatewaySession::new(config, Duration::ZERO));
        let mut ctl = Ctl {
            stream,
            session,
            began,
            ctl_id: CtlId([self.sessions; 16]),
            proxy_port: self.proxy_listener.local_addr().unwrap().port(),
            resume: None,
            epoch: u64::from(self.sessions),
        };
        ctl.resume = ctl.until(|event| match event {
            GatewayEvent::Authenticated(hello) => Some(hello.resume),
            _ => None,
        });
        ctl
    }

    /// Waits for a ctl_conn, welcomes the client and opens its tunnel.
    pub(crate) fn serve(&mut self) -> Ctl {
        let mut ctl = self.accept();
        let resumed = ctl.resume.is_some();
        ctl.welcome(resumed);
        ctl.open_tunnel("127.0.0.1:2000".parse().unwrap());
        ctl
    }

    /// Asks for a proxy_conn and waits until it has said who it is.
    pub(crate) fn proxy(&mut self, ctl: &mut Ctl) -> Proxy {
        ctl.session.open_proxy(OpenProxy { core: 0, count: 1 });
        ctl.flush();
        loop {
            if let Some(proxy) = self.attach(ctl) {
                return proxy;
            }
        }
    }

    /// Waits until another lane, or the first, is there.
    pub(crate) fn next_lane(&mut self, ctl: &Ctl) {
        assert!(self.attach(ctl).is_none(), "a proxy_conn that nobody has asked for");
    }

    /// Drops the lane.
    pub(crate) fn cut_lane(&mut self) {
        self.lane = None;
    }

    /// Waits for somebody on the proxy port who says who he is: a proxy_conn, or the lane.
    fn attach(&mut self, ctl: &Ctl) -> Option<Proxy> {
        let mut stream = accept(&self.proxy_listener);
        let mut opening = [0; PROXY_OPENING_SIZE];
        stream.read_exact(&mut opening).unwrap();
        let attach = wire::decode_proxy_opening(&opening).unwrap().unwrap();
        assert_eq!((attach.ctl_id, attach.proxy.gateway_core()), (ctl.ctl_id, 0));
        assert!(auth::verify_attach_mac(ctl.session.session_key().unwrap(), &attach));
        match attach.what {
            Attached::Conn => Some(Proxy { stream, id: attach.proxy }),
            Attached::Lane => {
                assert!(self.lane.is_none(), "a second lane between the same data cores");
                let machine = lane::Lane::new(Role::Gateway, attach.proxy);
                self.lane = Some(Lane { stream, machine });
                None
            }
        }
    }

    /// Tells the client something of a flow.
    pub(crate) fn tell(&mut self, notice: Notice) {
        let lane = self.lane.as_mut().expect("a lane");
        lane.machine.push(notice);
        lane.stream.write_all(&lane.machine.take_outgoing(Vec::new())).unwrap();
    }

    /// Waits for what the client tells next of a flow.
    pub(crate) fn notice(&mut self) -> Notice {
        let lane = self.lane.as_mut().expect("a lane");
        let mut bytes = [0; 256];
        loop {
            if let Some(notice) = lane.machine.next_notice().expect("a client keeps the protocol") {
                return notice;
            }
            let count = lane.stream.read(&mut bytes).expect("the client says something");
            assert!(count > 0, "the client has closed the lane");
            lane.machine.handle_bytes(&bytes[..count]);
        }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.client.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Waits for the client's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let pid = self.client.id();
        let (ended, watch) = mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let is_late = watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
            if is_late {
                let command = format!("kill -KILL {pid}");
                let _ = Command::new("sh").args(["-c", &command]).status();
            }
            is_late
        });
        let status = self.client.wait().unwrap();
        drop(ended);
        assert!(!watchdog.join().unwrap(), "the client does not end:\n{}", self.log());
        status
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        if std::thread::panicking() {
            eprintln!("the client said:\n{}", self.log());
        }
    }
}

/// The lines of a stream, as they come.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    lines
}

fn start_client(backend: &str, dir: &Path, server: SocketAddr, local: SocketAddr) -> Child {
    Command::new(env!("CARGO_BIN_EXE_zproxy"))
        .args(["--server", &server.to_string(), "--local", &local.to_string(), "--name", "web"])
        .args(["--backend", backend, "--work_thread_nums=1", "--log-level", "trace"])
        .args(["--connect-timeout", "10", "--state-dir"])
        .arg(dir.join("state"))
        .env("ZPROXY_TOKEN", TOKEN)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A ctl_conn.
pub(crate) struct Ctl {
    stream: TcpStream,
    pub(crate) session: GatewaySession,
    began: Instant,
    ctl_id: CtlId,
    proxy_port: u16,
    epoch: u64,
    /// The ticket that the client came with.
    pub(crate) resume: Option<Ticket>,
}

impl Ctl {
    pub(crate) fn welcome(&mut self, resumed: bool) {
        let welcome = Session {
            ctl_id: self.ctl_id,
            epoch: self.epoch,
            proxy_port: self.proxy_port,
            resumed,
            ticket: Ticket([9; 32]),
            tunnels_max: 10,
        };
        self.session.welcome(welcome, self.began.elapsed());
        self.flush();
    }

    /// Waits for the client to ask and says yes.
    pub(crate) fn open_tunnel(&mut self, public: SocketAddr) {
        let name = self.until(|event| match event {
            GatewayEvent::OpenTunnel(open) => Some(open.name),
            _ => None,
        });
        self.session.tunnel_open(TunnelOpen { name, tunnel: TUNNEL, public });
        self.flush();
    }

    /// Sends what there is to send.
    pub(crate) fn flush(&mut self) {
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).unwrap();
        }
    }

    /// Waits for an event that is the wanted one; any other before it is a failure.
    pub(crate) fn until<T>(&mut self, wanted: impl Fn(GatewayEvent) -> Option<T>) -> T {
        let mut bytes = [0; 4096];
        loop {
            self.flush();
            if let Some(event) = self.session.poll_event() {
                let text = format!("{event:?}");
                return wanted(event).unwrap_or_else(|| panic!("not expected: {text}"));
            }
            let count = self.stream.read(&mut bytes).expect("the client says something");
            assert!(count > 0, "the client has closed the ctl_conn");
            self.session.handle_bytes(&bytes[..count], self.began.elapsed());
        }
    }
}

/// The lane.
struct Lane {
    stream: TcpStream,
    machine: lane::Lane,
}

/// A proxy_conn.
pub(crate) struct Proxy {
    pub(crate) stream: TcpStream,
    pub(crate) id: ProxyId,
}

impl Proxy {
    /// A start and payload right behind it.
    pub(crate) fn start(&mut self, serial: u64, payload: &[u8]) -> FlowId {
        let (flow, start) = start(serial);
        self.stream.write_all(&[&start, payload].concat()).unwrap();
        flow
    }
}

/// The name of a flow and the bytes of its start.
pub(crate) fn start(serial: u64) -> (FlowId, Vec<u8>) {
    let flow = FlowId::new(0, serial);
    (flow, Start { tunnel: TUNNEL, flow }.encode().to_vec())
}

/// Accepts a connection in time.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    // Linux bounds accept(2) by the receive timeout of the listener (socket(7)).
    SockRef::from(listener).set_read_timeout(Some(PATIENCE)).unwrap();
    let (stream, _) = listener.accept().expect("somebody connects");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A LocalServer, and where it is.
pub(crate) fn local_server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// Reads exactly these bytes.
pub(crate) fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "other bytes came");
}

/// Reads the end of the stream.
pub(crate) fn expect_end(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 16]).map_err(|error| error.kind()), Ok(0));
}

/// Reads a reset.
pub(crate) fn expect_reset(stream: &mut TcpStream) {
    let result: io::Result<usize> = stream.read(&mut [0; 16]);
    assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}
