//! Scenes that every path must play the same way, be it a tunnel or `zproxy forward`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use crate::exchange::{Exchange, exchange};
use crate::net::{
    connect, expect_fin, expect_reset, fill_up, finish, receive_pattern, reset, send_pattern,
    small_buffers,
};
use crate::pattern::{Direction, Pattern, Rng};
use crate::rig::{Flow, Rig};
use crate::world::World;

/// What follows the other side's FIN in the half-close scenes.
const ANSWER_SIZE: u64 = 5_000_000;

/// Which end of a flow acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The outside end.
    Public,
    /// The inside end.
    Local,
}

impl End {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Public, Self::Local];

    fn split(self, flow: Flow) -> (TcpStream, TcpStream, Direction, Direction) {
        match self {
            Self::Public => (flow.public, flow.local, Direction::Up, Direction::Down),
            Self::Local => (flow.local, flow.public, Direction::Down, Direction::Up),
        }
    }
}

/// `first` sends a request and a FIN; the other end sees both, and its long answer arrives whole.
///
/// # Panics
/// When it does not.
pub fn half_close(rig: &Rig, first: End, request_size: u64) {
    let (asking, answering, ask, answer) = first.split(rig.flow());
    let (ask, answer) = (Pattern::new(11, ask), Pattern::new(12, answer));
    thread::scope(|scope| {
        let asker = scope.spawn(|| {
            send_pattern(&asking, ask, request_size).expect("the request");
            finish(&asking);
            receive_pattern(&asking, answer, 0, ANSWER_SIZE).expect("the answer");
            expect_fin(&asking);
        });
        receive_pattern(&answering, ask, 0, request_size).expect("the request");
        assert_eq!((&answering).read(&mut [0]).expect("a FIN"), 0);
        send_pattern(&answering, answer, ANSWER_SIZE).expect("the answer");
        finish(&answering);
        asker.join().expect("the asking side");
    });
}

/// Both ends send their FIN at the same moment, many times over, and no byte is lost.
///
/// # Panics
/// When one is.
pub fn crossing_fins(rig: &Rig, rounds: u64) {
    for round in 0..rounds {
        let flow = rig.flow();
        let (up, down) = (Pattern::new(round, Direction::Up), Pattern::new(round, Direction::Down));
        let side = |conn: &TcpStream, sends: Pattern, takes: Pattern| {
            send_pattern(conn, sends, 1_000).expect("sending");
            finish(conn);
            receive_pattern(conn, takes, 0, 1_000).expect("receiving");
            expect_fin(conn);
        };
        thread::scope(|scope| {
            scope.spawn(|| side(&flow.public, up, down));
            side(&flow.local, down, up);
        });
    }
}

/// `who` aborts a flow that has carried bytes both ways; the other end sees a RST.
///
/// # Panics
/// When it does not.
pub fn abort(rig: &Rig, who: End) {
    let (mut acting, mut suffering, ..) = who.split(rig.flow());
    acting.write_all(b"ping").expect("a ping");
    suffering.read_exact(&mut [0; 4]).expect("the ping");
    suffering.write_all(b"pong").expect("a pong");
    acting.read_exact(&mut [0; 4]).expect("the pong");
    reset(acting);
    expect_reset(&suffering);
}

/// `who` sends a FIN, and aborts when the answer has begun: the other end, still sending, sees the
/// RST behind the FIN.
///
/// # Panics
/// When it does not.
pub fn abort_after_own_fin(rig: &Rig, who: End) {
    let (mut acting, mut suffering, ..) = who.split(rig.flow());
    finish(&acting);
    assert_eq!(suffering.read(&mut [0]).expect("a FIN"), 0);
    suffering.write_all(b"an answer").expect("an answer");
    acting.read_exact(&mut [0; 9]).expect("the answer");
    reset(acting);
    // A socket that has read a FIN learns of a RST when it writes.
    crate::clock::eventually("a RST behind the FIN", Duration::from_secs(10), || {
        suffering.write_all(b"more").is_err()
    });
}

/// One end sends a FIN, then the *other* one aborts: the first, which waits for an answer, sees a
/// RST.
///
/// # Panics
/// When it does not.
pub fn abort_after_peers_fin(rig: &Rig, who: End) {
    let (acting, suffering, ..) = who.split(rig.flow());
    finish(&suffering);
    assert_eq!((&acting).read(&mut [0]).expect("a FIN"), 0);
    reset(acting);
    expect_reset(&suffering);
}

/// `who` aborts while its peer sends and nobody reads, so every buffer on the way is full.
///
/// # Panics
/// When the peer does not see a RST.
pub fn abort_under_backpressure(rig: &Rig, who: End) {
    let (acting, suffering, _, towards) = who.split(rig.flow());
    small_buffers(&suffering);
    let sent = fill_up(&suffering, Pattern::new(3, towards));
    assert!(sent > 0, "something must fit");
    reset(acting);
    expect_reset_on_write_or_read(suffering);
}

/// `who` sends until everything is full, then aborts: the peer, which has read nothing, sees a RST
/// even though bytes wait in front of it.
///
/// # Panics
/// When it does not.
pub fn abort_behind_unread_bytes(rig: &Rig, who: End) {
    let (acting, suffering, towards, _) = who.split(rig.flow());
    let sent = fill_up(&acting, Pattern::new(4, towards));
    assert!(sent > 0, "something must fit");
    reset(acting);
    expect_reset(&suffering);
}

fn expect_reset_on_write_or_read(mut stream: TcpStream) {
    stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a write deadline");
    let broken = loop {
        if let Err(why) = stream.write_all(&[0; 4_096]) {
            break why;
        }
    };
    let reset = matches!(
        broken.kind(),
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
    );
    assert!(reset, "a RST was expected: {broken}");
}

/// Many exchanges at the same time, in random pieces, every byte checked.
///
/// # Panics
/// When a byte or a FIN is wrong on either side.
pub fn concurrent_exchanges(world: &World, path: impl FnOnce(&str) -> std::net::SocketAddr) {
    const FLOWS: u64 = 100;
    let server = Exchange::server();
    let public = path(&server.name());
    let mut rng = Rng::seeded(&format!("concurrent exchanges, {}", world.backend().name()));
    let plans: Vec<Exchange> = (0..FLOWS)
        .map(|_| Exchange { flow: rng.next(), up: rng.below(2 << 20), down: rng.below(2 << 20) })
        .collect();
    let failed: Vec<String> = thread::scope(|scope| {
        let runs: Vec<_> =
            plans.iter().map(|plan| (plan, scope.spawn(move || exchange(public, *plan)))).collect();
        runs.into_iter()
            .filter_map(|(plan, run)| match run.join() {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some(format!("{plan:?}: {:?}: {why}", why.kind())),
                Err(_) => Some(format!("{plan:?}: panicked")),
            })
            .collect()
    });
    assert!(failed.is_empty(), "public sides: {failed:#?}, local sides: {:#?}", server.faults());
    crate::clock::eventually("the local sides end", Duration::from_secs(10), || server.open() == 0);
    assert!(server.faults().is_empty(), "local sides: {:#?}", server.faults());
    assert_eq!(server.accepted(), 100);
}

/// `len` bytes from the public to the local side of one flow, every byte checked, then a FIN.
///
/// # Panics
/// When a byte is wrong.
pub fn long_flow(rig: &Rig, flow: u64, direction: Direction, len: u64) {
    let Flow { public, local } = rig.flow();
    let (from, to) = match direction {
        Direction::Up => (public, local),
        Direction::Down => (local, public),
    };
    let pattern = Pattern::new(flow, direction);
    thread::scope(|scope| {
        scope.spawn(|| {
            send_pattern(&from, pattern, len).expect("sending");
            finish(&from);
        });
        receive_pattern(&to, pattern, 0, len).expect("receiving");
        assert_eq!((&to).read(&mut [0]).expect("a FIN"), 0, "surplus bytes");
        finish(&to);
    });
    expect_fin(&from);
}

/// Connects and leaves without a word, many times; the local side sees each as a FIN.
///
/// # Panics
/// When it does not.
pub fn wordless_visits(rig: &Rig, visits: u32) {
    for _ in 0..visits {
        let public = connect(rig.public);
        finish(&public);
        let local = rig.local.accept();
        expect_fin(&local);
        drop(local);
        expect_fin(&public);
    }
}
