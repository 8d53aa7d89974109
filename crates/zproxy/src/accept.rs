//! Accepting while descriptors last: pause when they run out, resume later, and say so once each.

use std::fmt::Display;
use std::time::Duration;

use tracing::{info, warn};
use zproxy_io::Fault;
use zproxy_relay::Shortage;

/// How one listener stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accepting {
    /// None is under way until then.
    paused_until: Option<Duration>,
    shortage: Shortage,
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
    /// When to ask [`Self::is_due`].
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.paused_until.into_iter().chain(self.shortage.poll_timeout()).min()
    }

    /// Whether to accept again now. Tells when a shortage is over.
    pub(crate) fn is_due(&mut self, now: Duration, listen: &dyn Display) -> bool {
        if self.shortage.is_over(now) {
            info!("listen={listen} accepting again");
        }
        self.paused_until.take_if(|until| *until <= now).is_some()
    }

    /// Accepting has stopped.
    pub(crate) fn on_failed(&mut self, fault: Fault, now: Duration, listen: &dyn Display) -> Then {
        // A connection that had failed before it was accepted says nothing about the next one.
        if fault == Fault::Reset {
            return Then::Again;
        }
        let (until, is_news) = self.shortage.note(now);
        self.paused_until = Some(until);
        if is_news {
            warn!("listen={listen} accepting paused: {fault}");
        }
        Then::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Out of descriptors, accepting pauses and is tried again after the pause.
    #[test]
    fn accepting_pauses_and_resumes() {
        let mut accepting = Accepting::default();
        let now = Duration::from_secs(1);
        assert_eq!(accepting.on_failed(Fault::NoDescriptors, now, &"x"), Then::Wait);
        let again = accepting.poll_timeout().expect("it is tried again");
        assert!(again > now && !accepting.is_due(now, &"x"));
        assert!(accepting.is_due(again, &"x"));
        assert!(!accepting.is_due(again, &"x"), "once");
    }

    /// A connection that failed in the queue does not stop the others.
    #[test]
    fn a_dead_connection_is_no_reason_to_pause() {
        let mut accepting = Accepting::default();
        let now = Duration::from_secs(1);
        assert_eq!(accepting.on_failed(Fault::Reset, now, &"x"), Then::Again);
        assert_eq!(accepting.poll_timeout(), None);
    }
}
