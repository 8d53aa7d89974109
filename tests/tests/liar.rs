//! A client that knows the token and does not keep to the protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zproxy_proto::auth::{self, Nonce, Token};
use zproxy_proto::control::{ClientConfig, ClientEvent, ClientSession};
use zproxy_proto::id::{ClientId, CtlId, ProxyId};
use zproxy_proto::limits::START_SIZE;
use zproxy_proto::wire::{Attach, Fin, Name, OpenProxy, OpenTunnel, Start, encode_proxy_opening};
use zproxy_tests::net::connect;
use zproxy_tests::programs::Gateway;
use zproxy_tests::{both_backends, eventually};

/// The liar's half of the protocol, spoken by hand.
struct Liar {
    session: ClientSession,
    ctl: TcpStream,
    begun: Instant,
    proxy: SocketAddr,
    ctl_id: Option<CtlId>,
    public: Option<SocketAddr>,
    conns: Vec<(ProxyId, TcpStream)>,
}

impl Liar {
    fn log_in(gateway: &Gateway, token: &str) -> Self {
        let config = ClientConfig {
            token: Token::parse(token).expect("a token"),
            client_id: ClientId::from_random([7; 16]),
            name: Name::lossy("liar"),
            nonce: Nonce([9; 32]),
            resume: None,
            data_cores: 1,
        };
        let ctl = connect(gateway.ctl);
        ctl.set_read_timeout(Some(Duration::from_millis(20))).expect("a read deadline");
        let mut liar = Self {
            session: ClientSession::new(config, Duration::ZERO),
            ctl,
            begun: Instant::now(),
            proxy: gateway.proxy,
            ctl_id: None,
            public: None,
            conns: Vec::new(),
        };
        eventually("the liar has a tunnel", Duration::from_secs(10), || {
            liar.turn();
            liar.public.is_some() && !liar.conns.is_empty()
        });
        liar
    }

    /// Sends what there is to send and answers what has come.
    fn turn(&mut self) {
        if let Some(bytes) = self.session.poll_transmit() {
            self.ctl.write_all(&bytes).expect("a ctl_conn");
        }
        let mut bytes = [0; 4_096];
        match self.ctl.read(&mut bytes) {
            Ok(count) => self.session.handle_bytes(&bytes[..count], self.begun.elapsed()),
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(why) => panic!("the ctl_conn failed: {why}"),
        }
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Welcomed(welcome) => {
                    self.ctl_id = Some(welcome.ctl_id);
                    let name = Name::lossy("lies");
                    self.session.open_tunnel(OpenTunnel { name, public_port: 0, last_port: None });
                }
                ClientEvent::TunnelOpen(open) => self.public = Some(open.public),
                ClientEvent::OpenProxy(wish) => self.attach(wish),
                ClientEvent::Ended(end) => panic!("the gateway hung up: {end}"),
                _ => {}
            }
        }
    }

    fn attach(&mut self, wish: OpenProxy) {
        let ctl_id = self.ctl_id.expect("welcomed before it is asked");
        for _ in 0..wish.count {
            let serial = u32::try_from(self.conns.len()).expect("a few");
            let proxy = ProxyId::new(wish.core, 0, serial);
            let key = self.session.session_key().expect("welcomed");
            let mac = auth::attach_mac(key, ctl_id, proxy);
            let mut conn = connect(self.proxy);
            let opening = encode_proxy_opening(&Attach { ctl_id, proxy, mac });
            conn.write_all(&opening).expect("a proxy_conn");
            conn.set_nonblocking(true).expect("a socket");
            self.conns.push((proxy, conn));
        }
    }

    /// The proxy_conn on which a flow starts, and the `Start`.
    fn await_start(&mut self) -> (ProxyId, TcpStream, Start) {
        let mut found = None;
        eventually("a flow starts", Duration::from_secs(10), || {
            self.turn();
            found = self
                .conns
                .iter_mut()
                .position(|(_, conn)| matches!(conn.peek(&mut [0; START_SIZE]), Ok(START_SIZE)));
            found.is_some()
        });
        let (proxy, mut conn) = self.conns.swap_remove(found.expect("found above"));
        let mut bytes = [0; START_SIZE];
        conn.read_exact(&mut bytes).expect("it is there");
        (proxy, conn, Start::decode(&bytes).expect("a start").expect("a whole start"))
    }
}

both_backends! {
    /// A client that never releases a flow does not hold the gateway's descriptor for ever: settling
    /// ends with the half-close deadline.
    fn a_flow_that_is_never_released(world) {
        let gateway = world.gateway().args(["--half-close-timeout", "1"]).start();
        let mut liar = Liar::log_in(&gateway, world.token());
        let visitor = connect(liar.public.expect("a tunnel"));
        let (proxy, conn, start) = liar.await_start();
        visitor.shutdown(Shutdown::Write).expect("a visitor");
        liar.session.fin(Fin { proxy, flow: start.flow, bytes: 0 });
        // Both ends are announced; what is missing is `Released`, and never comes.
        eventually("the gateway lets go", Duration::from_secs(10), || {
            liar.turn();
            match conn.peek(&mut [0]) {
                Ok(0) => true,
                Ok(_) => panic!("bytes after the start"),
                Err(why) => why.kind() == ErrorKind::ConnectionReset,
            }
        });
    }
}
