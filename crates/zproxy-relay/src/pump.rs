//! One direction of a flow on one side: fill, drain rounds, fill again.
//!
//! While bytes wait to be put, the source is not read: TCP closes its window, memory stays bounded,
//! and no slow peer delays another flow.

use zproxy_io::{Fault, Lease, Op, Outcome, Sock, SourceNow};

/// Which end of a pump something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where bytes come from.
    Source,
    /// Where bytes go to.
    Sink,
}

#[derive(Debug)]
enum State {
    /// Nothing is under way: before the start, or between results.
    Resting,
    /// A fill waits for bytes.
    Filling,
    /// Bytes were taken and the sink is not ready for them yet.
    Holding(Lease),
    /// A round is under way.
    Draining,
    /// The source has ended (or is told to count as ended) and every byte was put.
    Ended,
    /// An end failed.
    Failed,
}

/// What an operation's result means for a pump.
#[derive(Debug)]
pub enum Step {
    /// Submit this fill.
    Fill(Op),
    /// Submit this drain.
    Drain(Op),
    /// Submit this drain: the source has ended behind its bytes, after so many in all.
    LastDrain(Op, u64),
    /// Nothing to submit now.
    Rest,
    /// The source has ended and every byte that came before was put.
    Ended,
    /// An end has failed; the flow cannot go on.
    Failed(Side, Fault),
}

/// One direction of a flow.
#[derive(Debug)]
pub struct Pump {
    pub(crate) from: Sock,
    pub(crate) to: Sock,
    state: State,
    source: SourceNow,
    /// Whether the sink may be written to.
    is_open: bool,
    /// Whether the sink ends where the source does.
    hands_on_end: bool,
    /// The sink ends behind what was taken.
    ends_sink: bool,
    taken: u64,
    put: u64,
}

impl Pump {
    /// A pump that has not started. Until [`Self::open`] it may take bytes but holds them.
    #[must_use]
    pub fn new(from: Sock, to: Sock) -> Self {
        Self {
            from,
            to,
            state: State::Resting,
            source: SourceNow::Open,
            is_open: false,
            hands_on_end: false,
            ends_sink: false,
            taken: 0,
            put: 0,
        }
    }

    /// When the end of the source comes with its last bytes, the sink ends with them.
    #[must_use]
    pub fn handing_on_end(mut self) -> Self {
        self.hands_on_end = true;
        self
    }

    /// What is held, or comes with the next result, is the last that the sink gets, although the source
    /// stays open: the sink ends together with it.
    pub fn end_sink(&mut self) {
        self.ends_sink = true;
    }

    /// Bytes taken from the source.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes put into the sink's send buffer.
    #[must_use]
    pub fn put(&self) -> u64 {
        self.put
    }

    /// Whether the source has ended and every byte was put.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether an operation of this pump waits on the source, which therefore reports its failure.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        matches!(self.state, State::Filling)
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining)
    }

    /// Waits for bytes.
    pub fn fill(&mut self) -> Step {
        assert!(matches!(self.state, State::Resting), "a pump fills when nothing is under way");
        self.state = State::Filling;
        Step::Fill(Op::Fill { from: self.from })
    }

    /// A fill that somebody else submitted for the source (the idle watch of a proxy_conn) counts as
    /// this pump's from now on.
    pub fn inherit_fill(&mut self) {
        assert!(matches!(self.state, State::Resting), "a pump fills when nothing is under way");
        self.state = State::Filling;
    }

    /// Bytes of the source that somebody else puts into the sink, before anything that this pump puts.
    pub fn note_along(&mut self, count: usize) {
        assert!(matches!(self.state, State::Resting), "they come first");
        self.taken += count as u64;
        self.put += count as u64;
    }

    /// The source ends here although it stays open: what was counted out has all come.
    pub fn end(&mut self) {
        assert_eq!(self.taken, self.put, "a pump ends when every byte was put");
        self.state = State::Ended;
    }

    /// The sink is ready: what was held is put.
    pub fn open(&mut self) -> Step {
        self.is_open = true;
        match std::mem::replace(&mut self.state, State::Resting) {
            State::Holding(lease) => self.first_drain(lease),
            State::Ended | State::Failed => unreachable!("a pump ends after its sink was opened"),
            state => {
                self.state = state;
                if matches!(self.state, State::Resting) { self.rest() } else { Step::Rest }
            }
        }
    }

    /// After the sink became ready: an end that was seen before it takes effect now.
    fn rest(&mut self) -> Step {
        match self.source {
            SourceNow::Open => Step::Rest,
            SourceNow::Eof => {
                self.state = State::Ended;
                Step::Ended
            }
            SourceNow::Failed(fault) => self.failed(Side::Source, fault),
        }
    }

    /// The result of this pump's fill.
    ///
    /// # Panics
    /// When it is not the result of a fill.
    pub fn on_fill_done(&mut self, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Filled(lease) => self.on_filled(lease),
            Outcome::Eof => self.on_eof(),
            Outcome::Failed(fault) => self.failed(Side::Source, fault),
            other => unreachable!("not the result of a fill: {other:?}"),
        }
    }

    /// The result of this pump's drain.
    ///
    /// # Panics
    /// When it is not the result of a drain.
    pub fn on_drain_done(&mut self, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Drained { put, refilled, lease, source } => {
                self.on_drained(put, refilled, lease, source)
            }
            Outcome::Failed(fault) => self.failed(Side::Sink, fault),
            other => unreachable!("not the result of a drain: {other:?}"),
        }
    }

    /// Bytes that were taken for this pump, by a fill or as the rest of a header.
    pub fn on_filled(&mut self, mut lease: Lease) -> Step {
        self.note_taken(&mut lease);
        if self.is_open {
            return self.first_drain(lease);
        }
        self.state = State::Holding(lease);
        Step::Rest
    }

    /// Fresh from the source, a lease may know that it is the last. That end is the source's: the sink
    /// gets one only if it ends there too.
    fn note_taken(&mut self, lease: &mut Lease) {
        self.taken += lease.len() as u64;
        if lease.take_end() {
            self.source = SourceNow::Eof;
            self.ends_sink |= self.hands_on_end;
        }
    }

    /// Begins to put what was taken, and tells if that is the last.
    fn first_drain(&mut self, lease: Lease) -> Step {
        match (self.drain(lease), self.source) {
            (Step::Drain(op), SourceNow::Eof) => Step::LastDrain(op, self.taken),
            (step, _) => step,
        }
    }

    fn drain(&mut self, mut lease: Lease) -> Step {
        self.state = State::Draining;
        if self.ends_sink {
            lease.add_end();
        }
        let refill = (self.source == SourceNow::Open && !self.ends_sink).then_some(self.from);
        Step::Drain(Op::Drain { lease, to: self.to, refill })
    }

    /// The source has ended.
    pub fn on_eof(&mut self) -> Step {
        self.source = SourceNow::Eof;
        self.state = State::Resting;
        if self.is_open { self.rest() } else { Step::Rest }
    }

    /// A round is over.
    pub fn on_drained(
        &mut self,
        put: usize,
        refilled: usize,
        mut lease: Option<Lease>,
        source: SourceNow,
    ) -> Step {
        self.put += put as u64;
        // What was left over has what was added to it.
        if let Some(lease) = lease.as_mut().filter(|_| refilled > 0) {
            self.note_taken(lease);
        }
        let held = lease.as_ref().map_or(0, Lease::len) as u64;
        assert_eq!(self.taken, self.put + held, "bytes taken = bytes put + residue");
        if source != SourceNow::Open {
            self.source = source;
        }
        match (lease, self.source) {
            (Some(lease), _) if refilled > 0 => self.first_drain(lease),
            (Some(lease), _) => self.drain(lease),
            (None, SourceNow::Open) => {
                self.state = State::Resting;
                self.fill()
            }
            (None, _) => {
                self.state = State::Resting;
                self.rest()
            }
        }
    }

    /// An operation of this pump has failed.
    pub fn failed(&mut self, side: Side, fault: Fault) -> Step {
        self.state = State::Failed;
        Step::Failed(side, fault)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Duration;

    use zproxy_io::{Done, Driver, DriverConfig, Epoll, RelayMode, Token};

    use super::*;

    static BYTES: [u8; (64 << 10) + 100] = [7; (64 << 10) + 100];

    /// A pump on sockets, and their far ends. Only one of its operations is in flight at a time.
    struct Bench {
        driver: Epoll,
        pump: Pump,
        source: TcpStream,
        sink: TcpStream,
        done: Vec<Done>,
    }

    fn pair(driver: &mut Epoll) -> (Sock, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        far.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
        let (near, _) = listener.accept().expect("one has come");
        near.set_nonblocking(true).expect("an open socket");
        (driver.adopt(near.into()), far)
    }

    impl Bench {
        fn new(make: impl FnOnce(Sock, Sock) -> Pump) -> Self {
            let config = DriverConfig { relay: RelayMode::Copy, ..DriverConfig::default() };
            let mut driver = Epoll::new(&config).expect("an epoll driver");
            let (from, source) = pair(&mut driver);
            let (to, sink) = pair(&mut driver);
            let mut pump = make(from, to);
            assert!(matches!(pump.open(), Step::Rest));
            Self { driver, pump, source, sink, done: Vec::new() }
        }

        /// Runs an operation and gives the next step.
        fn run(&mut self, op: Op) -> Step {
            let is_fill = matches!(op, Op::Fill { .. });
            self.driver.submit(Token(1), op);
            self.hear();
            self.finish(is_fill)
        }

        /// Lets the driver hear what there is to hear.
        fn hear(&mut self) {
            self.driver.wait(Some(Duration::ZERO), &mut self.done).expect("epoll");
        }

        /// Waits for the result of the operation in flight.
        fn finish(&mut self, is_fill: bool) -> Step {
            let mut done = std::mem::take(&mut self.done);
            while done.is_empty() {
                self.driver.wait(None, &mut done).expect("epoll");
            }
            let Done { outcome, .. } = done.pop().expect("one was in flight");
            if is_fill { self.pump.on_fill_done(outcome) } else { self.pump.on_drain_done(outcome) }
        }

        /// Pumps more than a buffer holds and the end behind it, of which the driver hears before it
        /// refills. Gives the ends that were told.
        fn end_in_the_refill(&mut self) -> Vec<u64> {
            let mut told = Vec::new();
            let Step::Fill(fill) = self.pump.fill() else { panic!("it fills") };
            self.driver.submit(Token(1), fill);
            self.hear();
            self.source.write_all(&BYTES).expect("open");
            self.source.shutdown(Shutdown::Write).expect("open");
            let mut step = self.finish(true);
            loop {
                self.hear();
                step = match step {
                    Step::LastDrain(op, total) => {
                        told.push(total);
                        self.run(op)
                    }
                    Step::Fill(op) | Step::Drain(op) => self.run(op),
                    Step::Ended => return told,
                    other => panic!("{other:?}"),
                };
            }
        }
    }

    /// A source's end is told, once, and stays with the pump: the sink goes on.
    #[test]
    fn the_sink_stays_open() {
        let mut bench = Bench::new(Pump::new);
        let told = bench.end_in_the_refill();
        assert_eq!(told, [BYTES.len() as u64]);
        bench.driver.submit(Token(1), Op::Send { sock: bench.pump.to, buf: vec![3] });
        let mut done = Vec::new();
        bench.driver.wait(None, &mut done).expect("epoll");
        assert!(matches!(done[..], [Done { outcome: Outcome::Sent { .. }, .. }]), "{done:?}");
        let mut got = [0; BYTES.len() + 1];
        bench.sink.read_exact(&mut got).expect("no end before");
        assert_eq!(got[BYTES.len()], 3);
    }

    /// Where the end is to be handed on, the sink has it when the last byte is put.
    #[test]
    fn the_sink_ends_too() {
        let mut bench = Bench::new(|from, to| Pump::new(from, to).handing_on_end());
        assert_eq!(bench.end_in_the_refill(), [BYTES.len() as u64]);
        let mut got = Vec::new();
        bench.sink.read_to_end(&mut got).expect("its end");
        assert_eq!(got, BYTES);
    }
}
