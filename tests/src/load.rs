//! Visitors that come all the time, whatever happens, and judge what they see.
//!
//! A visit may break only if something was done to the programs or the network while it lasted: see
//! [`Load::disturb`]. A wrong byte, a false end and a stall are never excused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::net::try_connect;
use crate::pattern::Rng;
use crate::visits::{Fault, Kind, Visit};

/// After a visit that broke, so that a closed port does not keep a core busy.
const REST: Duration = Duration::from_millis(20);
/// How soon and how often a visitor asks whether the other end is still there.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// Faults that are told one by one.
const FAULTS_MAX: usize = 20;

/// What the visitors have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Visits that came to their end.
    pub flows: u64,
    /// Bytes that these have checked.
    pub bytes: u64,
    /// Visits that broke, excusably.
    pub broken: u64,
}

/// Visitors on threads of their own.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    visitors: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    has_ended: AtomicBool,
    /// Disturbances so far that have begun, and that have ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// Visits under way.
    open: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    is_paused: bool,
    counts: Counts,
    by_kind: BTreeMap<String, u64>,
    faults: Vec<String>,
    faults_untold: u64,
    /// Where visitors come from that are under way, with what they do and since when.
    under_way: BTreeMap<SocketAddr, (Visit, Instant)>,
}

/// While it lives, visits may break; and those that had begun before it ended.
#[derive(Debug)]
#[must_use = "the disturbance ends when this is dropped"]
pub struct Disturbance(Arc<Shared>);

impl Load {
    /// That many visitors, who make one visit after the other, of all kinds, with at most `len_max`
    /// bytes per direction. The sockets belong to the network of the calling thread.
    #[must_use]
    pub fn start(public: SocketAddr, visitors: usize, len_max: u64, mut rng: Rng) -> Self {
        let shared = Arc::new(Shared::default());
        let visitors = (0..visitors)
            .map(|_| {
                let (shared, rng) = (Arc::clone(&shared), Rng::new(rng.next()));
                std::thread::spawn(move || shared.visit_on(public, len_max, rng))
            })
            .collect();
        Self { shared, visitors }
    }

    /// From now on visits may break.
    pub fn disturb(&self) -> Disturbance {
        self.shared.begun.fetch_add(1, Ordering::AcqRel);
        Disturbance(Arc::clone(&self.shared))
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// The same by kind of visit.
    #[must_use]
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        self.shared.lock().by_kind.clone()
    }

    /// The visits under way, one by one.
    #[must_use]
    pub fn under_way(&self) -> Vec<String> {
        let state = self.shared.lock();
        let told = |(from, (visit, since)): (&SocketAddr, &(Visit, Instant))| {
            format!("public={from} {visit:?} for {:?}", since.elapsed())
        };
        state.under_way.iter().map(told).collect()
    }

    /// Visits under way.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// What nothing excuses, so far.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let state = self.shared.lock();
        let mut faults = state.faults.clone();
        if state.faults_untold > 0 {
            faults.push(format!("and {} more", state.faults_untold));
        }
        faults
    }

    /// Lets nobody begin a visit any more, and waits for those that have begun. False when they do not
    /// end in time.
    #[must_use]
    pub fn pause(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.shared.lock();
        state.is_paused = true;
        while self.open() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Visits may begin again.
    pub fn resume(&self) {
        self.shared.lock().is_paused = false;
        self.shared.changed.notify_all();
    }

    /// Waits until so many more visits have come to their end. False when they do not in time.
    #[must_use]
    pub fn has_progress(&self, flows: u64, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.shared.lock();
        let wanted = state.counts.flows + flows;
        while state.counts.flows < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Release);
        self.resume();
        if std::thread::panicking() {
            // The programs may be gone, and visits under way may wait for them for long.
            return;
        }
        for visitor in self.visitors.drain(..) {
            let _ = visitor.join();
        }
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visit_on(&self, public: SocketAddr, len_max: u64, mut rng: Rng) {
        while self.begin() {
            let visit = Visit::random(&mut rng, len_max);
            let calm = self.calm();
            let mut from = None;
            let made = try_connect(public).map_err(Fault::Broken).and_then(|conn| {
                // A link that is full may drop the one RST of a gateway that was killed.
                let probes = TcpKeepalive::new().with_time(PROBE_INTERVAL);
                let probes = probes.with_interval(PROBE_INTERVAL);
                let _ = SockRef::from(&conn).set_tcp_keepalive(&probes);
                from = conn.local_addr().ok();
                self.set_out(visit, from);
                visit.make_over(&conn)
            });
            let is_excused = calm.is_none() || calm != self.calm();
            let is_broken = made.is_err();
            self.end(visit, from, made, is_excused);
            if is_broken {
                self.rest();
            }
        }
    }

    /// The number of the calm that reigns, if one does.
    fn calm(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Acquire);
        (self.begun.load(Ordering::Acquire) == ended).then_some(ended)
    }

    /// False when the load has ended.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        while state.is_paused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        let has_ended = self.has_ended.load(Ordering::Acquire);
        if has_ended {
            self.open.fetch_sub(1, Ordering::AcqRel);
        }
        !has_ended
    }

    fn set_out(&self, visit: Visit, from: Option<SocketAddr>) {
        if let Some(from) = from {
            self.lock().under_way.insert(from, (visit, Instant::now()));
        }
    }

    fn end(
        &self,
        visit: Visit,
        from: Option<SocketAddr>,
        made: Result<(), Fault>,
        is_excused: bool,
    ) {
        let mut state = self.lock();
        if let Some(from) = from {
            state.under_way.remove(&from);
        }
        match made {
            Ok(()) => {
                state.counts.flows += 1;
                state.counts.bytes += visit.bytes();
                *state.by_kind.entry(name(visit.kind)).or_default() += 1;
            }
            Err(fault) if is_excused && !fault.is_inexcusable() => state.counts.broken += 1,
            Err(_) if state.faults.len() >= FAULTS_MAX => state.faults_untold += 1,
            Err(fault) => {
                let when = if is_excused { "" } else { " in a calm" };
                let from = from.map_or_else(|| "none".to_owned(), |from| from.to_string());
                state.faults.push(format!("public={from} {visit:?}: {fault:?}{when}"));
            }
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_all();
    }

    fn rest(&self) {
        let state = self.lock();
        let runs = |_: &mut State| !self.has_ended.load(Ordering::Acquire);
        drop(self.changed.wait_timeout_while(state, REST, runs));
    }
}

fn name(kind: Kind) -> String {
    format!("{kind:?}")
}

#[cfg(test)]
mod tests {
    use super::Load;
    use crate::local::LocalServer;
    use crate::pattern::Rng;
    use crate::visits::Visit;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Visitors make progress, pause when told, and have nothing to complain of on a direct way.
    #[test]
    fn visitors_come_and_pause() {
        let server = Visit::server();
        let load = Load::start(server.addr, 4, 100_000, Rng::new(1));
        assert!(load.has_progress(20, PATIENCE));
        assert!(load.pause(PATIENCE));
        let counts = load.counts();
        assert_eq!((load.open(), load.counts()), (0, counts));
        load.resume();
        assert!(load.has_progress(5, PATIENCE));
        assert_eq!(load.faults(), Vec::<String>::new());
        assert_eq!(load.counts().broken, 0);
    }

    /// A visit that breaks in a calm is a fault; during a disturbance it is not.
    #[test]
    fn breaks_are_excused_by_disturbances_only() {
        let server = LocalServer::resetting();
        let load = Load::start(server.addr, 2, 1_000, Rng::new(1));
        crate::clock::eventually("a fault", PATIENCE, || !load.faults().is_empty());
        drop(load);
        let closed = ([127, 0, 0, 1], 1).into();
        let load = Load::start(closed, 0, 1_000, Rng::new(1));
        let disturbance = load.disturb();
        let shared = std::sync::Arc::clone(&load.shared);
        let visitor = std::thread::spawn(move || shared.visit_on(closed, 1_000, Rng::new(1)));
        crate::clock::eventually("a break", PATIENCE, || load.counts().broken > 0);
        assert_eq!(load.faults(), Vec::<String>::new());
        drop((load, disturbance));
        visitor.join().expect("the visitor ends");
    }
}
