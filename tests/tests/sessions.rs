//! Sessions: the loss of the ctl_conn, of the client, of the gateway, and thirty of those in a row.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use zproxy_tests::net::{
    connect, echo_once, expect_closed_within, expect_fin, finish, receive_pattern, send_pattern,
    try_connect,
};
use zproxy_tests::world::{heavy_turn, own_ports};
use zproxy_tests::{
    Direction, Exchange, Flow, LocalServer, Pattern, Rig, Rng, both_backends, eventually, exchange,
    proc, scenes,
};

/// What crosses while the ctl_conn is lost.
const TRANSFER_SIZE: u64 = 200 << 20;

/// A client must be back within this time.
const BACK_DEADLINE: Duration = Duration::from_secs(5);

both_backends! {
    /// The ctl_conn is lost in mid-transfer: every byte and both FINs arrive all the same, idle
    /// proxy_conns still serve new visitors, and when the client is back its port is its own.
    fn the_ctl_conn_is_cut_in_mid_transfer(world) {
        let (rig, road) = Rig::tunnel_by_road(world, &[], &[]);
        let Flow { public, local } = rig.flow();
        let (up, down) = (Pattern::new(1, Direction::Up), Pattern::new(1, Direction::Down));
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&public, up, TRANSFER_SIZE).expect("sending");
                finish(&public);
            });
            receive_pattern(&local, up, 0, 10 << 20).expect("the beginning");
            road.ctl.refuse(true);
            road.ctl.cut();
            receive_pattern(&local, up, 10 << 20, TRANSFER_SIZE).expect("the rest");
        });
        // The FIN finds its way without a ctl_conn, and so does the answer.
        expect_fin(&local);
        send_pattern(&local, down, 5_000_000).expect("the answer");
        finish(&local);
        receive_pattern(&public, down, 0, 5_000_000).expect("the answer");
        expect_fin(&public);

        let visitor = connect(rig.public);
        let inside = rig.local.accept();
        finish(&visitor);
        expect_fin(&inside);
        drop(inside);
        expect_fin(&visitor);

        road.ctl.refuse(false);
        let before = road.ctl.accepted();
        eventually("the client is back", Duration::from_secs(40), || {
            road.ctl.accepted() > before
        });
        for _ in 0..20 {
            scenes::half_close(&rig, scenes::End::Public, 1_000);
        }
    }

    /// The lanes are lost in mid-transfer, between a `Fin` and its answer and before either: every byte
    /// and every FIN arrive all the same, and when there are lanes again flows end over them.
    fn the_lanes_are_cut_in_mid_transfer(world) {
        let (rig, road) = Rig::tunnel_by_road(world, &[], &[]);
        let flows: Vec<Flow> = (0..10).map(|_| rig.flow()).collect();
        for (flow, number) in flows.iter().zip(0..) {
            let pattern = Pattern::new(number, Direction::Up);
            send_pattern(&flow.public, pattern, 100_000).expect("sending");
            if number % 2 == 0 {
                finish(&flow.public);
                receive_pattern(&flow.local, pattern, 0, 100_000).expect("receiving");
                expect_fin(&flow.local);
            }
        }
        road.proxy.cut_lanes();
        for (flow, number) in flows.iter().zip(0..) {
            let pattern = Pattern::new(number, Direction::Up);
            if number % 2 == 1 {
                finish(&flow.public);
                receive_pattern(&flow.local, pattern, 0, 100_000).expect("receiving");
                expect_fin(&flow.local);
            }
            let pattern = Pattern::new(number, Direction::Down);
            send_pattern(&flow.local, pattern, 300_000).expect("the answer");
            finish(&flow.local);
            receive_pattern(&flow.public, pattern, 0, 300_000).expect("the answer");
            expect_fin(&flow.public);
        }
        eventually("there are lanes again", Duration::from_secs(10), || road.proxy.lanes() > 0);
        for _ in 0..20 {
            scenes::half_close(&rig, scenes::End::Public, 1_000);
        }
    }

    /// A flow that was open when the ctl_conn was lost and resumed goes on and ends like any other.
    fn a_flow_outlives_a_resumption(world) {
        let (rig, road) = Rig::tunnel_by_road(world, &[], &[]);
        let flows: Vec<Flow> = (0..10).map(|_| rig.flow()).collect();
        for _ in 0..3 {
            let before = road.ctl.accepted();
            road.ctl.cut();
            eventually("the client is back", Duration::from_secs(10), || {
                road.ctl.accepted() > before
            });
        }
        for (flow, number) in flows.iter().zip(0..) {
            let pattern = Pattern::new(number, Direction::Up);
            send_pattern(&flow.public, pattern, 100_000).expect("sending");
            finish(&flow.public);
            receive_pattern(&flow.local, pattern, 0, 100_000).expect("receiving");
            expect_fin(&flow.local);
            finish(&flow.local);
            expect_fin(&flow.public);
        }
        for _ in 0..20 {
            scenes::half_close(&rig, scenes::End::Local, 1_000);
        }
    }

    /// A client that is killed and started again has its tunnel back on the same public port within
    /// 5 s, though it asks for any port; the flow it had is reset.
    fn a_killed_client_is_back(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let mut client = world.client(&gateway).local(&local.name()).start();
        for _ in 0..3 {
            let public = client.public();
            let flow = connect(public);
            echo_once(&flow, 1).expect("an echo");
            let took = client.kill9_and_restart();
            assert!(took < BACK_DEADLINE, "back after {took:?}");
            assert_eq!(client.public(), public);
            zproxy_tests::net::expect_reset_within(&flow, BACK_DEADLINE);
            echo_once(&connect(public), 2).expect("an echo");
        }
    }

    /// A gateway that is killed and started again gets its client back by itself, on the same public
    /// port, though the client asked for any port.
    fn a_killed_gateway_is_back(world) {
        let local = LocalServer::echo();
        let first = *own_ports().start();
        let mut gateway = world.gateway().ports(first, first + 1).start();
        let mut client = world.client(&gateway).local(&local.name()).start();
        let public = client.public();
        for _ in 0..3 {
            let flow = connect(public);
            echo_once(&flow, 1).expect("an echo");
            gateway.kill9_and_restart();
            expect_closed_within(&flow, BACK_DEADLINE);
            eventually("the tunnel is back", Duration::from_secs(15), || {
                try_connect(public).is_ok_and(|conn| echo_once(&conn, 2).is_ok())
            });
        }
        assert_eq!(client.try_exit(), None);
    }

    /// A client waits for a gateway that is not there yet.
    fn a_client_waits_for_its_gateway(world) {
        let local = LocalServer::echo();
        let first = *own_ports().start();
        let plan = world.gateway().ports(first, first + 1);
        let absent: SocketAddr = ([127, 0, 0, 1], first).into();
        let gateway = plan.clone().start();
        let client_plan = world.client(&gateway).server(absent).local(&local.name());
        drop(gateway);
        let waiting = client_plan.spawn();
        waiting.err.wait_for("that the gateway is not there", BACK_DEADLINE, |line| {
            line.to_lowercase().contains("refused")
        });
        let _gateway = plan.start();
        let line = waiting.out.wait_for("tunnel ready", Duration::from_secs(15), |line| {
            line.starts_with("tunnel main ready ")
        });
        let public = zproxy_tests::programs::field(&line, "public").expect("an address");
        echo_once(&connect(public.parse().expect("an address")), 1).expect("an echo");
    }

    /// Thirty kills of client or gateway under load: no wrong byte and no false FIN ever; then all
    /// is well again, and no descriptor, thread or listener is left over.
    fn thirty_kills_under_load(world) {
        let _turn = heavy_turn();
        let server = Exchange::server();
        let first = *own_ports().start();
        let mut gateway = world.gateway().ports(first, first + 1).start();
        let plan = world.client(&gateway).local(&server.name()).public_port(first + 2);
        let mut client = plan.start();
        let public = client.public();
        exchange(public, Exchange { flow: 1, up: 1_000, down: 1_000 }).expect("a first exchange");
        let rest = Held::of(&[gateway.pid(), client.pid()]);

        let mut rng = Rng::seeded("thirty kills");
        let load = Load::default();
        thread::scope(|scope| {
            let _ending = EndLoad(&load);
            for worker in 0..6 {
                let load = &load;
                scope.spawn(move || load.run(public, worker));
            }
            for kill in 0..30 {
                load.expect_progress(kill);
                // Mostly clients, so that one gateway lives through many of them.
                if rng.below(4) == 0 {
                    gateway.kill9_and_restart();
                } else {
                    client.kill9_and_restart();
                }
            }
            load.expect_progress(30);
        });
        let corrupt = load.corrupt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(corrupt.is_empty(), "{corrupt:#?}");
        let wrong = |fault: &String| fault.starts_with("InvalidData");
        let wrong: Vec<String> = server.faults().into_iter().filter(wrong).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");

        for flow in 0..50 {
            exchange(public, Exchange { flow, up: 20_000, down: 20_000 }).expect("all is well");
        }
        let pids = [gateway.pid(), client.pid()];
        eventually("the programs are at rest", Duration::from_secs(40), || {
            Held::of(&pids).is_within(&rest)
        });
        eventually("the local side is at rest", Duration::from_secs(10), || server.open() == 0);
    }
}

/// What the two programs hold.
#[derive(Debug)]
struct Held(Vec<(proc::Descriptors, usize, Vec<u16>)>);

impl Held {
    fn of(pids: &[u32]) -> Self {
        let of = |pid: &u32| (proc::descriptors(*pid), proc::threads(*pid), proc::listeners(*pid));
        Self(pids.iter().map(of).collect())
    }

    fn is_within(&self, rest: &Self) -> bool {
        self.0.iter().zip(&rest.0).all(|(now, then)| {
            let descriptors = now.0.total() <= then.0.total() + 60;
            descriptors && now.1 <= then.1 && now.2 == then.2
        })
    }
}

/// Visitors that come all the time, whatever happens.
#[derive(Debug, Default)]
struct Load {
    ended: AtomicBool,
    gate: Mutex<()>,
    end: Condvar,
    completed: AtomicU64,
    corrupt: Mutex<Vec<String>>,
}

impl Load {
    fn run(&self, public: SocketAddr, worker: u64) {
        let mut rng = Rng::new(worker + 100);
        while !self.ended.load(Ordering::Acquire) {
            let what =
                Exchange { flow: rng.next(), up: rng.below(300_000), down: rng.below(300_000) };
            match exchange(public, what) {
                Ok(()) => {
                    self.completed.fetch_add(1, Ordering::AcqRel);
                }
                Err(why) if is_corruption(&why) => {
                    let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
                    corrupt.push(format!("{what:?}: {why}"));
                }
                // A visitor whose gateway or client is just being killed; it comes again, not too
                // fast, so that a closed port does not keep a core busy.
                Err(_) => self.await_end(Duration::from_millis(20)),
            }
        }
    }

    /// Waits for the end of the load, but not longer than `within`.
    fn await_end(&self, within: Duration) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = |(): &mut ()| !self.ended.load(Ordering::Acquire);
        drop(self.end.wait_timeout_while(gate, within, runs));
    }

    /// Waits until a few more visitors have been served.
    fn expect_progress(&self, kill: u32) {
        let wanted = self.completed.load(Ordering::Acquire) + 5;
        eventually(&format!("progress after {kill} kills"), Duration::from_secs(20), || {
            self.completed.load(Ordering::Acquire) >= wanted
        });
    }
}

/// A killed program resets; a FIN in place of bytes would pass for the end of a message.
fn is_corruption(why: &std::io::Error) -> bool {
    matches!(why.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

/// Ends the load also when the test fails.
struct EndLoad<'a>(&'a Load);

impl Drop for EndLoad<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.end.notify_all();
    }
}
