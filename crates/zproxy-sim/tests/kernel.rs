//! The simulated kernel does what it claims: a simulator is code, and needs tests of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use zproxy_io::sim::{AppSock, Dialled, ProcessName, Read, Sim, Weather, World, Write};
use zproxy_io::{
    Done, Driver, Ending, Fault, Lease, ListenOptions, Op, Outcome, Sock, SourceNow, Token,
};

const MS: Duration = Duration::from_millis(1);

fn at(host: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, host), 80).into()
}

/// A world with a driver on machine 1, which listens, and a far end on machine 2.
struct Scene {
    world: World,
    near: ProcessName,
    far: ProcessName,
    driver: Sim,
    home: Vec<Done>,
    tokens: u64,
}

impl Scene {
    fn new(seed: u64, weather: Weather) -> Self {
        let world = World::new(seed, weather);
        let near = world.spawn(at(1).ip());
        let far = world.spawn(at(2).ip());
        let driver = world.driver(near);
        Self { world, near, far, driver, home: Vec::new(), tokens: 0 }
    }

    fn submit(&mut self, op: Op) -> Token {
        self.tokens += 1;
        self.driver.submit(Token(self.tokens), op);
        Token(self.tokens)
    }

    /// Lets time pass until nothing happens before `until`.
    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            let mut done = Vec::new();
            self.driver.wait(None, &mut done).expect("it lives");
            if !done.is_empty() {
                self.home.append(&mut done);
                continue;
            }
            let wake = self.world.wake_time(self.driver.name());
            let next = wake.into_iter().chain(self.world.next_event()).min();
            let now = self.world.now();
            match next {
                Some(next) if next <= now && now < until => {
                    self.world.advance(now + Duration::from_micros(1));
                }
                Some(next) if next < until => self.world.advance(next),
                _ => return self.world.advance(until),
            }
        }
    }

    fn take(&mut self, token: Token) -> Option<Outcome> {
        let place = self.home.iter().position(|done| done.token == token)?;
        Some(self.home.remove(place).outcome)
    }

    fn run(&mut self, op: Op) -> Outcome {
        let token = self.submit(op);
        self.pass(10 * MS);
        self.take(token).expect("it came home")
    }

    /// A connection: the driver's end, and the far one.
    fn pair(&mut self) -> (Sock, AppSock) {
        self.world.run_as(self.near);
        let (handle, _) = Sim::listen(at(1), ListenOptions::default()).expect("a free port");
        let listener = self.driver.adopt(handle);
        let accepting = self.submit(Op::Accept { listener });
        let far = self.world.dial(self.far, at(1));
        self.pass(50 * MS);
        assert_eq!(self.world.dialled(far), Dialled::Connected);
        let Some(Outcome::Accepted { sock, peer }) = self.take(accepting) else {
            panic!("it is accepted")
        };
        assert_eq!(peer.map(|peer| peer.ip()), Some(at(2).ip()));
        let closing = self.submit(Op::Close { sock: listener, how: Ending::Clean });
        self.pass(10 * MS);
        assert!(matches!(self.take(accepting), Some(Outcome::Failed(Fault::Cancelled))));
        assert!(matches!(self.take(closing), Some(Outcome::Closed)));
        (sock, far)
    }

    fn read(&self, far: AppSock) -> (Vec<u8>, Read) {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.world.read(far, &mut piece) {
                Read::Some(count) => all.extend_from_slice(&piece[..count]),
                other => return (all, other),
            }
        }
    }
}

fn filled(outcome: Outcome) -> Lease {
    match outcome {
        Outcome::Filled(lease) => lease,
        other => panic!("not filled: {other:?}"),
    }
}

/// Bytes arrive in order, after the latency and not before, and an EOF behind them.
#[test]
fn bytes_take_their_time() {
    let weather =
        Weather { latency_min: 5 * MS, latency_max: 5 * MS, segment_max: 3, ..Weather::fair() };
    let mut scene = Scene::new(1, weather);
    let (near, far) = scene.pair();
    assert_eq!(scene.world.write(far, b"0123456789"), Write::Some(10));
    scene.world.shut(far);
    let fill = scene.submit(Op::Fill { from: near });
    scene.pass(4 * MS);
    assert!(scene.take(fill).is_none(), "it is under way");
    scene.pass(2 * MS);
    let mut got = Vec::new();
    let mut lease = filled(scene.take(fill).expect("it is there"));
    loop {
        let mut head = [0; 16];
        let count = lease.take_head(&mut head);
        got.extend_from_slice(&head[..count]);
        drop(lease);
        match scene.run(Op::Fill { from: near }) {
            Outcome::Filled(more) => lease = more,
            Outcome::Eof => break,
            other => panic!("not the result of a fill: {other:?}"),
        }
    }
    assert_eq!(got, b"0123456789");
    let stats = scene.driver.stats();
    assert_eq!(stats.bufs_leased, stats.bufs_returned);
}

/// A round puts what there is and takes what came meanwhile, in one operation; on a weather of single
/// bytes it moves one.
#[test]
fn rounds_are_whole_or_short() {
    for (short, put) in [(0, 6), (1000, 1)] {
        let mut scene = Scene::new(2, Weather::fair());
        let (source, from) = scene.pair();
        let (sink, to) = scene.pair();
        assert_eq!(scene.world.write(from, b"abcdef"), Write::Some(6));
        let lease = filled(scene.run(Op::Fill { from: source }));
        assert_eq!(scene.world.write(from, b"ghi"), Write::Some(3));
        scene.world.shut(from);
        scene.pass(MS);
        scene.world.set_weather(Weather { short, tiny: 1000, ..Weather::fair() });
        let drained = scene.run(Op::Drain { lease, to: sink, refill: Some(source) });
        let Outcome::Drained { put: did, refilled, lease, source: now } = drained else {
            panic!("not drained: {drained:?}")
        };
        let held = lease.as_ref().map_or(0, Lease::len);
        assert_eq!((did, now), (put, SourceNow::Open));
        assert_eq!((refilled, held), if short == 0 { (3, 3) } else { (0, 5) });
        assert_eq!(scene.read(to).0, &b"abcdef"[..put]);
    }
}

/// A full sink blocks a drain until somebody reads.
#[test]
fn buffers_are_bounded() {
    let weather =
        Weather { send_buffer: (1000, 1000), receive_buffer: (1000, 1000), ..Weather::fair() };
    let mut scene = Scene::new(3, weather);
    let (near, far) = scene.pair();
    let send = scene.submit(Op::Send { sock: near, buf: vec![7; 5_000] });
    scene.pass(1_000 * MS);
    assert!(scene.take(send).is_none(), "2,000 bytes fit");
    let mut got = 0;
    while got < 5_000 {
        let (bytes, _) = scene.read(far);
        assert!(bytes.len() <= 1000, "{} bytes were in a buffer of 1,000", bytes.len());
        got += bytes.len();
        scene.pass(10 * MS);
    }
    assert!(matches!(scene.take(send), Some(Outcome::Sent { .. })));
}

/// A clean close is a FIN, a reset a RST; a clean close with unread bytes is a RST as well, and so is
/// the answer to bytes for somebody who is gone.
#[test]
fn ends_arrive_as_they_left() {
    let ends = [
        (Ending::Clean, false, Read::Eof),
        (Ending::Reset, false, Read::Failed(Fault::Reset)),
        (Ending::Clean, true, Read::Failed(Fault::Reset)),
    ];
    for (how, is_unread, wanted) in ends {
        let mut scene = Scene::new(4, Weather::fair());
        let (near, far) = scene.pair();
        if is_unread {
            assert_eq!(scene.world.write(far, b"x"), Write::Some(1));
            scene.pass(MS);
        }
        assert!(matches!(scene.run(Op::Close { sock: near, how }), Outcome::Closed));
        scene.pass(MS);
        assert_eq!(scene.read(far).1, wanted, "{how:?} unread={is_unread}");
        if wanted == Read::Eof {
            assert_eq!(scene.world.write(far, b"too late"), Write::Some(8));
            scene.pass(MS);
            assert_eq!(scene.world.write(far, b"x"), Write::Failed(Fault::Reset));
        }
    }
}

/// A process that dies resets what it had, and a watch tells so without a byte moving.
#[test]
fn death_is_a_reset() {
    let mut scene = Scene::new(5, Weather::fair());
    let (near, far) = scene.pair();
    assert_eq!(scene.world.write(far, b"last words"), Write::Some(10));
    let watch = scene.submit(Op::Watch { sock: near });
    scene.pass(10 * MS);
    assert!(scene.take(watch).is_none());
    scene.world.bury(scene.far);
    scene.pass(10 * MS);
    assert!(matches!(scene.take(watch), Some(Outcome::Hangup(Some(Fault::Reset)))));
    assert_eq!(filled(scene.run(Op::Fill { from: near })).len(), 10);
    assert!(matches!(scene.run(Op::Fill { from: near }), Outcome::Failed(Fault::Reset)));
}

/// What meets a gap in the network is sent again behind it, except a RST: then only a keep-alive, half
/// a minute later, tells the other end.
#[test]
fn a_gap_loses_resets_only() {
    let mut scene = Scene::new(6, Weather::fair());
    let (near, far) = scene.pair();
    scene.world.cut(at(1).ip(), at(2).ip(), scene.world.now() + 1_000 * MS);
    assert!(matches!(
        scene.run(Op::Send { sock: near, buf: b"late".to_vec() }),
        Outcome::Sent { .. }
    ));
    scene.pass(900 * MS);
    assert_eq!(scene.read(far), (Vec::new(), Read::Empty));
    scene.pass(1_000 * MS);
    assert_eq!(scene.read(far).0, b"late");
    scene.world.cut(at(1).ip(), at(2).ip(), scene.world.now() + 1_000 * MS);
    scene.run(Op::Close { sock: near, how: Ending::Reset });
    scene.pass(20_000 * MS);
    assert_eq!(scene.read(far).1, Read::Empty, "nobody has told it");
    scene.pass(20_000 * MS);
    assert_eq!(scene.read(far).1, Read::Failed(Fault::Reset));
}

/// What is known of a far end: who has acknowledged everything owes nothing, however long ago that was;
/// bytes and a FIN on a dark way are owed until they have come, and so are the probes of a closed window,
/// which on a bright way are answered.
#[test]
fn a_far_end_owes_what_it_has_not_acknowledged() {
    let buffers = (1000, 1000);
    let weather = Weather {
        latency_min: 5 * MS,
        latency_max: 5 * MS,
        send_buffer: buffers,
        receive_buffer: buffers,
        ..Weather::fair()
    };
    for (side, is_full) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut scene = Scene::new(10, weather.clone());
        let (near, far) = scene.pair();
        let told = |scene: &Scene| scene.driver.far_end(near).expect("it is connected");
        assert!(!told(&scene).owes, "nothing was said");
        let size = if is_full { 1_500 } else { 500 };
        scene.submit(Op::Send { sock: near, buf: vec![7; size] });
        scene.pass(2 * MS);
        assert!(told(&scene).owes, "it is under way");
        scene.pass(20_000 * MS);
        let quiet = told(&scene);
        assert!(!quiet.owes && quiet.silence > 19_000 * MS, "{quiet:?} side={side} full={is_full}");
        let conns = scene.world.conns_to(at(1));
        scene.world.darken_conn(conns[0], side, scene.world.now() + 60_000 * MS);
        if !is_full {
            scene.driver.shutdown_write(near);
        }
        scene.pass(30_000 * MS);
        let dark = told(&scene);
        assert!(dark.owes && dark.silence > 49_000 * MS, "{dark:?} side={side} full={is_full}");
        scene.pass(31_000 * MS);
        let bright = told(&scene);
        assert!(!bright.owes, "{bright:?} side={side} full={is_full}");
        assert_eq!(scene.read(far).0, vec![7; if is_full { 1_000 } else { 500 }]);
    }
}

/// Nothing under way: a keep-alive gives a dark connection up. Something under way: none is sent, and the
/// kernel tries for a quarter of an hour.
#[test]
fn keep_alive_rests_while_something_is_owed() {
    for is_owing in [false, true] {
        let mut scene = Scene::new(11, Weather::fair());
        let (near, _far) = scene.pair();
        let watch = scene.submit(Op::Watch { sock: near });
        let conns = scene.world.conns_to(at(1));
        scene.world.darken_conn(conns[0], 0, scene.world.now() + 2_000_000 * MS);
        if is_owing {
            scene.run(Op::Send { sock: near, buf: b"lost".to_vec() });
        }
        scene.pass(100_000 * MS);
        let hangup = scene.take(watch);
        assert_eq!(hangup.is_none(), is_owing, "{hangup:?}");
        scene.pass(900_000 * MS);
        let hangup = hangup.or_else(|| scene.take(watch));
        assert!(matches!(hangup, Some(Outcome::Hangup(Some(Fault::TimedOut)))), "{hangup:?}");
    }
}

/// Dials fail as they do: refused without a listener, unreachable without a machine, and timed out,
/// after minutes, without an answer.
#[test]
fn dials_fail_in_three_ways() {
    let mut scene = Scene::new(7, Weather::fair());
    for (to, fault) in [(at(2), Fault::Refused), (at(9), Fault::Unreachable)] {
        let sock = scene.driver.socket(&to).expect("a socket");
        assert!(matches!(scene.run(Op::Connect { sock, to }), Outcome::Failed(it) if it == fault));
    }
    scene.world.cut(at(1).ip(), at(2).ip(), scene.world.now() + 500_000 * MS);
    let sock = scene.driver.socket(&at(2)).expect("a socket");
    let connect = scene.submit(Op::Connect { sock, to: at(2) });
    scene.pass(60_000 * MS);
    assert!(scene.take(connect).is_none());
    scene.pass(120_000 * MS);
    assert!(matches!(scene.take(connect), Some(Outcome::Failed(Fault::TimedOut))));
}

/// Out of descriptors, nothing is opened and accepting stops, until it is over.
#[test]
fn shortages_begin_and_end() {
    let mut scene = Scene::new(8, Weather::fair());
    scene.world.run_as(scene.near);
    let (handle, _) = Sim::listen(at(1), ListenOptions::default()).expect("a free port");
    let listener = scene.driver.adopt(handle);
    scene.world.starve(scene.near, scene.world.now() + 100 * MS, Fault::NoDescriptors);
    assert_eq!(scene.driver.socket(&at(2)), Err(Fault::NoDescriptors));
    let _far = scene.world.dial(scene.far, at(1));
    assert!(matches!(scene.run(Op::Accept { listener }), Outcome::Failed(Fault::NoDescriptors)));
    scene.pass(100 * MS);
    assert!(matches!(scene.run(Op::Accept { listener }), Outcome::Accepted { .. }));
    assert!(scene.driver.socket(&at(2)).is_ok());
}

/// Results come home in many orders, but a close behind everything else on its socket.
#[test]
fn a_close_is_a_join() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let weather = Weather { shuffle: 1000, late: 500, ..Weather::fair() };
        let mut scene = Scene::new(seed, weather);
        let (near, _far) = scene.pair();
        let fill = scene.submit(Op::Fill { from: near });
        let watch = scene.submit(Op::Watch { sock: near });
        let close = scene.submit(Op::Close { sock: near, how: Ending::Reset });
        scene.pass(20 * MS);
        let order: Vec<Token> = scene.home.iter().map(|done| done.token).collect();
        assert_eq!(order.len(), 3);
        assert_eq!(order[2], close);
        assert!(order.contains(&fill) && order.contains(&watch));
        orders.insert(order[0] == fill);
    }
    assert_eq!(orders.len(), 2, "both orders of the others occur");
}

/// A bell that is rung is heard once, at once or, in a deaf world, somewhat later.
#[test]
fn bells_are_heard() {
    let mut delays = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut scene = Scene::new(seed, Weather { deaf: 500, ..Weather::fair() });
        scene.driver.doorbell().ring();
        scene.driver.doorbell().ring();
        let now = scene.world.now();
        let wake = scene.world.wake_time(scene.driver.name()).expect("it was rung");
        scene.pass(Duration::ZERO);
        delays.insert(scene.home.is_empty());
        scene.pass(10 * MS);
        assert_eq!(scene.home.len(), 1, "rung {now:?}, heard {wake:?}");
        assert!(matches!(scene.home[0].outcome, Outcome::Rung));
    }
    assert_eq!(delays.len(), 2, "some are heard at once and some are not");
}

/// A second operation of a kind on one socket is a fault of the caller.
#[test]
#[should_panic(expected = "one operation of a kind")]
fn one_inbound_at_a_time() {
    let mut scene = Scene::new(9, Weather::fair());
    let (near, _far) = scene.pair();
    scene.submit(Op::Fill { from: near });
    scene.submit(Op::Fill { from: near });
}

/// A recalled accept comes home behind what it accepted, and who comes later waits for the next one.
#[test]
fn a_recalled_accept_loses_nobody() {
    const VISITORS: usize = 40;
    let mut overshoots = 0;
    for seed in 0..30 {
        let weather = Weather {
            latency_min: MS,
            latency_max: 5 * MS,
            late: 400,
            shuffle: 500,
            ..Weather::fair()
        };
        let mut scene = Scene::new(seed, weather);
        scene.world.run_as(scene.near);
        let (handle, _) = Sim::listen(at(1), ListenOptions::default()).expect("a free port");
        let listener = scene.driver.adopt(handle);
        scene.driver.recall_accept(listener);
        let accepting = scene.submit(Op::Accept { listener });
        let dial = |scene: &Scene| scene.world.dial(scene.far, at(1));
        let _visitors: Vec<AppSock> = (0..VISITORS).map(|_| dial(&scene)).collect();
        scene.pass(6 * MS);
        scene.driver.recall_accept(listener);
        scene.pass(50 * MS);
        let outcomes: Vec<Outcome> = std::iter::from_fn(|| scene.take(accepting)).collect();
        let is_accepted = |it: &&Outcome| matches!(it, Outcome::Accepted { .. });
        let first = outcomes.iter().filter(is_accepted).count();
        assert_eq!(outcomes.len(), first + 1, "{outcomes:?}");
        assert!(matches!(outcomes[first], Outcome::Failed(Fault::Cancelled)), "{outcomes:?}");
        assert!(first < VISITORS, "seed {seed}: nobody came after the recall");
        let again = scene.submit(Op::Accept { listener });
        scene.pass(50 * MS);
        let second = std::iter::from_fn(|| scene.take(again)).count();
        assert_eq!(first + second, VISITORS, "seed {seed}");
        overshoots += scene.world.counts().get("accepted_after_recall").copied().unwrap_or(0);
    }
    assert!(overshoots > 0, "nobody was accepted after a recall");
}
