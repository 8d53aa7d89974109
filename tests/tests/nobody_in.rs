//! Nobody in: what strangers, and clients that know the token, try and do not get.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use zproxy_proto::auth::Ticket;
use zproxy_proto::id::{CtlId, FlowId, ProxyId};
use zproxy_proto::limits::{
    PREFACE_SIZE, START_SIZE, STRANGER_FRAME_LEN_MAX, STRANGERS_PER_ORIGIN_MAX,
};
use zproxy_proto::wire::{
    Abort, AbortCode, CloseTunnel, Decoder, Fin, Frame, Kind, RefusedCode, Released,
    TunnelRefusedCode, encode_preface,
};
use zproxy_tests::liar::{Claim, Liar};
use zproxy_tests::net::{
    connect, echo_once, expect_closed_within, expect_reset_within, try_connect_from,
};
use zproxy_tests::world::{heavy_turn, own_loopback, own_ports};
use zproxy_tests::{Gateway, LocalServer, Relay, Stats, World, both_backends, eventually, proc};

const SOON: Duration = Duration::from_secs(10);

/// Everything that the gateway says on a connection until it ends it.
fn last_words(conn: &mut TcpStream) -> Vec<u8> {
    let mut words = Vec::new();
    // A RST is an end too.
    let _ = conn.read_to_end(&mut words);
    words
}

/// The next frame on a ctl_conn that is spoken by hand.
fn next_frame(conn: &mut TcpStream, decoder: &mut Decoder) -> Frame {
    loop {
        if let Some(frame) = decoder.next_frame().expect("a gateway keeps to the protocol") {
            return frame;
        }
        let mut bytes = [0; 1_024];
        let count = conn.read(&mut bytes).expect("an answer");
        assert_ne!(count, 0, "the gateway hung up without a word");
        decoder.push(&bytes[..count]);
    }
}

/// Sends an opening of a proxy_conn that the gateway must not take, and how it ended: how many bytes
/// came back, and with which error.
fn refused_attach(gateway: &Gateway, opening: &[u8]) -> (usize, Option<ErrorKind>) {
    let mut conn = connect(gateway.proxy);
    // A RST may be as fast as the last byte.
    let _ = conn.write_all(opening);
    let mut words = Vec::new();
    let end = conn.read_to_end(&mut words).err().map(|why| why.kind());
    (words.len(), end)
}

/// One byte from a visitor through a liar's proxy_conn and one back.
fn exchange(visitor: &mut TcpStream, conn: &mut TcpStream, byte: u8) {
    conn.set_nonblocking(false).expect("a socket");
    let mut came = [0];
    visitor.write_all(&[byte]).expect("a visitor's byte");
    conn.read_exact(&mut came).expect("the visitor's byte");
    assert_eq!(came, [byte]);
    conn.write_all(&[!byte]).expect("an answer");
    visitor.read_exact(&mut came).expect("the answer");
    assert_eq!(came, [!byte]);
}

/// Proxy_conns that come in one go.
const BURST: usize = 2_000;

/// A burst of proxy_conns of this client, which all say at once what they have to say.
fn honest_burst(gateway: &Gateway, liar: &Liar) -> Vec<TcpStream> {
    let openings: Vec<Vec<u8>> = (10_000..)
        .take(BURST)
        .map(|serial| liar.opening(liar.ctl_id(), ProxyId::new(0, 0, serial)))
        .collect();
    let conn = |opening: &Vec<u8>| {
        let mut conn = connect(gateway.proxy);
        // The pool closes what is too much for it, so a write may fail.
        let _ = conn.write_all(opening);
        conn
    };
    openings.iter().map(conn).collect()
}

/// The whole burst attaches, and what the pool does not want of it is retired.
fn expect_attached(world: &World, mut gateway: Gateway, liar: Liar, conns: Vec<TcpStream>) {
    let threads = world.cores_count() + 1;
    eventually("all of them attach", SOON, || {
        Stats::of(&mut gateway, threads).control("proxy_conns") >= BURST as u64
    });
    // Those that the pool does not want end with a FIN, which nothing but the pool sends here.
    eventually("the surplus is retired", SOON, || {
        let has_ended = |conn: &&TcpStream| {
            let peeked = conn.set_nonblocking(true).and_then(|()| conn.peek(&mut [0]));
            matches!(peeked, Ok(0))
        };
        conns.iter().filter(has_ended).count() >= 1_400
    });
    drop((conns, liar));
    gateway.terminate();
    assert_eq!(gateway.wait_exit(SOON), 0);
    assert!(!gateway.err.text().contains("crowded_out"), "{}", gateway.err.text());
}

both_backends! {
    /// A client that names another client's proxy_conn, flow, tunnel or ctl_conn, all of which it has
    /// seen somehow, changes nothing for the other.
    fn another_clients_flow_cannot_be_claimed(world) {
        let gateway = world.gateway().start();
        let mut victim = Liar::with_tunnel(&gateway, world.token(), Claim::new(1));
        let mut thief = Liar::with_tunnel(&gateway, world.token(), Claim::new(2));
        let mut visitor = connect(victim.public());
        let (proxy, mut conn, start) = victim.await_start();
        exchange(&mut visitor, &mut conn, 1);
        let flow = start.flow;
        let elsewhere = ProxyId::new(flow.gateway_core(), 999, 0);
        let notices = [
            Frame::Fin(Fin { proxy, flow, bytes: 0 }),
            Frame::Released(Released { proxy, flow }),
            Frame::Abort(Abort { proxy, flow, code: AbortCode::Reset }),
            Frame::Fin(Fin { proxy: elsewhere, flow, bytes: 0 }),
        ];
        thief.say_on_lane(&notices.iter().flat_map(Frame::encode).collect::<Vec<_>>());
        // The last one is a violation: when the lane is closed, the others have been read.
        thief.expect_lane_closed();
        thief.session.close_tunnel(victim.opened[0].tunnel);
        let wrong = victim.opening(thief.ctl_id(), ProxyId::new(0, 0, 4_000));
        let stolen = thief.opening(victim.ctl_id(), ProxyId::new(0, 0, 4_000));
        for opening in [wrong, stolen] {
            assert_eq!(refused_attach(&gateway, &opening).0, 0);
        }
        // When the thief's tunnel is open, everything that it said before has been read.
        thief.open_tunnel(0, None).expect("a tunnel");
        exchange(&mut visitor, &mut conn, 2);
        let mut second = connect(victim.public());
        let (_, mut second_conn, _) = victim.await_start();
        exchange(&mut second, &mut second_conn, 3);
        assert!(victim.ended.is_none() && thief.ended.is_none());
    }

    /// What was recorded of a login is worth nothing in another one, at the same gateway or after its
    /// restart: the gateway's part of the proof is never the same.
    fn a_handshake_cannot_be_replayed(world) {
        let port = *own_ports().start();
        let mut gateway = world.gateway().ports(port, port + 1).start();
        let mut session = Claim::new(3).session(world.token());
        let mut conn = connect(gateway.ctl);
        let hello = session.poll_transmit().expect("a hello");
        conn.write_all(&hello).expect("a ctl_conn");
        let mut proof = None;
        eventually("a proof", SOON, || {
            let mut bytes = [0; 1_024];
            let count = conn.read(&mut bytes).expect("a challenge");
            session.handle_bytes(&bytes[..count], Duration::ZERO);
            proof = session.poll_transmit();
            proof.is_some()
        });
        let proof = proof.expect("found above");
        conn.write_all(&proof).expect("a ctl_conn");
        assert!(matches!(next_frame(&mut conn, &mut Decoder::new()), Frame::Welcome(_)));
        for round in 0..2 {
            let (mut replay, mut decoder) = (connect(gateway.ctl), Decoder::new());
            replay.write_all(&hello).expect("a ctl_conn");
            let challenge = next_frame(&mut replay, &mut decoder);
            assert!(matches!(challenge, Frame::Challenge(_)), "{challenge:?}");
            replay.write_all(&proof).expect("a ctl_conn");
            let refused = next_frame(&mut replay, &mut decoder);
            assert!(
                matches!(&refused, Frame::Refused(it) if it.code == RefusedCode::BadToken),
                "{refused:?}"
            );
            expect_closed_within(&replay, SOON);
            if round == 0 {
                gateway.kill9_and_restart();
            }
        }
    }

    /// An Attach counts once: the same bytes again are refused, while the first is idle, while a flow
    /// is on it, and when the session came back over another ctl_conn.
    fn an_attach_cannot_be_replayed(world) {
        let gateway = world.gateway().start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(4));
        let openings: Vec<Vec<u8>> =
            liar.conns.iter().map(|(proxy, _)| liar.opening(liar.ctl_id(), *proxy)).collect();
        for opening in &openings {
            assert_eq!(refused_attach(&gateway, opening).0, 0);
        }
        let mut visitor = connect(liar.public());
        let (proxy, mut conn, _) = liar.await_start();
        let opening = liar.opening(liar.ctl_id(), proxy);
        assert_eq!(refused_attach(&gateway, &opening).0, 0);
        exchange(&mut visitor, &mut conn, 5);
        let ticket = liar.welcome.as_ref().expect("welcomed").ticket;
        let resume = Some(ticket);
        let again = Liar::enter(&gateway, world.token(), Claim { nonce: 99, resume, ..Claim::new(4) });
        assert!(again.welcome.as_ref().expect("welcomed").resumed);
        // The old ctl_conn is no more, and the ids of its proxy_conns are spent for the new one too.
        assert_eq!(refused_attach(&gateway, &opening).0, 0);
        assert_eq!(refused_attach(&gateway, &again.opening(again.ctl_id(), proxy)).0, 0);
        exchange(&mut visitor, &mut conn, 6);
    }

    /// Without its ticket a session cannot be taken up again, not even by who knows the token and the
    /// client's id: its flows are reset and not handed over, and its ctl_conn is told.
    fn a_wrong_ticket_resumes_nothing(world) {
        let gateway = world.gateway().start();
        let mut owner = Liar::with_tunnel(&gateway, world.token(), Claim::new(5));
        let mut visitor = connect(owner.public());
        let (_, mut conn, _) = owner.await_start();
        exchange(&mut visitor, &mut conn, 7);
        let epoch = owner.welcome.as_ref().expect("welcomed").epoch;
        let mut wrong = owner.welcome.as_ref().expect("welcomed").ticket;
        wrong.0[31] ^= 1;
        for resume in [None, Some(wrong), Some(Ticket([0; 32]))] {
            let claim = Claim { nonce: 77, resume, ..Claim::new(6) };
            let stranger = Liar::enter(&gateway, world.token(), claim);
            assert!(!stranger.welcome.as_ref().expect("welcomed").resumed);
        }
        // Another client's id with a ticket does not touch the session; the same id ends it.
        exchange(&mut visitor, &mut conn, 8);
        let claim = Claim { nonce: 78, resume: Some(wrong), ..Claim::new(5) };
        let thief = Liar::enter(&gateway, world.token(), claim);
        let welcome = thief.welcome.as_ref().expect("welcomed");
        assert!(!welcome.resumed && welcome.epoch != epoch);
        expect_reset_within(&visitor, SOON);
        eventually("the owner is told", SOON, || {
            owner.turn();
            owner.ended.is_some()
        });
    }

    /// A client gets the ports that the operator allows, whichever way it asks, and never one of the
    /// gateway's own; and the gateway listens nowhere else.
    fn only_allowed_ports_are_bound(world) {
        let (first, last) = own_ports().into_inner();
        let range = format!("{first}-{}", last - 5);
        let gateway = world.gateway().args(["--public-ports", &range]).start();
        let mut liar = Liar::enter(&gateway, world.token(), Claim::new(7));
        let own = [gateway.ctl.port(), gateway.proxy.port()];
        for port in [1, 22, 80, 443, first - 1, last - 4, 65_535, own[0], own[1]] {
            let refused = liar.open_tunnel(port, Some(port)).expect_err("a refusal");
            assert_eq!(refused.code, TunnelRefusedCode::PortNotAllowed, "{port}: {refused:?}");
        }
        let allowed: BTreeSet<u16> = (first..=last - 5).collect();
        let mut got = BTreeSet::new();
        for port in [22, last, own[0], first] {
            // The port that it claims to have had is a wish like any other.
            let public = liar.open_tunnel(0, Some(port)).expect("any port");
            assert!(allowed.contains(&public.port()), "{public}");
            assert!(got.insert(public.port()));
        }
        let listening: BTreeSet<u16> = proc::listeners(gateway.pid()).into_iter().collect();
        assert_eq!(listening, got.iter().copied().chain(own).collect());
    }

    /// Without `--public-ports` no client gets a privileged port, or one of the gateway's own.
    fn privileged_ports_need_the_operator(world) {
        let gateway = world.gateway().start();
        let mut liar = Liar::enter(&gateway, world.token(), Claim::new(8));
        for port in [1, 22, 443, 1_023, gateway.ctl.port(), gateway.proxy.port()] {
            let refused = liar.open_tunnel(port, None).expect_err("a refusal");
            assert_eq!(refused.code, TunnelRefusedCode::PortNotAllowed, "{port}: {refused:?}");
        }
    }

    /// The gateway dials nobody, whatever its clients and visitors do: every connection that it has
    /// is at a port on which it listens.
    fn the_gateway_dials_nobody(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let visitors: Vec<TcpStream> = (0..50).map(|_| connect(client.public())).collect();
        for visitor in &visitors {
            echo_once(visitor, 9).expect("an echo");
        }
        assert!(proc::established_at(gateway.pid(), gateway.proxy.port()) >= 50);
        assert_eq!(proc::dialled(gateway.pid()), 0);
        assert!(proc::dialled(client.pid()) >= 100, "a client dials, so dialling can be seen");
    }

    /// Before it is authenticated nobody makes the gateway hold more than a few KiB: not by large
    /// frames, not by many connections, not by many connections one after the other.
    fn strangers_do_not_fill_the_memory(world) {
        let _turn = heavy_turn();
        let gateway = world.gateway().start();
        let preface = encode_preface(Kind::Ctl);
        let too_long = u32::try_from(STRANGER_FRAME_LEN_MAX + 1).expect("small");
        let mut conn = connect(gateway.ctl);
        conn.write_all(&[&preface[..], &too_long.to_be_bytes(), b"\x01"].concat()).expect("a header");
        let refused = next_frame(&mut conn, &mut Decoder::new());
        assert!(matches!(refused, Frame::Refused(it) if it.code == RefusedCode::Protocol));
        let before = proc::resident_bytes(gateway.pid());
        // The largest frame that is allowed, but for its last byte.
        let mut half = [&preface[..], &(too_long - 1).to_be_bytes(), b"\x01"].concat();
        half.resize(PREFACE_SIZE + 4 + STRANGER_FRAME_LEN_MAX - 1, b' ');
        let mut held = Vec::new();
        for _ in 0..2 {
            let from = own_loopback();
            for _ in 0..STRANGERS_PER_ORIGIN_MAX - 20 {
                let mut conn = try_connect_from(from, gateway.ctl).expect("a connection");
                let _ = conn.write_all(&half);
                held.push(conn);
            }
        }
        let grown = proc::resident_bytes(gateway.pid()).saturating_sub(before);
        assert!(grown < 24 << 20, "{grown} bytes for {} strangers", held.len());
        drop(held);
        for _ in 0..20 {
            let from = own_loopback();
            for _ in 0..200 {
                drop(try_connect_from(from, gateway.proxy));
            }
        }
        let grown = proc::resident_bytes(gateway.pid()).saturating_sub(before);
        assert!(grown < 24 << 20, "{grown} bytes after a flood");
    }

    /// Two thousand proxy_conns of one honest client attach in one go, from one address, and none of
    /// them is pushed out or locked out.
    fn a_burst_of_honest_proxy_conns(world) {
        let _turn = heavy_turn();
        let gateway = world.gateway().start();
        let liar = Liar::enter(&gateway, world.token(), Claim::new(9));
        let conns = honest_burst(&gateway, &liar);
        expect_attached(world, gateway, liar, conns);
    }

    /// The same when all of them have waited for a gateway that had no time, whichever path the bytes
    /// of its flows take.
    fn a_burst_in_the_accept_queue(world) {
        let _turn = heavy_turn();
        let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("a sysctl");
        if somaxconn.trim().parse().is_ok_and(|max: usize| max < BURST) {
            return eprintln!("skipped: net.core.somaxconn is less than {BURST}");
        }
        for relay in Relay::ALL {
            let mut gateway = world.gateway().relay(relay).start();
            let liar = Liar::enter(&gateway, world.token(), Claim::new(9));
            gateway.signal(Signal::STOP);
            let conns = honest_burst(&gateway, &liar);
            gateway.signal(Signal::CONT);
            expect_attached(world, gateway, liar, conns);
        }
    }

    /// Whatever is wrong about a proof or an Attach, the answer is the same, to the byte.
    fn a_refusal_does_not_say_what_was_wrong(world) {
        let gateway = world.gateway().start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(10));
        let tokens = [
            "another-token-of-some-length-0123456789",
            // The right one, but for its last letter, and with one more.
            &format!("{}x", &world.token()[..world.token().len() - 1]),
            &format!("{}x", world.token()),
        ];
        let mut answers = BTreeSet::new();
        for token in tokens {
            let mut conn = connect(gateway.ctl);
            let mut session = Claim::new(11).session(token);
            conn.write_all(&session.poll_transmit().expect("a hello")).expect("a ctl_conn");
            let mut proof = None;
            eventually("a proof", SOON, || {
                let mut bytes = [0; 1_024];
                let count = conn.read(&mut bytes).expect("a challenge");
                session.handle_bytes(&bytes[..count], Duration::ZERO);
                proof = session.poll_transmit();
                proof.is_some()
            });
            conn.write_all(&proof.expect("found above")).expect("a ctl_conn");
            answers.insert(last_words(&mut conn));
        }
        assert_eq!(answers.len(), 1, "{answers:?}");
        let (used, _) = liar.conns[0];
        let fresh = ProxyId::new(0, 0, 5_000);
        let right = liar.opening(liar.ctl_id(), fresh);
        let mut wrong_mac = right.clone();
        wrong_mac[63] ^= 1;
        let mut all_wrong = right.clone();
        all_wrong[32..].fill(0);
        let ends: Vec<_> = [
            wrong_mac,
            all_wrong,
            liar.opening(CtlId([9; 16]), fresh),
            liar.opening(liar.ctl_id(), ProxyId::new(999, 0, 5_000)),
            liar.opening(liar.ctl_id(), used),
        ]
        .iter()
        .map(|opening| refused_attach(&gateway, opening))
        .collect();
        assert!(ends.iter().all(|end| *end == (0, Some(ErrorKind::ConnectionReset))), "{ends:?}");
        // It was not the rest of the opening that was wrong.
        let mut conn = connect(gateway.proxy);
        conn.write_all(&right).expect("a proxy_conn");
        conn.set_nonblocking(true).expect("a socket");
        // The kernel decides which data core a visitor comes to, so it takes a few.
        let mut visitors = Vec::new();
        eventually("a flow starts on it", SOON, || {
            visitors.push(connect(liar.public()));
            liar.turn();
            matches!(conn.peek(&mut [0; START_SIZE]), Ok(START_SIZE))
        });
    }

    /// A client that invents frames on its ctl_conn and notices about flows that never were on its
    /// lane, as fast as it can, ends itself at worst: the others do not wait for it, and the gateway's memory does not grow.
    fn a_flood_of_frames_hurts_nobody_else(world) {
        let _turn = heavy_turn();
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(12));
        let before = proc::resident_bytes(gateway.pid());
        let (mut words, mut notices) = (Vec::new(), Vec::new());
        let core = liar.lane_name().gateway_core();
        for serial in 0..20_000 {
            let proxy = ProxyId::new(core, 0, serial);
            let flow = FlowId::new(core, u64::from(serial) + 1);
            notices.extend(Frame::Fin(Fin { proxy, flow, bytes: 1 }).encode());
            notices.extend(Frame::Released(Released { proxy, flow }).encode());
            words.extend(Frame::CloseTunnel(CloseTunnel { tunnel: liar.opened[0].tunnel }).encode());
        }
        let begun = Instant::now();
        let mut said = 0;
        while begun.elapsed() < Duration::from_secs(3) && liar.say(&words) {
            liar.say_on_lane(&notices);
            said += words.len() + notices.len();
            echo_once(&connect(client.public()), 1).expect("an echo beside the flood");
        }
        let grown = proc::resident_bytes(gateway.pid()).saturating_sub(before);
        assert!(grown < 32 << 20, "{grown} bytes more after {said} bytes of frames");
        echo_once(&connect(client.public()), 2).expect("an echo after the flood");
    }
}
