//! Waking a driver, and waiting.

use std::time::Duration;

use zproxy_io::{Doorbell, Driver, Op, Outcome, RelayMode, Token};

use crate::support::{Kit, PATIENCE, World};

conformance!(
    rung_before_waiting,
    rung_while_waiting,
    rung_again_and_again,
    heard_by_a_busy_driver,
    deadlines_are_kept,
    a_deadline_in_the_past,
);

conformance_busy!(
    rung_before_waiting,
    rung_while_waiting,
    rung_again_and_again,
    heard_by_a_busy_driver,
    deadlines_are_kept,
    a_deadline_in_the_past,
    watches_are_counted,
);

/// How often the bell was heard within `time`.
fn heard<D: Driver>(world: &mut World<D>, time: Duration) -> usize {
    let mut count = 0;
    while world.wait(time) {
        while world.take(Token::DOORBELL).is_some() {
            count += 1;
        }
    }
    count
}

const SHORT: Duration = Duration::from_millis(20);

/// Rings before a wait are one ring, and it is heard once.
fn rung_before_waiting<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let bell = world.driver.doorbell();
    for _ in 0..5 {
        bell.ring();
        bell.clone().ring();
    }
    assert_eq!(heard(&mut world, SHORT), 1);
    assert_eq!(heard(&mut world, SHORT), 0);
    bell.ring();
    assert_eq!(heard(&mut world, SHORT), 1);
    world.finish();
}

/// A ring from another thread ends a wait that would last much longer.
fn rung_while_waiting<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let bell = world.driver.doorbell();
    // SAFETY: no pointers.
    let waiter = unsafe { libc::gettid() };
    let ringing = std::thread::spawn(move || ring_when_asleep(waiter, &bell));
    world.outcome(Token::DOORBELL);
    ringing.join().expect("it rang");
    world.finish();
}

/// Rings as soon as the kernel says that the thread sleeps.
fn ring_when_asleep(thread: i32, bell: &Doorbell) {
    let started = std::time::Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        let stat = stat.expect("the thread lives");
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        if state == Some('S') || started.elapsed() > PATIENCE {
            return bell.ring();
        }
        std::thread::yield_now();
    }
}

/// Every ring after an answer is answered anew.
fn rung_again_and_again<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let bell = world.driver.doorbell();
    let (asked, questions) = std::sync::mpsc::channel();
    let ringing = std::thread::spawn(move || {
        while let Ok(()) = questions.recv() {
            bell.ring();
        }
    });
    for _ in 0..200 {
        asked.send(()).expect("the ringer listens");
        world.outcome(Token::DOORBELL);
    }
    drop(asked);
    ringing.join().expect("it rang");
    assert_eq!(heard(&mut world, SHORT), 0);
    world.finish();
}

/// A driver that always has something to do still hears the bell.
fn heard_by_a_busy_driver<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, _far) = world.pair();
    // A send of nothing is done at once, so there is never a reason to wait.
    let mut busy = world.submit(Op::Send { sock: near, buf: Vec::new() });
    world.driver.doorbell().ring();
    for _ in 0..20 {
        world.turn();
        if world.take(Token::DOORBELL).is_some() {
            return world.finish();
        }
        if let Some(Outcome::Sent { buf }) = world.take(busy) {
            busy = world.submit(Op::Send { sock: near, buf });
        }
    }
    panic!("the bell was not heard in 20 turns");
}

/// A wait without results ends when its time has come, not before, whatever is in flight.
fn deadlines_are_kept<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    for micros in [1, 100, 300, 1_500, 20_000] {
        // The world checks that a wait without results does not end early.
        assert!(!world.wait(Duration::from_micros(micros)));
    }
    let (near, _far) = world.pair();
    world.submit(Op::Fill { from: near });
    world.submit(Op::Watch { sock: near });
    world.settle();
    for micros in [1, 100, 300, 1_500, 20_000] {
        assert!(!world.wait(Duration::from_micros(micros)));
    }
    world.finish();
}

/// A driver that watches says how often it did, and that it found what was there before its time
/// was up. Being preempted makes it rest, so that it may take several attempts to find something.
fn watches_are_counted<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    assert!(!world.wait(SHORT));
    assert!(world.driver.stats().spins > 0, "{:?}", world.driver.stats());
    let bell = world.driver.doorbell();
    let started = std::time::Instant::now();
    while world.driver.stats().spins_found == 0 {
        assert!(started.elapsed() < PATIENCE, "{:?}", world.driver.stats());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let bell = bell.clone();
        let ringing = std::thread::spawn(move || {
            ready.send(()).expect("somebody waits");
            bell.ring();
        });
        is_ready.recv().expect("the ringer lives");
        world.outcome(Token::DOORBELL);
        ringing.join().expect("it rang");
    }
    world.finish();
}

/// With a deadline in the past, queued operations run all the same, and the wait returns.
fn a_deadline_in_the_past<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, _far) = world.pair();
    let token = world.submit(Op::Send { sock: near, buf: b"x".to_vec() });
    for _ in 0..1_000 {
        world.wait(Duration::ZERO);
        if world.take(token).is_some() {
            return world.finish();
        }
    }
    panic!("the operation did not run");
}
