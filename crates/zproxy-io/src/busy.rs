//! When to watch for completions awake (`--busy-poll`), and when to leave the CPU to others.
//!
//! Watching saves the time that a sleeping thread takes to wake, and costs the whole core. It is
//! right on a core that nobody else wants. That somebody wants it shows in being preempted: whoever
//! is, while watching, stops watching for a while, and for longer each time, until a watch has found
//! work undisturbed.

use std::time::Duration;

/// The first rest after a preemption. Long against a scheduler's slice, short against a human's
/// patience.
const REST_MIN: Duration = Duration::from_millis(10);
/// The longest rest: so often a core that became free is noticed.
const REST_MAX: Duration = Duration::from_secs(1);

/// Decides whether to watch, and for how long; counts what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BusyPoll {
    budget: Duration,
    /// The rest after the next preemption.
    rest: Duration,
    rested_at: Duration,
    pub(crate) spins: u64,
    pub(crate) spins_found: u64,
}

/// What came of one watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spin {
    /// There was something before the time was up.
    pub(crate) has_found: bool,
    /// The kernel gave the CPU to somebody else meanwhile.
    pub(crate) was_preempted: bool,
}

impl BusyPoll {
    /// Watches for at most `budget` at a time; zero: never.
    pub(crate) fn new(budget: Duration) -> Self {
        Self { budget, rest: REST_MIN, rested_at: Duration::ZERO, spins: 0, spins_found: 0 }
    }

    /// Until when to watch before a wait that would last until `until` (`None`: for ever). None: not
    /// at all.
    pub(crate) fn begin(
        &self,
        now: impl FnOnce() -> Duration,
        until: Option<Duration>,
    ) -> Option<Duration> {
        if self.budget.is_zero() {
            return None;
        }
        let now = now();
        if now < self.rested_at {
            return None;
        }
        let end = until.map_or(now + self.budget, |until| until.min(now + self.budget));
        (end > now).then_some(end)
    }

    /// Takes note of a watch that is over.
    pub(crate) fn end(&mut self, now: Duration, spin: Spin) {
        self.spins += 1;
        self.spins_found += u64::from(spin.has_found);
        match spin {
            Spin { was_preempted: true, .. } => {
                self.rested_at = now + self.rest;
                self.rest = (self.rest * 2).min(REST_MAX);
            }
            Spin { has_found: true, .. } => self.rest = REST_MIN,
            // Nothing was wanted and nobody minded: that proves nothing about the core.
            Spin { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_micros(50);
    const FOUND: Spin = Spin { has_found: true, was_preempted: false };
    const IN_VAIN: Spin = Spin { has_found: false, was_preempted: false };
    const DISTURBED: Spin = Spin { has_found: true, was_preempted: true };

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Without a budget nothing is ever watched.
    #[test]
    fn off_by_default() {
        let busy = BusyPoll::new(Duration::ZERO);
        assert_eq!(busy.begin(|| millis(5), None), None);
        assert_eq!(busy.begin(|| millis(5), Some(millis(9))), None);
    }

    /// A watch ends with the budget or the deadline, whichever comes first, and a deadline that has
    /// come leaves nothing to watch for.
    #[test]
    fn bounded_by_budget_and_deadline() {
        let busy = BusyPoll::new(BUDGET);
        assert_eq!(busy.begin(|| millis(5), None), Some(millis(5) + BUDGET));
        assert_eq!(busy.begin(|| millis(5), Some(millis(9))), Some(millis(5) + BUDGET));
        let near = millis(5) + BUDGET / 2;
        assert_eq!(busy.begin(|| millis(5), Some(near)), Some(near));
        assert_eq!(busy.begin(|| millis(5), Some(millis(5))), None);
        assert_eq!(busy.begin(|| millis(5), Some(millis(4))), None);
    }

    /// Each preemption rests twice as long as the one before, up to a second.
    #[test]
    fn preemptions_rest_longer_and_longer() {
        let mut busy = BusyPoll::new(BUDGET);
        let mut now = millis(1);
        for rest in [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000] {
            assert!(busy.begin(|| now, None).is_some());
            busy.end(now, DISTURBED);
            assert_eq!(busy.begin(|| now + millis(rest) - BUDGET, None), None, "{rest}");
            now += millis(rest);
        }
        assert!(busy.begin(|| now, None).is_some());
    }

    /// Only a watch that found work undisturbed ends the suspicion.
    #[test]
    fn a_find_in_peace_forgives() {
        let mut busy = BusyPoll::new(BUDGET);
        busy.end(millis(0), DISTURBED);
        busy.end(millis(10), DISTURBED);
        busy.end(millis(30), IN_VAIN);
        busy.end(millis(31), DISTURBED);
        assert_eq!(busy.begin(|| millis(70), None), None);
        assert!(busy.begin(|| millis(71), None).is_some());
        busy.end(millis(71), FOUND);
        busy.end(millis(72), DISTURBED);
        assert!(busy.begin(|| millis(82), None).is_some());
    }

    /// Watches and finds are counted.
    #[test]
    fn counts() {
        let mut busy = BusyPoll::new(BUDGET);
        for spin in [FOUND, IN_VAIN, DISTURBED, IN_VAIN] {
            busy.end(millis(1), spin);
        }
        assert_eq!((busy.spins, busy.spins_found), (4, 2));
    }
}
