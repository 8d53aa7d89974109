//! Lists of operations on the two ends of a ctl_conn, joined by a network that cuts the stream where
//! it likes, falls silent, and in some runs changes or adds bytes.

use std::collections::VecDeque;
use std::time::Duration;

use zproxy_proto::auth::{Nonce, Ticket, Token, attach_mac, verify_attach_mac};
use zproxy_proto::control::{
    ClientConfig, ClientEvent, ClientSession, End, GatewayConfig, GatewayEvent, GatewaySession,
    Heartbeat, Session,
};
use zproxy_proto::id::{ClientId, CtlId, FlowId, ProxyId, ServerId, TunnelId};
use zproxy_proto::limits::{
    CTL_SEND_BACKLOG_MAX, FRAME_HEADER_SIZE, FRAME_LEN_MAX, HANDSHAKE_DEADLINE,
};
use zproxy_proto::wire::{
    Abort, AbortCode, Attach, Attached, Fin, Frame, GoAway, Name, OpenProxy, OpenTunnel,
    RefusedCode, Released, TunnelOpen, TunnelRefused, TunnelRefusedCode,
};

use crate::input::Input;

/// More operations only repeat themselves.
const OPERATIONS_MAX: usize = 300;
const START: Duration = Duration::from_secs(1_000);
const SESSION: Session = Session {
    ctl_id: CtlId([3; 16]),
    epoch: 9,
    proxy_port: 8091,
    resumed: true,
    ticket: Ticket([4; 32]),
    tunnels_max: 7,
};

/// One of the two sessions, as the world sees it. What it says is compared as text, because secrets
/// are not comparable by design.
trait Side {
    fn bytes(&mut self, bytes: &[u8], now: Duration);
    fn time(&mut self, now: Duration);
    fn transmit(&mut self) -> Option<Vec<u8>>;
    fn timeout(&self) -> Option<Duration>;
    fn is_open(&self) -> bool;
    fn is_ended(&self) -> bool;
    /// The next event: what it says, and how the ctl_conn ended if that is what it says.
    fn event(&mut self) -> Option<(String, Option<End>)>;
}

macro_rules! side {
    ($session:ident, $event:ident) => {
        impl Side for $session {
            fn bytes(&mut self, bytes: &[u8], now: Duration) {
                self.handle_bytes(bytes, now);
            }

            fn time(&mut self, now: Duration) {
                self.handle_timeout(now);
            }

            fn transmit(&mut self) -> Option<Vec<u8>> {
                self.poll_transmit()
            }

            fn timeout(&self) -> Option<Duration> {
                self.poll_timeout()
            }

            fn is_open(&self) -> bool {
                self.is_open()
            }

            fn is_ended(&self) -> bool {
                self.is_ended()
            }

            fn event(&mut self) -> Option<(String, Option<End>)> {
                let event = self.poll_event()?;
                let said = format!("{event:?}");
                Some((said, if let $event::Ended(end) = event { Some(end) } else { None }))
            }
        }
    };
}
side!(GatewaySession, GatewayEvent);
side!(ClientSession, ClientEvent);

/// What the world knows of one side.
#[derive(Debug, Default)]
struct Known {
    /// Bytes on their way to this side.
    wire: VecDeque<u8>,
    /// What it is to say, in order, because its peer has said it.
    due: VecDeque<String>,
    /// When it has heard something, since it is open.
    heard: Option<Duration>,
    /// How it ended.
    end: Option<End>,
    /// Whether it was logged in, ever.
    was_open: bool,
}

const GATEWAY: usize = 0;
const CLIENT: usize = 1;

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug)]
struct Honesty {
    /// The two have the same token.
    token: bool,
    /// The network changes nothing.
    network: bool,
}

struct World {
    gateway: GatewaySession,
    client: ClientSession,
    known: [Known; 2],
    now: Duration,
    honesty: Honesty,
    beats: [Heartbeat; 2],
    /// The network does not take or give any more.
    is_cut: bool,
    authenticated: bool,
}

fn token(text: &str) -> Token {
    Token::parse(text).expect("long enough")
}

fn name(number: u8) -> Name {
    Name::new(format!("name-{number}")).expect("a plain name")
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let kind = input.byte();
        let honesty = Honesty { token: kind & 3 != 3, network: kind & 4 == 0 };
        let beat = |number: u8| {
            Heartbeat::from_ms(u64::from(number & 15) * 400, u64::from(number >> 4) * 900)
        };
        let beats = [beat(input.byte()), beat(input.byte())];
        let gateway = GatewayConfig {
            token: token("the-right-token-of-both"),
            server_id: ServerId::from_random([2; 16]),
            nonce: Nonce([2; 32]),
            data_cores: 2,
            heartbeat: beats[GATEWAY],
        };
        let known_token =
            if honesty.token { "the-right-token-of-both" } else { "some-other-token" };
        let client = ClientConfig {
            token: token(known_token),
            client_id: ClientId::from_random([1; 16]),
            name: name(0),
            nonce: Nonce([1; 32]),
            resume: input.flag().then_some(Ticket([7; 32])),
            data_cores: 3,
        };
        Self {
            gateway: GatewaySession::new(gateway, START),
            client: ClientSession::new(client, START).with_heartbeat(beats[CLIENT]),
            known: Default::default(),
            now: START,
            honesty,
            beats,
            is_cut: false,
            authenticated: false,
        }
    }

    fn side(&mut self, side: usize) -> &mut dyn Side {
        if side == GATEWAY { &mut self.gateway } else { &mut self.client }
    }

    /// Takes what a side has to send when all that it sent before is gone, as its owner does.
    fn send(&mut self, side: usize) {
        let on_the_way = !self.known[1 - side].wire.is_empty();
        if on_the_way || self.is_cut {
            return;
        }
        let bytes = self.side(side).transmit().unwrap_or_default();
        let most = CTL_SEND_BACKLOG_MAX + FRAME_LEN_MAX + FRAME_HEADER_SIZE;
        assert!(bytes.len() <= most, "{} bytes wait", bytes.len());
        self.known[1 - side].wire.extend(bytes);
    }

    /// Brings up to `count` bytes to a side.
    fn deliver(&mut self, side: usize, count: usize) {
        let count = count.min(self.known[side].wire.len());
        let bytes: Vec<u8> = self.known[side].wire.drain(..count).collect();
        if count == 0 || self.is_cut {
            return;
        }
        let now = self.now;
        let was_open = self.side(side).is_open();
        if was_open {
            self.known[side].heard = Some(now);
        }
        self.side(side).bytes(&bytes, now);
        self.listen(side);
    }

    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        for side in [GATEWAY, CLIENT] {
            let now = self.now;
            let is_silent = self.silence(side).is_some_and(|due| due <= now);
            let session = self.side(side);
            session.time(now);
            assert!(session.timeout().is_none_or(|next| next > now), "time is done");
            assert!(!is_silent || session.is_ended(), "a silent peer is not noticed");
            self.listen(side);
        }
    }

    /// When a side that hears nothing more gives its peer up.
    fn silence(&self, side: usize) -> Option<Duration> {
        let deadline = match side {
            GATEWAY => self.beats[GATEWAY].deadline,
            _ => self.beats[CLIENT].deadline.min(self.beats[GATEWAY].deadline),
        };
        let heard = self.known[side].heard.filter(|_| self.known[side].end.is_none());
        // A welcome that the network has changed may tell another heartbeat.
        heard.filter(|_| self.honesty.network).map(|heard| heard + deadline)
    }

    /// Hears what a side says and judges it.
    fn listen(&mut self, side: usize) {
        while let Some((said, end)) = self.side(side).event() {
            assert_eq!(self.known[side].end, None, "{said} behind the end");
            let is_login = said.starts_with("Authenticated") || said.starts_with("Welcomed");
            if is_login {
                assert!(self.honesty.token, "{said} without the token");
                assert!(!self.known[side].was_open, "logged in twice");
                self.known[side].was_open = true;
                match side {
                    GATEWAY => self.authenticated = true,
                    _ => {
                        self.known[side].heard = Some(self.now);
                        self.check_keys();
                    }
                }
            } else if let Some(end) = end {
                self.check_end(side, &end);
                self.known[side].end = Some(end);
            } else {
                assert!(self.known[side].was_open, "{said} to a stranger");
                if self.honesty.network {
                    assert_eq!(self.known[side].due.pop_front().as_deref(), Some(said.as_str()));
                }
            }
        }
        let ended = self.known[side].end.is_some();
        let session = self.side(side);
        assert_eq!(session.is_ended(), ended, "an end is told, and told once");
        assert_eq!(session.timeout().is_none(), ended);
    }

    /// Both derive the same key, or the client would not have taken the welcome.
    fn check_keys(&self) {
        let keys = (self.client.session_key(), self.gateway.session_key());
        // Bytes right behind the welcome may have ended it already.
        let (Some(client), Some(gateway)) = keys else { return };
        let proxy = ProxyId::new(1, 2, 3);
        let (what, ctl_id) = (Attached::Lane, SESSION.ctl_id);
        let mac = attach_mac(client, what, ctl_id, proxy);
        assert!(verify_attach_mac(gateway, &Attach { what, ctl_id, proxy, mac }), "two keys");
    }

    fn check_end(&self, side: usize, end: &End) {
        assert!(!end.to_string().is_empty());
        match end {
            End::Violation(_) => assert!(!self.honesty.network, "{end} between honest ends"),
            End::HandshakeTimeout => {
                assert!(self.now >= START + HANDSHAKE_DEADLINE, "too early");
                assert!(side == GATEWAY || !self.known[side].was_open);
            }
            End::Silent => {
                let due = self.silence(side);
                assert!(due.is_none_or(|due| due <= self.now), "not silent for long enough");
            }
            End::GatewayUnproven => {
                assert!(!self.honesty.token || !self.honesty.network, "it had the token");
            }
            End::Refused { code: RefusedCode::BadToken, .. } => {
                assert!(!self.honesty.token || !self.honesty.network, "it had the token");
            }
            End::Refused { .. } | End::Backlog => {}
        }
    }

    fn welcome(&mut self) {
        if std::mem::take(&mut self.authenticated) {
            let is_over = self.gateway.is_ended();
            self.gateway.welcome(SESSION, self.now);
            assert_eq!(self.gateway.is_open(), !is_over);
            self.known[GATEWAY].heard = self.gateway.is_open().then_some(self.now);
            self.listen(GATEWAY);
        }
    }

    /// The gateway says something; the client is to hear it.
    fn gateway_says(&mut self, input: &mut Input<'_>) {
        let (kind, number) = (input.below(5), input.byte());
        let tunnel = TunnelId(u32::from(number));
        let is_open = self.gateway.is_open();
        let event = match kind {
            0 => {
                let public = ([127, 0, 0, 1], u16::from(number)).into();
                let open = TunnelOpen { name: name(number), tunnel, public };
                self.gateway.tunnel_open(open.clone());
                ClientEvent::TunnelOpen(open)
            }
            1 => {
                let (name, code) = (name(number), TunnelRefusedCode::PortTaken);
                let reason = "taken\nby \u{202e}somebody".into();
                let refused = TunnelRefused { name, code, reason };
                self.gateway.tunnel_refused(refused.clone());
                ClientEvent::TunnelRefused(refused)
            }
            2 => {
                self.gateway.close_tunnel(tunnel);
                ClientEvent::CloseTunnel(tunnel)
            }
            3 => {
                let open = OpenProxy { core: u16::from(number & 1), count: u16::from(number) };
                self.gateway.open_proxy(open);
                ClientEvent::OpenProxy(open)
            }
            _ => {
                let go_away = GoAway { reason: "stopping".into(), drain_ms: number.into() };
                self.gateway.go_away(go_away.clone());
                ClientEvent::GoAway(go_away)
            }
        };
        if is_open {
            self.known[CLIENT].due.push_back(format!("{event:?}"));
        }
        self.listen(GATEWAY);
    }

    /// The client says something; the gateway is to hear it.
    fn client_says(&mut self, input: &mut Input<'_>) {
        let (kind, number) = (input.below(3), input.byte());
        let is_open = self.client.is_open();
        let event = match kind {
            0 => {
                let last_port = (number > 99).then_some(u16::from(number));
                let open = OpenTunnel { name: name(number), public_port: number.into(), last_port };
                self.client.open_tunnel(open.clone());
                GatewayEvent::OpenTunnel(open)
            }
            1 => {
                self.client.close_tunnel(TunnelId(u32::from(number)));
                GatewayEvent::CloseTunnel(TunnelId(u32::from(number)))
            }
            _ => {
                let go_away = GoAway { reason: "stopping".into(), drain_ms: number.into() };
                self.client.go_away(go_away.clone());
                GatewayEvent::GoAway(go_away)
            }
        };
        if is_open {
            self.known[GATEWAY].due.push_back(format!("{event:?}"));
        }
        self.listen(CLIENT);
    }

    /// The network changes a byte on its way, or slips a frame between.
    fn meddle(&mut self, input: &mut Input<'_>) {
        let side = usize::from(input.below(2));
        let (kind, place) = (input.byte(), usize::from(input.word()));
        if self.honesty.network {
            return;
        }
        let wire = &mut self.known[side].wire;
        if kind < 128 {
            let len = wire.len();
            if let Some(byte) = wire.get_mut(place % len.max(1)) {
                *byte ^= 1 << (kind % 8);
            }
        } else if wire.is_empty() {
            wire.extend(foreign_frame(kind % 8, place as u16).encode());
        }
    }
}

/// A frame that nobody has sent, with ids that need not be in range.
fn foreign_frame(kind: u8, number: u16) -> Frame {
    let (proxy, flow) = (ProxyId(u64::from(number) << 30), FlowId(u64::from(number) << 46));
    match kind {
        0 => Frame::Ping(number.into()),
        1 => Frame::Pong(number.into()),
        2 => Frame::Fin(Fin { proxy, flow, bytes: 1 }),
        3 => Frame::Released(Released { proxy, flow }),
        4 => Frame::Abort(Abort { proxy, flow, code: AbortCode::Other(99) }),
        5 => Frame::OpenProxy(OpenProxy { core: number >> 8, count: number }),
        6 => Frame::CloseTunnel(zproxy_proto::wire::CloseTunnel { tunnel: TunnelId(7) }),
        _ => Frame::GoAway(GoAway { reason: "so there".into(), drain_ms: number.into() }),
    }
}

/// Whatever is said, however it is cut and delayed: what one side says the other hears, once and in
/// order; nobody is logged in without the token; who is silent for too long is given up, and nobody
/// else; nothing is said behind the end.
pub fn control(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        match kind % 16 {
            0 | 1 => world.send(usize::from(kind & 1)),
            2 | 3 => world.deliver(usize::from(kind & 1), usize::from(input.byte())),
            4 | 5 => world.deliver(usize::from(kind & 1), usize::MAX),
            6 => world.pass_time(Duration::from_millis(u64::from(input.byte()) * 40)),
            7 => world.welcome(),
            8 | 9 => world.gateway_says(&mut input),
            10 | 11 => world.client_says(&mut input),
            12 => world.meddle(&mut input),
            13 => {
                world.send(GATEWAY);
                world.send(CLIENT);
                world.deliver(GATEWAY, usize::MAX);
                world.deliver(CLIENT, usize::MAX);
            }
            14 if input.below(16) == 0 => {
                world.gateway.refuse(RefusedCode::ShuttingDown, "going");
                world.listen(GATEWAY);
            }
            15 if input.below(32) == 0 => world.is_cut = true,
            _ => {}
        }
    }
    // What was said arrives, if nothing is in the way.
    if world.is_cut || !world.honesty.network {
        return;
    }
    for _ in 0..8 {
        for side in [GATEWAY, CLIENT] {
            world.send(side);
            world.deliver(1 - side, usize::MAX);
        }
    }
    for known in &world.known {
        assert!(known.end.is_some() || known.due.is_empty(), "never heard: {:?}", known.due);
    }
}
