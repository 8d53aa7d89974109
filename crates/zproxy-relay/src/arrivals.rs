//! Which data core serves a public connection: any, or the one on whose CPU it arrives.
//!
//! The listeners of a port share it (`SO_REUSEPORT`), and the kernel spreads connections over them by a
//! hash. That is fair, and blind: most are then served on another CPU than the one that handles their
//! packets, and every packet wakes a thread across CPUs and frees memory across them. Where the network
//! card gives each CPU its share of the connections (RSS), a data core had better take those that arrive
//! on its own CPU: a short flow then costs a tenth to a sixth less CPU.
//!
//! Where it does not (one queue, a few visitors, visitors on this machine), they would crowd on one core.
//! So it is known of every open flow where it arrived, and a core steers only while the flows of no CPU
//! are many more than those of the others: no more than chance would put on one core. What arrives seldom
//! is not steered: it is too little to learn from, and little to gain.
//!
//! Each core writes what it has to a row of its own on a [`Board`], all of them read it, and each decides
//! for its own listeners. They look at the same numbers, so they agree, a moment sooner or later. While
//! they do not, every connection still finds a listener: those of a CPU that nobody prefers are spread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// A core reads the board once in so many connections …
const CONNS_PER_READING: u32 = 8;
/// … and decides after so many readings.
const READINGS_PER_DECISION: u32 = 32;
/// Steering goes on while the fullest core has not more than so many times what it might have when
/// steering begins.
const PATIENCE: f64 = 1.15;
/// What was learnt is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Where the open flows have arrived, as all data cores together know it.
#[derive(Debug)]
pub struct Board {
    /// The CPU of each data core.
    cpus: Box<[usize]>,
    rows: Box<[Row]>,
}

/// The open flows of one data core, by the data core on whose CPU they arrived. Only their core writes
/// them.
#[derive(Debug)]
struct Row(Box<[Cells]>);

const CELLS: usize = 32;

/// Two cache lines, which some CPUs fetch together; no other row has a part of them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cells([AtomicU32; CELLS]);

impl Row {
    fn new(cores: usize) -> Self {
        Self((0..cores.div_ceil(CELLS)).map(|_| Cells::default()).collect())
    }

    fn of(&self, core: usize) -> &AtomicU32 {
        &self.0[core / CELLS].0[core % CELLS]
    }
}

impl Board {
    /// A board for data cores on these CPUs. None where there is nothing to steer: with one core, or
    /// with several on one CPU.
    #[must_use]
    pub fn new(cpus: &[usize]) -> Option<Arc<Self>> {
        let is_twice = |(at, cpu): (usize, &usize)| cpus[..at].contains(cpu);
        if cpus.len() < 2 || cpus.iter().enumerate().any(is_twice) {
            return None;
        }
        let rows = cpus.iter().map(|_| Row::new(cpus.len())).collect();
        Some(Arc::new(Self { cpus: cpus.into(), rows }))
    }

    /// The fullest core's flows, if each had those that arrived on its CPU, and what all of them have.
    fn read(&self) -> (u32, u32) {
        let flows = (0..self.cpus.len()).map(|core| {
            self.rows.iter().fold(0, |sum, row| row.of(core).load(Relaxed).wrapping_add(sum))
        });
        flows.fold((0, 0), |(most, all), flows| (most.max(flows), all + flows))
    }
}

/// Where a flow arrived, to be given back at its end: see [`Arrivals::enter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival(Option<u16>);

/// A data core's part in it. Without a board it does nothing.
#[derive(Debug, Default)]
pub struct Arrivals {
    board: Option<Arc<Board>>,
    core: usize,
    /// Connections since the board was read.
    unread: u32,
    /// Since the last decision, when that was: readings, and what they came to, which is the sums of what
    /// the fullest core had, and of what it might have.
    decided_at: Duration,
    readings: u32,
    most: f64,
    bound: f64,
    seen: Seen,
}

/// What a data core saw of arrivals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connections that it accepted.
    pub all: u64,
    /// Of these, those that arrived on its own CPU.
    pub own: u64,
    /// Times that it began to prefer those.
    pub steerings: u64,
    /// Whether it does now.
    pub is_steering: bool,
}

/// As a log line shows it.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arrived={} arrived_here={}", self.all, self.own)?;
        write!(f, " steering={} steerings={}", u8::from(self.is_steering), self.steerings)
    }
}

impl Arrivals {
    /// The part of the data core of this number; without a board nothing is steered.
    #[must_use]
    pub fn new(board: Option<Arc<Board>>, core: usize) -> Self {
        Self { board, core, ..Self::default() }
    }

    /// What this core saw so far; nothing without a board.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// The CPU whose arrivals the listeners of this core prefer.
    #[must_use]
    pub fn preferred(&self) -> Option<usize> {
        let board = self.board.as_ref()?;
        self.seen.is_steering.then(|| board.cpus[self.core])
    }

    /// A flow has come; `cpu` asks which CPU handled it, which is a system call.
    pub fn enter(&mut self, cpu: impl FnOnce() -> Option<usize>) -> Arrival {
        let Some(board) = &self.board else { return Arrival(None) };
        let place = cpu().and_then(|cpu| board.cpus.iter().position(|&it| it == cpu));
        self.unread += 1;
        self.seen.all += 1;
        self.seen.own += u64::from(place == Some(self.core));
        if let Some(place) = place {
            board.rows[self.core].of(place).fetch_add(1, Relaxed);
        }
        Arrival(place.and_then(|place| u16::try_from(place).ok()))
    }

    /// A flow has gone.
    pub fn leave(&mut self, arrival: Arrival) {
        if let (Some(board), Arrival(Some(place))) = (&self.board, arrival) {
            board.rows[self.core].of(usize::from(place)).fetch_sub(1, Relaxed);
        }
    }

    /// Decides anew, when there is enough to decide with. True when [`Self::preferred`] has changed.
    pub fn poll(&mut self, now: Duration) -> bool {
        let Some(board) = &self.board else { return false };
        if self.unread >= CONNS_PER_READING {
            let (most, all) = board.read();
            self.unread = 0;
            self.readings += 1;
            self.most += f64::from(most);
            self.bound += bound(f64::from(all), board.cpus.len() as f64);
        }
        let is_stale = now >= self.decided_at + GOOD_FOR;
        if self.readings < READINGS_PER_DECISION && !is_stale {
            return false;
        }
        let patience = if self.seen.is_steering { PATIENCE } else { 1.0 };
        let is_even = self.most > 0.0 && self.most <= self.bound * patience;
        let is_steering = is_even && !is_stale;
        (self.decided_at, self.readings, self.most, self.bound) = (now, 0, 0.0, 0.0);
        let was_steering = std::mem::replace(&mut self.seen.is_steering, is_steering);
        self.seen.steerings += u64::from(is_steering && !was_steering);
        is_steering != was_steering
    }

    /// When [`Self::poll`] has something to say though nothing comes.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.seen.is_steering.then_some(self.decided_at + GOOD_FOR)
    }
}

/// How many of so many flows the fullest core may have. When each goes to any core by chance, the fullest
/// has about `mean + sqrt(2 ln(cores) mean)`. This is that and a tenth of the mean.
fn bound(flows: f64, cores: f64) -> f64 {
    let mean = flows / cores;
    1.1 * mean + (2.0 * cores.ln() * mean).sqrt()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Data cores that share a board, and the flows that are open on them.
    struct Cores {
        cores: Vec<Arrivals>,
        open: VecDeque<(usize, Arrival)>,
        now: Duration,
        /// Spreads what nobody prefers.
        next: usize,
    }

    impl Cores {
        fn new(cpus: &[usize]) -> Self {
            let board = Board::new(cpus);
            let cores = (0..cpus.len()).map(|core| Arrivals::new(board.clone(), core)).collect();
            Self { cores, open: VecDeque::new(), now: MS, next: 0 }
        }

        /// A flow arrives on a CPU, a tenth of a millisecond after the last one. So many stay open.
        fn arrive(&mut self, cpu: usize, open: usize) {
            while self.open.len() >= open.max(1) {
                let (core, arrival) = self.open.pop_front().expect("there is one");
                self.cores[core].leave(arrival);
            }
            self.next += 1;
            self.now += MS / 10;
            let preferring = self.cores.iter().position(|core| core.preferred() == Some(cpu));
            let core = preferring.unwrap_or(self.next * 7 / 3 % self.cores.len());
            let arrival = self.cores[core].enter(|| Some(cpu));
            self.open.push_back((core, arrival));
            self.poll();
        }

        fn poll(&mut self) {
            for core in &mut self.cores {
                core.poll(self.now);
            }
        }

        fn steering(&self) -> usize {
            self.cores.iter().filter(|core| core.preferred().is_some()).count()
        }
    }

    /// A number that looks like chance.
    fn chance(number: usize, below: usize) -> usize {
        let mixed = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as usize % below
    }

    /// Where each CPU has its share of what arrives, every core soon serves its own, and goes on.
    #[test]
    fn what_comes_spread_is_steered() {
        for (cpus, open) in [(vec![0, 1], 32), (vec![0, 1], 2), (vec![3, 5, 8, 13], 64)] {
            let mut cores = Cores::new(&cpus);
            for number in 0..cpus.len() * 1_000 {
                cores.arrive(cpus[chance(number, cpus.len())], open);
            }
            assert_eq!(cores.steering(), cpus.len(), "{open} on {cpus:?}");
            let before = cores.cores.iter().map(|core| core.seen()).collect::<Vec<_>>();
            for number in 0..cpus.len() * 1_000 {
                cores.arrive(cpus[chance(number, cpus.len())], open);
            }
            for (core, before) in cores.cores.iter().zip(before) {
                let after = core.seen();
                assert_eq!(after.steerings, 1, "it does not come and go");
                assert_eq!(after.own - before.own, after.all - before.all);
            }
        }
    }

    /// A machine with many cores is no other: chance makes one of them fuller.
    #[test]
    fn many_cores_are_steered() {
        let cpus = (0..32).collect::<Vec<_>>();
        let mut cores = Cores::new(&cpus);
        // In the same time there are more of them.
        for number in 0..32 * 1_000 {
            cores.arrive(chance(number, 32), 640);
            cores.now -= MS / 12;
        }
        assert_eq!(cores.steering(), 32);
    }

    /// Where all of it arrives on one CPU, the cores go on sharing it.
    #[test]
    fn what_comes_to_one_cpu_is_spread() {
        for open in [8, 32, 1_000] {
            let mut cores = Cores::new(&[0, 1]);
            for _ in 0..5_000 {
                cores.arrive(1, open);
                assert_eq!(cores.steering(), 0, "{open} open");
            }
        }
    }

    /// Nor is what arrives on one CPU for a while and then on the other, which is even only on average.
    #[test]
    fn what_comes_in_turns_is_spread() {
        let mut cores = Cores::new(&[0, 1]);
        for number in 0..20_000 {
            cores.arrive(number / 100 % 2, 32);
            assert_eq!(cores.steering(), 0);
        }
    }

    /// One at a time may as well be served where it arrives.
    #[test]
    fn a_single_visitor_is_served_where_it_arrives() {
        let mut cores = Cores::new(&[0, 1]);
        for _ in 0..1_000 {
            cores.arrive(1, 1);
        }
        assert_eq!(cores.cores[1].preferred(), Some(1));
    }

    /// When the flows of one CPU become many, its core stops preferring them.
    #[test]
    fn a_crowd_on_one_cpu_ends_it() {
        let mut cores = Cores::new(&[0, 1]);
        for number in 0..2_000 {
            cores.arrive(number % 2, 32);
        }
        assert_eq!(cores.steering(), 2);
        for _ in 0..1_000 {
            cores.arrive(0, 32);
        }
        assert_eq!(cores.cores[0].preferred(), None);
        // The other one has heard of nothing for long enough by now, or soon has.
        cores.now += GOOD_FOR;
        cores.poll();
        assert_eq!(cores.steering(), 0);
    }

    /// What comes seldom is not steered, and steering ends a second after the last decision.
    #[test]
    fn seldom_is_not_steered() {
        let mut cores = Cores::new(&[0, 1]);
        for number in 0..2_000 {
            cores.arrive(number % 2, 32);
            cores.now += 5 * MS;
            assert_eq!(cores.steering(), 0);
        }
        for number in 0..2_000 {
            cores.arrive(number % 2, 32);
        }
        assert_eq!(cores.steering(), 2);
        let until = cores.cores.iter().filter_map(Arrivals::poll_timeout).max();
        cores.now = until.expect("it is good for a while only");
        cores.poll();
        assert_eq!((cores.steering(), cores.cores[0].poll_timeout()), (0, None));
    }

    /// CPUs without a data core, and kernels that do not tell, are spread; a flow is given back once.
    #[test]
    fn what_arrives_elsewhere_is_spread() {
        let mut cores = Cores::new(&[0, 1]);
        for number in 0..2_000 {
            cores.arrive(if number % 2 == 0 { 7 } else { 0 }, 32);
        }
        assert_eq!(cores.steering(), 0);
        let mut cores = Cores::new(&[0, 1]);
        for _ in 0..2_000 {
            cores.arrive(7, 32);
            assert_eq!(cores.steering(), 0, "there is nothing to prefer");
        }
        assert_eq!(cores.cores[0].enter(|| None), Arrival(None));
    }

    /// With one core, or several on one CPU, the kernel is not even asked.
    #[test]
    fn nothing_to_steer() {
        for cpus in [&[4][..], &[2, 2], &[0, 1, 0]] {
            assert!(Board::new(cpus).is_none());
        }
        let mut arrivals = Arrivals::new(None, 0);
        let arrival = arrivals.enter(|| panic!("a system call for nothing"));
        arrivals.leave(arrival);
        assert!(!arrivals.poll(100 * MS) && arrivals.preferred().is_none());
        assert_eq!((arrivals.poll_timeout(), arrivals.seen()), (None, Seen::default()));
    }
}
