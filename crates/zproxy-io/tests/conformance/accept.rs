//! Accepting connections.

use std::net::TcpStream;

use zproxy_io::{Ending, Fault, Op, Outcome, RelayMode};

use crate::support::bytes::Random;
use crate::support::{Kit, Meets, World, far};

conformance!(
    one_connection,
    many_connections,
    closing_the_listener_ends_accepting,
    both_families,
    a_recalled_accept_comes_home,
    nobody_is_lost_while_accepting_stops_and_goes_on,
    recalling_and_closing,
    what_arrives_on_a_cpu_can_be_preferred,
);

conformance_simulated!(one_connection, a_recalled_accept_comes_home,);

/// A connection is accepted with the address of its far end, and bytes pass.
fn one_connection<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    let outcome = world.run(Op::Send { sock: near, buf: b"welcome".to_vec() });
    assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
    let mut hello = [0; 7];
    std::io::Read::read_exact(&mut far, &mut hello).expect("the bytes arrive");
    assert_eq!(&hello, b"welcome");
    world.finish();
}

/// One accept operation yields each of many connections, exactly once.
fn many_connections<K: Kit>() {
    const CONNS: usize = 300;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = world.listen();
    let token = world.submit(Op::Accept { listener });
    let dialling = std::thread::spawn(move || {
        let dial = |_| far::prepare(TcpStream::connect(addr).expect("the listener listens"));
        (0..CONNS).map(dial).collect::<Vec<_>>()
    });
    let mut peers = Vec::new();
    while peers.len() < CONNS {
        match world.outcome(token) {
            Outcome::Accepted { peer, .. } => peers.push(peer.expect("the far ends stay")),
            other => panic!("accepting ended: {other:?}"),
        }
    }
    let fars = dialling.join().expect("every dial succeeded");
    let mut dialled: Vec<_> = fars.iter().map(|far| far.local_addr().expect("open")).collect();
    peers.sort();
    dialled.sort();
    assert_eq!(peers, dialled);
    world.assert_waits(token);
    world.finish();
}

/// When the listener is closed, accepting ends as cancelled, and nobody can connect any more.
fn closing_the_listener_ends_accepting<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = world.listen();
    let token = world.submit(Op::Accept { listener });
    world.assert_waits(token);
    let home = world.close(listener, Ending::Clean);
    assert_eq!(home.len(), 1);
    assert_eq!(home[0].token, token);
    assert!(matches!(home[0].outcome, Outcome::Failed(Fault::Cancelled)), "{home:?}");
    assert!(TcpStream::connect(addr).is_err(), "the port is still open");
    world.finish();
}

/// A dual-stack listener shows a version 4 peer with its version 4 address.
fn both_families<K: Kit>() {
    use zproxy_io::{Driver, ListenOptions};
    let mut world = World::new::<K>(RelayMode::Auto);
    let any = "[::]:0".parse().expect("an address");
    // A machine without version 6 cannot show this.
    let Ok((handle, addr)) = K::Driver::listen(any, ListenOptions { reuse_port: true }) else {
        return world.finish();
    };
    let listener = world.adopt(handle);
    let token = world.submit(Op::Accept { listener });
    let far = TcpStream::connect(("127.0.0.1", addr.port())).expect("the listener listens");
    let outcome = world.outcome(token);
    let Outcome::Accepted { peer, .. } = outcome else { panic!("not accepted: {outcome:?}") };
    assert_eq!(peer, far.local_addr().ok());
    world.finish();
}

/// An accept that is recalled ends as cancelled, once. Its listener stays open: who connects then is
/// accepted when accepting goes on. To recall what is not in flight does nothing.
fn a_recalled_accept_comes_home<K: Kit>() {
    use zproxy_io::Driver;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = world.listen();
    world.driver.recall_accept(listener);
    let token = world.submit(Op::Accept { listener });
    world.assert_waits(token);
    let early = world.driver.meet(addr);
    let outcome = world.outcome(token);
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    world.driver.recall_accept(listener);
    world.driver.recall_accept(listener);
    let outcome = world.outcome(token);
    assert!(matches!(outcome, Outcome::Failed(Fault::Cancelled)), "{outcome:?}");
    let late: Vec<_> = (0..20).map(|_| world.driver.meet(addr)).collect();
    assert!(!world.settle(), "something came home without an accept");
    let again = world.submit(Op::Accept { listener });
    for _ in &late {
        let outcome = world.outcome(again);
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    }
    world.assert_waits(again);
    // Recalled before the driver had an occasion to try it.
    world.driver.recall_accept(listener);
    let outcome = world.outcome(again);
    assert!(matches!(outcome, Outcome::Failed(Fault::Cancelled)), "{outcome:?}");
    let hasty = world.submit(Op::Accept { listener });
    world.driver.recall_accept(listener);
    let outcome = world.outcome(hasty);
    assert!(matches!(outcome, Outcome::Failed(Fault::Cancelled)), "{outcome:?}");
    drop(early);
    world.finish();
}

/// Whatever moment accepting is stopped and gone on with at: each connection is accepted exactly once.
fn nobody_is_lost_while_accepting_stops_and_goes_on<K: Kit>() {
    use zproxy_io::Driver;
    const CONNS: usize = 600;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = world.listen();
    let mut token = world.submit(Op::Accept { listener });
    let dialling = std::thread::spawn(move || {
        let dial = |_| far::prepare(TcpStream::connect(addr).expect("the listener listens"));
        (0..CONNS).map(dial).collect::<Vec<_>>()
    });
    let mut random = Random::new(0xACCE);
    let mut until_recall = 1;
    let mut peers = Vec::new();
    let mut recalls = 0;
    while peers.len() < CONNS {
        match world.outcome(token) {
            Outcome::Accepted { peer, .. } => {
                peers.push(peer.expect("the far ends stay"));
                until_recall -= 1;
                if until_recall == 0 {
                    world.driver.recall_accept(listener);
                    recalls += 1;
                }
            }
            Outcome::Failed(Fault::Cancelled) => {
                assert!(until_recall <= 0, "cancelled by nobody");
                until_recall = random.upto(20) as i64;
                token = world.submit(Op::Accept { listener });
            }
            other => panic!("accepting failed: {other:?}"),
        }
    }
    assert!(recalls > 1, "it was never recalled");
    let fars = dialling.join().expect("every dial succeeded");
    let mut dialled: Vec<_> = fars.iter().map(|far| far.local_addr().expect("open")).collect();
    peers.sort();
    dialled.sort();
    assert_eq!(peers, dialled);
    world.finish();
}

/// A listener may be closed while its accept is being recalled: one end, then the close.
fn recalling_and_closing<K: Kit>() {
    use zproxy_io::Driver;
    for recall_first in [true, false] {
        let mut world = World::new::<K>(RelayMode::Auto);
        let (listener, addr) = world.listen();
        let token = world.submit(Op::Accept { listener });
        world.assert_waits(token);
        if recall_first {
            world.driver.recall_accept(listener);
        }
        let closing = world.start_close(listener, Ending::Clean);
        world.driver.recall_accept(listener);
        assert!(matches!(world.outcome(closing), Outcome::Closed));
        assert!(matches!(world.take(token), Some(Outcome::Failed(Fault::Cancelled))));
        world.driver.recall_accept(listener);
        assert!(TcpStream::connect(addr).is_err(), "the port is still open");
        world.finish();
    }
}

/// Of two listeners on one port, the one that prefers a CPU gets all that arrives there, until it prefers
/// none; each connection knows where it arrived.
fn what_arrives_on_a_cpu_can_be_preferred<K: Kit>() {
    use zproxy_io::{Driver, ListenOptions, sys};
    const CONNS: usize = 64;
    // On loopback a connection arrives on the CPU of whoever dials.
    let cpu = (0..1_024).find(|cpu| sys::pin_to_cpu(*cpu).is_ok()).expect("a CPU to run on");
    let mut world = World::new::<K>(RelayMode::Auto);
    let options = ListenOptions { reuse_port: true };
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let (one, addr) = K::Driver::listen(loopback, options).expect("a free port");
    let (other, _) = K::Driver::listen(addr, options).expect("the port is shared");
    let listeners = [world.adopt(one), world.adopt(other)];
    let tokens = listeners.map(|listener| world.submit(Op::Accept { listener }));
    for (preferring, least, most) in
        [(Some(0), CONNS, CONNS), (Some(1), 0, 0), (None, 1, CONNS - 1)]
    {
        for (number, listener) in listeners.into_iter().enumerate() {
            let cpu = (preferring == Some(number)).then_some(cpu);
            world.driver.prefer_arrivals(listener, cpu);
        }
        let mut first = 0;
        for _ in 0..CONNS {
            let far = TcpStream::connect(addr).expect("the listeners listen");
            let (token, outcome) = loop {
                let mut all = tokens.into_iter();
                match all.find_map(|token| Some((token, world.take(token)?))) {
                    Some(home) => break home,
                    None => world.turn(),
                }
            };
            let Outcome::Accepted { sock, peer } = outcome else {
                panic!("not accepted: {outcome:?}")
            };
            assert_eq!(peer, far.local_addr().ok());
            assert_eq!(world.driver.arrival_cpu(sock), Some(cpu));
            first += usize::from(token == tokens[0]);
            world.close(sock, Ending::Reset);
        }
        assert!((least..=most).contains(&first), "{first} of {CONNS}, {preferring:?} preferring");
    }
    world.finish();
}
