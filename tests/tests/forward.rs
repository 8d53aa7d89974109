//! `zproxy forward`: the same relay with one hop behaves as the tunnel does.

use std::io::Read;
use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, expect_visit_reset};
use zproxy_tests::scenes::{self, End};
use zproxy_tests::{Direction, LocalServer, Rig, both_backends, proc};

both_backends! {
    /// A hundred flows at once, both ways, in random pieces: every byte is the right one.
    fn a_hundred_concurrent_connections(world) {
        let mut forward = None;
        scenes::concurrent_exchanges(world, |local| forward.insert(world.forward(local)).listen);
    }

    /// Half a gigabyte each way.
    fn long_flows(world) {
        let rig = Rig::forward(world);
        scenes::long_flow(&rig, 1, Direction::Up, 512 << 20);
        scenes::long_flow(&rig, 2, Direction::Down, 512 << 20);
    }

    /// FIN stays FIN, in both orders and crossed, and nothing is left over.
    fn half_close(world) {
        let rig = Rig::forward(world);
        let rest = rig.rest();
        for request_size in [0, 1, 5_000_000] {
            scenes::half_close(&rig, End::Public, request_size);
            scenes::half_close(&rig, End::Local, request_size);
        }
        scenes::crossing_fins(&rig, 100);
        scenes::wordless_visits(&rig, 20);
        rig.expect_rest(&rest);
    }

    /// RST stays RST, wherever it strikes.
    fn reset(world) {
        let rig = Rig::forward(world);
        let rest = rig.rest();
        for who in End::BOTH {
            scenes::abort(&rig, who);
            scenes::abort_after_own_fin(&rig, who);
            scenes::abort_after_peers_fin(&rig, who);
            scenes::abort_under_backpressure(&rig, who);
            scenes::abort_behind_unread_bytes(&rig, who);
        }
        rig.expect_rest(&rest);
        // There is no pool here, so nothing may be kept.
        let pid = rig.pids()[0];
        let besides = proc::descriptors(pid).sockets - proc::listeners(pid).len();
        assert!(besides <= 8, "{besides} sockets besides the listeners");
    }

    /// Where nobody answers, the visitor is reset at once.
    fn nobody_answers(world) {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = nobody.local_addr().expect("its address").to_string();
        drop(nobody);
        let forward = world.forward(&to);
        expect_visit_reset(forward.listen, Duration::from_secs(5));
    }

    /// Several forwards of a config file, each to its own target.
    fn several_forwards(world) {
        let (one, two) = (LocalServer::echo(), LocalServer::echo());
        let text = format!(
            "[[forward]]\nlisten = \"127.0.0.1:0\"\nto = \"{}\"\n\n\
             [[forward]]\nlisten = \"127.0.0.1:0\"\nto = \"{}\"\n",
            one.name(),
            two.name()
        );
        let config = world.file("forward.toml", &text);
        let config = config.to_str().expect("text");
        let (backend, relay) = (world.backend().name(), world.relay().name());
        let args = ["forward", "--config", config, "--backend", backend, "--relay", relay];
        let program = world.bare("zproxy", &args);
        let deadline = Duration::from_secs(15);
        let lines = program.out.wait_for_count("two forwards", 2, deadline, |line| {
            line.starts_with("forward ready ")
        });
        for (server, line) in [&one, &two].into_iter().flat_map(|server| {
            let to = format!("to={}", server.name());
            lines.iter().filter(move |line| line.ends_with(&to)).map(move |line| (server, line))
        }) {
            let listen = zproxy_tests::programs::field(line, "listen").expect("an address");
            echo_once(&connect(listen.parse().expect("an address")), 9).expect("an echo");
            assert_eq!(server.accepted(), 1, "{line}");
        }
        assert_eq!(one.accepted() + two.accepted(), 2);
    }

    /// A stop lets the flow finish; then the program ends with code 0.
    fn stopping(world) {
        let mut rig = Rig::forward(world);
        let flow = rig.flow();
        let zproxy_tests::rig::Path::Forward(forward) = &mut rig.path else { unreachable!() };
        forward.terminate();
        std::io::Write::write_all(&mut &flow.public, b"last words").expect("last words");
        let mut words = [0; 10];
        (&flow.local).read_exact(&mut words).expect("last words");
        drop(flow);
        assert_eq!(forward.wait_exit(Duration::from_secs(10)), 0);
    }
}
