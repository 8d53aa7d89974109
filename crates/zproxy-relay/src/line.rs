//! A conn on which two data cores talk: bytes are heard as they come, what is to be said is gathered.
//!
//! A packet costs the sender a system call and wakes the receiver. What is said in one turn goes
//! together, and what nobody waits for stays until something urgent goes, or its patience ends.

use std::time::Duration;

use zproxy_io::{Driver, Op, Sock};

use crate::Name;

/// What is not urgent waits so long at most.
const PATIENCE: Duration = Duration::from_millis(1);
/// The most that is heard at once.
const HEAR_MAX: usize = 4 << 10;

/// One end of such a conn: a receive is always in flight, a send at most.
#[derive(Debug)]
pub struct Line {
    sock: Sock,
    due: Due,
    is_sending: bool,
    spare: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Never,
    At(Duration),
    Now,
}

impl Line {
    /// A line over a connected socket.
    #[must_use]
    pub fn new(sock: Sock) -> Self {
        Self { sock, due: Due::Never, is_sending: false, spare: Vec::new() }
    }

    /// The socket.
    #[must_use]
    pub fn sock(&self) -> Sock {
        self.sock
    }

    /// Hears what comes next, into `buf`, whose bytes are forgotten.
    pub fn hear<D: Driver>(&self, driver: &mut D, name: Name, mut buf: Vec<u8>) {
        buf.clear();
        driver.submit(name.token(), Op::Recv { sock: self.sock, buf, max: HEAR_MAX });
    }

    /// There is something to say that is wanted at the end of this turn.
    pub fn urge(&mut self) {
        self.due = Due::Now;
    }

    /// There is something to say that can wait for company.
    pub fn defer(&mut self, now: Duration) {
        if self.due == Due::Never {
            self.due = Due::At(now + PATIENCE);
        }
    }

    /// When [`Self::is_due`] becomes true without a turn that asks for it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.due {
            Due::At(at) if !self.is_sending => Some(at),
            Due::At(_) | Due::Never | Due::Now => None,
        }
    }

    /// Whether to send now. Never while the last send is in flight.
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        match self.due {
            _ if self.is_sending => false,
            Due::Now => true,
            Due::At(at) => at <= now,
            Due::Never => false,
        }
    }

    /// Whether a send is in flight.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.is_sending
    }

    /// A spent buffer, to be filled and given to [`Self::say`].
    pub fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Sends everything there is to say.
    ///
    /// # Panics
    /// When a send is in flight.
    pub fn say<D: Driver>(&mut self, driver: &mut D, name: Name, buf: Vec<u8>) {
        assert!(!self.is_sending, "one send at a time");
        self.due = Due::Never;
        self.is_sending = true;
        driver.submit(name.token(), Op::Send { sock: self.sock, buf });
    }

    /// A send has come home with its buffer.
    pub fn on_said(&mut self, buf: Vec<u8>) {
        self.is_sending = false;
        self.spare = buf;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zproxy_io::{DriverConfig, Epoll};

    fn line() -> Line {
        let mut driver = Epoll::new(&DriverConfig::default()).expect("an epoll driver");
        let to = "127.0.0.1:1".parse().expect("an address");
        Line::new(driver.socket(&to).expect("a socket"))
    }

    /// What can wait waits for something urgent or for its time, and the first of several counts.
    #[test]
    fn patience() {
        let ms = Duration::from_millis;
        let mut line = line();
        assert!(!line.is_due(ms(10)));
        line.defer(ms(10));
        line.defer(ms(11));
        assert_eq!(line.poll_timeout(), Some(ms(11)));
        assert!(!line.is_due(ms(10)) && line.is_due(ms(11)));
        line.urge();
        line.defer(ms(10));
        assert_eq!(line.poll_timeout(), None);
        assert!(line.is_due(ms(10)));
    }

    /// Nothing is due while a send is in flight.
    #[test]
    fn one_send_at_a_time() {
        let mut line = line();
        line.is_sending = true;
        line.urge();
        assert!(!line.is_due(Duration::ZERO));
        line.on_said(vec![1]);
        assert!(line.is_due(Duration::ZERO));
        assert_eq!(line.take_spare(), [1]);
    }
}
