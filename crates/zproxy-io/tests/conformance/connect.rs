//! Connecting.

use std::net::{SocketAddr, TcpListener, TcpStream};

use zproxy_io::{Driver, Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{Kit, World, bytes, far};

conformance!(
    to_a_listener,
    who_speaks_first,
    refused,
    to_many_at_once,
    closed_while_it_waits,
    closed_before_it_ran
);

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    (listener, addr)
}

/// After a connect, bytes pass both ways.
fn to_a_listener<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = listener();
    let sock = world.socket(&addr);
    let outcome = world.run(Op::Connect { sock, to: addr });
    assert!(matches!(outcome, Outcome::Connected), "{outcome:?}");
    let mut far = far::prepare(listener.accept().expect("it has connected").0);
    let receiving = world.submit(Op::Recv { sock, buf: Vec::new(), max: 100 });
    let sent = world.run(Op::Send { sock, buf: bytes::patterned(1, 0, 50) });
    assert!(matches!(sent, Outcome::Sent { .. }), "{sent:?}");
    far::read_exactly(&mut far, 1, 0, 50);
    std::io::Write::write_all(&mut far, b"answer").expect("the connection is open");
    match world.outcome(receiving) {
        Outcome::Received { buf, count } => assert_eq!((&buf[..], count), (&b"answer"[..], 6)),
        other => panic!("{other:?}"),
    }
    world.finish();
}

/// Whoever was announced to speak first may do so, or be silent for as long as it likes: the peer gets
/// the connection, and its word is heard, in either case.
fn who_speaks_first<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = listener();
    for speaks in [true, false] {
        let sock = world.socket(&addr);
        world.driver.speaks_first(sock);
        let outcome = world.run(Op::Connect { sock, to: addr });
        assert!(matches!(outcome, Outcome::Connected), "{outcome:?}");
        let receiving = world.submit(Op::Recv { sock, buf: Vec::new(), max: 100 });
        if speaks {
            let sent = world.run(Op::Send { sock, buf: bytes::patterned(1, 0, 50) });
            assert!(matches!(sent, Outcome::Sent { .. }), "{sent:?}");
        }
        let mut far = far::prepare(listener.accept().expect("it has connected").0);
        if speaks {
            far::read_exactly(&mut far, 1, 0, 50);
        }
        std::io::Write::write_all(&mut far, b"answer").expect("the connection is open");
        let heard = world.outcome(receiving);
        assert!(matches!(heard, Outcome::Received { count: 6, .. }), "{heard:?}");
    }
    world.finish();
}

/// Many connects in flight at once all succeed.
fn to_many_at_once<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = listener();
    let accepting = std::thread::spawn(move || {
        (0..100).map(|_| listener.accept().expect("a connection").0).collect::<Vec<_>>()
    });
    let mut tokens = Vec::new();
    for _ in 0..100 {
        let sock = world.socket(&addr);
        tokens.push(world.submit(Op::Connect { sock, to: addr }));
    }
    for token in tokens {
        let outcome = world.outcome(token);
        assert!(matches!(outcome, Outcome::Connected), "{outcome:?}");
    }
    assert_eq!(accepting.join().expect("all arrive").len(), 100);
    world.finish();
}

/// Where nothing listens, the connect is refused.
fn refused<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = listener();
    drop(listener);
    let sock = world.socket(&addr);
    let outcome = world.run(Op::Connect { sock, to: addr });
    assert!(matches!(outcome, Outcome::Failed(Fault::Refused)), "{outcome:?}");
    assert!(world.close(sock, Ending::Reset).is_empty());
    world.finish();
}

/// A connect that nobody answers comes home when its socket is closed.
fn closed_while_it_waits<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = listener();
    far::shrink_backlog(&listener);
    let _only = TcpStream::connect(addr).expect("one fits");
    let sock = world.socket(&addr);
    let token = world.submit(Op::Connect { sock, to: addr });
    world.assert_waits(token);
    let home = world.close(sock, Ending::Reset);
    assert_eq!(home.len(), 1);
    assert_eq!(home[0].token, token);
    assert!(matches!(home[0].outcome, Outcome::Failed(Fault::Cancelled)), "{home:?}");
    world.finish();
}

/// A connect that is closed in the same breath comes home exactly once, before the close.
fn closed_before_it_ran<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (_listener, addr) = listener();
    let sock = world.socket(&addr);
    let token = world.submit(Op::Connect { sock, to: addr });
    let home = world.close(sock, Ending::Reset);
    assert_eq!(home.len(), 1, "{home:?}");
    assert_eq!(home[0].token, token);
    let ended = matches!(home[0].outcome, Outcome::Connected | Outcome::Failed(_));
    assert!(ended, "{home:?}");
    world.finish();
}
