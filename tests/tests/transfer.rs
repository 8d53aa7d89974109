//! Every byte arrives, once, in order, in the right flow.

use std::time::Duration;

use zproxy_tests::net::{connect, echo_once};
use zproxy_tests::programs::{field, flow_ends, is_flow_end};
use zproxy_tests::world::heavy_turn;
use zproxy_tests::{Direction, LocalServer, Rig, both_backends, proc, scenes};

/// More than 2^32, so that no count of 32 bits survives.
const LONG_FLOW_SIZE: u64 = 4_608 << 20;

both_backends! {
    /// A hundred flows at once, both ways, in random pieces: every byte is the right one.
    fn a_hundred_concurrent_connections(world) {
        let gateway = world.gateway().start();
        let mut client = None;
        scenes::concurrent_exchanges(world, |local| {
            client.insert(world.client(&gateway).local(local).start()).public()
        });
        let lines = gateway.err.wait_for_count("flow ends", 100, Duration::from_secs(10), is_flow_end);
        let clean = lines.iter().filter(|line| field(line, "end") == Some("clean")).count();
        assert_eq!(clean, 100, "{lines:#?}");
    }

    /// 4.5 GiB in one flow, counted exactly; then the same proxy_conn carries the next flow.
    fn a_flow_longer_than_four_gib(world) {
        let _turn = heavy_turn();
        let mut rig = Rig::tunnel(world);
        scenes::long_flow(&rig, 1, Direction::Up, LONG_FLOW_SIZE);
        let gateway = rig.gateway();
        let line = gateway.err.wait_for("the flow's end", Duration::from_secs(10), is_flow_end);
        let counts = [field(&line, "in"), field(&line, "out")];
        let exact = LONG_FLOW_SIZE.to_string();
        assert!(counts.contains(&Some(exact.as_str())) && counts.contains(&Some("0")), "{line}");
        assert_eq!(field(&line, "end"), Some("clean"), "{line}");

        // Idle flows and proxy_conns may hold memory, but not a trace of what went through.
        for pid in rig.pids() {
            let resident = proc::resident_bytes(pid);
            assert!(resident < 200 << 20, "{resident} bytes resident after the long flow");
        }
        for flow in 2..10 {
            scenes::long_flow(&rig, flow, Direction::Down, 1 << 20);
        }
    }

    /// The other way round, with a count that crosses 2^31.
    fn a_long_answer(world) {
        let _turn = heavy_turn();
        let mut rig = Rig::tunnel(world);
        let size = (1 << 31) + 12_345;
        scenes::long_flow(&rig, 1, Direction::Down, size);
        let gateway = rig.gateway();
        let line = gateway.err.wait_for("the flow's end", Duration::from_secs(10), is_flow_end);
        let counts = [field(&line, "in"), field(&line, "out")];
        let exact = size.to_string();
        assert!(counts.contains(&Some(exact.as_str())) && counts.contains(&Some("0")), "{line}");
    }

    /// Small questions and answers in one connection stay in order.
    fn a_chatty_flow(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let conn = connect(client.public());
        for round in 0..2_000_u32 {
            echo_once(&conn, round.to_le_bytes()[0]).expect("an echo");
        }
    }

    /// A visitor that says nothing and leaves is a flow like any other.
    fn wordless_visits(world) {
        let mut rig = Rig::tunnel(world);
        scenes::wordless_visits(&rig, 50);
        let gateway = rig.gateway();
        gateway.err.wait_for_count("flow ends", 50, Duration::from_secs(10), is_flow_end);
    }

    /// What the visitor says before its connection is bound is kept and delivered.
    fn early_words_are_kept(world) {
        let rig = Rig::tunnel(world);
        for flow in 0..20 {
            scenes::long_flow(&rig, flow, Direction::Up, 300_000);
        }
    }

    /// One line per ended flow names flow, tunnel, public address, bytes, times and the way it ended.
    fn the_end_of_a_flow_is_one_line(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let conn = connect(client.public());
        for byte in 0..10 {
            echo_once(&conn, byte).expect("an echo");
        }
        let visitor = conn.local_addr().expect("its address").to_string();
        drop(conn);
        let line = gateway.err.wait_for("the flow's end", Duration::from_secs(10), is_flow_end);
        assert_eq!(flow_ends(&gateway).len(), 1);
        assert!(line.contains("main"), "no tunnel in: {line}");
        assert!(line.contains(&visitor), "no public address in: {line}");
        assert_eq!((field(&line, "in"), field(&line, "out")), (Some("10"), Some("10")), "{line}");
        assert!(field(&line, "ms").is_some(), "no duration in: {line}");
        let bind_time = line.split(' ').any(|word| word.starts_with("bind"));
        assert!(bind_time, "no time to bind in: {line}");
        assert!(line.contains("by=public"), "not who ended it in: {line}");
    }
}
