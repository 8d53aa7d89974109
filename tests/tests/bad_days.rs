//! Bad days: services that are down, networks that are gone, descriptors that run out, peers that do
//! not read. Who is concerned learns it soon; nobody else does at all.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use zproxy_tests::net::{
    connect, echo_once, expect_fin, expect_reset_within, expect_visit_reset, fill_up, finish,
    receive_pattern, send_pattern, try_connect,
};
use zproxy_tests::programs::{Client, Gateway, field};
use zproxy_tests::world::heavy_turn;
use zproxy_tests::{
    Direction, Flow, LocalServer, Pattern, Rig, World, both_backends, eventually, eventually_some,
    proc,
};

/// A visitor of a service that is down is reset at once.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Visitors of a service that cannot be reached are reset, the reason is logged by the gateway, and
/// nothing is left over.
fn expect_unreachable(world: &World, local: &str, within: Duration, reasons: &[&str]) {
    let good = LocalServer::echo();
    let gateway = world.gateway().start();
    let client = world.client(&gateway).local(&good.name()).start();
    let args = ["--connect-timeout", "1"];
    let broken = world.client(&gateway).local(local).args(args).start();
    let rest = held(&gateway, &broken);
    for _ in 0..10 {
        expect_visit_reset(broken.public(), within);
        echo_once(&connect(client.public()), 1).expect("an echo of the other service");
    }
    let known = |line: &str| reasons.iter().any(|reason| line.to_lowercase().contains(reason));
    let deadline = Duration::from_secs(5);
    gateway.err.wait_for_count(&format!("one of {reasons:?}"), 10, deadline, known);
    broken.err.wait_for(&format!("one of {reasons:?}"), deadline, known);
    eventually("nothing is left over", Duration::from_secs(20), || {
        let now = held(&gateway, &broken);
        now.0 <= rest.0 + 40 && now.1 <= rest.1 + 40
    });
}

fn held(gateway: &Gateway, client: &Client) -> (usize, usize) {
    let total = |pid| proc::descriptors(pid).total();
    (total(gateway.pid()), total(client.pid()))
}

/// A port of loopback on which SYNs are left without an answer: its queue is full.
struct Filtered {
    addr: SocketAddr,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl Filtered {
    fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        listener.bind(&any.into()).expect("a port");
        listener.listen(1).expect("a listener");
        let addr = listener.local_addr().expect("its address").as_socket().expect("IPv4");
        let mut queued = Vec::new();
        for _ in 0..8 {
            let conn = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            conn.set_nonblocking(true).expect("nonblocking");
            let _ = conn.connect(&addr.into());
            queued.push(conn);
        }
        eventually("the queue is full", Duration::from_secs(10), || {
            TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_err()
        });
        Self { addr, _listener: listener, _queued: queued }
    }
}

both_backends! {
    /// Nothing listens on the local address.
    fn local_refused(world) {
        let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = nobody.local_addr().expect("its address");
        drop(nobody);
        expect_unreachable(world, &addr.to_string(), AT_ONCE, &["refused"]);
    }

    /// The local address does not answer at all: the visitor is reset within the connect timeout.
    fn local_filtered(world) {
        let filtered = Filtered::new();
        let reasons = ["timeout", "timed out", "unreachable"];
        expect_unreachable(world, &filtered.addr.to_string(), Duration::from_secs(5), &reasons);
    }

    /// The local name does not resolve.
    fn local_name_unknown(world) {
        let reasons = ["resolve", "unreachable", "name"];
        let name = "no-such-host.invalid:80";
        expect_unreachable(world, name, Duration::from_secs(8), &reasons);
    }

    /// The service comes back, and the next visitor is served.
    fn local_comes_back(world) {
        let place = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = place.local_addr().expect("its address");
        drop(place);
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&addr.to_string()).start();
        expect_visit_reset(client.public(), AT_ONCE);
        let back = TcpListener::bind(addr).expect("the same port");
        let visitor = connect(client.public());
        let (local, _) = back.accept().expect("the visitor");
        drop(local);
        expect_fin(&visitor);
    }

    /// No proxy_conn can be had: the visitor is reset when the bind timeout ends, and the reason is
    /// logged; when the network is back, so is the service.
    fn no_proxy_conn(world) {
        let (mut rig, road) = Rig::tunnel_by_road(world, &["--bind-timeout", "1"], &[]);
        road.proxy.refuse(true);
        road.proxy.cut();
        let gateway = rig.gateway();
        let proxy_port = gateway.proxy.port();
        let pid = gateway.pid();
        eventually("the idle proxy_conns are gone", Duration::from_secs(10), || {
            proc::established_at(pid, proxy_port) == 0
        });
        let took = expect_visit_reset(rig.public, Duration::from_secs(5));
        assert!(took >= Duration::from_millis(700), "reset after {took:?}, before the timeout");
        rig.gateway().err.wait_for("the reason", Duration::from_secs(5), |line| {
            field(line, "flow") == Some("none")
                && field(line, "end").is_some_and(|end| end.contains("proxy"))
        });
        road.proxy.refuse(false);
        eventually("the service is back", Duration::from_secs(20), || {
            let Ok(public) = try_connect(rig.public) else { return false };
            let Some(local) = rig.local.accept_within(Duration::from_millis(500)) else {
                return false;
            };
            drop(local);
            // A visit before may have been given up before its local conn came.
            while rig.local.accept_within(Duration::from_millis(1)).is_some() {}
            let _ = public.set_read_timeout(Some(Duration::from_secs(1)));
            (&public).read(&mut [0]).is_ok()
        });
    }

    /// The death of idle proxy_conns is noticed at once: the very next visitor is served.
    fn dead_idle_proxy_conns_are_never_bound(world) {
        let (mut rig, road) = Rig::tunnel_by_road(world, &[], &[]);
        drop(rig.flow());
        for _ in 0..5 {
            road.proxy.cut();
            let (port, pid) = (rig.gateway().proxy.port(), rig.gateway().pid());
            eventually("the pool is stocked again", Duration::from_secs(10), || {
                proc::established_at(pid, port) > 0
            });
            let Flow { public, local } = rig.flow();
            send_pattern(&public, Pattern::new(1, Direction::Up), 10_000).expect("sending");
            receive_pattern(&local, Pattern::new(1, Direction::Up), 0, 10_000).expect("receiving");
        }
    }

    /// The network goes silent: both programs notice by their heartbeat, the client comes back by
    /// itself, and its port serves again.
    fn the_network_goes_silent(world) {
        let beat = ["--heartbeat", "0.3", "--heartbeat-deadline", "1"];
        let (rig, road) = Rig::tunnel_by_road(world, &beat, &beat);
        drop(rig.flow());
        road.freeze();
        let before = road.ctl.accepted();
        eventually("the client comes back", Duration::from_secs(10), || {
            road.ctl.accepted() > before
        });
        eventually("its port serves again", Duration::from_secs(20), || {
            let Ok(public) = try_connect(rig.public) else { return false };
            let Some(local) = rig.local.accept_within(Duration::from_secs(1)) else { return false };
            finish(&public);
            (&local).read(&mut [0]).is_ok()
        });
    }

    /// The client is gone silently and stays away: after heartbeat and grace its port is closed, and
    /// the gateway keeps nothing of it.
    fn a_client_stays_away(world) {
        let args = ["--heartbeat", "0.3", "--heartbeat-deadline", "1", "--grace", "1"];
        let local = LocalServer::echo();
        let gateway = world.gateway().args(args).start();
        let empty = (proc::descriptors(gateway.pid()), proc::listeners(gateway.pid()));
        let road = zproxy_tests::Road::to(&gateway);
        let plan = world.client(&gateway).server(road.ctl.addr).local(&local.name());
        let client = plan.args(args[..4].iter().copied()).start();
        echo_once(&connect(client.public()), 1).expect("an echo");
        road.ctl.refuse(true);
        road.proxy.refuse(true);
        road.freeze();
        eventually("the public port is closed", Duration::from_secs(15), || {
            try_connect(client.public()).is_err()
        });
        eventually("nothing is kept", Duration::from_secs(10), || {
            let now = proc::descriptors(gateway.pid());
            now.sockets <= empty.0.sockets && proc::listeners(gateway.pid()) == empty.1
        });
    }

    /// Out of descriptors: accepting pauses, says so once, and resumes; the open flow is unharmed.
    fn out_of_descriptors(world) {
        let _turn = heavy_turn();
        let local = LocalServer::echo();
        let gateway = world.gateway().descriptors_max(128).start();
        let client = world.client(&gateway).local(&local.name()).start();
        let flow = connect(client.public());
        echo_once(&flow, 1).expect("an echo");
        let crowd: Vec<TcpStream> = (0..300).map(|_| connect(client.public())).collect();
        let short = |line: &str| line.to_lowercase().contains("descriptor");
        gateway.err.wait_for("that descriptors ran out", Duration::from_secs(10), short);
        for byte in 0..50 {
            echo_once(&flow, byte).expect("an echo while there are no descriptors");
        }
        let said = gateway.err.matching(short).len();
        assert!(said <= 2 * world.cores_count() + 4, "said {said} times");
        drop(crowd);
        eventually("visitors are served again", Duration::from_secs(30), || {
            let Ok(visitor) = try_connect(client.public()) else { return false };
            visitor.set_read_timeout(Some(Duration::from_secs(2))).expect("a read deadline");
            echo_once(&visitor, 7).is_ok()
        });
        gateway.err.wait_for("that accepting goes on", Duration::from_secs(10), |line| {
            let line = line.to_lowercase();
            line.contains("resum") || line.contains("again")
        });
        echo_once(&flow, 3).expect("an echo afterwards");
        let said = gateway.err.matching(short).len();
        assert!(said <= 4 * (world.cores_count() + 1), "said {said} times altogether");
    }

    /// Peers that never read stall their own flows only: memory stays bounded, other flows run at
    /// full speed, and what was held back arrives whole when the peer reads at last.
    fn a_peer_that_never_reads(world) {
        let _turn = heavy_turn();
        let rig = Rig::tunnel(world);
        let before: Vec<u64> = rig.pids().into_iter().map(proc::resident_bytes).collect();
        let stalled: Vec<Flow> = (0..12).map(|_| rig.flow()).collect();
        let sent: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let fill = |(flow, number): (&Flow, u64)| {
                let up = fill_up(&flow.public, Pattern::new(number, Direction::Up));
                (up, fill_up(&flow.local, Pattern::new(number, Direction::Down)))
            };
            let runs: Vec<_> =
                stalled.iter().zip(0..).map(|one| scope.spawn(move || fill(one))).collect();
            runs.into_iter().map(|run| run.join().expect("filling up")).collect()
        });
        for (pid, before) in rig.pids().into_iter().zip(before) {
            let grown = proc::resident_bytes(pid).saturating_sub(before);
            assert!(grown < 64 << 20, "{grown} bytes more resident with {} stalled", stalled.len());
        }
        zproxy_tests::scenes::long_flow(&rig, 1_000, Direction::Up, 256 << 20);
        zproxy_tests::scenes::long_flow(&rig, 1_001, Direction::Down, 256 << 20);
        for ((flow, number), (up, down)) in stalled.iter().zip(0..).zip(sent) {
            finish(&flow.public);
            finish(&flow.local);
            receive_pattern(&flow.local, Pattern::new(number, Direction::Up), 0, up).expect("up");
            receive_pattern(&flow.public, Pattern::new(number, Direction::Down), 0, down)
                .expect("down");
            expect_fin(&flow.local);
            expect_fin(&flow.public);
        }
    }

    /// A flow in which nothing moves is closed after the idle timeout, if there is one.
    fn the_idle_timeout(world) {
        let rig = Rig::tunnel_with(world, &["--idle-timeout", "1"], &[]);
        let flow = rig.flow();
        expect_reset_within(&flow.public, Duration::from_secs(6));
        zproxy_tests::net::expect_closed_within(&flow.local, Duration::from_secs(6));
    }

    /// A half-closed flow in which nothing moves is closed after its own timeout.
    fn the_half_close_timeout(world) {
        let rig = Rig::tunnel_with(world, &["--half-close-timeout", "1"], &[]);
        let open = rig.flow();
        let half = rig.flow();
        finish(&half.public);
        assert_eq!((&half.local).read(&mut [0]).expect("a FIN"), 0);
        expect_reset_within(&half.public, Duration::from_secs(6));
        eventually_some("the open flow still works", Duration::from_secs(1), || {
            send_pattern(&open.public, Pattern::new(1, Direction::Up), 10).ok()?;
            receive_pattern(&open.local, Pattern::new(1, Direction::Up), 0, 10).ok()
        });
    }
}
