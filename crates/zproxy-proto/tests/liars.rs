//! Peers that say anything, in any order: no machine panics, and none keeps more than it may.

use std::time::Duration;

use proptest::prelude::*;
use zproxy_proto::auth::{Mac, Nonce, Ticket, Token};
use zproxy_proto::control::{
    ClientConfig, ClientEvent, ClientSession, GatewayConfig, GatewayEvent, GatewaySession,
    Heartbeat, Session,
};
use zproxy_proto::id::{ClientId, CtlId, FlowId, ProxyId, ServerId, TunnelId};
use zproxy_proto::limits::{HANDSHAKE_DEADLINE, IDLE_CONNS_MAX, OPENING_MAX, WAITING_PUBLICS_MAX};
use zproxy_proto::pool::{Add, Origin, Pool, Take};
use zproxy_proto::proxy_conn::{Action, Input, Mode, ProxyConn, Reach, Role};
use zproxy_proto::wire::{
    Abort, AbortCode, Challenge, CloseTunnel, Fin, Frame, GoAway, Hello, Kind, Name, OpenProxy,
    OpenTunnel, Proof, Refused, RefusedCode, Released, Welcome, encode_preface,
};

const NOW: Duration = Duration::from_secs(1);

fn token() -> Token {
    Token::parse("a-token-for-the-tests").unwrap()
}

/// Some frame of any kind, with numbers in and out of range.
fn frame() -> impl Strategy<Value = Frame> {
    (0..15u8, 0..4u16, 0..4u16, any::<u32>(), any::<u64>()).prop_map(|(kind, a, b, c, d)| {
        let (proxy, flow) = (ProxyId::new(a, b, c), FlowId::new(a, u64::from(c)));
        let name = Name::new("n").unwrap();
        match kind {
            0 => Frame::Hello(Hello {
                client_id: ClientId::from_random([1; 16]),
                name,
                nonce: Nonce([1; 32]),
                resume: None,
                versions: vec![a as u8],
                data_cores: b,
            }),
            1 => Frame::Challenge(Challenge {
                server_id: ServerId::from_random([1; 16]),
                nonce: Nonce([2; 32]),
                proof: Mac([0; 32]),
            }),
            2 => Frame::Proof(Proof { proof: Mac([0; 32]) }),
            3 => Frame::Welcome(Welcome {
                ctl_id: CtlId([1; 16]),
                epoch: d,
                proxy_port: a,
                heartbeat_ms: d,
                deadline_ms: d,
                data_cores: b,
                resumed: false,
                ticket: Ticket([0; 32]),
                tunnels_max: c,
            }),
            4 => Frame::Refused(Refused { code: RefusedCode::Limit, reason: "r".into() }),
            5 => Frame::OpenTunnel(OpenTunnel { name, public_port: a, last_port: None }),
            6 => Frame::CloseTunnel(CloseTunnel { tunnel: TunnelId(c) }),
            7 => Frame::OpenProxy(OpenProxy { core: a, count: b }),
            8 => Frame::Fin(Fin { proxy, flow, bytes: d }),
            9 => Frame::Released(Released { proxy, flow }),
            10 => Frame::Abort(Abort { proxy, flow, code: AbortCode::from_number(a as u8) }),
            11 => Frame::Ping(d),
            12 => Frame::Pong(d),
            13 => Frame::GoAway(GoAway { reason: "r".into(), drain_ms: d }),
            _ => Frame::Fin(Fin { proxy, flow: FlowId(d), bytes: d }),
        }
    })
}

fn open_pair() -> (GatewaySession, ClientSession) {
    let mut gateway = GatewaySession::new(
        GatewayConfig {
            token: token(),
            server_id: ServerId::from_random([2; 16]),
            nonce: Nonce([2; 32]),
            data_cores: 2,
            heartbeat: Heartbeat::default(),
        },
        NOW,
    );
    let mut client = ClientSession::new(
        ClientConfig {
            token: token(),
            client_id: ClientId::from_random([1; 16]),
            name: Name::new("n").unwrap(),
            nonce: Nonce([1; 32]),
            resume: None,
            data_cores: 2,
        },
        NOW,
    );
    for _ in 0..2 {
        gateway.handle_bytes(&client.poll_transmit().unwrap(), NOW);
        client.handle_bytes(&gateway.poll_transmit().unwrap_or_default(), NOW);
    }
    assert!(matches!(gateway.poll_event(), Some(GatewayEvent::Authenticated(_))));
    let session = Session {
        ctl_id: CtlId([1; 16]),
        epoch: 1,
        proxy_port: 1,
        resumed: false,
        ticket: Ticket([0; 32]),
        tunnels_max: 1,
    };
    gateway.welcome(session, NOW);
    client.handle_bytes(&gateway.poll_transmit().unwrap(), NOW);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Welcomed(_))));
    (gateway, client)
}

/// What may happen to one end of a proxy_conn, as numbers that a run turns into inputs which its
/// owner may give at that moment.
fn happenings() -> impl Strategy<Value = Vec<(u8, u64, bool)>> {
    prop::collection::vec((0..14u8, 0..6u64, any::<bool>()), 0..60)
}

/// One end with an honest owner and a peer that is not.
struct Owner {
    machine: ProxyConn,
    role: Role,
    serial: u64,
    taken: u64,
    delivered: u64,
    out_ended: bool,
    /// The source has ended behind so many bytes, of which the last are on their way.
    ends_behind: Option<u64>,
    inbound_open: bool,
}

impl Owner {
    /// Whether nothing has come from the own source yet, as far as anybody was told.
    fn is_silent(&self) -> bool {
        !self.out_ended && self.ends_behind.is_none()
    }

    fn new(role: Role) -> Self {
        Self {
            machine: ProxyConn::new(role, Reach::Up),
            role,
            serial: 0,
            taken: 0,
            delivered: 0,
            out_ended: false,
            ends_behind: None,
            inbound_open: true,
        }
    }

    fn input(&mut self, kind: u8, n: u64, other: bool) -> Option<Input> {
        let flow = FlowId::new(0, if other { n } else { self.serial });
        let in_data = matches!(self.machine.mode(), Mode::Data(_));
        let input = match kind {
            0 if self.machine.mode() == Mode::Idle => {
                self.serial += 1;
                (self.taken, self.delivered, self.out_ended) = (0, 0, false);
                self.ends_behind = None;
                self.inbound_open = true;
                let flow = FlowId::new(0, self.serial);
                if self.role == Role::Gateway { Input::Bind(flow) } else { Input::Start(flow) }
            }
            1 if in_data && !self.out_ended && other && self.ends_behind.is_none() => {
                self.ends_behind = Some(n);
                Input::OwnEnding(n)
            }
            1 if in_data && !self.out_ended => {
                self.out_ended = true;
                Input::OwnEnd(self.ends_behind.unwrap_or(n))
            }
            2 if self.inbound_open => {
                self.taken += n;
                Input::Taken(self.taken)
            }
            3 if in_data => {
                self.delivered += n.min(self.taken - self.delivered);
                Input::Delivered(self.delivered)
            }
            4 if self.inbound_open => {
                self.inbound_open = false;
                Input::InBandEof
            }
            5 => Input::OwnFailed,
            6 if self.role == Role::Client
                && in_data
                && self.delivered == 0
                && self.is_silent() =>
            {
                Input::StartFailed(AbortCode::Refused)
            }
            7 | 8 => Input::PeerFin(flow, self.taken.saturating_sub(2) + n),
            9 => Input::PeerReleased(flow),
            10 => Input::PeerAbort(flow, AbortCode::Other(n as u8)),
            11 => Input::LaneLost,
            12 => Input::LaneBack,
            13 if n == 0 => Input::Deadline,
            _ => return None,
        };
        Some(input)
    }
}

proptest! {
    /// Whatever frames come before and after the login, the sessions answer or end, and an ended
    /// session does nothing more.
    #[test]
    fn frames_in_any_order(
        strangers in prop::collection::vec(frame(), 0..6),
        members in prop::collection::vec(frame(), 0..12),
    ) {
        let mut stranger = GatewaySession::new(
            GatewayConfig {
                token: token(),
                server_id: ServerId::from_random([2; 16]),
                nonce: Nonce([2; 32]),
                data_cores: 2,
                heartbeat: Heartbeat::default(),
            },
            NOW,
        );
        let mut bytes = encode_preface(Kind::Ctl).to_vec();
        for frame in &strangers {
            frame.encode_into(&mut bytes);
        }
        stranger.handle_bytes(&bytes, NOW);
        while let Some(event) = stranger.poll_event() {
            prop_assert!(matches!(event, GatewayEvent::Ended(_)), "{event:?} to a stranger");
        }
        stranger.handle_timeout(NOW + HANDSHAKE_DEADLINE);
        prop_assert!(stranger.is_ended());

        let (mut gateway, mut client) = open_pair();
        for frame in &members {
            gateway.handle_bytes(&frame.encode(), NOW);
            client.handle_bytes(&frame.encode(), NOW);
        }
        let mut last = None;
        while let Some(event) = gateway.poll_event() {
            prop_assert!(!matches!(last, Some(GatewayEvent::Ended(_))), "an event after the end");
            last = Some(event);
        }
        prop_assert_eq!(gateway.is_ended(), matches!(last, Some(GatewayEvent::Ended(_))));
        let mut last = None;
        while let Some(event) = client.poll_event() {
            prop_assert!(!matches!(last, Some(ClientEvent::Ended(_))), "an event after the end");
            last = Some(event);
        }
        prop_assert_eq!(client.is_ended(), matches!(last, Some(ClientEvent::Ended(_))));
    }

    /// A lying peer makes a proxy_conn close at worst. Sinks are ended at most once per flow, and a
    /// flow that ended has sent its end.
    #[test]
    fn proxy_conn_against_a_liar(role in 0..2u8, happenings in happenings()) {
        let mut owner = Owner::new([Role::Gateway, Role::Client][usize::from(role)]);
        let mut ended = 0;
        for (kind, n, other) in happenings {
            let Some(input) = owner.input(kind, n, other) else { continue };
            let fresh = matches!(input, Input::Bind(_) | Input::Start(_));
            if fresh {
                ended = 0;
            }
            for action in owner.machine.handle(input) {
                match action {
                    Action::EndInbound => ended += 1,
                    Action::FlowEnded => prop_assert!(owner.out_ended && ended == 1),
                    Action::CloseClean(_) | Action::CloseReset(_) => {
                        prop_assert!(matches!(owner.machine.mode(), Mode::Closed(_)));
                    }
                    _ => {}
                }
            }
            prop_assert!(ended <= 1);
            if matches!(owner.machine.mode(), Mode::Closed(_)) {
                break;
            }
        }
    }

    /// Random operations keep the pool's promises: nothing lost, nothing twice, no limit passed.
    #[test]
    fn pool_operations(operations in prop::collection::vec((0..8u8, 0..40u32), 0..400)) {
        let mut pool = Pool::<u32, u32>::new();
        let (mut now, mut fresh) = (NOW, 0);
        let mut in_use = Vec::new();
        let mut idle = std::collections::BTreeSet::new();
        let mut waiting = std::collections::BTreeSet::new();
        for (kind, n) in operations {
            match kind {
                0 | 1 => {
                    fresh += 1;
                    match pool.take(fresh, now) {
                        Take::Conn(conn) => {
                            prop_assert!(idle.remove(&conn) && waiting.is_empty());
                            in_use.push(conn);
                        }
                        Take::Waiting => prop_assert!(idle.is_empty() && waiting.insert(fresh)),
                        Take::Full => prop_assert_eq!(waiting.len(), WAITING_PUBLICS_MAX),
                    }
                }
                2 | 3 => {
                    let (conn, origin) = match in_use.pop().filter(|_| kind == 2) {
                        Some(conn) => (conn, Origin::Returned),
                        None => {
                            fresh += 1;
                            (fresh, Origin::Fresh)
                        }
                    };
                    match pool.add(conn, origin, now) {
                        Add::Serve(waiter, conn) => {
                            prop_assert!(waiting.remove(&waiter));
                            in_use.push(conn);
                        }
                        Add::Idle => prop_assert!(waiting.is_empty() && idle.insert(conn)),
                        Add::Surplus(_) => prop_assert_eq!(idle.len(), IDLE_CONNS_MAX),
                    }
                }
                4 => {
                    let conn = idle.iter().nth(n as usize).copied().unwrap_or(0);
                    prop_assert_eq!(pool.remove_idle(conn), idle.remove(&conn));
                }
                5 => {
                    let waiter = waiting.iter().nth(n as usize).copied().unwrap_or(0);
                    prop_assert_eq!(pool.cancel_wait(waiter), waiting.remove(&waiter));
                }
                6 => {
                    now += Duration::from_millis(u64::from(n) * 100);
                    let expired = pool.handle_timeout(now);
                    for waiter in expired.waiters {
                        prop_assert!(waiting.remove(&waiter));
                    }
                    for conn in expired.surplus {
                        prop_assert!(idle.remove(&conn));
                    }
                    prop_assert!(pool.poll_timeout().is_none_or(|next| next > now));
                }
                _ => {
                    pool.poll_wanted(now);
                    let on_the_way = pool.idle_len() + pool.opening_len();
                    let enough = on_the_way >= pool.target() + pool.waiting_len();
                    prop_assert!(enough || pool.opening_len() == OPENING_MAX);
                }
            }
            prop_assert_eq!(pool.idle_len(), idle.len());
            prop_assert_eq!(pool.waiting_len(), waiting.len());
            prop_assert!(pool.opening_len() <= OPENING_MAX);
        }
    }
}
