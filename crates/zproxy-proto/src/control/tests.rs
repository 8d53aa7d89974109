//! Both ends against each other and against liars, with a clock that the tests turn.

use std::time::Duration;

use crate::auth::{Mac, Nonce, Ticket, Token};
use crate::id::*;
use crate::limits::*;
use crate::wire::*;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn gateway(token: &str) -> GatewaySession {
    let config = GatewayConfig {
        token: Token::parse(token).unwrap(),
        server_id: ServerId::from_random([2; 16]),
        nonce: Nonce([4; 32]),
        data_cores: 2,
        heartbeat: Heartbeat::default(),
    };
    GatewaySession::new(config, NOW)
}

fn client(token: &str) -> ClientSession {
    let config = ClientConfig {
        token: Token::parse(token).unwrap(),
        client_id: ClientId::from_random([1; 16]),
        name: Name::new("laptop").unwrap(),
        nonce: Nonce([3; 32]),
        resume: Some(Ticket([9; 32])),
        data_cores: 3,
    };
    ClientSession::new(config, NOW)
}

fn session() -> Session {
    Session {
        ctl_id: CtlId([5; 16]),
        epoch: 1,
        proxy_port: 8091,
        resumed: false,
        ticket: Ticket([7; 32]),
        tunnels_max: 10,
    }
}

/// Carries bytes both ways until nobody has any.
fn carry(gateway: &mut GatewaySession, client: &mut ClientSession, now: Duration) {
    loop {
        let (up, down) = (client.poll_transmit(), gateway.poll_transmit());
        if up.is_none() && down.is_none() {
            return;
        }
        gateway.handle_bytes(&up.unwrap_or_default(), now);
        client.handle_bytes(&down.unwrap_or_default(), now);
    }
}

fn connected() -> (GatewaySession, ClientSession) {
    let (mut gateway, mut client) = (gateway(RIGHT), client(RIGHT));
    carry(&mut gateway, &mut client, NOW);
    let Some(GatewayEvent::Authenticated(hello)) = gateway.poll_event() else { panic!() };
    assert!(hello.resume.unwrap().matches(&Ticket([9; 32])));
    gateway.welcome(session(), NOW);
    carry(&mut gateway, &mut client, NOW);
    assert!(matches!(client.poll_event(), Some(ClientEvent::Welcomed(_))));
    (gateway, client)
}

const RIGHT: &str = "the-token-of-the-gateway";
const WRONG: &str = "the-token-of-another-one";

fn gateway_end(gateway: &mut GatewaySession) -> End {
    match gateway.poll_event() {
        Some(GatewayEvent::Ended(end)) => end,
        other => panic!("{other:?}"),
    }
}

fn client_end(client: &mut ClientSession) -> End {
    match client.poll_event() {
        Some(ClientEvent::Ended(end)) => end,
        other => panic!("{other:?}"),
    }
}

/// With the same token both sides arrive at the same key, and frames of each kind go both ways.
#[test]
fn handshake_and_frames() {
    let (mut gateway, mut client) = connected();
    let proxy = ProxyId::new(1, 2, 3);
    let (what, ctl_id) = (Attached::Conn, CtlId([5; 16]));
    let mac = crate::auth::attach_mac(client.session_key().unwrap(), what, ctl_id, proxy);
    let key = gateway.session_key().unwrap();
    assert!(crate::auth::verify_attach_mac(key, &Attach { what, ctl_id, proxy, mac }));

    let name = Name::new("web").unwrap();
    client.open_tunnel(OpenTunnel { name: name.clone(), public_port: 0, last_port: Some(80) });
    client.close_tunnel(TunnelId(3));
    client.go_away(GoAway { reason: "bye".into(), drain_ms: 1 });
    let public = "192.0.2.1:80".parse().unwrap();
    gateway.tunnel_open(TunnelOpen { name: name.clone(), tunnel: TunnelId(3), public });
    let code = TunnelRefusedCode::PortTaken;
    gateway.tunnel_refused(TunnelRefused { name, code, reason: "taken".into() });
    gateway.open_proxy(OpenProxy { core: 1, count: 4 });
    gateway.close_tunnel(TunnelId(3));
    gateway.go_away(GoAway { reason: "bye".into(), drain_ms: 1 });
    carry(&mut gateway, &mut client, NOW);

    let mut heard = Vec::new();
    while let Some(event) = gateway.poll_event() {
        heard.push(format!("{event:?}").split('(').next().unwrap().to_owned());
    }
    assert_eq!(heard, ["OpenTunnel", "CloseTunnel", "GoAway"]);
    let mut heard = Vec::new();
    while let Some(event) = client.poll_event() {
        heard.push(format!("{event:?}").split('(').next().unwrap().to_owned());
    }
    let expected = ["TunnelOpen", "TunnelRefused", "OpenProxy", "CloseTunnel", "GoAway"];
    assert_eq!(heard, expected);
}

/// A client with another token is told so, in words that do not depend on anything, and is no
/// further than before.
#[test]
fn wrong_token_is_refused() {
    let (mut gateway, mut client) = (gateway(RIGHT), client(WRONG));
    carry(&mut gateway, &mut client, NOW);
    let end = gateway_end(&mut gateway);
    assert!(matches!(&end, End::Refused { code: RefusedCode::BadToken, .. }));
    assert_eq!(client_end(&mut client), end);
    assert!(gateway.session_key().is_none() && client.session_key().is_none());
    assert!(gateway.poll_event().is_none() && gateway.poll_timeout().is_none());
}

/// Whatever is wrong about a proof, the gateway's answer is the same to the byte.
#[test]
fn every_wrong_proof_has_the_same_answer() {
    let mut right = client(RIGHT);
    let hello = right.poll_transmit().unwrap();
    let mut probe = gateway(RIGHT);
    probe.handle_bytes(&hello, NOW);
    right.handle_bytes(&probe.poll_transmit().unwrap(), NOW);
    let proof = right.poll_transmit().unwrap();
    let digits = proof.len() - 64 - 2;
    let mut answers = std::collections::BTreeSet::new();
    for place in [Some(0), Some(31), Some(63), None] {
        let mut wrong = proof.clone();
        match place {
            Some(place) => {
                let digit = &mut wrong[digits + place];
                *digit = if *digit == b'0' { b'1' } else { b'0' };
            }
            None => wrong[digits..digits + 64].fill(b'0'),
        }
        let mut session = gateway(RIGHT);
        session.handle_bytes(&hello, NOW);
        session.poll_transmit().unwrap();
        session.handle_bytes(&wrong, NOW);
        assert!(matches!(
            gateway_end(&mut session),
            End::Refused { code: RefusedCode::BadToken, .. }
        ));
        answers.insert(session.poll_transmit().unwrap());
    }
    assert_eq!(answers.len(), 1);
}

/// A gateway that does not know the token cannot make a client believe it.
#[test]
fn unproven_gateway_is_not_believed() {
    let mut client = client(RIGHT);
    let challenge = Challenge {
        server_id: ServerId::from_random([2; 16]),
        nonce: Nonce([4; 32]),
        proof: Mac([0; 32]),
    };
    let mut bytes = Frame::Challenge(challenge).encode();
    Frame::Welcome(Welcome {
        ctl_id: CtlId([5; 16]),
        epoch: 1,
        proxy_port: 1,
        heartbeat_ms: 1000,
        deadline_ms: 3000,
        data_cores: 1,
        resumed: false,
        ticket: Ticket([7; 32]),
        tunnels_max: 1,
    })
    .encode_into(&mut bytes);
    client.handle_bytes(&bytes, NOW);
    assert_eq!(client_end(&mut client), End::GatewayUnproven);
}

/// Silence before the login ends at the handshake deadline, on both sides and in each phase.
#[test]
fn handshake_deadline() {
    let mut silent = gateway(RIGHT);
    assert_eq!(silent.poll_timeout(), Some(NOW + HANDSHAKE_DEADLINE));
    silent.handle_timeout(NOW + HANDSHAKE_DEADLINE - Duration::from_millis(1));
    assert!(silent.poll_event().is_none());
    silent.handle_timeout(NOW + HANDSHAKE_DEADLINE);
    assert_eq!(gateway_end(&mut silent), End::HandshakeTimeout);
    assert!(silent.poll_transmit().is_none(), "nothing is said to a stranger");

    let (mut half, mut asker) = (gateway(RIGHT), client(RIGHT));
    half.handle_bytes(&asker.poll_transmit().unwrap(), NOW);
    half.handle_timeout(NOW + HANDSHAKE_DEADLINE);
    assert_eq!(gateway_end(&mut half), End::HandshakeTimeout);
    asker.handle_timeout(NOW + HANDSHAKE_DEADLINE);
    assert_eq!(client_end(&mut asker), End::HandshakeTimeout);
}

/// Garbage ends the ctl_conn at its first wrong byte; another version is told so.
#[test]
fn garbage_and_other_versions() {
    let mut session = gateway(RIGHT);
    session.handle_bytes(b"G", NOW);
    assert_eq!(gateway_end(&mut session), End::Violation(WireError::Magic.into()));
    assert!(session.poll_transmit().is_none());
    session.handle_bytes(b"ZPXY", NOW);
    assert!(session.poll_event().is_none());

    let mut session = gateway(RIGHT);
    session.handle_bytes(b"ZPXY\x09", NOW);
    assert_eq!(gateway_end(&mut session), End::Violation(WireError::Version(9).into()));
    let mut asker = client(RIGHT);
    asker.handle_bytes(&session.poll_transmit().unwrap(), NOW);
    assert!(matches!(client_end(&mut asker), End::Refused { code: RefusedCode::Version, .. }));
}

/// A frame out of its phase or from the wrong side is a violation, and the client hears of it.
#[test]
fn frames_out_of_phase() {
    let mut bytes = encode_preface(Kind::Ctl).to_vec();
    Frame::Ping(1).encode_into(&mut bytes);
    let mut early = gateway(RIGHT);
    early.handle_bytes(&bytes, NOW);
    assert_eq!(gateway_end(&mut early), End::Violation(Violation::Unexpected("Ping")));

    let (mut gateway, mut client) = connected();
    gateway.handle_bytes(&Frame::OpenProxy(OpenProxy { core: 0, count: 1 }).encode(), NOW);
    assert_eq!(gateway_end(&mut gateway), End::Violation(Violation::Unexpected("OpenProxy")));
    client.handle_bytes(&gateway.poll_transmit().unwrap(), NOW);
    assert!(matches!(client_end(&mut client), End::Refused { code: RefusedCode::Protocol, .. }));

    let (_, mut client) = connected();
    let proof = Frame::Proof(Proof { proof: Mac([0; 32]) });
    client.handle_bytes(&proof.encode(), NOW);
    assert_eq!(client_end(&mut client), End::Violation(Violation::Unexpected("Proof")));
}

/// What is told of flows travels on lanes only.
#[test]
fn notices_do_not_belong_here() {
    let (mut gateway, mut client) = connected();
    let (proxy, flow) = (ProxyId::new(0, 0, 1), FlowId::new(0, 1));
    let fin = Frame::Fin(Fin { proxy, flow, bytes: 1 }).encode();
    gateway.handle_bytes(&fin, NOW);
    assert_eq!(gateway_end(&mut gateway), End::Violation(Violation::Unexpected("Fin")));
    client.handle_bytes(&fin, NOW);
    assert_eq!(client_end(&mut client), End::Violation(Violation::Unexpected("Fin")));
}

/// An order for a core that does not exist never reaches the owner.
#[test]
fn cores_out_of_range() {
    let (_, mut client) = connected();
    client.handle_bytes(&Frame::OpenProxy(OpenProxy { core: 2, count: 1 }).encode(), NOW);
    assert_eq!(client_end(&mut client), End::Violation(Violation::OutOfRange("OpenProxy")));
}

/// Idle but living peers keep each other alive; a dead one is noticed at the deadline.
#[test]
fn heartbeat() {
    let (mut gateway, mut client) = connected();
    let mut now = NOW;
    for _ in 0..20 {
        now = gateway.poll_timeout().unwrap().min(client.poll_timeout().unwrap());
        gateway.handle_timeout(now);
        client.handle_timeout(now);
        carry(&mut gateway, &mut client, now);
    }
    assert!(now > NOW + HEARTBEAT_DEADLINE);
    assert!(gateway.is_open() && client.is_open());

    let last = now;
    while !gateway.is_ended() {
        now = gateway.poll_timeout().unwrap();
        gateway.handle_timeout(now);
        gateway.poll_transmit();
    }
    assert_eq!(gateway_end(&mut gateway), End::Silent);
    assert_eq!(now, last + HEARTBEAT_DEADLINE);
}

/// A peer that asks and never reads the answers is cut off, and nothing is kept for it.
#[test]
fn a_peer_that_does_not_read() {
    let (mut gateway, _) = connected();
    let pings = Frame::Ping(1).encode().repeat(5000);
    let mut pushes = 0;
    while !gateway.is_ended() {
        gateway.handle_bytes(&pings, NOW);
        pushes += 1;
        assert!(pushes < 1000);
    }
    assert_eq!(gateway_end(&mut gateway), End::Backlog);
    assert!(gateway.poll_transmit().is_none());
}

/// The handshake works however the bytes are cut.
#[test]
fn handshake_byte_by_byte() {
    let (mut gateway, mut client) = (gateway(RIGHT), client(RIGHT));
    for _ in 0..2 {
        for byte in client.poll_transmit().unwrap() {
            gateway.handle_bytes(&[byte], NOW);
        }
        for byte in gateway.poll_transmit().unwrap_or_default() {
            client.handle_bytes(&[byte], NOW);
        }
    }
    assert!(matches!(gateway.poll_event(), Some(GatewayEvent::Authenticated(_))));
}

/// Announced heartbeat times are brought within reason.
#[test]
fn heartbeat_times_are_clamped() {
    assert_eq!(Heartbeat::from_ms(10_000, 30_000), Heartbeat::default());
    let beat = Heartbeat::from_ms(0, 0);
    assert_eq!((beat.interval, beat.deadline), (HEARTBEAT_MIN, HEARTBEAT_MIN * 2));
    let beat = Heartbeat::from_ms(u64::MAX, 5);
    assert_eq!((beat.interval, beat.deadline), (HEARTBEAT_MAX, HEARTBEAT_MAX * 2));
}
