//! Peers that are no peers: they are got rid of, and nobody else waits for that.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zproxy_proto::limits::{FAILURES_PER_ORIGIN_MAX, STRANGERS_MAX, STRANGERS_PER_ORIGIN_MAX};
use zproxy_tests::net::{connect, echo_once, expect_closed_within, is_closed, try_connect_from};
use zproxy_tests::programs::field;
use zproxy_tests::world::{heavy_turn, own_loopback};
use zproxy_tests::{Gateway, LocalServer, Rng, both_backends, eventually, proc};

/// The openings of the two kinds of connection.
const CTL_PREFACE: &[u8] = b"ZPXY\x01\x01\x00\x00";
const PROXY_PREFACE: &[u8] = b"ZPXY\x01\x02\x00\x00";

/// A wrong byte ends a connection long before the deadline for silence does.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Silence is ended by a deadline of 5 s, with some room for a busy machine.
const DEADLINE: Duration = Duration::from_secs(9);

fn say(addr: SocketAddr, words: &[u8]) -> TcpStream {
    let mut conn = connect(addr);
    // The gateway may have hung up on the first of these bytes already.
    let _ = conn.write_all(words);
    conn
}

/// So many silent connections from so many addresses, made so quickly that none of them has reached
/// its deadline.
fn crowd(addresses: usize, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    for _ in 0..10 {
        let begun = Instant::now();
        let addresses: Vec<IpAddr> = (0..addresses).map(|_| own_loopback()).collect();
        let callers = addresses.iter().cycle().take(count);
        let crowd = callers.filter_map(|from| try_connect_from(*from, to).ok()).collect();
        if begun.elapsed() < Duration::from_secs(2) {
            return crowd;
        }
    }
    panic!("this machine is too slow to make a crowd");
}

/// Strangers that had to make room, as the gateway has told so far.
fn crowded_out(gateway: &Gateway) -> usize {
    let told = gateway.err.matching(|line| line.contains("unauthenticated peers:"));
    let count = |line: &String| field(line, "crowded_out")?.parse::<usize>().ok();
    told.iter().filter_map(count).sum()
}

both_backends! {
    /// What cannot be the beginning of anything is closed at the first wrong byte, on both ports.
    fn garbage_is_closed_at_once(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let mut noise = vec![0; 100_000];
        let mut rng = Rng::new(5);
        noise.fill_with(|| rng.next().to_le_bytes()[0]);
        noise[0] = b'#';
        let wrong_version: &[u8] = b"ZPXY\x63\x01\x00\x00";
        let wrong_kind: &[u8] = b"ZPXY\x01\x09\x00\x00";
        let http: &[u8] = b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n";
        for port in [gateway.ctl, gateway.proxy] {
            for words in [&noise[..], http, wrong_version, wrong_kind, b"\0", b"ZPXz"] {
                expect_closed_within(&say(port, words), AT_ONCE);
            }
        }
        // The right preface at the wrong door.
        expect_closed_within(&say(gateway.ctl, PROXY_PREFACE), DEADLINE);
        expect_closed_within(&say(gateway.proxy, CTL_PREFACE), DEADLINE);
        echo_once(&connect(client.public()), 1).expect("an echo");
    }

    /// A frame that claims to be huge is refused at its header.
    fn a_huge_length_is_closed_at_once(world) {
        let gateway = world.gateway().start();
        let before = proc::resident_bytes(gateway.pid());
        for length in [u32::MAX, 1 << 31, 1 << 20, (64 << 10) + 1] {
            let words = [CTL_PREFACE, &length.to_be_bytes(), b"\x01{"].concat();
            expect_closed_within(&say(gateway.ctl, &words), AT_ONCE);
        }
        let empty = [CTL_PREFACE, &0_u32.to_be_bytes()].concat();
        expect_closed_within(&say(gateway.ctl, &empty), AT_ONCE);
        let grown = proc::resident_bytes(gateway.pid()).saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes for nothing");
    }

    /// A proxy_conn that names nobody, or proves nothing, is closed.
    fn a_forged_attach_is_closed(world) {
        let gateway = world.gateway().start();
        for fill in [0, 1, 0x7f, 0xff] {
            let words = [PROXY_PREFACE, &[fill; 56]].concat();
            expect_closed_within(&say(gateway.proxy, &words), DEADLINE);
        }
        let too_much = [PROXY_PREFACE, &[0; 4_096]].concat();
        expect_closed_within(&say(gateway.proxy, &too_much), DEADLINE);
    }

    /// Half a preface, or half a frame, and then silence: closed after the deadline, not before, and
    /// a client is served in the meantime.
    fn half_a_frame_then_silence(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let begun = Instant::now();
        let half_frame = [CTL_PREFACE, &200_u32.to_be_bytes(), b"\x01{\"client\":"].concat();
        let half_attach = [PROXY_PREFACE, &[0; 20]].concat();
        let silent = [
            say(gateway.ctl, b""),
            say(gateway.ctl, b"ZPX"),
            say(gateway.ctl, CTL_PREFACE),
            say(gateway.ctl, &half_frame),
            say(gateway.proxy, b""),
            say(gateway.proxy, b"ZP"),
            say(gateway.proxy, PROXY_PREFACE),
            say(gateway.proxy, &half_attach),
        ];
        let client = world.client(&gateway).local(&local.name()).start();
        echo_once(&connect(client.public()), 1).expect("an echo");
        assert!(begun.elapsed() < Duration::from_secs(4), "a client had to wait for silence");
        assert!(!silent.iter().all(is_closed), "silence was not given its time");
        for conn in &silent {
            expect_closed_within(conn, DEADLINE);
        }
    }

    /// One byte a second is no way to hold a place: the deadline is for the whole opening.
    fn a_trickle_is_closed_by_the_deadline(world) {
        let gateway = world.gateway().start();
        let frame = [CTL_PREFACE, &500_u32.to_be_bytes(), b"\x01"].concat();
        let mut conn = say(gateway.ctl, &frame);
        let begun = Instant::now();
        conn.set_read_timeout(Some(Duration::from_millis(500))).expect("a read deadline");
        while !is_closed(&conn) {
            let _ = conn.write_all(b" ");
            // Half a second, unless the gateway says something.
            let _ = conn.peek(&mut [0]);
            assert!(begun.elapsed() < DEADLINE, "a trickle holds its place");
        }
    }

    /// Far more silent connections than may be unauthenticated at a time, from many addresses: their
    /// number stays bounded, an old flow is not disturbed, and a new client gets in all the same.
    fn a_crowd_of_silent_connections(world) {
        let _turn = heavy_turn();
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let flow = connect(client.public());
        echo_once(&flow, 1).expect("an echo");
        let before = proc::descriptors(gateway.pid()).sockets;
        let crowd = crowd(6, gateway.ctl, STRANGERS_MAX + 200);
        eventually("the crowd is let in", Duration::from_secs(5), || {
            proc::descriptors(gateway.pid()).sockets >= before + STRANGERS_MAX - 24
        });
        for byte in 0..20 {
            echo_once(&flow, byte).expect("an echo while the crowd waits");
        }
        let second = world.client(&gateway).local(&local.name()).start();
        echo_once(&connect(second.public()), 2).expect("an echo through the second client");
        eventually("the crowd is gone", Duration::from_secs(20), || crowd.iter().all(is_closed));
        echo_once(&flow, 3).expect("an echo after the crowd");
        // Nobody else was too many: silence is ended by its deadline, which is counted apart.
        eventually("as many as were too many made room", Duration::from_secs(5), || {
            crowded_out(&gateway) >= crowd.len() - STRANGERS_MAX
        });
    }

    /// One address may have half of the places at most, and what it sends beyond pushes out its own:
    /// a stranger from elsewhere keeps its place until its deadline.
    fn one_address_pushes_out_itself(world) {
        let _turn = heavy_turn();
        let gateway = world.gateway().start();
        let begun = Instant::now();
        let quiet = try_connect_from(own_loopback(), gateway.ctl).expect("a quiet stranger");
        let before = proc::descriptors(gateway.pid()).sockets;
        let crowd = crowd(1, gateway.ctl, STRANGERS_PER_ORIGIN_MAX + 100);
        eventually("one address has no more than its share", Duration::from_secs(4), || {
            crowd.iter().filter(|conn| is_closed(conn)).count() >= 100
        });
        let held = proc::descriptors(gateway.pid()).sockets.saturating_sub(before);
        assert!(held <= STRANGERS_PER_ORIGIN_MAX + 8, "{held} of one address");
        let is_left = !is_closed(&quiet);
        assert!(is_left || begun.elapsed() > Duration::from_secs(4), "it had to make room");
    }

    /// An address whose handshakes fail again and again is not answered any more, for a while; others
    /// are, and so is an address where a client has a session.
    fn too_many_failures_lock_an_address_out(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let (bad, good) = (own_loopback(), own_loopback());
        // Another version is answered by a frame that says so, unless nobody listens.
        let is_answered = |from: IpAddr| {
            // A RST may be so fast that connecting reports it.
            let Ok(mut conn) = try_connect_from(from, gateway.ctl) else { return false };
            let _ = conn.write_all(b"ZPXY\x63");
            let mut answer = Vec::new();
            let _ = conn.read_to_end(&mut answer);
            !answer.is_empty()
        };
        let begun = Instant::now();
        let mut failures = 0;
        while is_answered(bad) {
            failures += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "never locked out");
        }
        assert!(failures >= FAILURES_PER_ORIGIN_MAX, "locked out after {failures}");
        assert!(is_answered(good), "another address is locked out");
        let client = world.client(&gateway).local(&local.name()).start();
        for _ in 0..FAILURES_PER_ORIGIN_MAX + 50 {
            assert!(is_answered(IpAddr::V4(Ipv4Addr::LOCALHOST)), "a client vouches for it");
        }
        echo_once(&connect(client.public()), 1).expect("an echo");
        eventually("forgiven", Duration::from_secs(20), || is_answered(bad));
        let said = gateway.err.text();
        assert!(said.contains("unauthenticated peers:") && said.contains("locked_out="), "{said}");
    }
}
