//! When to dial again: exponentially later, with jitter, so that the clients of a restarted gateway
//! do not all come back at the same moment.

use std::time::Duration;

use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX};

/// The waits of one client. Starts over after a success.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// After a failure: how long to wait before the next try. `random` is any random number; the
    /// wait is between half and all of 250 ms, 500 ms, 1 s, … 30 s.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let factor = 1u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX);
        let full = BACKOFF_FIRST.saturating_mul(factor).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let half_ms = full.as_millis() as u64 / 2;
        Duration::from_millis(half_ms + random % (half_ms + 1))
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first retry comes within a second, later ones never wait more than the maximum, and a
    /// success starts over.
    #[test]
    fn waits_grow_and_start_over() {
        for random in [0, 1, 12345, u64::MAX] {
            let mut backoff = Backoff::new();
            let first = backoff.next_wait(random);
            assert!(first <= Duration::from_secs(1) && first >= BACKOFF_FIRST / 2);
            let mut last = first;
            for _ in 0..100 {
                last = backoff.next_wait(random);
                assert!(last <= BACKOFF_MAX);
            }
            assert!(last >= BACKOFF_MAX / 2);
            backoff.reset();
            assert!(backoff.next_wait(random) <= BACKOFF_FIRST);
        }
    }
}
