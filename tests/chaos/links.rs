//! The network between client and gateway fails, in every way that it can.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, expect_reset_within, try_connect};
use zproxy_tests::netns::{GATEWAY_INSIDE, GATEWAY_MOVED, GATEWAY_OUTSIDE, INSIDE};
use zproxy_tests::pair::Frames;
use zproxy_tests::site::{CTL_PORT, PUBLIC_PORT};
use zproxy_tests::visits::Kind;
use zproxy_tests::{
    LocalServer, Net, Pair, Program, Site, Visit, World, both_backends, eventually,
};

use crate::IS_FULL;

/// So long for something that takes seconds, on a machine under load.
const SOON: Duration = Duration::from_secs(30);
/// Until the client is back: it may have just begun to wait for its next try.
const BACK_DEADLINE: Duration = Duration::from_secs(90);

/// A quick heartbeat, and short dials.
const QUICK: [&str; 6] =
    ["--heartbeat", "0.3", "--heartbeat-deadline", "1.5", "--connect-timeout", "1"];

/// What four visitors move each way, together with the speed of the link: seconds of transfer.
const TRANSFERS: u64 = 4;
const TRANSFER_SIZE: u64 = 15 << 20;
const MEGABITS: u32 = 200;

fn transfer(flow: u64) -> Visit {
    Visit { kind: Kind::BothWays, flow, up: TRANSFER_SIZE, down: TRANSFER_SIZE }
}

/// How often a program has said that it lost the ctl_conn.
fn losses(program: &Program) -> usize {
    program.err.matching(is_loss).len()
}

fn is_loss(line: &str) -> bool {
    line.contains("ctl_conn lost") || line.contains("the ctl_conn is lost")
}

fn is_silence(line: &str) -> bool {
    is_loss(line) && line.contains("nothing was heard")
}

/// Bytes that the gateway has moved.
fn moved(site: &mut Site) -> u64 {
    let [gateway, _] = site.ledgers();
    gateway.bytes()
}

/// Takes the link down in mid-transfer for so long; every byte arrives all the same.
fn cut_under_transfer(world: &World, net: Net, outage: Duration) {
    net.slow(MEGABITS);
    let (gateway, client) = Site::plans(world, &net);
    // Longer than the outage and the client's longest wait between two tries together.
    let gateway = gateway.args(["--grace", "180"]);
    let mut site = Site::start(world, net, gateway, client);
    let frames = site.frames();
    let public = site.public;
    let begun = moved(&mut site);
    thread::scope(|scope| {
        let visits: Vec<_> =
            (0..TRANSFERS).map(|flow| scope.spawn(move || transfer(flow).make(public))).collect();
        eventually("the transfer is under way", SOON, || moved(&mut site) > begun + (4 << 20));
        site.net.cut(true);
        assert!(visits.iter().all(|visit| !visit.is_finished()), "over before the cut");
        // The length of the fault, not a wait for anything.
        thread::sleep(outage);
        assert!(visits.iter().all(|visit| !visit.is_finished()), "ended by the cut");
        site.net.cut(false);
        for visit in visits {
            let made = visit.join().expect("a visitor");
            assert!(made.is_ok(), "{made:?}");
        }
    });
    site.expect_service(BACK_DEADLINE);
    site.expect_calm(frames);
}

both_backends! {
    /// The link is down for 5 s under transfer, both ways: no flow breaks, and every byte arrives.
    fn the_link_is_down_for_seconds(world) {
        Site::run(|net| cut_under_transfer(world, net, Duration::from_secs(5)));
    }

    /// The link is down for 60 s under transfer, longer than the heartbeat's patience: the session is
    /// resumed, no flow breaks, and every byte arrives. (Only at full length.)
    fn the_link_is_down_for_a_minute(world) {
        if IS_FULL {
            Site::run(|net| cut_under_transfer(world, net, Duration::from_secs(60)));
        }
    }

    /// The client vanishes without FIN or RST: the gateway notices by its heartbeat, resets the
    /// visitors and closes the port after the grace time, and keeps nothing; when packets pass again,
    /// the client gets its port back by itself.
    fn the_client_is_blackholed(world) {
        Site::run(|net| {
            let (gateway, client) = Site::plans(world, &net);
            let gateway = gateway.args([&QUICK[..4], &["--grace", "1"]].concat());
            let local = net.client.within(LocalServer::echo);
            let client = client.args(QUICK).local(&local.name());
            let mut pair = Pair::start(world, gateway, client);
            let frames = pair.frames();
            blackhole(&net, &mut pair, frames);
        });
    }

    /// Only the ctl_conn is swallowed, and only in one direction: both programs notice, flows go on as
    /// if nothing were, idle proxy_conns serve a new visitor, and the session is resumed.
    fn only_the_ctl_conn_is_swallowed(world) {
        Site::run(|net| {
            net.slow(MEGABITS);
            let (gateway, client) = Site::plans(world, &net);
            let gateway = gateway.args(QUICK[..4].iter().copied());
            let client = client.args(QUICK);
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let to_gateway = format!("tcp dport {CTL_PORT} drop");
            let to_client = format!("tcp sport {CTL_PORT} drop");
            for (incoming, outgoing) in [(&*to_gateway, ""), ("", &*to_client)] {
                swallow_ctl(&mut site, incoming, outgoing);
                site.expect_calm(frames);
            }
        });
    }

    /// The gateway's address changes behind its name: the client finds the new one by itself, keeps
    /// its port, and visitors are served, not led into connections with the old address.
    fn the_gateway_moves(world) {
        Site::run(|net| {
            let hosts = world.file("hosts", &format!("{GATEWAY_INSIDE} gateway.test\n"));
            let (gateway, client) = Site::plans(world, &net);
            let mount = format!("mount --bind {} /etc/hosts", hosts.display());
            let client = client
                .launcher(net.client.launcher_after(&mount))
                .server_name(&format!("gateway.test:{CTL_PORT}"))
                .args(QUICK);
            let gateway = gateway.args(QUICK[..4].iter().copied());
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let resumed = |line: &str| line.contains("session=1 resumed");
            // In place: the client has this very file mounted.
            fs::write(&hosts, format!("{GATEWAY_MOVED} gateway.test\n")).expect("the hosts file");
            site.net.gateway.ip(&format!("addr del {GATEWAY_INSIDE}/24 dev {INSIDE}"));
            site.net.gateway.ip(&format!("addr add {GATEWAY_MOVED}/24 dev {INSIDE}"));
            let line = site.client.err.wait_for("a session resumed", BACK_DEADLINE, resumed);
            assert!(line.contains(&format!("gateway={GATEWAY_MOVED}:{CTL_PORT}")), "{line}");
            // Each of them takes a proxy_conn that was idle before the move, if there is one left.
            for flow in 0..20 {
                let visit = Visit { kind: Kind::Echo, flow, up: 100, down: 2 };
                assert!(visit.make(site.public).is_ok(), "visit {flow}");
            }
            // The client's ends of the old proxy_conns learn of their death from nobody but TCP: by
            // keep-alive, or much later if an opening was on its way just then.
            site.expect_rest_apart(frames);
        });
    }
}

fn blackhole(net: &Net, pair: &mut Pair, frames: Frames) {
    let public: SocketAddr = (GATEWAY_OUTSIDE, PUBLIC_PORT).into();
    let flows: Vec<_> = (0..10).map(|_| connect(public)).collect();
    for (flow, byte) in flows.iter().zip(0..) {
        echo_once(flow, byte).expect("an echo");
    }
    net.swallow();
    pair.gateway.err.wait_for("that the client is silent", SOON, is_silence);
    for flow in &flows {
        expect_reset_within(flow, SOON);
    }
    eventually("the public port is closed", SOON, || try_connect(public).is_err());
    eventually("nothing is kept", SOON, || {
        let [gateway, _] = pair.ledgers();
        gateway.is_empty()
    });
    pair.client.err.wait_for("that the gateway is silent", SOON, is_silence);
    net.gateway.unfilter();
    eventually("the port serves again", BACK_DEADLINE, || {
        try_connect(public).is_ok_and(|conn| echo_once(&conn, 1).is_ok())
    });
    pair.expect_rest(frames);
}

fn swallow_ctl(site: &mut Site, incoming: &str, outgoing: &str) {
    let public = site.public;
    let before = (losses(&site.gateway), losses(&site.client));
    let is_back = |line: &str| line.contains("session=1 resumed");
    let back_before = site.client.err.matching(is_back).len();
    let begun = moved(site);
    thread::scope(|scope| {
        let visits: Vec<_> =
            (0..TRANSFERS).map(|flow| scope.spawn(move || transfer(flow).make(public))).collect();
        eventually("the transfer is under way", SOON, || moved(site) > begun + (4 << 20));
        site.net.gateway.filter(incoming, outgoing);
        site.gateway.err.wait_for_count("the gateway's loss", before.0 + 1, SOON, is_loss);
        site.client.err.wait_for_count("the client's loss", before.1 + 1, SOON, is_loss);
        let visit = Visit { kind: Kind::Echo, flow: 9, up: 1_000, down: 5 };
        assert!(visit.make(public).is_ok(), "an idle proxy_conn serves without a ctl_conn");
        for visit in visits {
            let made = visit.join().expect("a visitor");
            assert!(made.is_ok(), "{made:?}");
        }
    });
    site.net.gateway.unfilter();
    site.client.err.wait_for_count("a resumption", back_before + 1, BACK_DEADLINE, is_back);
    site.expect_service(SOON);
}
