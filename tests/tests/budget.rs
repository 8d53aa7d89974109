//! A gate that counts instead of timing: what a thousand short flows cost the two programs stays
//! within a stated budget. The programs say at their end what they counted.

use std::io::{Read, Write};
use std::time::Duration;

use zproxy_tests::net::{connect, finish};
use zproxy_tests::programs::{field, is_flow_end};
use zproxy_tests::{Backend, LocalServer, Program, Relay, World, both_backends};

/// Connect, a request, an answer, close: so often, one after the other.
const FLOWS: u64 = 1_000;
const MESSAGE_SIZE: usize = 100;
/// Proxy_conns that may be dialled for all of them. A flow that finds none free doubles the pool of
/// its data core; 6 were measured, and on a machine under load a flow's conn may come back late.
const CONNS_MAX: u64 = 64;
/// Two data cores on either side.
const LANES: u64 = 4;

/// Whose count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    GatewayControl,
    GatewayCores,
    ClientCores,
}
use Who::{ClientCores, GatewayControl, GatewayCores};

/// At most so much of something, over all flows.
#[derive(Debug)]
struct Budget {
    who: Who,
    what: &'static str,
    uring: u64,
    epoll: u64,
}

const fn budget(who: Who, what: &'static str, uring: u64, epoll: u64) -> Budget {
    Budget { who, what, uring, epoll }
}

/// The first rows depend on nothing but the protocol. The others were measured (Linux 6.18, two data
/// cores on a busy machine) and have a margin, because how much comes home at once depends on who
/// runs when. One flow at a time leaves little to come home together, so the measured counts are near
/// the worst case.
const BUDGETS: &[Budget] = &[
    // A `Fin` and a `Released` from the client for each flow, and a `Fin` to the client.
    budget(GatewayCores, "notices_heard", 2 * FLOWS, 2 * FLOWS),
    budget(GatewayCores, "notices_told", FLOWS, FLOWS),
    budget(ClientCores, "notices_heard", FLOWS, FLOWS),
    budget(ClientCores, "notices_told", 2 * FLOWS, 2 * FLOWS),
    // An `OpenProxy` whenever conns are wanted, and nothing else for flows.
    budget(GatewayControl, "orders", CONNS_MAX, CONNS_MAX),
    budget(GatewayControl, "proxy_conns", CONNS_MAX, CONNS_MAX),
    // One from each data core of the client to each of the gateway.
    budget(GatewayControl, "lanes", LANES, LANES),
    // The public conn, the conns of the pool, the lanes, and a listener per data core.
    budget(
        GatewayCores,
        "socks_opened",
        FLOWS + CONNS_MAX + LANES + 2,
        FLOWS + CONNS_MAX + LANES + 2,
    ),
    // The local conn, the conns of the pool and the lanes.
    budget(ClientCores, "socks_opened", FLOWS + CONNS_MAX + LANES, FLOWS + CONNS_MAX + LANES),
    // The request and the answer, each in one piece, and both copied: too small for a pipe.
    budget(GatewayCores, "rounds_full", 2 * FLOWS, 2 * FLOWS),
    budget(ClientCores, "rounds_full", 2 * FLOWS, 2 * FLOWS),
    budget(GatewayCores, "rounds_short", 0, 0),
    budget(ClientCores, "rounds_short", 0, 0),
    budget(GatewayCores, "pipes_leased", 0, 0),
    budget(ClientCores, "pipes_leased", 0, 0),
    budget(GatewayCores, "worker_splices", 0, 0),
    budget(ClientCores, "worker_splices", 0, 0),
    budget(GatewayCores, "cq_overflows", 0, 0),
    budget(ClientCores, "cq_overflows", 0, 0),
    // Without `--busy-poll` nobody watches.
    budget(GatewayCores, "spins", 0, 0),
    budget(ClientCores, "spins", 0, 0),
    // A ring leases a buffer when bytes have come: 2 a flow, and in the client up to 3, because the
    // `Start` comes alone or together with the request. epoll leases one for every try: 3.1 and 4.2 a
    // flow were measured, and each of the 2 and 3 that find something may be tried once in vain.
    budget(GatewayCores, "bufs_leased", 2 * FLOWS, 4 * FLOWS),
    budget(ClientCores, "bufs_leased", 3 * FLOWS, 6 * FLOWS),
    // System calls that wait: 8.1 and 5.1 a flow in the gateway's data cores, 8.2 and 6.0 in the
    // client's, 4.0 and 2.0 in the gateway's control core; a quarter more is allowed.
    budget(GatewayCores, "waits", 10 * FLOWS + FLOWS / 4, 6 * FLOWS + FLOWS / 2),
    budget(ClientCores, "waits", 10 * FLOWS + FLOWS / 4, 7 * FLOWS + FLOWS / 2),
    budget(GatewayControl, "waits", 5 * FLOWS, 2 * FLOWS + FLOWS / 2),
];

both_backends! {
    /// A short flow costs the frames, sockets, rounds and waits that it needs, and no more.
    fn a_thousand_short_flows(world) {
        let server = LocalServer::start(|mut conn| {
            let mut message = [0; MESSAGE_SIZE];
            conn.read_exact(&mut message)?;
            conn.write_all(&message)?;
            conn.read_to_end(&mut Vec::new()).map(drop)
        });
        // What is counted are the paths that the programs choose for themselves.
        let mut gateway = world.gateway().relay(Relay::Auto).start();
        let plan = world.client(&gateway).relay(Relay::Auto);
        let mut client = plan.local(&server.name()).start();
        for _ in 0..FLOWS {
            let mut public = connect(client.public());
            public.write_all(&[7; MESSAGE_SIZE]).expect("a request");
            public.read_exact(&mut [0; MESSAGE_SIZE]).expect("an answer");
            finish(&public);
            assert_eq!(public.read(&mut [0]).expect("a FIN"), 0);
        }
        let patience = Duration::from_secs(10);
        gateway.err.wait_for_count("flow ends", 1_000, patience, is_flow_end);
        for program in [&mut *client, &mut *gateway] {
            program.terminate();
            assert_eq!(program.wait_exit(patience), 0);
        }
        judge(world, &gateway, &client);
    }
}

fn judge(world: &World, gateway: &Program, client: &Program) {
    let count = |budget: &Budget| match budget.who {
        GatewayControl => counted(gateway, "control stats ", budget.what),
        GatewayCores => counted(gateway, "core=", budget.what),
        ClientCores => counted(client, "core=", budget.what),
    };
    let mut over = Vec::new();
    for budget in BUDGETS {
        let ceiling = match world.backend() {
            Backend::Uring => budget.uring,
            Backend::Epoll => budget.epoll,
        };
        let count = count(budget);
        println!("{:?} {}: {count} of {ceiling}", budget.who, budget.what);
        if count > ceiling {
            over.push(format!("{:?} {}: {count}, at most {ceiling}", budget.who, budget.what));
        }
    }
    assert!(over.is_empty(), "over budget: {over:#?}");
}

/// A count that a program gave at its end, added up over the threads that have `mark` in their line.
fn counted(program: &Program, mark: &str, what: &str) -> u64 {
    let lines = program.err.matching(|line| line.contains(" stats ") && line.contains(mark));
    assert!(!lines.is_empty(), "{mark}: no stats in: {}", program.err.text());
    let count = |line: &String| -> u64 {
        let text = field(line, what).unwrap_or_else(|| panic!("no {what}= in: {line}"));
        text.parse().unwrap_or_else(|why| panic!("{what}={text} ({why}) in: {line}"))
    };
    lines.iter().map(count).sum()
}
