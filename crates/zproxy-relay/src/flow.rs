//! A flow on one side: two pumps between a near end (public or local conn) and a far end
//! (proxy_conn, or the other conn of a one-hop forward).

use std::time::Duration;

use zproxy_io::{Driver, Fault, Lease, Op, Outcome, Sock};

use crate::{Key, Name, Path, PathLimit, Pump, Side, Step};

/// The kinds of operation that flows submit; owners number theirs from [`kind::OWNERS`].
pub mod kind {
    /// The outbound pump takes from the near end.
    pub const FILL_NEAR: u8 = 0;
    /// The inbound pump takes from the far end. Named by the far key.
    pub const FILL_FAR: u8 = 1;
    /// The outbound pump puts into the far end.
    pub const DRAIN_OUTBOUND: u8 = 2;
    /// The inbound pump puts into the near end.
    pub const DRAIN_INBOUND: u8 = 3;
    /// A watch of the near end.
    pub const WATCH_NEAR: u8 = 4;
    /// A watch of the far end. Named by the far key: it may outlive the flow.
    pub const WATCH_FAR: u8 = 5;
    /// The first number that owners may use.
    pub const OWNERS: u8 = 16;
}

/// The places that a flow's operations are named by. The far end of a flow may have a life of its own
/// (a proxy_conn goes on to the next flow), and so a place of its own.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// The place of the flow.
    pub flow: Key,
    /// The place of the far end.
    pub far: Key,
}

/// A direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From near to far.
    Outbound,
    /// From far to near.
    Inbound,
}

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The public or local conn.
    Near,
    /// The proxy_conn or the other conn.
    Far,
}

/// What the owner of a flow has to know of an operation's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing to do.
    Nothing,
    /// The source of a direction has ended behind so many bytes, the last of which are being put into its
    /// sink. It may be left out.
    Ending(Direction, u64),
    /// The source of a direction has ended, and every byte was put into its sink.
    Ended(Direction),
    /// An end has failed: the flow is over.
    Failed(End, Fault),
}

/// Two pumps and what is needed to notice that an end has died unseen.
#[derive(Debug)]
pub struct Flow {
    /// From near to far.
    pub outbound: Pump,
    /// From far to near.
    pub inbound: Pump,
    /// Whether a watch of the near end is in flight, perhaps since before the flow.
    pub near_watched: bool,
    /// Whether a watch of the far end is in flight, perhaps since an earlier flow.
    pub far_watched: bool,
    /// The end that was dialled for this flow, until the kernel has been told to ask after it.
    pub dialled: Option<End>,
    /// Bytes put, both ways, at the last look.
    seen: u64,
    /// Looks in a row at which nothing had moved.
    still: u32,
    /// Behind the near end, and behind the far end.
    paths: [Path; 2],
}

impl Flow {
    /// A flow between two conns; nothing moves yet.
    #[must_use]
    pub fn new(near: Sock, far: Sock) -> Self {
        Self {
            outbound: Pump::new(near, far),
            inbound: Pump::new(far, near),
            near_watched: false,
            far_watched: false,
            dialled: None,
            seen: 0,
            still: 0,
            paths: [Path::default(); 2],
        }
    }

    /// The public or local conn.
    #[must_use]
    pub fn near(&self) -> Sock {
        self.outbound.from
    }

    /// The proxy_conn or the other conn.
    #[must_use]
    pub fn far(&self) -> Sock {
        self.outbound.to
    }

    /// A flow whose ends are both the flow's own: each ends where the other one does.
    #[must_use]
    pub fn of_equals(near: Sock, far: Sock) -> Self {
        let mut flow = Self::new(near, far);
        flow.outbound = flow.outbound.handing_on_end();
        flow.inbound = flow.inbound.handing_on_end();
        flow
    }

    /// Begins to take from the near end.
    pub fn start_outbound<D: Driver>(&mut self, driver: &mut D, keys: Keys) {
        let step = self.outbound.fill();
        self.apply(driver, keys, Direction::Outbound, step);
    }

    /// Begins to take from the far end.
    pub fn start_inbound<D: Driver>(&mut self, driver: &mut D, keys: Keys) {
        let step = self.inbound.fill();
        self.apply(driver, keys, Direction::Inbound, step);
    }

    /// The far end may be written to from now on.
    pub fn open_outbound<D: Driver>(&mut self, driver: &mut D, keys: Keys) -> Heard {
        let step = self.outbound.open();
        self.apply(driver, keys, Direction::Outbound, step)
    }

    /// The near end may be written to from now on.
    pub fn open_inbound<D: Driver>(&mut self, driver: &mut D, keys: Keys) -> Heard {
        let step = self.inbound.open();
        self.apply(driver, keys, Direction::Inbound, step)
    }

    /// Bytes for the near end that came together with something else.
    pub fn feed_inbound<D: Driver>(&mut self, driver: &mut D, keys: Keys, lease: Lease) -> Heard {
        let step = self.inbound.on_filled(lease);
        self.apply(driver, keys, Direction::Inbound, step)
    }

    /// The result of one of this flow's operations, by its [`kind`].
    ///
    /// # Panics
    /// When the kind is not one of a flow's.
    pub fn on_done<D: Driver>(
        &mut self,
        driver: &mut D,
        keys: Keys,
        kind: u8,
        outcome: Outcome,
    ) -> Heard {
        let (direction, step) = match kind {
            kind::FILL_NEAR => (Direction::Outbound, self.outbound.on_fill_done(outcome)),
            kind::FILL_FAR => (Direction::Inbound, self.inbound.on_fill_done(outcome)),
            kind::DRAIN_OUTBOUND => (Direction::Outbound, self.outbound.on_drain_done(outcome)),
            kind::DRAIN_INBOUND => (Direction::Inbound, self.inbound.on_drain_done(outcome)),
            kind::WATCH_NEAR => return watched(End::Near, &outcome),
            kind::WATCH_FAR => return watched(End::Far, &outcome),
            other => unreachable!("kind {other} is not a flow's"),
        };
        self.apply(driver, keys, direction, step)
    }

    fn apply<D: Driver>(
        &mut self,
        driver: &mut D,
        keys: Keys,
        direction: Direction,
        step: Step,
    ) -> Heard {
        let (fill, drain) = match direction {
            Direction::Outbound => {
                (Name { kind: kind::FILL_NEAR, key: keys.flow }, kind::DRAIN_OUTBOUND)
            }
            Direction::Inbound => {
                (Name { kind: kind::FILL_FAR, key: keys.far }, kind::DRAIN_INBOUND)
            }
        };
        match (step, direction) {
            (Step::Fill(op), _) => driver.submit(fill.token(), op),
            (Step::Drain(op), _) => {
                driver.submit(Name { kind: drain, key: keys.flow }.token(), op);
            }
            (Step::LastDrain(op, total), direction) => {
                driver.submit(Name { kind: drain, key: keys.flow }.token(), op);
                return Heard::Ending(direction, total);
            }
            (Step::Rest, _) => {}
            (Step::Ended, direction) => return Heard::Ended(direction),
            (Step::Failed(Side::Source, fault), Direction::Outbound)
            | (Step::Failed(Side::Sink, fault), Direction::Inbound) => {
                return Heard::Failed(End::Near, fault);
            }
            (Step::Failed(_, fault), _) => return Heard::Failed(End::Far, fault),
        }
        Heard::Nothing
    }

    /// Whether one direction has ended and the other has not.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        self.outbound.is_ended() != self.inbound.is_ended()
    }

    /// To be called about once a second; tells at how many calls in a row nothing had moved. A conn on
    /// which nothing waits for bytes (its direction has ended, or its bytes wait for the other end)
    /// would not be seen to die: it gets a watch, and one that was dialled is kept alive from the first
    /// look on. Short flows never live to see one.
    pub fn look<D: Driver>(&mut self, driver: &mut D, keys: Keys) -> u32 {
        match self.dialled.take() {
            Some(End::Near) => driver.keep_alive(self.near()),
            Some(End::Far) => driver.keep_alive(self.far()),
            None => {}
        }
        let moved = self.outbound.put() + self.inbound.put();
        self.still = if moved == self.seen { self.still.saturating_add(1) } else { 0 };
        self.seen = moved;
        if self.still == 0 {
            return 0;
        }
        if !self.outbound.is_filling() && !self.near_watched {
            self.near_watched = true;
            let name = Name { kind: kind::WATCH_NEAR, key: keys.flow };
            driver.submit(name.token(), Op::Watch { sock: self.near() });
        }
        if !self.inbound.is_filling() && !self.far_watched {
            self.far_watched = true;
            let name = Name { kind: kind::WATCH_FAR, key: keys.far };
            driver.submit(name.token(), Op::Watch { sock: self.far() });
        }
        self.still
    }

    /// To be called as often; tells which end has vanished.
    pub fn look_at_paths<D: Driver>(
        &mut self,
        driver: &D,
        limit: &PathLimit,
        now: Duration,
    ) -> Option<End> {
        let socks = [self.near(), self.far()];
        let [near, far] = &mut self.paths;
        let is_near_dead = near.is_dead(driver, socks[0], limit, now);
        let is_far_dead = far.is_dead(driver, socks[1], limit, now);
        match (is_near_dead, is_far_dead) {
            (true, _) => Some(End::Near),
            (_, true) => Some(End::Far),
            _ => None,
        }
    }
}

/// A watch's result: an orderly end of both directions is nothing new.
fn watched(end: End, outcome: &Outcome) -> Heard {
    match outcome {
        Outcome::Hangup(Some(fault)) => Heard::Failed(end, *fault),
        _ => Heard::Nothing,
    }
}
