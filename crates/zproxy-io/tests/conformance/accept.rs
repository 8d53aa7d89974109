//! Accepting connections.

use std::net::TcpStream;

use zproxy_io::{Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{Kit, World, far};

conformance!(one_connection, many_connections, closing_the_listener_ends_accepting, both_families);

/// A connection is accepted with the address of its far end, and bytes pass.
fn one_connection<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.pair();
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
