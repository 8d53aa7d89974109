//! A few proxy_conns carry many flows, one after the other.

use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, expect_fin, finish};
use zproxy_tests::programs::is_flow_end;
use zproxy_tests::{Exchange, LocalServer, Rig, Rng, both_backends, eventually, exchange, proc};

both_backends! {
    /// Five hundred connections in a row need at most 64 proxy_conns altogether.
    fn five_hundred_in_a_row(world) {
        let (mut rig, road) = Rig::tunnel_by_road(world, &[], &[]);
        for _ in 0..500 {
            let flow = rig.flow();
            finish(&flow.public);
            expect_fin(&flow.local);
            drop(flow.local);
            expect_fin(&flow.public);
        }
        let dialled = road.proxy.accepted();
        assert!(dialled <= 64, "{dialled} proxy_conns were dialled");
        let gateway = rig.gateway();
        gateway.err.wait_for_count("flow ends", 500, Duration::from_secs(10), is_flow_end);
    }

    /// Flows with contents of their own in a row over few proxy_conns: no byte strays into the next.
    fn nothing_strays_into_the_next_flow(world) {
        let server = Exchange::server();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&server.name()).start();
        let mut rng = Rng::seeded("sequential exchanges");
        for _ in 0..300 {
            let what = Exchange { flow: rng.next(), up: rng.below(40_000), down: rng.below(40_000) };
            exchange(client.public(), what)
                .unwrap_or_else(|why| panic!("{what:?}: {why}; local: {:?}", server.faults()));
        }
        eventually("the local sides end", Duration::from_secs(10), || server.open() == 0);
        assert!(server.faults().is_empty(), "{:?}", server.faults());
    }

    /// The pool follows demand: after a burst of flows it shrinks, at both programs.
    fn the_pool_shrinks_after_a_burst(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let conns: Vec<_> = (0..300)
            .map(|_| {
                let conn = connect(client.public());
                echo_once(&conn, 7).expect("an echo");
                conn
            })
            .collect();
        assert!(proc::established_at(gateway.pid(), gateway.proxy.port()) >= 300);
        drop(conns);
        eventually("the pool shrinks", Duration::from_secs(60), || {
            proc::established_at(gateway.pid(), gateway.proxy.port()) <= 128
        });
    }
}
