//! Deadlines that all are equally far away when they are set.

use std::collections::VecDeque;
use std::time::Duration;

use zproxy_relay::Key;

/// Who has to be done by when; in order of time, because all have the same limit.
#[derive(Debug)]
pub(crate) struct Deadlines {
    limit: Duration,
    queue: VecDeque<(Duration, Key)>,
}

impl Deadlines {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, queue: VecDeque::new() }
    }

    /// Sets the deadline of an entry that begins to wait.
    pub(crate) fn set(&mut self, key: Key, now: Duration) {
        self.queue.push_back((now + self.limit, key));
    }

    /// The next deadline of an entry that still waits. Nobody is woken for the others.
    pub(crate) fn next(&mut self, waits: impl Fn(Key) -> bool) -> Option<Duration> {
        while let Some(&(deadline, key)) = self.queue.front() {
            if waits(key) {
                return Some(deadline);
            }
            self.queue.pop_front();
        }
        None
    }

    /// An entry whose deadline has passed; it may have stopped waiting long ago.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Key> {
        match self.queue.front() {
            Some(&(deadline, key)) if deadline <= now => {
                self.queue.pop_front();
                Some(key)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zproxy_relay::Slots;

    /// The next deadline is that of the first entry that still waits.
    #[test]
    fn those_who_are_done_wake_nobody() {
        let mut slots = Slots::default();
        let (a, b) = (slots.insert(()), slots.insert(()));
        let second = Duration::from_secs(1);
        let mut deadlines = Deadlines::new(5 * second);
        deadlines.set(a, second);
        deadlines.set(b, 2 * second);
        assert_eq!(deadlines.next(|_| true), Some(6 * second));
        assert_eq!(deadlines.next(|key| key != a), Some(7 * second));
        assert_eq!(deadlines.pop_due(6 * second), None);
        assert_eq!(deadlines.pop_due(7 * second), Some(b));
        assert_eq!(deadlines.next(|_| true), None);
    }
}
