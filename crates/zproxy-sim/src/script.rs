//! What a visitor and its service do with a flow.

use std::time::Duration;

use zproxy_io::sim::Random;

use crate::bytes::HEAD_SIZE;

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Visitor,
    Service,
}

/// How one end writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Bytes written at a time.
    pub(crate) write: usize,
    /// Between two writes.
    pub(crate) write_pause: Duration,
    /// Bytes read at a time.
    pub(crate) read: usize,
    /// Between two reads.
    pub(crate) read_pause: Duration,
}

/// When an end stops writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fin {
    /// When it has written everything.
    WhenDone,
    /// When it has also heard the other end's FIN.
    AfterTheOther,
}

/// A whole flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// Bytes from the visitor; the first ones tell the flow's number. None at all: the service does
    /// not learn it.
    pub(crate) up: u64,
    /// Bytes from the service.
    pub(crate) down: u64,
    pub(crate) visitor_fin: Fin,
    pub(crate) service_fin: Fin,
    /// The service answers when it has read so much …
    pub(crate) answer_after: u64,
    /// … and has rested for so long.
    pub(crate) rest: Duration,
    pub(crate) visitor: Pace,
    pub(crate) service: Pace,
    /// This end resets the connection when it has read and written so many bytes.
    pub(crate) abort: Option<(Who, u64)>,
}

impl Pace {
    fn brisk() -> Self {
        let pause = Duration::ZERO;
        Self { write: 64 << 10, write_pause: pause, read: 64 << 10, read_pause: pause }
    }

    fn drawn(random: &mut Random, bytes: u64) -> Self {
        if random.chance(600) {
            return Self::brisk();
        }
        // No end dawdles for longer than a few seconds.
        let least = (bytes / 40).max(1);
        let size = |random: &mut Random| {
            usize::try_from(random.between(least, least * 8)).expect("below a chunk")
        };
        let pause = |random: &mut Random| {
            let slow = random.chance(400);
            Duration::from_micros(if slow { random.between(0, 80_000) } else { 0 })
        };
        Self {
            write: size(random),
            write_pause: pause(random),
            read: size(random),
            read_pause: pause(random),
        }
    }
}

impl Script {
    /// A plain question and answer.
    pub(crate) fn plain(up: u64, down: u64) -> Self {
        Self {
            up: up.max(HEAD_SIZE),
            down,
            visitor_fin: Fin::WhenDone,
            service_fin: Fin::WhenDone,
            answer_after: HEAD_SIZE,
            rest: Duration::ZERO,
            visitor: Pace::brisk(),
            service: Pace::brisk(),
            abort: None,
        }
    }

    /// A question, its FIN, and an answer of which nothing comes for so long.
    pub(crate) fn half_closed(rest: Duration) -> Self {
        Self { answer_after: 300, rest, ..Self::plain(300, 2_000) }
    }

    /// Some flow, with at most so many bytes each way.
    pub(crate) fn drawn(random: &mut Random, most: u64) -> Self {
        if random.chance(30) {
            // A visitor that says nothing.
            return Self { up: 0, down: 0, ..Self::plain(0, 0) };
        }
        let size = |random: &mut Random| match random.below(10) {
            0 => 0,
            1..=5 => random.between(1, most.min(2_000)),
            6..=8 => random.between(1, most.min(40_000)),
            _ => random.between(1, most),
        };
        let (up, down) = (size(random).max(HEAD_SIZE), size(random));
        let (visitor_fin, service_fin) = match random.below(4) {
            0 | 1 => (Fin::WhenDone, Fin::WhenDone),
            2 => (Fin::WhenDone, Fin::AfterTheOther),
            _ => (Fin::AfterTheOther, Fin::WhenDone),
        };
        let answer_after = match random.below(3) {
            0 => HEAD_SIZE,
            1 => up,
            _ => random.between(HEAD_SIZE, up),
        };
        let abort = random.chance(150).then(|| {
            let who = if random.chance(500) { Who::Visitor } else { Who::Service };
            (who, random.below(up + down + 1))
        });
        let visitor = Pace::drawn(random, up.max(down));
        let service = Pace::drawn(random, up.max(down));
        let rest = Duration::ZERO;
        Self { up, down, visitor_fin, service_fin, answer_after, rest, visitor, service, abort }
    }
}
