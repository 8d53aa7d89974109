//! Giving a socket to another driver.

use std::io::Write;
use std::sync::mpsc;

use zproxy_io::{Driver, Op, Outcome, RelayMode};

use crate::support::{End, Kit, Pump, World, bytes, far};

conformance!(to_another_thread, back_and_forth);

/// A socket that was used by one driver is used by another one on another thread; bytes that
/// nobody has read yet are read there.
fn to_another_thread<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, mut far) = world.pair();
    // Both drivers' views of readiness matter, so this one has waited on the socket before.
    let token = world.submit(Op::Recv { sock: near, buf: Vec::new(), max: 4 });
    world.assert_waits(token);
    far.write_all(&bytes::patterned(1, 0, 4)).expect("open");
    assert!(matches!(world.outcome(token), Outcome::Received { count: 4, .. }));
    far.write_all(&bytes::patterned(1, 4, 1_000)).expect("open");
    far.shutdown(std::net::Shutdown::Write).expect("open");
    world.settle();
    let handle = world.release(near);
    let (give, given) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let mut world = World::new::<K>(RelayMode::Auto);
        let near = world.adopt(given.recv().expect("a socket comes"));
        let mut pump = Pump::start(&mut world, near, near);
        assert_eq!(pump.run(&mut world), End::Eof);
        world.driver.shutdown_write(near);
        assert_eq!(pump.put, 1_000);
        world.close(near, zproxy_io::Ending::Clean);
        world.finish();
    });
    give.send(handle).expect("the other thread waits");
    assert_eq!(far::read_to_end(&mut far, 1, 4, 500), 1_004);
    other.join().expect("the other driver did its part");
    world.finish();
}

/// A socket goes back and forth between two drivers of one thread, and each hears its bytes.
fn back_and_forth<K: Kit>() {
    let mut one = World::new::<K>(RelayMode::Auto);
    let mut two = World::new::<K>(RelayMode::Splice);
    let (mut near, mut far) = one.pair();
    for round in 0..20 {
        let seed = 100 + round;
        far.write_all(&bytes::patterned(seed, 0, 10)).expect("open");
        let mut lease = one.fill(near);
        let mut head = [0; 10];
        assert_eq!(lease.take_head(&mut head), 10);
        bytes::check(seed, 0, &head);
        drop(lease);
        near = two.adopt(one.release(near));
        std::mem::swap(&mut one, &mut two);
    }
    one.finish();
    two.finish();
}
