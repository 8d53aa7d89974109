//! When to let others have the CPU before sleeping (`sched_yield(2)`).
//!
//! On a CPU that is shared, whoever runs next often has something for this thread: a visitor that asks, a
//! service that answers, the other program. A thread that sleeps has to be woken by the first of them, and is
//! then served one thing at a time. One that has only stepped aside finds everything at once when its turn
//! comes, and nobody had to wake it.
//!
//! It pays only where others are, and where they are brief. Whoever steps aside in vain tries again later
//! and later; and whoever waited long for the CPU, because somebody computes there, leaves it at that for a
//! while, and for longer each time: a sleeper is preferred when it wakes, one that steps aside is not.

use std::time::Duration;

/// Longer than that others are not brief.
const BRIEF_MAX: Duration = Duration::from_millis(1);
/// The first rest after others were not brief.
const REST_MIN: Duration = Duration::from_millis(20);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(2);
/// So many waits are at most let pass after one that stepped aside in vain.
const SKIPS_MAX: u32 = 63;

/// Decides whether to step aside before a sleep; counts what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Courtesy {
    /// Waits to let pass.
    skips: u32,
    /// As many after the next one in vain.
    next_skips: u32,
    /// The rest after the next long one.
    rest: Duration,
    rested_at: Duration,
    pub(crate) yields: u64,
    pub(crate) yields_found: u64,
}

impl Default for Courtesy {
    fn default() -> Self {
        let (rest, rested_at) = (REST_MIN, Duration::ZERO);
        Self { skips: 0, next_skips: 1, rest, rested_at, yields: 0, yields_found: 0 }
    }
}

impl Courtesy {
    /// Whether to step aside before the wait that begins now.
    pub(crate) fn begin(&mut self, now: Duration) -> bool {
        if self.skips > 0 {
            self.skips -= 1;
            return false;
        }
        now >= self.rested_at
    }

    /// Takes note of what stepping aside until `now` has led to.
    pub(crate) fn end(&mut self, begun: Duration, now: Duration, has_found: bool) {
        self.yields += 1;
        self.yields_found += u64::from(has_found);
        if now.saturating_sub(begun) > BRIEF_MAX {
            self.rested_at = now + self.rest;
            self.rest = (self.rest * 2).min(REST_MAX);
        } else if has_found {
            self.rest = REST_MIN;
            self.next_skips = 1;
        } else {
            self.skips = self.next_skips;
            self.next_skips = (2 * self.next_skips + 1).min(SKIPS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_micros(50);
    const LONG: Duration = Duration::from_millis(3);

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// How many of the next waits pass until the next one that steps aside.
    fn skips(courtesy: &mut Courtesy, now: Duration) -> usize {
        (0..100).position(|_| courtesy.begin(now)).expect("it does not give up")
    }

    /// While it finds something, it steps aside before every wait.
    #[test]
    fn goes_on_while_it_pays() {
        let mut courtesy = Courtesy::default();
        for _ in 0..1_000 {
            assert!(courtesy.begin(millis(1)));
            courtesy.end(millis(1), millis(1) + BRIEF, true);
        }
        assert_eq!((courtesy.yields, courtesy.yields_found), (1_000, 1_000));
    }

    /// In vain it becomes rare, and after a find it is as eager as before.
    #[test]
    fn becomes_rare_in_vain() {
        let mut courtesy = Courtesy::default();
        for expected in [0, 1, 3, 7, 15, 31, 63, 63] {
            assert_eq!(skips(&mut courtesy, millis(1)), expected);
            courtesy.end(millis(1), millis(1) + BRIEF, false);
        }
        assert_eq!(skips(&mut courtesy, millis(1)), 63);
        courtesy.end(millis(1), millis(1) + BRIEF, true);
        assert_eq!(skips(&mut courtesy, millis(1)), 0);
        courtesy.end(millis(1), millis(1) + BRIEF, false);
        assert_eq!(skips(&mut courtesy, millis(1)), 1);
    }

    /// Beside somebody who computes it rests for longer and longer, whatever it finds when it is back,
    /// until others are brief again.
    #[test]
    fn rests_beside_those_who_compute() {
        let mut courtesy = Courtesy::default();
        let mut now = millis(1);
        for rest in [20, 40, 80, 160, 320, 640, 1_280, 2_000, 2_000] {
            assert!(courtesy.begin(now));
            courtesy.end(now, now + LONG, true);
            now += LONG + millis(rest);
            assert!(!courtesy.begin(now - BRIEF), "{rest}");
        }
        assert!(courtesy.begin(now));
        courtesy.end(now, now + BRIEF, true);
        assert!(courtesy.begin(now));
        courtesy.end(now, now + LONG, true);
        assert!(courtesy.begin(now + LONG + millis(20)));
    }
}
