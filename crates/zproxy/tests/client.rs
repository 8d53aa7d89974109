//! The client against a gateway that says only what a test wants it to say.

mod gateway;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener};

use gateway::*;
use zproxy_proto::control::GatewayEvent;
use zproxy_proto::id::{FlowId, ProxyId};
use zproxy_proto::lane::Notice;
use zproxy_proto::limits::RESTING_CONNS_MAX;
use zproxy_proto::wire::{
    Abort, AbortCode, Fin, OpenProxy, RefusedCode, Released, TunnelRefused, TunnelRefusedCode,
};

fn expect_fin(world: &mut World, proxy: &Proxy, flow: FlowId, bytes: u64) {
    assert_eq!(world.notice(), Notice::Fin(Fin { proxy: proxy.id, flow, bytes }));
}

fn expect_released(world: &mut World, proxy: &Proxy, flow: FlowId) {
    assert_eq!(world.notice(), Notice::Released(Released { proxy: proxy.id, flow }));
}

fn expect_abort(world: &mut World, proxy: &Proxy, flow: FlowId, code: AbortCode) {
    assert_eq!(world.notice(), Notice::Abort(Abort { proxy: proxy.id, flow, code }));
}

fn send_fin(world: &mut World, proxy: &Proxy, flow: FlowId, bytes: u64) {
    world.tell(Notice::Fin(Fin { proxy: proxy.id, flow, bytes }));
}

fn send_abort(world: &mut World, proxy: &Proxy, flow: FlowId) {
    world.tell(Notice::Abort(Abort { proxy: proxy.id, flow, code: AbortCode::Reset }));
}

/// A flow that the public side ends first: bytes both ways, an answer behind the FIN, a release, and
/// the same proxy_conn for the next flow, whose local side ends first.
#[test]
fn flows_half_close_and_proxy_conns_are_used_again() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let line = format!("tunnel web ready public=127.0.0.1:2000 local={at}");
        assert_eq!(world.line(), line);
        let mut proxy = world.proxy(&mut ctl);

        let flow = proxy.start(1, b"question");
        let mut local = accept(&server);
        expect(&mut local, b"question");
        local.write_all(b"part").unwrap();
        expect(&mut proxy.stream, b"part");
        proxy.stream.write_all(b", more").unwrap();
        send_fin(&mut world, &proxy, flow, 14);
        expect(&mut local, b", more");
        expect_end(&mut local);
        let answer = vec![0xa5; 3_000_000];
        let (writer, bytes) = (local.try_clone().unwrap(), answer.clone());
        let writing = std::thread::spawn(move || {
            (&writer).write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        expect(&mut proxy.stream, &answer);
        writing.join().unwrap();
        expect_fin(&mut world, &proxy, flow, 3_000_004);
        expect_released(&mut world, &proxy, flow);

        let flow = proxy.start(2, b"");
        let mut local = accept(&server);
        local.write_all(b"bye").unwrap();
        local.shutdown(Shutdown::Write).unwrap();
        expect(&mut proxy.stream, b"bye");
        expect_fin(&mut world, &proxy, flow, 3);
        proxy.stream.write_all(b"late").unwrap();
        expect(&mut local, b"late");
        send_fin(&mut world, &proxy, flow, 4);
        expect_end(&mut local);
        expect_released(&mut world, &proxy, flow);
    });
}

/// A notice that overtakes its start is not lost, and a start may come in pieces.
#[test]
fn early_ends_and_split_starts() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxy = world.proxy(&mut ctl);
        let (flow, bytes) = start(1);
        send_fin(&mut world, &proxy, flow, 0);
        let mut other = world.proxy(&mut ctl);
        let (aborted, other_bytes) = start(2);
        send_abort(&mut world, &other, aborted);
        // Both have been heard when a later one has had its effect.
        let mut last = world.proxy(&mut ctl);
        let reset = last.start(3, b"");
        let local = accept(&server);
        send_abort(&mut world, &last, reset);
        expect_reset(&mut last.stream);
        drop(local);
        for byte in &bytes {
            proxy.stream.write_all(&[*byte]).unwrap();
        }
        let mut local = accept(&server);
        expect_end(&mut local);
        drop(local);
        expect_fin(&mut world, &proxy, flow, 0);
        expect_released(&mut world, &proxy, flow);

        other.stream.write_all(&other_bytes).unwrap();
        expect_reset(&mut other.stream);
    });
}

/// A reset of the local conn resets the proxy_conn, and an abort resets both.
#[test]
fn resets_travel_both_ways() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxy = world.proxy(&mut ctl);
        proxy.start(1, b"x");
        // Closing with an unread byte resets.
        let local = accept(&server);
        local.peek(&mut [0]).unwrap();
        drop(local);
        expect_reset(&mut proxy.stream);

        let mut proxy = world.proxy(&mut ctl);
        let flow = proxy.start(2, b"x");
        let mut local = accept(&server);
        expect(&mut local, b"x");
        send_abort(&mut world, &proxy, flow);
        expect_reset(&mut local);
        expect_reset(&mut proxy.stream);
    });
}

/// When nothing listens, the gateway is told why; it closes the proxy_conn.
#[test]
fn a_refused_dial_is_told() {
    on_every_backend(|backend| {
        let at = free_address();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxy = world.proxy(&mut ctl);
        let flow = proxy.start(1, b"payload that nobody gets");
        expect_abort(&mut world, &proxy, flow, AbortCode::Refused);
        proxy.stream.shutdown(Shutdown::Write).unwrap();
        expect_reset(&mut proxy.stream);
    });
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Bytes on an idle proxy_conn that are no start close it, and it alone.
#[test]
fn garbage_closes_one_proxy_conn() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let (mut bad, mut good) = (world.proxy(&mut ctl), world.proxy(&mut ctl));
        bad.stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        expect_reset(&mut bad.stream);
        good.start(1, b"x");
        expect(&mut accept(&server), b"x");
    });
}

/// Without a ctl_conn flows go on, begin and end as ever; the client comes back with its ticket.
#[test]
fn flows_outlive_the_ctl_conn() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let (mut proxy, mut idle) = (world.proxy(&mut ctl), world.proxy(&mut ctl));
        let flow = proxy.start(1, b"before");
        let mut local = accept(&server);
        expect(&mut local, b"before");
        drop(ctl);
        // The next ctl_conn waits for its welcome: meanwhile there is none.
        let mut ctl = world.accept();
        assert!(ctl.resume.is_some());
        local.write_all(b"answer").unwrap();
        expect(&mut proxy.stream, b"answer");
        local.shutdown(Shutdown::Write).unwrap();
        expect_fin(&mut world, &proxy, flow, 6);
        send_fin(&mut world, &proxy, flow, 6);
        expect_end(&mut local);
        expect_released(&mut world, &proxy, flow);

        let flow = idle.start(2, b"begun without");
        let mut local = accept(&server);
        expect(&mut local, b"begun without");
        // What swallowed the ctl_conn may have swallowed the lane: there is a new one.
        world.cut_lane();
        ctl.welcome(true);
        ctl.open_tunnel("127.0.0.1:2000".parse().unwrap());
        world.next_lane(&ctl);
        local.shutdown(Shutdown::Write).unwrap();
        expect_fin(&mut world, &idle, flow, 0);
        world.line();
        assert!(world.lines.try_recv().is_err(), "the address is the same: no news");
    });
}

/// Without a lane a flow goes on and ends in-band; the client dials another one, and a flow that
/// began without it ends over it.
#[test]
fn flows_outlive_the_lane() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let (mut proxy, mut idle) = (world.proxy(&mut ctl), world.proxy(&mut ctl));
        // Its direction to the gateway has ended when the lane is cut: said again in-band.
        let flow = proxy.start(1, b"before");
        let mut local = accept(&server);
        expect(&mut local, b"before");
        local.write_all(b"answer").unwrap();
        local.shutdown(Shutdown::Write).unwrap();
        expect_fin(&mut world, &proxy, flow, 6);
        world.cut_lane();
        expect(&mut proxy.stream, b"answer");
        expect_end(&mut proxy.stream);
        proxy.stream.write_all(b"after").unwrap();
        proxy.stream.shutdown(Shutdown::Write).unwrap();
        expect(&mut local, b"after");
        expect_end(&mut local);

        let flow = idle.start(2, b"payload");
        let mut local = accept(&server);
        expect(&mut local, b"payload");
        world.next_lane(&ctl);
        local.shutdown(Shutdown::Write).unwrap();
        expect_fin(&mut world, &idle, flow, 0);
        send_fin(&mut world, &idle, flow, 7);
        expect_end(&mut local);
        expect_released(&mut world, &idle, flow);
    });
}

/// A gateway that says nonsense on a lane loses it; the client's flows do not notice.
#[test]
fn a_lane_with_nonsense_is_closed() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxy = world.proxy(&mut ctl);
        proxy.start(1, b"x");
        let mut local = accept(&server);
        expect(&mut local, b"x");
        let of_others = ProxyId::new(1, 0, 1);
        let fin = Fin { proxy: of_others, flow: FlowId::new(1, 1), bytes: 0 };
        world.tell(Notice::Fin(fin));
        world.cut_lane();
        world.next_lane(&ctl);
        local.write_all(b"y").unwrap();
        expect(&mut proxy.stream, b"y");
        world.await_log("Fin with a number out of range");
    });
}

/// A gateway that does not know the session any more ends everything that belonged to it.
#[test]
fn a_lost_session_takes_its_flows_along() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let (mut proxy, mut idle) = (world.proxy(&mut ctl), world.proxy(&mut ctl));
        proxy.start(1, b"x");
        let mut local = accept(&server);
        expect(&mut local, b"x");
        drop(ctl);
        let mut ctl = world.accept();
        world.cut_lane();
        ctl.welcome(false);
        ctl.open_tunnel("127.0.0.1:2001".parse().unwrap());
        expect_reset(&mut local);
        expect_reset(&mut proxy.stream);
        expect_reset(&mut idle.stream);
        world.line();
        let line = format!("tunnel web ready public=127.0.0.1:2001 local={at}");
        assert_eq!(world.line(), line);
        let mut proxy = world.proxy(&mut ctl);
        proxy.start(1, b"new");
        expect(&mut accept(&server), b"new");
    });
}

/// A final refusal ends the client with exit code 3 and the reason; another one does not.
#[test]
fn refusals_end_the_client() {
    on_every_backend(|backend| {
        let mut world = World::start(backend, free_address());
        let mut ctl = world.accept();
        ctl.session.refuse(RefusedCode::ShuttingDown, "not now");
        ctl.flush();
        drop(ctl);
        let mut ctl = world.accept();
        ctl.session.refuse(RefusedCode::BadToken, "who are you");
        ctl.flush();
        assert_eq!(world.wait().code(), Some(3));
        world.await_log("who are you");

        let mut world = World::start(backend, free_address());
        let mut ctl = world.accept();
        ctl.welcome(false);
        let name = ctl.until(|event| match event {
            GatewayEvent::OpenTunnel(open) => Some(open.name),
            _ => None,
        });
        let code = TunnelRefusedCode::PortNotAllowed;
        ctl.session.tunnel_refused(TunnelRefused { name, code, reason: "not yours".into() });
        ctl.flush();
        assert_eq!(world.wait().code(), Some(3));
        world.await_log("not yours");
    });
}

/// Asked to stop, the client says so, lets its flow finish, refuses another one, and ends well.
#[test]
fn sigterm_drains() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let (mut proxy, mut idle) = (world.proxy(&mut ctl), world.proxy(&mut ctl));
        let flow = proxy.start(1, b"x");
        let mut local = accept(&server);
        expect(&mut local, b"x");
        world.signal("TERM");
        ctl.until(|event| matches!(event, GatewayEvent::GoAway(_)).then_some(()));
        let refused = idle.start(2, b"");
        expect_abort(&mut world, &idle, refused, AbortCode::Shutdown);
        proxy.stream.write_all(b"y").unwrap();
        send_fin(&mut world, &proxy, flow, 2);
        expect(&mut local, b"y");
        expect_end(&mut local);
        drop(local);
        expect_fin(&mut world, &proxy, flow, 0);
        // A gateway that has heard the goodbye closes what is idle.
        drop((proxy, idle));
        assert_eq!(world.wait().code(), Some(0));
    });
}

/// Asked to stop twice, the client stops at once, and what it carried is reset.
#[test]
fn a_second_signal_stops_at_once() {
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxy = world.proxy(&mut ctl);
        proxy.start(1, b"x");
        let mut local = accept(&server);
        expect(&mut local, b"x");
        world.signal("INT");
        ctl.until(|event| matches!(event, GatewayEvent::GoAway(_)).then_some(()));
        world.signal("INT");
        assert_eq!(world.wait().code(), Some(0));
        expect_reset(&mut local);
        expect_reset(&mut proxy.stream);
    });
}

/// A gateway that asks for proxy_conns without end gets so many that carry no flow; one that is in use
/// is not counted.
#[test]
fn idle_proxy_conns_are_bounded() {
    zproxy_io::sys::raise_descriptor_limit();
    on_every_backend(|backend| {
        let (server, at) = local_server();
        let mut world = World::start(backend, at);
        let mut ctl = world.serve();
        let mut proxies: Vec<_> = (0..RESTING_CONNS_MAX).map(|_| world.proxy(&mut ctl)).collect();
        ctl.session.open_proxy(OpenProxy { core: 0, count: 1 });
        ctl.flush();
        world.await_log("not dialled");
        proxies[7].start(1, b"question");
        let mut local = accept(&server);
        expect(&mut local, b"question");
        proxies.push(world.proxy(&mut ctl));
    });
}
