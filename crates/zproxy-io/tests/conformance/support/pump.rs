//! One direction of a relay, as the layer above runs it.

use zproxy_io::{Driver, Fault, Lease, Op, Outcome, Sock, SourceNow, Token};

use super::world::World;

/// How a pump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Eof,
    Failed(Fault),
}

pub(crate) struct Pump {
    pub(crate) token: Token,
    /// Bytes taken from the source.
    pub(crate) taken: u64,
    /// Bytes put into the sink.
    pub(crate) put: u64,
    /// Rounds that left something in the lease.
    pub(crate) short_rounds: u64,
    pub(crate) end: Option<End>,
    from: Sock,
    to: Sock,
    source: SourceNow,
}

impl Pump {
    pub(crate) fn start<D: Driver>(world: &mut World<D>, from: Sock, to: Sock) -> Self {
        let token = world.submit(Op::Fill { from });
        Self::of_fill(token, from, to)
    }

    /// Goes on with a fill that is in flight.
    pub(crate) fn of_fill(token: Token, from: Sock, to: Sock) -> Self {
        let source = SourceNow::Open;
        Self { token, taken: 0, put: 0, short_rounds: 0, end: None, from, to, source }
    }

    /// Does what is to be done after everything that came home so far; tells whether something had.
    #[track_caller]
    pub(crate) fn advance<D: Driver>(&mut self, world: &mut World<D>) -> bool {
        if self.end.is_some() {
            return false;
        }
        let Some(outcome) = world.take(self.token) else { return false };
        match outcome {
            Outcome::Filled(lease) => {
                assert!(!lease.is_empty(), "a fill takes at least one byte");
                self.taken += lease.len() as u64;
                self.drain(world, lease);
            }
            Outcome::Drained { put, refilled, lease, source } => {
                assert!(put >= 1, "a drain puts at least one byte");
                self.put += put as u64;
                self.taken += refilled as u64;
                let held = lease.as_ref().map_or(0, Lease::len) as u64;
                assert_eq!(self.taken - self.put, held, "bytes in = bytes out + residue");
                self.short_rounds += u64::from(held > 0 && refilled == 0);
                if source != SourceNow::Open {
                    self.source = source;
                }
                match lease {
                    Some(lease) => self.drain(world, lease),
                    None => self.refill(world),
                }
            }
            Outcome::Eof => self.end = Some(End::Eof),
            Outcome::Failed(fault) => self.end = Some(End::Failed(fault)),
            other => panic!("no outcome of a pump: {other:?}"),
        }
        true
    }

    fn drain<D: Driver>(&mut self, world: &mut World<D>, lease: Lease) {
        let refill = (self.source == SourceNow::Open).then_some(self.from);
        self.token = world.submit(Op::Drain { lease, to: self.to, refill });
    }

    fn refill<D: Driver>(&mut self, world: &mut World<D>) {
        match self.source {
            SourceNow::Open => self.token = world.submit(Op::Fill { from: self.from }),
            SourceNow::Eof => self.end = Some(End::Eof),
            SourceNow::Failed(fault) => self.end = Some(End::Failed(fault)),
        }
    }

    /// Runs this pump alone to its end.
    #[track_caller]
    pub(crate) fn run<D: Driver>(&mut self, world: &mut World<D>) -> End {
        run_pumps(world, std::slice::from_mut(self));
        self.end.expect("it has ended")
    }
}

/// Runs all pumps to their ends. One that ends with an EOF passes it on.
#[track_caller]
pub(crate) fn run_pumps<D: Driver>(world: &mut World<D>, pumps: &mut [Pump]) {
    loop {
        for pump in &mut *pumps {
            if pump.advance(world) && pump.end == Some(End::Eof) {
                world.driver.shutdown_write(pump.to);
            }
        }
        if pumps.iter().all(|pump| pump.end.is_some()) {
            return;
        }
        let moving = pumps.iter().filter(|pump| pump.end.is_none());
        if moving.into_iter().all(|pump| world.is_flying(pump.token)) {
            world.turn();
        }
    }
}
