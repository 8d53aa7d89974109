//! Stopping: a first signal drains, a second one ends the draining.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use zproxy_tests::net::{echo_once, expect_closed_within, expect_fin, finish, try_connect};
use zproxy_tests::{Flow, Program, Rig, both_backends, eventually};

/// A program with nothing to wait for ends within this time.
const AT_ONCE: Duration = Duration::from_secs(4);

fn converse(flow: &Flow) {
    for word in [b"ping", b"pong"] {
        (&flow.public).write_all(word).expect("a word from outside");
        let mut came = [0; 4];
        (&flow.local).read_exact(&mut came).expect("the word inside");
        (&flow.local).write_all(&came).expect("the word back");
        (&flow.public).read_exact(&mut came).expect("the word outside");
        assert_eq!(&came, word);
    }
}

/// True when a new visitor is not served: refused, or hung up on without an echo.
fn is_turned_away(rig: &Rig) -> bool {
    let Ok(visitor) = try_connect(rig.public) else { return true };
    visitor.set_read_timeout(Some(Duration::from_millis(500))).expect("a read deadline");
    echo_once(&visitor, 1).is_err() && rig.local.accept_within(Duration::ZERO).is_none()
}

/// Ends a flow cleanly from outside, with a last answer from inside.
fn conclude(flow: Flow) {
    converse(&flow);
    finish(&flow.public);
    expect_fin(&flow.local);
    (&flow.local).write_all(b"goodbye").expect("an answer");
    drop(flow.local);
    let mut words = Vec::new();
    (&flow.public).read_to_end(&mut words).expect("the answer and a FIN");
    assert_eq!(words, b"goodbye");
}

fn draining_finishes(rig: &mut Rig, program: fn(&mut Rig) -> &mut Program, signal: Signal) {
    let flow = rig.flow();
    converse(&flow);
    program(rig).signal(signal);
    eventually("new visitors are turned away", Duration::from_secs(10), || is_turned_away(rig));
    assert_eq!(program(rig).try_exit(), None, "the flow is still open");
    conclude(flow);
    assert_eq!(program(rig).wait_exit(AT_ONCE), 0);
}

fn second_signal_ends_it(rig: &mut Rig, program: fn(&mut Rig) -> &mut Program) {
    let flow = rig.flow();
    converse(&flow);
    program(rig).terminate();
    let said = |line: &str| line.to_lowercase().contains("drain");
    program(rig).err.wait_for("that it drains", AT_ONCE, said);
    converse(&flow);
    program(rig).terminate();
    let _ = program(rig).wait_exit(AT_ONCE);
    expect_closed_within(&flow.public, AT_ONCE);
    expect_closed_within(&flow.local, AT_ONCE);
}

fn timeout_ends_it(rig: &mut Rig, program: fn(&mut Rig) -> &mut Program) {
    let flow = rig.flow();
    converse(&flow);
    let begun = Instant::now();
    program(rig).terminate();
    let _ = program(rig).wait_exit(Duration::from_secs(8));
    assert!(begun.elapsed() >= Duration::from_millis(1_500), "{:?}", begun.elapsed());
    expect_closed_within(&flow.public, AT_ONCE);
    expect_closed_within(&flow.local, AT_ONCE);
}

fn gateway(rig: &mut Rig) -> &mut Program {
    rig.gateway()
}

fn client(rig: &mut Rig) -> &mut Program {
    rig.client()
}

both_backends! {
    /// A gateway with nothing to do ends at once, with code 0; so does a client.
    fn nothing_to_wait_for(world) {
        let mut rig = Rig::tunnel(world);
        conclude(rig.flow());
        rig.gateway().terminate();
        assert_eq!(rig.gateway().wait_exit(AT_ONCE), 0);
        rig.client().terminate();
        assert_eq!(rig.client().wait_exit(AT_ONCE), 0);
    }

    /// SIGTERM: the gateway takes no more visitors, the flow it has may finish, then it ends.
    fn a_draining_gateway(world) {
        draining_finishes(&mut Rig::tunnel(world), gateway, Signal::TERM);
    }

    /// SIGINT does the same.
    fn a_gateway_interrupted(world) {
        draining_finishes(&mut Rig::tunnel(world), gateway, Signal::INT);
    }

    /// SIGTERM: the client's tunnels close, the flow it has may finish, then it ends.
    fn a_draining_client(world) {
        draining_finishes(&mut Rig::tunnel(world), client, Signal::TERM);
    }

    /// A second signal ends the draining at once, with a flow still open.
    fn a_second_signal(world) {
        second_signal_ends_it(&mut Rig::tunnel(world), gateway);
        second_signal_ends_it(&mut Rig::tunnel(world), client);
    }

    /// The draining ends when its time is over, with a flow still open.
    fn the_drain_timeout(world) {
        let args = ["--drain-timeout", "2"];
        timeout_ends_it(&mut Rig::tunnel_with(world, &args, &[]), gateway);
        timeout_ends_it(&mut Rig::tunnel_with(world, &[], &args), client);
    }

    /// A client outlives the orderly end of its gateway, and serves again when that comes back.
    fn a_client_outlives_its_gateway(world) {
        let mut rig = Rig::tunnel_on_own_ports(world, &[], &[]);
        conclude(rig.flow());
        rig.gateway().terminate();
        assert_eq!(rig.gateway().wait_exit(AT_ONCE), 0);
        assert_eq!(rig.client().try_exit(), None);
        rig.gateway().start_again();
        eventually("the tunnel is back", Duration::from_secs(20), || {
            try_connect(rig.public).is_ok()
        });
        while rig.local.accept_within(Duration::from_millis(200)).is_some() {}
        conclude(rig.flow());
    }

    /// A closed stdout or stderr, and SIGPIPE with it, does not stop a program that serves.
    fn nobody_reads_the_output(world) {
        let mut rig = Rig::tunnel(world);
        rig.gateway().signal(Signal::PIPE);
        rig.client().signal(Signal::PIPE);
        conclude(rig.flow());
    }
}
