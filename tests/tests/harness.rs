//! The harness itself: what the tests expect of ZProxy is what a direct connection does, and the
//! cuttable network does what it says, and the programs take the path that the tests are told.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, expect_reset, expect_visit_reset, finish};
use zproxy_tests::scenes::{self, End};
use zproxy_tests::{
    Direction, LocalServer, Program, Relay, Rig, Stats, Wire, World, both_backends,
};

/// Enough for a stream.
const STREAM_SIZE: u64 = 64 << 20;

fn wire_to(server: &LocalServer) -> Wire {
    Wire::start(([127, 0, 0, 1], 0).into(), server.addr).expect("a wire")
}

/// Every scene passes on a direct connection, so a scene that fails through ZProxy is ZProxy's.
#[test]
fn scenes_are_true_of_a_direct_connection() {
    let rig = Rig::direct();
    for who in End::BOTH {
        scenes::half_close(&rig, who, 0);
        scenes::half_close(&rig, who, 100_000);
        scenes::abort(&rig, who);
        scenes::abort_after_own_fin(&rig, who);
        scenes::abort_after_peers_fin(&rig, who);
        scenes::abort_under_backpressure(&rig, who);
        scenes::abort_behind_unread_bytes(&rig, who);
    }
    scenes::crossing_fins(&rig, 50);
    scenes::wordless_visits(&rig, 10);
    scenes::long_flow(&rig, 1, Direction::Up, 64 << 20);
    scenes::long_flow(&rig, 2, Direction::Down, 64 << 20);
    rig.expect_rest(&rig.rest());
}

/// Bytes and FINs pass a wire both ways; a cut resets both ends, and new connections work.
#[test]
fn a_wire_passes_and_cuts() {
    let server = LocalServer::echo();
    let wire = wire_to(&server);
    let conn = connect(wire.addr);
    echo_once(&conn, 1).expect("an echo");
    finish(&conn);
    assert_eq!((&conn).read(&mut [0]).expect("a FIN"), 0);
    drop(conn);

    let conn = connect(wire.addr);
    echo_once(&conn, 2).expect("an echo");
    wire.cut();
    expect_reset(&conn);
    zproxy_tests::eventually("the far end is reset", Duration::from_secs(5), || {
        server.faults().iter().any(|fault| fault.starts_with("ConnectionReset"))
    });
    echo_once(&connect(wire.addr), 3).expect("an echo after the cut");
    assert_eq!(wire.accepted(), 3);
}

/// An abort travels through a wire as an abort.
#[test]
fn a_wire_passes_aborts() {
    let server = LocalServer::resetting();
    let wire = wire_to(&server);
    let mut conn = connect(wire.addr);
    conn.write_all(b"x").expect("a byte");
    expect_reset(&conn);
}

/// A frozen connection says nothing and stays open; new ones work, unless they are refused.
#[test]
fn a_wire_freezes_and_refuses() {
    let server = LocalServer::echo();
    let wire = wire_to(&server);
    let mut frozen = connect(wire.addr);
    echo_once(&frozen, 1).expect("an echo");
    wire.freeze();
    frozen.write_all(b"x").expect("room in the buffers");
    frozen.set_read_timeout(Some(Duration::from_millis(300))).expect("a read deadline");
    let why = frozen.read(&mut [0]).expect_err("silence");
    assert_eq!(why.kind(), std::io::ErrorKind::WouldBlock);
    echo_once(&connect(wire.addr), 2).expect("an echo beside the frozen connection");
    wire.refuse(true);
    expect_visit_reset(wire.addr, Duration::from_secs(5));
    wire.refuse(false);
    echo_once(&connect(wire.addr), 3).expect("an echo again");
}

/// What a connection to a refusing LocalServer looks like from outside, without any tunnel.
#[test]
fn a_resetting_server_resets() {
    let server = LocalServer::resetting();
    let mut conn = connect(server.addr);
    conn.write_all(b"x").expect("a byte");
    expect_reset(&conn);
}

/// A stream that has passed a program with so many threads has taken the path of that name.
fn expect_path(program: &mut Program, threads: usize, relay: Relay) {
    let stats = Stats::of(program, threads);
    let (spliced, copied) = (stats.cores("bytes_spliced"), stats.cores("bytes_copied"));
    assert!(spliced + copied >= STREAM_SIZE, "{stats:?}");
    match relay {
        Relay::Auto => {}
        // Not all of it: where no pipe can be had, bytes are copied.
        Relay::Splice => assert!(spliced > STREAM_SIZE / 2, "{stats:?}"),
        Relay::Copy => assert_eq!(spliced, 0, "{stats:?}"),
    }
}

/// A stream through gateway and client, which have both taken that path.
fn expect_path_through(world: &World, rig: &mut Rig, relay: Relay) {
    scenes::long_flow(rig, 1, Direction::Up, STREAM_SIZE);
    let threads = world.cores_count() + 1;
    expect_path(rig.gateway(), threads, relay);
    expect_path(rig.client(), threads, relay);
}

both_backends! {
    /// Gateways, clients and forwards take the path of the world when nobody names one.
    fn the_path_of_the_world(world) {
        expect_path_through(world, &mut Rig::tunnel(world), world.relay());
        let mut rig = Rig::forward(world);
        scenes::long_flow(&rig, 1, Direction::Up, STREAM_SIZE);
        let zproxy_tests::rig::Path::Forward(forward) = &mut rig.path else { unreachable!() };
        expect_path(forward, world.cores_count(), world.relay());
    }

    /// A plan that names a path gets it, whatever the world's.
    fn the_path_of_a_plan(world) {
        for relay in Relay::ALL {
            expect_path_through(world, &mut Rig::tunnel_on(world, relay), relay);
        }
    }
}

/// A path that does not exist is a failure that says what would be right, not a run with another.
#[test]
fn a_path_that_does_not_exist() {
    let tests = std::env::current_exe().expect("this executable has a path");
    for wrong in ["", "slice", "Copy"] {
        let run = Command::new(&tests)
            .args(["--exact", "the_path_of_the_world::epoll"])
            .env("ZPROXY_TESTS_RELAY", wrong)
            .output()
            .expect("these tests again");
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(!run.status.success(), "{said}");
        let told = format!("ZPROXY_TESTS_RELAY is {wrong:?}: write auto, splice or copy");
        assert!(said.contains(&told), "{said}");
    }
}
