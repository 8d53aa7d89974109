//! Closing while operations are in flight.

use std::io::{ErrorKind, Read, Write};

use zproxy_io::{Driver, Ending, Fault, Op, Outcome, RelayMode, Token};

use crate::support::{End, Kit, Pump, World, bytes, far};

conformance!(
    waiting_operations_come_home,
    queued_operations_come_home,
    finished_operations_keep_their_result,
    late_operations_are_cancelled,
    in_an_idle_driver,
    clean_delivers_everything,
    clean_after_a_pump,
    reset_is_seen_as_such,
    drop_resets,
);

conformance_simulated!(
    waiting_operations_come_home,
    queued_operations_come_home,
    finished_operations_keep_their_result,
    late_operations_are_cancelled,
    in_an_idle_driver,
    clean_delivers_everything,
    reset_is_seen_as_such,
);

/// Everything that waits on a socket comes home cancelled, exactly once, before the close.
fn waiting_operations_come_home<K: Kit>() {
    for how in [Ending::Clean, Ending::Reset] {
        for relay in [RelayMode::Auto, RelayMode::Splice] {
            for receive in [false, true] {
                let mut world = World::new::<K>(relay);
                let (near, far) = world.meet();
                far::narrow(&far);
                let inbound = if receive {
                    Op::Recv { sock: near, buf: Vec::new(), max: 100 }
                } else {
                    Op::Fill { from: near }
                };
                let waiting = [
                    world.submit(inbound),
                    world.submit(Op::Send { sock: near, buf: vec![1; 24 << 20] }),
                    world.submit(Op::Watch { sock: near }),
                ];
                for token in waiting {
                    world.assert_waits(token);
                }
                let home = world.close(near, how);
                let mut tokens: Vec<Token> = home.iter().map(|done| done.token).collect();
                tokens.sort_by_key(|token| token.0);
                assert_eq!(tokens, waiting);
                for done in home {
                    let cancelled = matches!(done.outcome, Outcome::Failed(Fault::Cancelled));
                    assert!(cancelled, "{done:?}");
                }
                world.finish();
            }
        }
    }
}

/// Operations that have not run when the close is submitted come home before it all the same.
fn queued_operations_come_home<K: Kit>() {
    for relay in [RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, mut source) = world.meet();
        let (near, _far) = world.meet();
        source.write_all(b"bytes").expect("open");
        let lease = world.fill(from);
        let queued = [
            world.submit(Op::Fill { from: near }),
            world.submit(Op::Drain { lease, to: near, refill: Some(from) }),
            world.submit(Op::Watch { sock: near }),
        ];
        let home = world.close(near, Ending::Clean);
        let mut tokens: Vec<Token> = home.iter().map(|done| done.token).collect();
        tokens.sort_by_key(|token| token.0);
        assert_eq!(tokens, queued);
        // The source's inbound place is free again.
        source.write_all(b"more").expect("open");
        assert_eq!(world.fill(from).len(), 4);
        world.finish();
    }
}

/// What was done before the close keeps its result.
fn finished_operations_keep_their_result<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    let sending = world.submit(Op::Send { sock: near, buf: b"bye".to_vec() });
    let sent = world.outcome(sending);
    assert!(matches!(sent, Outcome::Sent { .. }), "{sent:?}");
    assert!(world.close(near, Ending::Clean).is_empty());
    let mut text = String::new();
    far.read_to_string(&mut text).expect("a clean end");
    assert_eq!(text, "bye");
    world.finish();
}

/// What is submitted on a socket that is being closed, or is closed, comes home cancelled, and so
/// does a drain that would only refill from it. Closing again is no harm.
fn late_operations_are_cancelled<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, _far) = world.meet();
    let (other, mut other_far) = world.meet();
    for already_closed in [false, true] {
        other_far.write_all(b"bytes").expect("open");
        let lease = world.fill(other);
        let closing = (!already_closed).then(|| world.start_close(near, Ending::Reset));
        let late = [
            world.submit(Op::Fill { from: near }),
            world.submit(Op::Send { sock: near, buf: vec![1] }),
            world.submit(Op::Watch { sock: near }),
            world.submit(Op::Drain { lease, to: other, refill: Some(near) }),
        ];
        for token in late {
            let outcome = world.outcome(token);
            assert!(matches!(outcome, Outcome::Failed(Fault::Cancelled)), "{outcome:?}");
        }
        if let Some(closing) = closing {
            assert!(matches!(world.outcome(closing), Outcome::Closed));
        }
        world.driver.shutdown_write(near);
    }
    let again = world.run(Op::Close { sock: near, how: Ending::Clean });
    assert!(matches!(again, Outcome::Closed), "{again:?}");
    // The other socket's places are all free.
    other_far.write_all(b"more").expect("open");
    let lease = world.fill(other);
    let outcome = world.run(Op::Drain { lease, to: other, refill: Some(other) });
    assert!(matches!(outcome, Outcome::Drained { put: 4, .. }), "{outcome:?}");
    world.finish();
}

/// A socket on which nothing ever happened closes, in both ways.
fn in_an_idle_driver<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let anywhere = "127.0.0.1:9".parse().expect("an address");
    for how in [Ending::Clean, Ending::Reset] {
        let sock = world.socket(&anywhere);
        assert!(world.close(sock, how).is_empty());
    }
    world.finish();
}

/// A clean close delivers what is in the send buffer, then FIN.
fn clean_delivers_everything<K: Kit>() {
    const TOTAL: usize = 1 << 20;
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.meet();
    let sent = world.run(Op::Send { sock: near, buf: bytes::patterned(9, 0, TOTAL) });
    assert!(matches!(sent, Outcome::Sent { .. }), "{sent:?}");
    world.close(near, Ending::Clean);
    assert_eq!(far::read_to_end(&mut far, 9, 0, 10_000), TOTAL as u64);
    world.finish();
}

/// After a pump's end, closing both sockets cleanly loses nothing.
fn clean_after_a_pump<K: Kit>() {
    const TOTAL: u64 = 2 << 20;
    for relay in [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy] {
        let mut world = World::new::<K>(relay);
        let (from, source) = world.pair();
        let (to, sink) = world.pair();
        let reading = far::spawn_reader(sink, 3, 1_000);
        let writing = far::spawn_writer(source, 3, TOTAL, 100_000);
        assert_eq!(Pump::start(&mut world, from, to).run(&mut world), End::Eof);
        world.close(from, Ending::Clean);
        world.close(to, Ending::Clean);
        writing.join().expect("everything was taken");
        assert_eq!(reading.join().expect("the bytes are right"), TOTAL);
        world.finish();
    }
}

/// A reset reaches the peer as one, even with bytes on the way.
fn reset_is_seen_as_such<K: Kit>() {
    for pending in [0, 1 << 20] {
        let mut world = World::new::<K>(RelayMode::Auto);
        let (near, mut far) = world.meet();
        let sent = world.run(Op::Send { sock: near, buf: vec![1; pending] });
        assert!(matches!(sent, Outcome::Sent { .. }), "{sent:?}");
        world.close(near, Ending::Reset);
        let error = far.read_to_end(&mut Vec::new()).expect_err("a reset, not an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        world.finish();
    }
}

/// A driver that goes away with its connections open resets them, whatever is in flight: a cut
/// transfer must not look complete.
fn drop_resets<K: Kit>() {
    let mut driver = K::driver(RelayMode::Auto);
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let (handle, addr) =
        K::Driver::listen(loopback, zproxy_io::ListenOptions::default()).expect("a free port");
    let listener = driver.adopt(handle);
    driver.submit(Token(1), Op::Accept { listener });
    let mut far = far::prepare(std::net::TcpStream::connect(addr).expect("it listens"));
    let mut done = Vec::new();
    while done.is_empty() {
        driver.wait(None, &mut done).expect("the driver lives");
    }
    let Outcome::Accepted { sock, .. } = done.remove(0).outcome else { panic!("not accepted") };
    driver.submit(Token(2), Op::Fill { from: sock });
    driver.submit(Token(3), Op::Watch { sock });
    let now = driver.now();
    driver.wait(Some(now), &mut done).expect("the driver lives");
    drop(driver);
    let error = far.read_to_end(&mut Vec::new()).expect_err("a reset, not an end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
