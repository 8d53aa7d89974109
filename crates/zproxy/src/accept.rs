//! Accepting while descriptors last: pause when they run out, resume later, and say so once each.

use std::fmt::Display;
use std::time::Duration;

use tracing::{info, warn};
use zproxy_io::Fault;

/// Time between two attempts to accept while out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// How one listener stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Accepting {
    /// An accept is under way and nothing is wrong.
    #[default]
    Well,
    /// Out of something: none is under way until then.
    Paused(Duration),
    /// An accept is under way after a pause, and nothing was accepted yet.
    Trying,
}

/// What to do about an accept that has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Accept again now.
    Again,
    /// Wait for [`Accepting::is_due`].
    Wait,
}

impl Accepting {
    /// When to accept again.
    pub(crate) fn resume_at(&self) -> Option<Duration> {
        match self {
            Self::Paused(until) => Some(*until),
            Self::Well | Self::Trying => None,
        }
    }

    /// Whether to accept again now.
    pub(crate) fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self.resume_at().is_some_and(|until| until <= now);
        if is_due {
            *self = Self::Trying;
        }
        is_due
    }

    /// A connection was accepted.
    pub(crate) fn on_accepted(&mut self, listen: &dyn Display) {
        if *self == Self::Trying {
            info!("listen={listen} accepting again");
        }
        *self = Self::Well;
    }

    /// Accepting has stopped.
    pub(crate) fn on_failed(&mut self, fault: Fault, now: Duration, listen: &dyn Display) -> Then {
        let is_news = *self == Self::Well;
        if is_news && fault.is_shortage() {
            warn!("listen={listen} accepting pauses: {fault}");
        } else if is_news && fault != Fault::Reset {
            warn!("listen={listen} accepting failed: {fault}");
        }
        // A connection that had failed before it was accepted says nothing about the next one.
        if fault == Fault::Reset {
            return Then::Again;
        }
        *self = Self::Paused(now + PAUSE);
        Then::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Out of descriptors, accepting pauses, tries again after the pause, and is well when one
    /// connection has come through.
    #[test]
    fn accepting_pauses_and_resumes() {
        let mut accepting = Accepting::default();
        let now = Duration::from_secs(1);
        assert_eq!(accepting.on_failed(Fault::NoDescriptors, now, &"x"), Then::Wait);
        assert_eq!(accepting.resume_at(), Some(now + PAUSE));
        assert!(!accepting.is_due(now));
        assert!(accepting.is_due(now + PAUSE));
        assert_eq!(accepting, Accepting::Trying);
        assert_eq!(accepting.on_failed(Fault::NoDescriptors, now + PAUSE, &"x"), Then::Wait);
        assert!(accepting.is_due(now + 2 * PAUSE));
        accepting.on_accepted(&"x");
        assert_eq!(accepting, Accepting::Well);
    }

    /// A connection that failed in the queue does not stop the others.
    #[test]
    fn a_dead_connection_is_no_reason_to_pause() {
        let mut accepting = Accepting::default();
        assert_eq!(accepting.on_failed(Fault::Reset, Duration::ZERO, &"x"), Then::Again);
    }
}
