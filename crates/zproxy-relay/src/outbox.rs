//! What a data core has to tell its control thread, gathered so that it is woken seldom.
//!
//! Waking a thread costs more than anything it is told here. Letters of one turn go together, and a
//! letter that nobody waits for stays until something urgent goes, or its patience ends.

use std::time::Duration;

use crate::Sender;

/// A letter that is not urgent waits so long at most.
const PATIENCE: Duration = Duration::from_millis(1);

/// Letters that have not been sent yet.
#[derive(Debug)]
pub struct Outbox<T> {
    letters: Vec<T>,
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Never,
    At(Duration),
    Now,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self { letters: Vec::new(), due: Due::Never }
    }
}

impl<T> Outbox<T> {
    /// A letter that goes at the end of this turn.
    pub fn push(&mut self, letter: T) {
        self.letters.push(letter);
        self.due = Due::Now;
    }

    /// A letter that can wait for others.
    pub fn push_patient(&mut self, letter: T, now: Duration) {
        self.letters.push(letter);
        if self.due == Due::Never {
            self.due = Due::At(now + PATIENCE);
        }
    }

    /// When [`Self::flush`] has something to do that no turn has asked for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.due {
            Due::At(at) => Some(at),
            Due::Never | Due::Now => None,
        }
    }

    /// Ends a turn: sends everything, in order, if anything is due.
    pub fn flush(&mut self, now: Duration, sender: &Sender<T>) {
        let is_due = match self.due {
            Due::Now => true,
            Due::At(at) => at <= now,
            Due::Never => false,
        };
        if is_due {
            self.due = Due::Never;
            sender.send_all(&mut self.letters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mailbox;
    use zproxy_io::{Driver, DriverConfig, Epoll};

    /// Patient letters wait for an urgent one or for their time, and everything goes in order.
    #[test]
    fn patient_letters_wait() {
        let driver = Epoll::new(&DriverConfig::default()).expect("an epoll driver");
        let mailbox = Mailbox::new(driver.doorbell());
        let (sender, mut out, mut got) = (mailbox.sender(), Outbox::default(), Vec::new());
        let ms = Duration::from_millis;
        out.push_patient(1, ms(10));
        out.push_patient(2, ms(11));
        assert_eq!(out.poll_timeout(), Some(ms(11)));
        out.flush(ms(10), &sender);
        mailbox.take(&mut got);
        assert!(got.is_empty());
        out.flush(ms(11), &sender);
        mailbox.take(&mut got);
        assert_eq!(got, [1, 2]);
        out.push_patient(3, ms(20));
        out.push(4);
        assert_eq!(out.poll_timeout(), None);
        out.flush(ms(20), &sender);
        mailbox.take(&mut got);
        assert_eq!(got, [1, 2, 3, 4]);
    }
}
