//! What the programs say they hold, when they are asked while they serve.

use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, expect_fin, finish};
use zproxy_tests::{LocalServer, Pair, Stats, both_backends, eventually};

/// Flows that are open when the programs are asked.
const FLOWS: usize = 7;

/// How many of so many visitors are known by where they arrived: all, where there is more than one data
/// core to choose from. So few are never steered.
fn expect_arrivals(stats: &Stats, visitors: usize, cores: usize) {
    let known = if cores > 1 { visitors as u64 } else { 0 };
    assert_eq!(stats.cores("arrived"), known);
    assert!(stats.cores("arrived_here") <= known);
    assert_eq!((stats.cores("steering"), stats.cores("steerings")), (0, 0));
}

both_backends! {
    /// Asked in mid-service, gateway and client tell exactly the flows there are and go on serving;
    /// when the flows have ended, every socket that is open is accounted for and nothing is on lease.
    fn what_is_held_is_told(world) {
        let local = LocalServer::echo();
        let mut gateway = world.gateway().start();
        let mut client = world.client(&gateway).local(&local.name()).start();
        let threads = world.cores_count() + 1;
        let flows: Vec<_> = (0..FLOWS).map(|_| connect(client.public())).collect();
        for (flow, byte) in flows.iter().zip(0..) {
            echo_once(flow, byte).expect("an echo");
        }
        let stats = Stats::of(&mut gateway, threads);
        assert_eq!(stats.cores("publics"), FLOWS as u64);
        expect_arrivals(&stats, FLOWS, world.cores_count());
        assert_eq!(Stats::of(&mut client, threads).cores("flows"), FLOWS as u64);
        for flow in &flows {
            echo_once(flow, 9).expect("an echo afterwards");
            finish(flow);
            expect_fin(flow);
        }
        eventually("the gateway is at rest", Duration::from_secs(20), || {
            let stats = Stats::of(&mut gateway, threads);
            let held =
                stats.cores("listeners") + stats.cores("conns") + stats.cores("lanes");
            let is_free = stats.cores("publics") + stats.cores("settling") == 0;
            is_free && stats.socks() == held && stats.pipes() + stats.bufs() == 0
        });
        eventually("the client is at rest", Duration::from_secs(20), || {
            let stats = Stats::of(&mut client, threads);
            let is_free = stats.cores("flows") + stats.cores("closing") == 0;
            let held = stats.cores("conns") + stats.cores("lanes");
            is_free && stats.socks() == held && stats.pipes() + stats.bufs() == 0
        });
        let stats = Stats::of(&mut gateway, threads);
        assert_eq!((stats.control("doors"), stats.control("sessions")), (2, 1));
    }

    /// Told never to steer, a gateway does not ask where visitors arrive.
    fn nobody_asks_where_visitors_arrive(world) {
        let local = LocalServer::echo();
        let mut gateway = world.gateway().args(["--steer", "never"]).start();
        let client = world.client(&gateway).local(&local.name()).start();
        let flow = connect(client.public());
        echo_once(&flow, 1).expect("an echo");
        let stats = Stats::of(&mut gateway, world.cores_count() + 1);
        assert_eq!((stats.cores("publics"), stats.cores("arrived")), (1, 0));
    }

    /// The laws that hold at rest are broken by a flow that is open, and by nothing else.
    fn an_open_flow_breaks_the_law(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let public = client.public();
        let mut pair = Pair::of(world, gateway, client);
        let frames = pair.frames();
        let flow = connect(public);
        echo_once(&flow, 1).expect("an echo");
        let breaches = pair.breaches_at_rest(frames, Duration::ZERO);
        for wanted in ["Gateway: a flow is left", "Client: a flow is left"] {
            assert!(breaches.iter().any(|breach| breach == wanted), "{breaches:?}");
        }
        drop(flow);
        pair.expect_rest(frames);
    }

    /// `zproxy forward` answers too, and serves on.
    fn a_forward_tells(world) {
        let local = LocalServer::echo();
        let mut forward = world.forward(&local.name());
        let flow = connect(forward.listen);
        echo_once(&flow, 1).expect("an echo");
        let stats = Stats::of(&mut forward, world.cores_count());
        assert_eq!(stats.cores("flows"), 1);
        assert_eq!(stats.cores("listeners"), world.cores_count() as u64);
        expect_arrivals(&stats, 1, world.cores_count());
        echo_once(&flow, 2).expect("an echo afterwards");
    }
}
