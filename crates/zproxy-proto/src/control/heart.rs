//! When to ping, and when the peer counts as dead.

use std::time::Duration;

use super::Heartbeat;

#[derive(Debug)]
pub(super) struct Heart {
    beat: Heartbeat,
    ping_at: Duration,
    heard_at: Duration,
    pings: u64,
}

/// What time asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    Rest,
    Ping(u64),
    Dead,
}

impl Heart {
    pub(super) fn new(beat: Heartbeat, now: Duration) -> Self {
        Self { beat, ping_at: now + beat.interval, heard_at: now, pings: 0 }
    }

    pub(super) fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    pub(super) fn due(&self) -> Duration {
        self.ping_at.min(self.heard_at + self.beat.deadline)
    }

    pub(super) fn pulse(&mut self, now: Duration) -> Pulse {
        if now >= self.heard_at + self.beat.deadline {
            Pulse::Dead
        } else if now >= self.ping_at {
            self.ping_at = now + self.beat.interval;
            self.pings += 1;
            Pulse::Ping(self.pings)
        } else {
            Pulse::Rest
        }
    }
}
