//! One measurement, as seen by its clients: connect, warm up, watch for a window of time, stop.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::bulk::Style;
use super::crew::Crew;
use super::driver::Driver;
use super::server::Server;
use super::wire::Part;
use crate::cpus;

/// How often the conductor looks whether the clients are ready.
const TICK: Duration = Duration::from_millis(2);

/// What a group of connections does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Sends as fast as it goes.
    Push,
    /// Receives as fast as it goes.
    Pull,
    /// Both at once.
    Both,
    /// Sends a message of `size` bytes and waits until it is back.
    Echo { size: usize },
    /// Connects, asks, reads the reply to its end, closes; and again.
    Ask,
    /// Connects and stays silent.
    Hold,
    /// Receives `size` bytes in every `pause`.
    Sip { size: usize, pause: Duration },
}

impl Role {
    pub(super) fn part(self) -> Part {
        match self {
            Self::Push => Part::Sink,
            Self::Pull | Self::Sip { .. } => Part::Source,
            Self::Both => Part::Both,
            Self::Echo { .. } => Part::Echo,
            Self::Ask => Part::Answer,
            Self::Hold => Part::Hold,
        }
    }
}

/// Connections that do the same, on threads of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) role: Role,
    pub(crate) conns: usize,
}

/// How a measurement is made.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    /// Between readiness and the window.
    pub(crate) warm_up: Duration,
    /// The time that counts.
    pub(crate) window: Duration,
    /// From the first connect to readiness.
    pub(crate) ready_deadline: Duration,
    /// Who does it.
    pub(crate) crew: Crew,
    pub(crate) style: Style,
}

/// What the clients of one group saw during the window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Bytes that arrived at the clients.
    pub(crate) pulled_bytes: u64,
    /// Echoes or answers that ended in the window.
    pub(crate) operations: u64,
    /// Of the operations that also began in the window; ascending.
    pub(crate) latencies_ns: Vec<u64>,
    /// Answers that never came.
    pub(crate) errors: u64,
}

/// A measurement.
#[derive(Clone, Debug)]
pub(crate) struct Outcome<S> {
    /// The window as it really was.
    pub(crate) elapsed: Duration,
    /// From the first connect until every connection had moved a byte end to end.
    pub(crate) ready_after: Duration,
    /// Bytes that arrived at the service.
    pub(crate) pushed_bytes: u64,
    /// One per group.
    pub(crate) groups: Vec<Seen>,
    /// The observer's snapshots at both ends of the window.
    pub(crate) before: S,
    pub(crate) after: S,
}

/// The stages of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    WarmUp,
    Window,
    Over,
}

/// What conductor and clients share.
pub(super) struct Stage {
    phase: AtomicU8,
    pub(super) ready: AtomicU64,
    failure: Mutex<Option<String>>,
    has_failed: AtomicU8,
}

impl Stage {
    fn new() -> Self {
        Self {
            phase: AtomicU8::new(0),
            ready: AtomicU64::new(0),
            failure: Mutex::new(None),
            has_failed: AtomicU8::new(0),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Window,
            _ => Phase::Over,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Keeps the first reason.
    pub(super) fn fail(&self, why: String) {
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(why);
        }
        self.has_failed.store(1, Relaxed);
    }

    fn check(&self) -> Result<(), String> {
        match self.has_failed.load(Relaxed) {
            0 => Ok(()),
            _ => Err(self
                .failure
                .lock()
                .ok()
                .and_then(|failure| failure.clone())
                .unwrap_or_else(|| "a client failed".to_owned())),
        }
    }
}

/// What a group's threads share.
pub(super) struct Shared {
    pub(super) stage: Arc<Stage>,
    pub(super) role: Role,
    pub(super) generation: u8,
    pub(super) targets: Vec<SocketAddr>,
    pub(super) style: Style,
    /// Bytes that arrived at the group's clients so far.
    pub(super) pulled: AtomicU64,
}

/// Runs one measurement of `groups` against `targets`, taken in turn; `observe` is called at both
/// ends of the window.
pub(crate) fn measure<S>(
    server: &Server,
    targets: &[SocketAddr],
    groups: &[Group],
    generation: u8,
    method: &Method,
    mut observe: impl FnMut() -> S,
) -> Result<Outcome<S>, String> {
    server.tally.reset(generation);
    let stage = Arc::new(Stage::new());
    let started = Instant::now();
    let mut shares = Vec::new();
    let mut threads = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let shared = Arc::new(Shared {
            stage: Arc::clone(&stage),
            role: group.role,
            generation,
            targets: targets.to_vec(),
            style: method.style,
            pulled: AtomicU64::new(0),
        });
        let places = method.crew.clients(group);
        for (part, place) in places.iter().copied().enumerate() {
            // Each thread takes every so-many-th connection.
            let conns = (part..group.conns).step_by(places.len()).collect::<Vec<_>>();
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("client-{number}-{part}"))
                .spawn(move || {
                    cpus::settle(place)?;
                    Driver::new(shared, conns)?.run()
                })
                .map_err(|why| format!("no thread: {why}"))?;
            threads.push((number, thread));
        }
        shares.push(shared);
    }
    let wanted = groups.iter().map(|group| group.conns as u64).sum::<u64>();
    let watched = watch(server, &stage, &shares, wanted, started, generation, method, &mut observe);
    stage.enter(Phase::Over);
    let mut seen = vec![Seen::default(); groups.len()];
    let mut broken = None;
    for (number, thread) in threads {
        match thread.join() {
            Ok(Ok(part)) => merge(&mut seen[number], part),
            Ok(Err(why)) => broken = Some(format!("a client failed: {why}")),
            Err(_) => broken = Some("a client panicked".to_owned()),
        }
    }
    let mut outcome = watched?;
    if let Some(why) = broken {
        return Err(why);
    }
    for (total, seen) in outcome.groups.iter_mut().zip(seen) {
        total.operations = seen.operations;
        total.errors = seen.errors;
        total.latencies_ns = seen.latencies_ns;
        total.latencies_ns.sort_unstable();
    }
    Ok(outcome)
}

fn merge(total: &mut Seen, part: Seen) {
    total.operations += part.operations;
    total.errors += part.errors;
    total.latencies_ns.extend(part.latencies_ns);
}

#[allow(clippy::too_many_arguments)]
fn watch<S>(
    server: &Server,
    stage: &Stage,
    shares: &[Arc<Shared>],
    wanted: u64,
    started: Instant,
    generation: u8,
    method: &Method,
    observe: &mut impl FnMut() -> S,
) -> Result<Outcome<S>, String> {
    while stage.ready.load(Relaxed) < wanted {
        stage.check()?;
        if started.elapsed() > method.ready_deadline {
            let ready = stage.ready.load(Relaxed);
            return Err(format!("only {ready} of {wanted} connections carried a byte in time"));
        }
        std::thread::sleep(TICK);
    }
    let ready_after = started.elapsed();
    std::thread::sleep(method.warm_up);
    stage.check()?;
    let pulled = || shares.iter().map(|shared| shared.pulled.load(Relaxed)).collect::<Vec<_>>();
    let pushed = || server.tally.received_bytes(generation);
    let before = observe();
    let (pulled_before, pushed_before) = (pulled(), pushed());
    let opened = Instant::now();
    stage.enter(Phase::Window);
    std::thread::sleep(method.window);
    let (pulled_after, pushed_after) = (pulled(), pushed());
    let elapsed = opened.elapsed();
    let after = observe();
    stage.check()?;
    let groups = pulled_before.iter().zip(&pulled_after);
    let groups = groups
        .map(|(before, after)| Seen { pulled_bytes: after - before, ..Seen::default() })
        .collect();
    let pushed_bytes = pushed_after - pushed_before;
    Ok(Outcome { elapsed, ready_after, pushed_bytes, groups, before, after })
}
