//! A client that knows the token and does not keep to the protocol: its half of it, by hand.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zproxy_proto::auth::{self, Nonce, Ticket, Token};
use zproxy_proto::control::{ClientConfig, ClientEvent, ClientSession, End};
use zproxy_proto::id::{ClientId, CtlId, ProxyId};
use zproxy_proto::lane::{Lane, Notice};
use zproxy_proto::limits::START_SIZE;
use zproxy_proto::proxy_conn::Role;
use zproxy_proto::wire::{
    Attach, Attached, Name, OpenProxy, OpenTunnel, Start, TunnelOpen, TunnelRefused, Welcome,
    encode_proxy_opening,
};

use crate::clock::eventually;
use crate::net::connect;
use crate::programs::Gateway;

/// How long anything that the gateway is asked for may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What a liar says of itself when it logs in.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Its client id is made of this byte.
    pub id: u8,
    /// Its nonce is made of this byte.
    pub nonce: u8,
    /// The session that it wants to go on with.
    pub resume: Option<Ticket>,
}

impl Claim {
    /// The client of that number, without a session.
    #[must_use]
    pub fn new(id: u8) -> Self {
        Self { id, nonce: id ^ 0xa5, resume: None }
    }

    /// What the honest half of a client would begin with.
    ///
    /// # Panics
    /// When the token is none.
    #[must_use]
    pub fn session(self, token: &str) -> ClientSession {
        let config = ClientConfig {
            token: Token::parse(token).expect("a token"),
            client_id: ClientId::from_random([self.id; 16]),
            name: Name::lossy("liar"),
            nonce: Nonce([self.nonce; 32]),
            resume: self.resume,
            data_cores: 1,
        };
        ClientSession::new(config, Duration::ZERO)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Liar {
    /// The machine that would keep to the protocol. Whatever else is said goes through [`Self::say`].
    pub session: ClientSession,
    ctl: TcpStream,
    begun: Instant,
    proxy: SocketAddr,
    /// What the gateway said at the login.
    pub welcome: Option<Welcome>,
    /// The tunnels that it opened.
    pub opened: Vec<TunnelOpen>,
    /// The tunnels that it refused.
    pub refused: Vec<TunnelRefused>,
    /// How the ctl_conn ended.
    pub ended: Option<End>,
    /// Proxy_conns on which no flow has started, as far as is known.
    pub conns: Vec<(ProxyId, TcpStream)>,
    next_serial: u32,
    lane: Option<(Lane, TcpStream)>,
}

impl Liar {
    /// Logs in.
    ///
    /// # Panics
    /// When it is not let in.
    #[must_use]
    pub fn enter(gateway: &Gateway, token: &str, claim: Claim) -> Self {
        let ctl = connect(gateway.ctl);
        ctl.set_read_timeout(Some(Duration::from_millis(20))).expect("a read deadline");
        let mut liar = Self {
            session: claim.session(token),
            ctl,
            begun: Instant::now(),
            proxy: gateway.proxy,
            welcome: None,
            opened: Vec::new(),
            refused: Vec::new(),
            ended: None,
            conns: Vec::new(),
            next_serial: 0,
            lane: None,
        };
        eventually("the liar is in", ANSWER_DEADLINE, || {
            liar.turn();
            assert!(liar.ended.is_none(), "the gateway hung up: {:?}", liar.ended);
            liar.welcome.is_some()
        });
        liar
    }

    /// Logs in, and has a tunnel and a proxy_conn.
    #[must_use]
    pub fn with_tunnel(gateway: &Gateway, token: &str, claim: Claim) -> Self {
        let mut liar = Self::enter(gateway, token, claim);
        liar.ask_for_tunnel(0, None);
        eventually("the liar has a tunnel", ANSWER_DEADLINE, || {
            liar.turn();
            !liar.opened.is_empty() && !liar.conns.is_empty()
        });
        liar
    }

    /// Where the public reaches its last tunnel.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn public(&self) -> SocketAddr {
        self.opened.last().expect("a tunnel").public
    }

    /// The ctl_conn's id.
    ///
    /// # Panics
    /// When it is not logged in.
    #[must_use]
    pub fn ctl_id(&self) -> CtlId {
        self.welcome.as_ref().expect("welcomed").ctl_id
    }

    /// Asks for one more tunnel.
    pub fn ask_for_tunnel(&mut self, public_port: u16, last_port: Option<u16>) {
        let name = Name::lossy(&format!("lies-{}", self.opened.len() + self.refused.len()));
        self.session.open_tunnel(OpenTunnel { name, public_port, last_port });
    }

    /// Asks for one more tunnel and waits for the answer: its public address, or the refusal.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn open_tunnel(
        &mut self,
        public_port: u16,
        last_port: Option<u16>,
    ) -> Result<SocketAddr, TunnelRefused> {
        let before = (self.opened.len(), self.refused.len());
        self.ask_for_tunnel(public_port, last_port);
        eventually("an answer about a tunnel", ANSWER_DEADLINE, || {
            self.turn();
            before != (self.opened.len(), self.refused.len())
        });
        match self.refused.get(before.1) {
            Some(refused) => Err(refused.clone()),
            None => Ok(self.public()),
        }
    }

    /// Sends bytes on the ctl_conn that its own machine would not. Tells whether they could be sent.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.turn();
        self.ctl.write_all(bytes).is_ok()
    }

    /// Sends what there is to send and answers what has come.
    pub fn turn(&mut self) {
        if let Some(bytes) = self.session.poll_transmit() {
            // If the gateway has hung up, reading says so.
            let _ = self.ctl.write_all(&bytes);
        }
        let mut bytes = [0; 4_096];
        match self.ctl.read(&mut bytes) {
            Ok(0) => self.ended = self.ended.take().or(Some(End::Silent)),
            Ok(count) => self.session.handle_bytes(&bytes[..count], self.begun.elapsed()),
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.ended = self.ended.take().or(Some(End::Silent)),
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Welcomed(welcome) => self.welcome = Some(welcome),
                ClientEvent::TunnelOpen(open) => self.opened.push(open),
                ClientEvent::TunnelRefused(refused) => self.refused.push(refused),
                ClientEvent::OpenProxy(wish) => self.attach_wanted(wish),
                ClientEvent::Ended(end) => self.ended = Some(end),
                _ => {}
            }
        }
    }

    fn attach_wanted(&mut self, wish: OpenProxy) {
        if self.lane.is_none() {
            let (name, conn) = self.dial(Attached::Lane, wish.core);
            self.lane = Some((Lane::new(Role::Client, name), conn));
        }
        for _ in 0..wish.count {
            let conn = self.attach(wish.core);
            self.conns.push(conn);
        }
    }

    /// Dials one more proxy_conn for a data core of the gateway, asked or not.
    ///
    /// # Panics
    /// When it cannot be dialled.
    pub fn attach(&mut self, core: u16) -> (ProxyId, TcpStream) {
        let (proxy, conn) = self.dial(Attached::Conn, core);
        conn.set_nonblocking(true).expect("a socket");
        (proxy, conn)
    }

    /// Dials one more lane to the same data core of the gateway. Notices go on the first one all the
    /// same.
    ///
    /// # Panics
    /// When there is none yet, or it cannot be dialled.
    pub fn dial_lane(&mut self) -> TcpStream {
        let core = self.lane_name().gateway_core();
        self.dial(Attached::Lane, core).1
    }

    fn dial(&mut self, what: Attached, core: u16) -> (ProxyId, TcpStream) {
        let name = ProxyId::new(core, 0, self.next_serial);
        self.next_serial += 1;
        let mut conn = connect(self.proxy);
        conn.write_all(&self.opening_of(what, self.ctl_id(), name)).expect("an attach");
        (name, conn)
    }

    /// Tells the gateway something of a flow.
    ///
    /// # Panics
    /// When there is no lane, or nobody hears it.
    pub fn tell(&mut self, notice: Notice) {
        let (lane, conn) = self.lane.as_mut().expect("a lane");
        lane.push(notice);
        conn.write_all(&lane.take_outgoing(Vec::new())).expect("a lane that is heard");
    }

    /// Sends bytes on the lane, whatever they are.
    ///
    /// # Panics
    /// When there is no lane, or nobody hears it.
    pub fn say_on_lane(&mut self, bytes: &[u8]) {
        let (_, conn) = self.lane.as_mut().expect("a lane");
        conn.write_all(bytes).expect("a lane that is heard");
    }

    /// Waits until the gateway has closed the lane.
    ///
    /// # Panics
    /// When it says something on it, or does not close it.
    pub fn expect_lane_closed(&mut self) {
        let (_, conn) = self.lane.as_mut().expect("a lane");
        conn.set_read_timeout(Some(ANSWER_DEADLINE)).expect("a read deadline");
        match conn.read(&mut [0]) {
            Ok(0) => {}
            Err(why) if why.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("the lane is not closed: {other:?}"),
        }
    }

    /// The name of the lane, once a proxy_conn was asked for.
    ///
    /// # Panics
    /// Before that.
    #[must_use]
    pub fn lane_name(&self) -> ProxyId {
        let (lane, _) = self.lane.as_ref().expect("a lane");
        ProxyId::new(lane.gateway_core(), lane.client_core(), 0)
    }

    /// The opening of a proxy_conn with these ids, authenticated with this liar's own key.
    ///
    /// # Panics
    /// When it is not logged in.
    #[must_use]
    pub fn opening(&self, ctl_id: CtlId, proxy: ProxyId) -> Vec<u8> {
        self.opening_of(Attached::Conn, ctl_id, proxy)
    }

    fn opening_of(&self, what: Attached, ctl_id: CtlId, proxy: ProxyId) -> Vec<u8> {
        let key = self.session.session_key().expect("welcomed");
        let mac = auth::attach_mac(key, what, ctl_id, proxy);
        encode_proxy_opening(&Attach { what, ctl_id, proxy, mac }).to_vec()
    }

    /// The proxy_conn on which a flow starts, and the `Start`.
    ///
    /// # Panics
    /// When none does.
    pub fn await_start(&mut self) -> (ProxyId, TcpStream, Start) {
        let mut found = None;
        eventually("a flow starts", ANSWER_DEADLINE, || {
            self.turn();
            found = self.conns.iter().position(|(_, conn)| has_start(conn));
            found.is_some()
        });
        take_start(self.conns.swap_remove(found.expect("found above")))
    }

    /// So many proxy_conns on which flows start, each with its `Start`.
    ///
    /// # Panics
    /// When they do not.
    pub fn await_starts(&mut self, count: usize) -> Vec<(ProxyId, TcpStream, Start)> {
        let mut started = Vec::with_capacity(count);
        eventually("flows start", ANSWER_DEADLINE, || {
            self.turn();
            let begun = self.conns.extract_if(.., |(_, conn)| has_start(conn));
            started.extend(begun.map(take_start));
            started.len() >= count
        });
        started
    }
}

fn has_start(conn: &TcpStream) -> bool {
    matches!(conn.peek(&mut [0; START_SIZE]), Ok(START_SIZE))
}

fn take_start((proxy, mut conn): (ProxyId, TcpStream)) -> (ProxyId, TcpStream, Start) {
    let mut bytes = [0; START_SIZE];
    conn.read_exact(&mut bytes).expect("it is there");
    (proxy, conn, Start::decode(&bytes).expect("a start").expect("a whole start"))
}
