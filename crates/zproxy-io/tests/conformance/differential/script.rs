//! Random steps. A script does not know what is possible at a moment; the player leaves out what is
//! not, and since that depends on nothing that drivers decide, all players leave out the same.

use crate::support::bytes::Random;

/// Connections in play, at most.
pub(super) const ENDS: usize = 5;

/// The number of a connection.
pub(super) type Number = usize;

/// One thing that is done with a connection or two.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// A new connection in this place, accepted by the driver or made by it.
    Open {
        at: Number,
        accept: bool,
    },
    /// A connection to a port on which nobody listens.
    Refused,
    FarWrites {
        at: Number,
        count: u64,
    },
    FarReads {
        at: Number,
        count: u64,
    },
    FarUrgent {
        at: Number,
    },
    FarEnds {
        at: Number,
    },
    FarResets {
        at: Number,
    },
    /// A receive of so many bytes, before or after they are there.
    Receive {
        at: Number,
        count: u64,
        early: bool,
    },
    Send {
        at: Number,
        count: u64,
    },
    /// A fill that finds nothing and stays.
    FillWaits {
        at: Number,
    },
    Watch {
        at: Number,
    },
    /// Fills and drains until everything that is there has been moved; the first bytes may be taken
    /// off before.
    Forward {
        from: Number,
        to: Number,
        head: u64,
        refill: bool,
    },
    /// Fills whose bytes nobody wants.
    Discard {
        at: Number,
    },
    /// Streams that flow at the same time. A slow reader begins when nothing moves any more.
    Stream {
        flows: [(Number, Number, u64); 2],
        both: bool,
        slow: bool,
    },
    ShutdownWrite {
        at: Number,
    },
    Close {
        at: Number,
        clean: bool,
    },
    /// To another name and back, as between two threads.
    HandOver {
        at: Number,
    },
}

/// The steps of one seed.
#[derive(Debug)]
pub(super) struct Script {
    steps: Vec<Step>,
}

impl Script {
    pub(super) fn new(seed: u64, len: usize) -> Self {
        let mut random = Random::new(seed);
        let opens = (0..ENDS).map(|at| Step::Open { at, accept: at != 3 });
        let mut steps: Vec<_> = opens.collect();
        steps.extend((0..len).map(|_| step(&mut random)));
        Self { steps }
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().copied()
    }
}

fn step(random: &mut Random) -> Step {
    let at = random.upto(ENDS) - 1;
    let to = random.upto(ENDS) - 1;
    let flag = random.upto(2) == 1;
    let count = match random.upto(4) {
        1 => random.upto(3),
        2 => random.upto(300),
        _ => random.upto(30_000),
    } as u64;
    match random.upto(40) {
        1..=3 => Step::Open { at, accept: flag },
        4 => Step::Refused,
        5..=10 => Step::FarWrites { at, count },
        11 | 12 => Step::FarReads { at, count },
        13 => Step::FarUrgent { at },
        14 | 15 => Step::FarEnds { at },
        16 => Step::FarResets { at },
        17..=19 => Step::Receive { at, count, early: flag },
        20..=22 => Step::Send { at, count: if flag { count } else { count * 60 } },
        23 | 24 => Step::FillWaits { at },
        25 | 26 => Step::Watch { at },
        27..=30 => {
            let head = if flag { 0 } else { random.upto(20) as u64 };
            Step::Forward { from: at, to, head, refill: random.upto(2) == 1 }
        }
        31 => Step::Discard { at },
        32..=35 => {
            let back = (to, at, random.upto(1_000_000) as u64);
            let flows = [(at, to, random.upto(3_000_000) as u64), back];
            Step::Stream { flows, both: flag, slow: random.upto(2) == 1 }
        }
        36 | 37 => Step::ShutdownWrite { at },
        38 | 39 => Step::Close { at, clean: flag },
        _ => Step::HandOver { at },
    }
}
