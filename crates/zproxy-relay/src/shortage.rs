//! Out of descriptors, or of pipes: when to try again, and when to tell.
//!
//! Near the limit every connection that closes makes room for one. So the end of a shortage is told
//! only when there was none for a while: one line when it begins, one when it is over.

use std::time::Duration;

use zproxy_io::Stats;

/// Accepting is tried again after so long.
const PAUSE: Duration = Duration::from_millis(100);
/// A shortage is over when nothing was short for so long.
const CALM: Duration = Duration::from_secs(1);

/// The shortages that one acceptor meets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shortage {
    last: Option<Duration>,
    pressed: Option<Duration>,
}

impl Shortage {
    /// Something was short. Tells when to try again, and whether that is news.
    pub fn note(&mut self, now: Duration) -> (Duration, bool) {
        (now + PAUSE, self.last.replace(now).is_none())
    }

    /// Whether what can be given back should be, however many want something: true at the first call,
    /// and then once in the time after which it is tried again.
    pub fn is_pressing(&mut self, now: Duration) -> bool {
        let is_pressing = self.pressed.is_none_or(|pressed| pressed + PAUSE <= now);
        if is_pressing {
            self.pressed = Some(now);
        }
        is_pressing
    }

    /// When [`Self::is_over`] may have something to say.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.last.map(|last| last + CALM)
    }

    /// Whether a shortage is over; says so once.
    pub fn is_over(&mut self, now: Duration) -> bool {
        let is_over = self.poll_timeout().is_some_and(|calm| calm <= now);
        if is_over {
            self.last = None;
        }
        is_over
    }
}

/// What a person is told when [`SmallPipes::is_news`].
pub const SMALL_PIPES: &str = "the kernel gives this user no more pipes of a useful size, so bytes \
    are copied; raise fs.pipe-user-pages-soft";

/// Whether the kernel's limit of pipe memory is felt. It passes and comes again with the load of
/// everybody who runs as the same user, so it is told once.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmallPipes {
    is_told: bool,
}

impl SmallPipes {
    /// Whether [`SMALL_PIPES`] is to be told now.
    pub fn is_news(&mut self, stats: &Stats) -> bool {
        stats.pipes_small > 0 && !std::mem::replace(&mut self.is_told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit of pipe memory is told when it is met, and never again.
    #[test]
    fn small_pipes_are_told_once() {
        let mut pipes = SmallPipes::default();
        assert!(!pipes.is_news(&Stats::default()));
        let met = |pipes_small| Stats { pipes_small, ..Stats::default() };
        assert!(pipes.is_news(&met(1)));
        assert!(!pipes.is_news(&met(1)) && !pipes.is_news(&met(9)));
    }

    /// Many that are short within a pause press once, and again for as long as it lasts.
    #[test]
    fn a_shortage_presses_again() {
        let s = Duration::from_secs_f64;
        let mut shortage = Shortage::default();
        assert!(shortage.is_pressing(s(1.0)) && !shortage.is_pressing(s(1.05)));
        assert!(shortage.is_pressing(s(1.1)) && !shortage.is_pressing(s(1.1)));
        assert!(shortage.is_pressing(s(9.0)));
    }

    /// However often something is short within a second, it is news once, and over once.
    #[test]
    fn one_line_each() {
        let s = Duration::from_secs_f64;
        let mut shortage = Shortage::default();
        assert_eq!(shortage.note(s(1.0)), (s(1.1), true));
        assert_eq!(shortage.note(s(1.5)), (s(1.6), false));
        assert!(!shortage.is_over(s(2.4)));
        assert!(shortage.is_over(s(2.5)));
        assert!(!shortage.is_over(s(9.0)));
        assert_eq!(shortage.poll_timeout(), None);
        assert!(shortage.note(s(10.0)).1);
    }
}
