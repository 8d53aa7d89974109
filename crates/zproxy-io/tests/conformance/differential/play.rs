//! Plays a script on one driver and writes down what came of it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use zproxy_io::{Driver, Ending, Fault, Lease, Op, Outcome, Sock, SourceNow, Token};

use crate::support::{Pump, World, bytes, far};

use super::script::{ENDS, Number, Step};

/// What may lie in the buffers of a connection whose far end does not read: as much as is sure to
/// fit, so that no step waits for a later one.
const UNREAD_MAX: u64 = 40_000;
/// A slow reader begins after so many looks at which nothing moved.
const STILL_LOOKS: u32 = 3;
const LOOK: Duration = Duration::from_millis(1);

/// Bytes of a stream: which, from where, how many.
#[derive(Clone, Copy, Debug)]
struct Piece {
    seed: u64,
    at: u64,
    len: u64,
}

/// A connection: the driver's end and the far one.
#[derive(Debug)]
struct End {
    near: Sock,
    /// None when it has reset.
    far: Option<TcpStream>,
    /// The streams that the far end writes and that the near end sends by itself.
    seeds: [u64; 2],
    /// Bytes that the far end has written, and how many of them the near end has taken.
    written: u64,
    taken: u64,
    /// Bytes that the near end has sent by itself.
    sent: u64,
    /// What the far end is to read, in order.
    due: VecDeque<Piece>,
    /// It was named as the source of a refill, so a driver may be filling from it.
    promised: bool,
    /// A fill and a watch that wait.
    fill: Option<Token>,
    watch: Option<Token>,
    far_ended: bool,
    near_ended: bool,
    /// The near end has been told of the far end's end.
    saw_end: bool,
}

impl End {
    fn unread(&self) -> u64 {
        self.written - self.taken
    }

    fn due_len(&self) -> u64 {
        self.due.iter().map(|piece| piece.len).sum()
    }

    fn is_reset(&self) -> bool {
        self.far.is_none()
    }

    fn expect(&mut self, piece: Piece) {
        if piece.len > 0 {
            self.due.push_back(piece);
        }
    }

    /// Reads up to `most` of the bytes that are due, as far as they are there.
    fn read_some(&mut self, most: u64) -> u64 {
        let far = self.far.as_mut().expect("it has not reset");
        let mut room = vec![0; usize::try_from(most.min(100_000)).expect("small")];
        let count = match far.read(&mut room) {
            Ok(0) => panic!("an end in place of bytes"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
            Err(error) => panic!("{error} in place of bytes"),
        };
        let mut left = &room[..count];
        while !left.is_empty() {
            let piece = self.due.front_mut().expect("more bytes came than are due");
            let len = piece.len.min(left.len() as u64);
            let (now, later) = left.split_at(usize::try_from(len).expect("small"));
            bytes::check(piece.seed, piece.at, now);
            (piece.at, piece.len, left) = (piece.at + len, piece.len - len, later);
            if piece.len == 0 {
                self.due.pop_front();
            }
        }
        count as u64
    }

    /// Reads exactly `count` of the bytes that are due.
    fn read(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let came = self.read_some(left);
            assert!(came > 0, "bytes that were put do not arrive");
            left -= came;
        }
    }

    /// What the far end finds behind all that was due.
    fn far_end(&mut self) -> &'static str {
        let far = self.far.as_mut().expect("it has not reset");
        match far.read(&mut [0]) {
            Ok(0) => "end",
            Ok(_) => "surplus bytes",
            Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset",
            Err(error) => panic!("neither an end nor a reset: {error}"),
        }
    }
}

pub(super) struct Play<D: Driver> {
    world: World<D>,
    ends: Vec<Option<End>>,
    streams: u64,
    log: Vec<String>,
}

impl<D: Driver> Play<D> {
    pub(super) fn new(world: World<D>) -> Self {
        let ends = (0..ENDS).map(|_| None).collect();
        Self { world, ends, streams: 0, log: Vec::new() }
    }

    /// Checks that everything comes back, and gives what happened.
    pub(super) fn finish(mut self) -> Vec<String> {
        for at in 0..ENDS {
            self.step(Step::Close { at, clean: true });
        }
        self.world.finish();
        self.log
    }

    fn say(&mut self, what: String) {
        self.log.push(what);
    }

    pub(super) fn step(&mut self, step: Step) {
        let before = self.log.len();
        let played = self.try_step(step).is_some();
        if played && self.log.len() == before {
            self.say(format!("{step:?}"));
        }
    }

    /// Does one step; `None` when it is not possible now.
    fn try_step(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Open { at, accept } => self.open(at, accept),
            Step::Refused => self.refused(),
            Step::FarWrites { at, count } => self.far_writes(at, count),
            Step::FarReads { at, count } => {
                let end = self.end(at)?;
                let count = count.min(end.due_len());
                end.read(count);
                Some(())
            }
            Step::FarUrgent { at } => {
                let end = self.end(at)?;
                if end.far_ended || end.unread() >= UNREAD_MAX {
                    return None;
                }
                let byte = bytes::patterned(end.seeds[0], end.written, 1)[0];
                far::send_urgent(end.far.as_ref()?, byte);
                end.written += 1;
                Some(())
            }
            Step::FarEnds { at } => self.far_ends(at),
            Step::FarResets { at } => self.far_resets(at),
            Step::Receive { at, count, early } => self.receive(at, count, early),
            Step::Send { at, count } => self.send(at, count),
            Step::FillWaits { at } => {
                let end = self.end(at)?;
                if end.fill.is_some() || end.unread() > 0 || end.far_ended {
                    return None;
                }
                let op = Op::Fill { from: end.near };
                let token = self.world.submit(op);
                self.end(at)?.fill = Some(token);
                Some(())
            }
            Step::Watch { at } => self.watch(at),
            Step::Forward { from, to, head, refill } => self.forward(from, to, head, refill),
            Step::Discard { at } => {
                let mut left = self.end(at)?.unread();
                while left > 0 {
                    left -= self.fill(at).ok()?.len() as u64;
                }
                Some(())
            }
            Step::Stream { flows, both, slow } => {
                let flows = if both && flows[0].0 != flows[0].1 { &flows[..] } else { &flows[..1] };
                self.stream(flows, slow)
            }
            Step::ShutdownWrite { at } => self.shutdown_write(at),
            Step::Close { at, clean } => self.close(at, clean),
            Step::HandOver { at } => {
                let end = self.end(at)?;
                if end.fill.is_some() || end.watch.is_some() || end.promised {
                    return None;
                }
                let handle = self.world.release(self.ends[at].as_ref()?.near);
                let near = self.world.adopt(handle);
                self.end(at)?.near = near;
                Some(())
            }
        }
    }

    /// A connection that has not been reset.
    fn end(&mut self, at: Number) -> Option<&mut End> {
        self.ends[at].as_mut().filter(|end| !end.is_reset())
    }

    fn open(&mut self, at: Number, accept: bool) -> Option<()> {
        if self.ends[at].is_some() {
            return None;
        }
        let (near, far) = if accept {
            self.world.pair()
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let to = listener.local_addr().expect("its address");
            let sock = self.world.socket(&to);
            let outcome = self.world.run(Op::Connect { sock, to });
            assert!(matches!(outcome, Outcome::Connected), "{outcome:?}");
            (sock, far::prepare(listener.accept().expect("a connection").0))
        };
        self.streams += 2;
        self.ends[at] = Some(End {
            near,
            far: Some(far),
            seeds: [self.streams, self.streams + 1],
            written: 0,
            taken: 0,
            sent: 0,
            due: VecDeque::new(),
            promised: false,
            fill: None,
            watch: None,
            far_ended: false,
            near_ended: false,
            saw_end: false,
        });
        Some(())
    }

    fn refused(&mut self) -> Option<()> {
        // The port is somebody's on another address, so nobody gets it on this one.
        let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut to = holder.local_addr().expect("its address");
        to.set_ip([127, 0, 0, 2].into());
        let sock = self.world.socket(&to);
        let outcome = self.world.run(Op::Connect { sock, to });
        self.say(format!("connect: {outcome:?}"));
        let token = self.world.start_close(sock, Ending::Reset);
        assert!(matches!(self.world.outcome(token), Outcome::Closed));
        Some(())
    }

    fn far_writes(&mut self, at: Number, count: u64) -> Option<()> {
        let end = self.end(at)?;
        let count = count.min(UNREAD_MAX.saturating_sub(end.unread()));
        if end.far_ended || count == 0 {
            return None;
        }
        let piece = bytes::patterned(end.seeds[0], end.written, usize::try_from(count).ok()?);
        end.far.as_mut()?.write_all(&piece).expect("it fits into the buffers");
        end.written += count;
        Some(())
    }

    fn far_ends(&mut self, at: Number) -> Option<()> {
        let end = self.end(at)?;
        if end.far_ended {
            return None;
        }
        end.far.as_ref()?.shutdown(Shutdown::Write).expect("open");
        end.far_ended = true;
        if end.fill.is_some() && end.unread() == 0 {
            self.meet_end(at);
        }
        self.hear_watch(at);
        Some(())
    }

    /// Finds the end of what the far end had to say.
    fn meet_end(&mut self, at: Number) {
        let found = self.fill(at).map(|lease| lease.len());
        self.say(format!("{at} fill: {found:?}"));
    }

    fn far_resets(&mut self, at: Number) -> Option<()> {
        let end = self.end(at)?;
        end.read(end.due_len());
        far::reset(end.far.take()?);
        // Bytes that were on the way may come first, or not.
        let fault = loop {
            match self.fill(at) {
                Ok(_) => {}
                Err(told) => break told,
            }
        };
        // A FIN that was there before the reset may be told first, or not.
        if !self.ends[at].as_ref()?.far_ended {
            self.say(format!("{at} after a reset: {fault:?}"));
        }
        if let Some(watch) = self.ends[at].as_mut()?.watch.take() {
            let outcome = self.world.outcome(watch);
            assert!(matches!(outcome, Outcome::Hangup(_)), "{outcome:?}");
        }
        let sock = self.ends[at].as_ref()?.near;
        let sent = self.world.run(Op::Send { sock, buf: vec![1] });
        let refused = matches!(sent, Outcome::Failed(Fault::Reset));
        assert!(refused, "a send after a reset: {sent:?}");
        Some(())
    }

    fn watch(&mut self, at: Number) -> Option<()> {
        let end = self.end(at)?;
        if end.watch.is_some() {
            return None;
        }
        let sock = end.near;
        let token = self.world.submit(Op::Watch { sock });
        self.end(at)?.watch = Some(token);
        self.hear_watch(at);
        Some(())
    }

    /// When both directions have ended the watch tells.
    fn hear_watch(&mut self, at: Number) {
        let Some(end) = self.end(at).filter(|end| end.far_ended && end.near_ended) else { return };
        let Some(watch) = end.watch.take() else { return };
        let outcome = self.world.outcome(watch);
        self.say(format!("{at} watch: {outcome:?}"));
    }

    fn receive(&mut self, at: Number, count: u64, early: bool) -> Option<()> {
        let end = self.end(at)?;
        if end.fill.is_some() || end.saw_end || end.promised {
            return None;
        }
        let sock = end.near;
        let is_waiting = end.unread() == 0 && !end.far_ended;
        let receive =
            |world: &mut World<D>, max| world.submit(Op::Recv { sock, buf: Vec::new(), max });
        let mut first = None;
        if is_waiting {
            if early {
                first = Some(receive(&mut self.world, usize::try_from(count).ok()?));
            }
            self.far_writes(at, count);
        }
        let mut left = count.min(self.end(at)?.unread());
        if left == 0 {
            let token = receive(&mut self.world, 10);
            let outcome = self.world.outcome(token);
            self.end(at)?.saw_end = true;
            self.say(format!("{at} receive: {outcome:?}"));
        }
        while left > 0 {
            let max = usize::try_from(left).ok()?;
            let token = first.take().unwrap_or_else(|| receive(&mut self.world, max));
            match self.world.outcome(token) {
                Outcome::Received { buf, count } => {
                    assert_eq!(buf.len(), count);
                    let end = self.end(at)?;
                    bytes::check(end.seeds[0], end.taken, &buf);
                    end.taken += count as u64;
                    left -= count as u64;
                }
                other => panic!("not received: {other:?}"),
            }
        }
        Some(())
    }

    fn send(&mut self, at: Number, count: u64) -> Option<()> {
        let end = self.end(at)?;
        if end.near_ended {
            return None;
        }
        end.read(end.due_len());
        let (sock, piece) = (end.near, Piece { seed: end.seeds[1], at: end.sent, len: count });
        let buf = bytes::patterned(piece.seed, piece.at, usize::try_from(count).ok()?);
        end.sent += count;
        end.expect(piece);
        let token = self.world.submit(Op::Send { sock, buf });
        if count > UNREAD_MAX {
            self.read_while_busy(at);
        }
        let outcome = self.world.outcome(token);
        assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
        Some(())
    }

    /// The far end reads everything that is due while the driver works.
    fn read_while_busy(&mut self, at: Number) {
        self.nonblocking(at, true);
        while self.end(at).is_some_and(|end| end.due_len() > 0) {
            let moved = self.end(at).map_or(0, |end| end.read_some(end.due_len()));
            if moved == 0 {
                self.world.wait(LOOK);
            }
        }
        self.nonblocking(at, false);
    }

    fn nonblocking(&mut self, at: Number, on: bool) {
        if let Some(far) = self.end(at).and_then(|end| end.far.as_ref()) {
            far.set_nonblocking(on).expect("a socket");
        }
    }

    /// Takes what is there, by the fill that waits or by another.
    fn fill(&mut self, at: Number) -> Result<Lease, String> {
        let end = self.ends[at].as_mut().expect("an open end");
        let (near, waiting) = (end.near, end.fill.take());
        end.promised = false;
        let token = waiting.unwrap_or_else(|| self.world.submit(Op::Fill { from: near }));
        let outcome = self.world.outcome(token);
        let end = self.ends[at].as_mut().expect("an open end");
        match outcome {
            Outcome::Filled(lease) => {
                assert!(!lease.is_empty(), "a fill takes at least one byte");
                end.taken += lease.len() as u64;
                assert!(end.taken <= end.written, "more bytes were taken than were written");
                Ok(lease)
            }
            other => {
                end.saw_end = true;
                Err(format!("{other:?}"))
            }
        }
    }

    fn forward(&mut self, from: Number, to: Number, head: u64, refill: bool) -> Option<()> {
        let sink = self.end(to)?;
        if sink.near_ended {
            return None;
        }
        sink.read(sink.due_len());
        let sink = sink.near;
        let source = self.end(from)?;
        if source.unread() == 0 {
            return None;
        }
        let (source, seed) = (source.near, source.seeds[0]);
        let mut head = usize::try_from(head).ok()?;
        while self.end(from)?.unread() > 0 {
            let mut at = self.end(from)?.taken;
            let mut lease = self.fill(from).expect("bytes are there");
            let mut first = vec![0; head];
            let count = lease.take_head(&mut first);
            bytes::check(seed, at, &first[..count]);
            (head, at) = (head - count, at + count as u64);
            let mut lease = Some(lease).filter(|lease| !lease.is_empty());
            while let Some(some) = lease.take() {
                // A refill is asked for only while it must find something, or nothing may come.
                let end = self.end(from)?;
                let is_wanted = refill && !end.saw_end;
                let refill = is_wanted.then_some(source);
                end.promised |= is_wanted;
                match self.world.run(Op::Drain { lease: some, to: sink, refill }) {
                    Outcome::Drained { put, refilled, lease: rest, source: now } => {
                        assert!(put >= 1, "a drain puts at least one byte");
                        let len = put as u64;
                        self.end(to)?.expect(Piece { seed, at, len });
                        at += len;
                        let end = self.end(from)?;
                        end.taken += refilled as u64;
                        lease = rest;
                        match now {
                            SourceNow::Open => {}
                            SourceNow::Eof => {
                                let right = end.far_ended && end.unread() == 0;
                                assert!(right, "an end before its time");
                                end.saw_end = true;
                            }
                            SourceNow::Failed(fault) => panic!("the source failed: {fault}"),
                        }
                    }
                    other => panic!("not drained: {other:?}"),
                }
            }
        }
        // Whether a refill has met the end already is the driver's affair.
        if self.end(from)?.far_ended && !std::mem::replace(&mut self.end(from)?.saw_end, true) {
            let found = self.fill(from).map(|lease| lease.len());
            assert_eq!(found, Err("Eof".to_owned()));
        }
        self.say(format!("{from} to {to}: {} bytes due", self.ends[to].as_ref()?.due_len()));
        Some(())
    }

    fn stream(&mut self, flows: &[(Number, Number, u64)], slow: bool) -> Option<()> {
        for &(from, to, _) in flows {
            if self.end(to).is_none_or(|sink| sink.near_ended)
                || self.end(from).is_none_or(|source| source.far_ended)
            {
                return None;
            }
        }
        let mut pumps = Vec::new();
        for &(from, to, total) in flows {
            let source = self.end(from)?;
            let (seed, at) = (source.seeds[0], source.taken);
            let len = source.unread() + total;
            let (source, waiting) = (source.near, source.fill.take());
            self.end(to)?.expect(Piece { seed, at, len });
            let sink = self.end(to)?.near;
            let pump = match waiting {
                Some(fill) => Pump::of_fill(fill, source, sink),
                None => Pump::start(&mut self.world, source, sink),
            };
            pumps.push((pump, len));
            self.nonblocking(from, true);
            self.nonblocking(to, true);
        }
        let mut left: Vec<u64> = flows.iter().map(|&(_, _, total)| total).collect();
        let mut still = 0;
        loop {
            let mut moved = false;
            for ((&(from, to, _), left), (pump, _)) in flows.iter().zip(&mut left).zip(&mut pumps) {
                let wrote = self.end(from)?.write_some(*left);
                *left -= wrote;
                moved |= wrote > 0;
                moved |= pump.advance(&mut self.world);
                assert_eq!(pump.end, None, "{from} to {to} ended");
                if !slow || still >= STILL_LOOKS {
                    let due = self.end(to)?.due_len();
                    moved |= due > 0 && self.end(to)?.read_some(due) > 0;
                }
            }
            let is_over = |(pump, len): &(Pump, u64)| pump.put == *len;
            let is_read = flows
                .iter()
                .all(|&(_, to, _)| self.ends[to].as_ref().is_some_and(|e| e.due.is_empty()));
            if pumps.iter().all(is_over) && is_read {
                break;
            }
            if !moved {
                still += u32::from(!self.world.wait(LOOK));
            }
        }
        for (&(from, to, _), (pump, len)) in flows.iter().zip(&pumps) {
            assert_eq!((pump.taken, pump.put), (*len, *len));
            let source = self.end(from)?;
            source.taken += len;
            // Its last fill waits for what the far end may say next.
            source.promised = false;
            source.fill = Some(pump.token);
            self.nonblocking(from, false);
            self.nonblocking(to, false);
        }
        Some(())
    }

    fn shutdown_write(&mut self, at: Number) -> Option<()> {
        let end = self.end(at)?;
        if end.near_ended {
            return None;
        }
        end.near_ended = true;
        let sock = end.near;
        self.world.driver.shutdown_write(sock);
        let end = self.end(at)?;
        end.read(end.due_len());
        let found = end.far_end();
        self.say(format!("{at} far end: {found}"));
        self.hear_watch(at);
        Some(())
    }

    fn close(&mut self, at: Number, clean: bool) -> Option<()> {
        if let Some(end) = self.end(at) {
            // A reset throws away what has not arrived, which is nothing that a test could foresee.
            end.read(end.due_len());
        }
        let mut end = self.ends[at].take()?;
        let how = if clean { Ending::Clean } else { Ending::Reset };
        let closing = self.world.start_close(end.near, how);
        let closed = self.world.outcome(closing);
        assert!(matches!(closed, Outcome::Closed), "{closed:?}");
        // What waits for bytes that are there already may find them first.
        let is_foreseeable = end.unread() == 0;
        for (what, waiting) in [("fill", end.fill), ("watch", end.watch)] {
            let Some(token) = waiting else { continue };
            assert!(!self.world.is_flying(token), "a close brings everything home");
            let outcome = self.world.take(token);
            if is_foreseeable {
                self.say(format!("{at} {what} at the close: {outcome:?}"));
            }
        }
        // A kernel that closes with unread bytes resets, and whether a fill has read them is the
        // driver's affair.
        let may_be_read = end.fill.is_some() || end.promised;
        if end.far.is_some() && !(may_be_read && end.unread() > 0 && clean) {
            let found = if end.near_ended && clean && end.unread() == 0 {
                "ended before"
            } else {
                end.far_end()
            };
            self.say(format!("{at} closed {how:?}, far: {found}"));
        }
        Some(())
    }
}

impl End {
    /// Writes up to `most` more bytes, as far as there is room.
    fn write_some(&mut self, most: u64) -> u64 {
        let len = usize::try_from(most.min(64 << 10)).expect("small");
        if len == 0 {
            return 0;
        }
        let piece = bytes::patterned(self.seeds[0], self.written, len);
        let far = self.far.as_mut().expect("it has not reset");
        match far.write(&piece) {
            Ok(count) => {
                self.written += count as u64;
                count as u64
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("not written: {error}"),
        }
    }
}
