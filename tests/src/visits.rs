//! Visits of every kind, each of which checks every byte and its own end, at both ends.
//!
//! A visitor opens with a header that names the flow and what will happen, so the LocalServer needs to
//! know nothing in advance. Whoever finds that a visit cannot go on ends it with a RST: from then on a
//! FIN in place of bytes, at either end, is the product's.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::local::LocalServer;
use crate::net::{small_buffers, try_connect};
use crate::pattern::{Direction, Pattern, Rng};

/// A visit that stands still for so long has stalled. After a cut of a minute, TCP itself may wait for
/// almost another minute until it tries again.
const STALL_DEADLINE: Duration = Duration::from_secs(150);
/// How soon an end that waits sees that its other half has failed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Of slow readers and writers, between two pieces.
const PACE: Duration = Duration::from_millis(2);
const HEADER_SIZE: usize = 32;

/// What happens in a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both send at the same time, in random pieces.
    BothWays,
    /// `down` messages of `up` bytes, each answered by as many.
    Echo,
    /// The visitor sends and ends its direction; then the answer.
    AskFirst,
    /// The LocalServer sends and ends its direction; then the answer.
    AnswerFirst,
    /// Both ways; the visitor reads slowly, into small buffers.
    SlowReader,
    /// Both ways; the visitor writes slowly, in small pieces.
    SlowWriter,
    /// The visitor aborts after `up` bytes, which the LocalServer must see as a RST.
    Abort,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::BothWays,
        Self::Echo,
        Self::AskFirst,
        Self::AnswerFirst,
        Self::SlowReader,
        Self::SlowWriter,
        Self::Abort,
    ];
}

/// One visit.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// What happens.
    pub kind: Kind,
    /// Names the flow; the patterns depend on it.
    pub flow: u64,
    /// Bytes from the visitor, without the header.
    pub up: u64,
    /// Bytes to the visitor.
    pub down: u64,
}

/// Why a visit did not come to its end.
#[derive(Debug)]
pub enum Fault {
    /// A wrong, lost or surplus byte, or a FIN where none belongs.
    Corrupt(String),
    /// Nothing moved any more, and nobody said so.
    Stalled,
    /// The connection was refused or reset.
    Broken(std::io::Error),
    /// The other direction has failed.
    Abandoned,
}

impl Fault {
    /// True for what no loss of a program or of the network excuses.
    #[must_use]
    pub fn is_inexcusable(&self) -> bool {
        !matches!(self, Self::Broken(_) | Self::Abandoned)
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Broken(why) => why,
            Fault::Abandoned => ErrorKind::Interrupted.into(),
            other => Self::new(ErrorKind::InvalidData, format!("{other:?}")),
        }
    }
}

/// A short visit that shows that the way is open.
///
/// # Errors
/// What kept it from its end.
pub fn probe(public: SocketAddr) -> Result<(), Fault> {
    Visit { kind: Kind::Echo, flow: 77, up: 64, down: 2 }.make(public)
}

/// What a LocalServer has seen that nothing excuses.
#[must_use]
pub fn inexcusable(server: &LocalServer) -> Vec<String> {
    let faults = server.faults().into_iter();
    faults.filter(|fault| fault.starts_with("InvalidData")).collect()
}

impl Visit {
    /// A visit of random kind, with sizes up to `len_max` in the kinds that are not slow.
    #[must_use]
    pub fn random(rng: &mut Rng, len_max: u64) -> Self {
        let number = usize::try_from(rng.below(2 * Kind::ALL.len() as u64)).expect("small");
        // The slow kinds take long, so fewer of them are as much; the short ones make the churn.
        let kind = Kind::ALL.get(number).copied().unwrap_or(match number % 4 {
            0 => Kind::BothWays,
            1 => Kind::AskFirst,
            _ => Kind::Echo,
        });
        let flow = rng.next();
        let (up, down) = match kind {
            // Half of them are one request and one response.
            Kind::Echo => (1 + rng.below(16_384), 1 + rng.below(2) * rng.below(50)),
            Kind::SlowReader => (rng.below(10_000), rng.below(1 << 20)),
            Kind::SlowWriter => (rng.below(40_000), rng.below(10_000)),
            Kind::Abort => (1 + rng.below(200_000), 1),
            // Now and then nothing at all in one direction.
            _ => (rng.below(2) * rng.below(len_max), rng.below(4).min(1) * rng.below(len_max)),
        };
        Self { kind, flow, up, down }
    }

    /// Bytes that both ends together have checked when the visit has come to its end.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self.kind {
            Kind::Echo => 2 * self.up * self.down,
            _ => self.up + self.down,
        }
    }

    fn header(self) -> [u8; HEADER_SIZE] {
        let kind = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u64;
        let mut header = [0; HEADER_SIZE];
        for (place, number) in [kind, self.flow, self.up, self.down].into_iter().enumerate() {
            header[8 * place..][..8].copy_from_slice(&number.to_be_bytes());
        }
        header
    }

    fn parse(header: [u8; HEADER_SIZE]) -> Option<Self> {
        let number = |place: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[8 * place..][..8]);
            u64::from_be_bytes(bytes)
        };
        let kind = *Kind::ALL.get(usize::try_from(number(0)).ok()?)?;
        Some(Self { kind, flow: number(1), up: number(2), down: number(3) })
    }

    /// The LocalServer of visits.
    #[must_use]
    pub fn server() -> LocalServer {
        LocalServer::start(|conn| {
            let end = Endpoint::new(conn)?;
            let served = end.header().and_then(|visit| visit.serve(&end));
            end.conclude(served).map_err(Into::into)
        })
    }

    fn serve(self, end: &Endpoint<'_>) -> Result<(), Fault> {
        let (up, down) = self.streams();
        match self.kind {
            Kind::BothWays | Kind::SlowReader | Kind::SlowWriter => end.both_ways(down, up),
            Kind::Echo => {
                for message in 0..self.down {
                    end.take(up, message * self.up, (message + 1) * self.up)?;
                    end.put(down, message * self.up, (message + 1) * self.up)?;
                }
                end.take_fin()?;
                end.put_fin()
            }
            Kind::AskFirst => {
                end.take(up, 0, up.len)?;
                end.take_fin()?;
                end.put(down, 0, down.len)?;
                end.put_fin()
            }
            Kind::AnswerFirst => {
                end.put(down, 0, down.len)?;
                end.put_fin()?;
                end.take(up, 0, up.len)?;
                end.take_fin()
            }
            Kind::Abort => {
                end.put(down, 0, 1)?;
                match end.take(up, 0, u64::MAX) {
                    Err(Fault::Broken(_)) => Ok(()),
                    other => other,
                }
            }
        }
    }

    /// Makes the visit.
    ///
    /// # Errors
    /// What kept it from its end.
    pub fn make(self, public: SocketAddr) -> Result<(), Fault> {
        let conn = try_connect(public).map_err(Fault::Broken)?;
        self.make_over(&conn)
    }

    /// Makes the visit over a connection that is open already.
    ///
    /// # Errors
    /// What kept it from its end.
    pub fn make_over(self, conn: &TcpStream) -> Result<(), Fault> {
        let mut end = Endpoint::new(conn).map_err(Fault::Broken)?;
        let made = self.visit(&mut end);
        end.conclude(made)
    }

    fn visit(self, end: &mut Endpoint<'_>) -> Result<(), Fault> {
        let (up, down) = self.streams();
        end.put_all(&self.header())?;
        match self.kind {
            Kind::BothWays => end.both_ways(up, down),
            Kind::SlowReader => {
                small_buffers(end.conn);
                end.take_pace = Some(PACE);
                end.both_ways(up, down)
            }
            Kind::SlowWriter => {
                end.put_pace = Some(PACE);
                end.both_ways(up, down)
            }
            Kind::Echo => {
                for message in 0..self.down {
                    end.put(up, message * self.up, (message + 1) * self.up)?;
                    end.take(down, message * self.up, (message + 1) * self.up)?;
                }
                end.put_fin()?;
                end.take_fin()
            }
            Kind::AskFirst => {
                end.put(up, 0, up.len)?;
                end.put_fin()?;
                end.take(down, 0, down.len)?;
                end.take_fin()
            }
            Kind::AnswerFirst => {
                end.take(down, 0, down.len)?;
                end.take_fin()?;
                end.put(up, 0, up.len)?;
                end.put_fin()
            }
            Kind::Abort => {
                end.take(down, 0, 1)?;
                end.put(up, 0, up.len)?;
                end.abort();
                Ok(())
            }
        }
    }

    fn streams(self) -> (Stream, Stream) {
        let stream = |direction, len| {
            let pattern = Pattern::new(self.flow, direction);
            Stream { pattern, len, seed: self.flow ^ direction as u64 }
        };
        (stream(Direction::Up, self.up), stream(Direction::Down, self.down))
    }
}

/// A visit of the kind [`Kind::Echo`] that lasts as long as its visitor likes, and ends with a RST.
pub struct Talk<'a> {
    end: Endpoint<'a>,
    visit: Visit,
    said: u64,
}

impl<'a> Talk<'a> {
    /// Begins over a connection, with a first message and its answer.
    ///
    /// # Errors
    /// What came in place of the answer.
    pub fn begin(conn: &'a TcpStream, flow: u64) -> Result<Self, Fault> {
        let visit = Visit { kind: Kind::Echo, flow, up: 100, down: u64::MAX };
        let end = Endpoint::new(conn).map_err(Fault::Broken)?;
        end.put_all(&visit.header())?;
        let mut talk = Self { end, visit, said: 0 };
        talk.say()?;
        Ok(talk)
    }

    /// Another message and its answer.
    ///
    /// # Errors
    /// What came in place of the answer.
    pub fn say(&mut self) -> Result<(), Fault> {
        let (up, down) = self.visit.streams();
        let (from, to) = (self.said * self.visit.up, (self.said + 1) * self.visit.up);
        self.said += 1;
        self.end.put(up, from, to)?;
        self.end.take(down, from, to)
    }
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        self.end.abort();
    }
}

/// One direction of a visit.
#[derive(Clone, Copy, Debug)]
struct Stream {
    pattern: Pattern,
    len: u64,
    seed: u64,
}

/// One end of a visit.
struct Endpoint<'a> {
    conn: &'a TcpStream,
    has_failed: AtomicBool,
    take_pace: Option<Duration>,
    put_pace: Option<Duration>,
}

impl<'a> Endpoint<'a> {
    fn new(conn: &'a TcpStream) -> std::io::Result<Self> {
        conn.set_read_timeout(Some(LOOK_INTERVAL))?;
        conn.set_write_timeout(Some(LOOK_INTERVAL))?;
        Ok(Self { conn, has_failed: AtomicBool::new(false), take_pace: None, put_pace: None })
    }

    fn header(&self) -> Result<Visit, Fault> {
        let mut header = [0; HEADER_SIZE];
        let mut count = 0;
        while count < HEADER_SIZE {
            match self.take_some(&mut header[count..])? {
                0 => return Err(Fault::Corrupt(format!("a FIN at byte {count} of the header"))),
                n => count += n,
            }
        }
        Visit::parse(header).ok_or_else(|| Fault::Corrupt(format!("the header is {header:?}")))
    }

    /// After a failure a RST, so that the other end does not take it for an end.
    fn conclude(&self, result: Result<(), Fault>) -> Result<(), Fault> {
        if result.is_err() {
            self.abort();
        }
        result
    }

    fn abort(&self) {
        // It fails only when the connection is gone already. The RST goes when the conn is dropped.
        let _ = SockRef::from(self.conn).set_linger(Some(Duration::ZERO));
    }

    fn both_ways(&self, sends: Stream, takes: Stream) -> Result<(), Fault> {
        let note = |result: Result<(), Fault>| {
            if result.is_err() {
                self.has_failed.store(true, Ordering::Release);
            }
            result
        };
        let send = || note(self.put(sends, 0, sends.len).and_then(|()| self.put_fin()));
        let take = || note(self.take(takes, 0, takes.len).and_then(|()| self.take_fin()));
        let (sent, taken) = thread::scope(|scope| {
            let sender = scope.spawn(send);
            let taken = take();
            (sender.join().expect("sending does not panic"), taken)
        });
        match (taken, sent) {
            (Err(Fault::Abandoned), other) | (other, Err(Fault::Abandoned)) => other,
            // The kernel tells of a reset once. When the sender was told, the receiver sees an end.
            (Err(Fault::Corrupt(_)), Err(Fault::Broken(why)))
                if why.kind() != ErrorKind::BrokenPipe =>
            {
                Err(Fault::Broken(why))
            }
            (taken, sent) => taken.and(sent),
        }
    }

    fn put(&self, stream: Stream, from: u64, to: u64) -> Result<(), Fault> {
        let mut rng = Rng::new(stream.seed ^ from);
        let mut position = from;
        while position < to {
            let left = usize::try_from(to - position).unwrap_or(usize::MAX);
            let chunk_max = if self.put_pace.is_some() { 64 } else { usize::MAX };
            let chunk = stream.pattern.at(position, rng.chunk().min(left).min(chunk_max));
            self.put_all(chunk)?;
            position += chunk.len() as u64;
            if let Some(pace) = self.put_pace {
                thread::sleep(pace);
            }
        }
        Ok(())
    }

    fn put_all(&self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let n = self.patiently(|| (&mut &*self.conn).write(bytes))?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn put_fin(&self) -> Result<(), Fault> {
        self.conn.shutdown(Shutdown::Write).map_err(Fault::Broken)
    }

    fn take(&self, stream: Stream, from: u64, to: u64) -> Result<(), Fault> {
        let mut buf = vec![0; if self.take_pace.is_some() { 8_192 } else { 262_144 }];
        let mut position = from;
        while position < to {
            let room = usize::try_from(to - position).unwrap_or(usize::MAX).min(buf.len());
            let n = self.take_some(&mut buf[..room])?;
            if n == 0 {
                return Err(Fault::Corrupt(format!("a FIN at byte {position} of {to}")));
            }
            stream
                .pattern
                .check(position, &buf[..n])
                .map_err(|wrong| Fault::Corrupt(format!("byte {wrong} of {to} is wrong")))?;
            position += n as u64;
            if let Some(pace) = self.take_pace {
                thread::sleep(pace);
            }
        }
        Ok(())
    }

    fn take_fin(&self) -> Result<(), Fault> {
        match self.take_some(&mut [0; 16])? {
            0 => Ok(()),
            n => Err(Fault::Corrupt(format!("{n} surplus bytes"))),
        }
    }

    fn take_some(&self, buf: &mut [u8]) -> Result<usize, Fault> {
        self.patiently(|| (&mut &*self.conn).read(buf))
    }

    /// Tries until something moves, the other direction has failed, or too much time has passed.
    fn patiently(&self, mut act: impl FnMut() -> std::io::Result<usize>) -> Result<usize, Fault> {
        let until = Instant::now() + STALL_DEADLINE;
        loop {
            match act() {
                Ok(n) => return Ok(n),
                Err(why) if is_patience(&why) => {}
                Err(why) => return Err(Fault::Broken(why)),
            }
            if self.has_failed.load(Ordering::Acquire) {
                return Err(Fault::Abandoned);
            }
            if Instant::now() >= until {
                return Err(Fault::Stalled);
            }
        }
    }
}

fn is_patience(why: &std::io::Error) -> bool {
    matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::{Fault, Kind, Visit, inexcusable};
    use crate::clock::eventually;
    use crate::local::LocalServer;
    use crate::net::reset;
    use crate::pattern::Rng;
    use std::io::{Read, Write};
    use std::time::Duration;

    /// Every kind of visit comes to its end on a direct connection, with nothing to complain of.
    #[test]
    fn visits_are_true_of_a_direct_connection() {
        let server = Visit::server();
        let mut rng = Rng::new(1);
        for kind in Kind::ALL {
            for _ in 0..3 {
                let visit = Visit { kind, ..Visit::random(&mut rng, 300_000) };
                let (up, down) = (visit.up.min(50_000), visit.down.clamp(1, 50));
                let visit = Visit { up, down, ..visit };
                assert!(visit.make(server.addr).is_ok(), "{visit:?}");
            }
        }
        eventually("the local sides end", Duration::from_secs(10), || server.open() == 0);
        assert!(inexcusable(&server).is_empty(), "{:?}", server.faults());
    }

    /// A wrong byte, a FIN too soon and a surplus byte are corruption; a RST is not.
    #[test]
    fn liars_are_seen() {
        fn right(visit: &Visit) -> Vec<u8> {
            visit.streams().1.pattern.at(0, 1_000).to_vec()
        }
        let said = |reply: fn(&Visit) -> Option<Vec<u8>>| {
            let server = LocalServer::start(move |mut conn| {
                let mut header = [0; super::HEADER_SIZE];
                conn.read_exact(&mut header)?;
                let visit = Visit::parse(header).expect("a header");
                match reply(&visit) {
                    Some(bytes) => conn.write_all(&bytes),
                    None => {
                        reset(conn.try_clone()?);
                        Ok(())
                    }
                }
            });
            let visit = Visit { kind: Kind::AskFirst, flow: 5, up: 0, down: 1_000 };
            visit.make(server.addr).expect_err("a fault")
        };
        let wrong = said(|visit| {
            let mut bytes = right(visit);
            bytes[999] ^= 1;
            Some(bytes)
        });
        assert!(matches!(wrong, Fault::Corrupt(why) if why.contains("byte 999")));
        let short = said(|visit| Some(right(visit)[..999].to_vec()));
        assert!(matches!(short, Fault::Corrupt(why) if why.contains("a FIN at byte 999")));
        let long = said(|visit| Some([right(visit), vec![1]].concat()));
        assert!(matches!(long, Fault::Corrupt(why) if why.contains("surplus")));
        assert!(matches!(said(|_| None), Fault::Broken(_)));
    }
}
