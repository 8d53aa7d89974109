//! The doors against a plain model: who stays, who makes room, and what is remembered.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use proptest::prelude::*;
use zproxy_proto::limits::{
    FAILURE_FORGIVEN, FAILURES_PER_ORIGIN_MAX, ORIGINS_MAX, STRANGERS_MAX, STRANGERS_PER_ORIGIN_MAX,
};
use zproxy_proto::strangers::{Left, Origin, Pass, Strangers};

/// What may happen at the doors, as numbers.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// So many come from an origin in one turn.
    Come {
        origin: u32,
        count: usize,
    },
    /// Of those there, the one at this place leaves.
    Leave {
        place: usize,
        known: bool,
    },
    Vouch {
        origin: u32,
    },
    Unvouch {
        place: usize,
    },
    /// The turn ends, and time passes.
    Turn {
        millis: u64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let origin = || prop_oneof![Just(0u32), 0..8u32, 8..20_000u32];
    prop_oneof![
        4 => (origin(), 1..700usize).prop_map(|(origin, count)| Event::Come { origin, count }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(place, known)| Event::Leave { place, known }),
        1 => origin().prop_map(|origin| Event::Vouch { origin }),
        1 => any::<usize>().prop_map(|place| Event::Unvouch { place }),
        3 => (0..400u64).prop_map(|millis| Event::Turn { millis }),
    ]
}

#[derive(Debug)]
struct There {
    origin: u32,
    pass: Pass,
}

/// The doors and what the model knows of them.
#[derive(Default)]
struct World {
    strangers: Strangers<u64>,
    there: BTreeMap<u64, There>,
    /// The names of those who are there, and since which turn, by origin.
    crowds: HashMap<u32, BTreeMap<u64, u64>>,
    vouching: Vec<u32>,
    /// When each failure of an origin happened.
    failures: HashMap<u32, Vec<Duration>>,
    turn: u64,
    next: u64,
    now: Duration,
}

impl World {
    fn leave(&mut self, name: u64, how: Left) {
        let there = self.there.remove(&name).expect("it is there");
        let crowd = self.crowds.get_mut(&there.origin).expect("it is there");
        crowd.remove(&name);
        if crowd.is_empty() {
            self.crowds.remove(&there.origin);
        }
        if how == Left::Failed {
            self.failures.entry(there.origin).or_default().push(self.now);
        }
        self.strangers.leave(there.pass, how, self.now);
    }

    fn come(&mut self, origin: u32, count: usize) {
        for _ in 0..count {
            if !self.strangers.admits(Origin::V4(origin), self.now) {
                let window = FAILURE_FORGIVEN * FAILURES_PER_ORIGIN_MAX;
                let recent = |at: &&Duration| **at + window > self.now;
                let failed =
                    self.failures.get(&origin).map_or(0, |all| all.iter().filter(recent).count());
                let is_crowded = self.there.len() > STRANGERS_MAX;
                // Nobody is kept out for what others did, but in a crowd beyond all measure.
                assert!(is_crowded || failed > 0, "{origin} was kept out for nothing");
                assert!(is_crowded || !self.vouching.contains(&origin));
                return;
            }
            let name = self.next;
            self.next += 1;
            let pass = self.strangers.enter(Origin::V4(origin), name, self.now);
            self.there.insert(name, There { origin, pass });
            self.crowds.entry(origin).or_default().insert(name, self.turn);
        }
    }

    fn end_turn(&mut self) {
        while let Some(name) = self.strangers.crowded_out() {
            let crowd = &self.crowds[&self.there[&name].origin];
            assert!(crowd[&name] < self.turn, "pushed out before it was listened to");
            let oldest = crowd.first_key_value().map(|(name, _)| *name);
            assert_eq!(oldest, Some(name), "not the oldest");
            assert!(crowd.len() > STRANGERS_PER_ORIGIN_MAX || self.there.len() > STRANGERS_MAX);
            let has_old = |crowd: &&BTreeMap<u64, u64>| {
                crowd.first_key_value().is_some_and(|(_, since)| *since < self.turn)
            };
            let largest = self.crowds.values().filter(has_old).map(BTreeMap::len).max();
            assert_eq!(largest, Some(crowd.len()), "a smaller crowd made room");
            self.leave(name, Left::Failed);
        }
        let since = self.crowds.values().flat_map(BTreeMap::values);
        assert!(since.filter(|since| **since < self.turn).count() <= STRANGERS_MAX);
        self.strangers.end_turn();
        self.turn += 1;
        let is_old = |crowd: &BTreeMap<u64, u64>| crowd.values().any(|since| *since < self.turn);
        let too_many = |crowd: &&BTreeMap<u64, u64>| crowd.len() > STRANGERS_PER_ORIGIN_MAX;
        let is_crowded = self.crowds.values().filter(too_many).any(is_old);
        assert_eq!(self.strangers.is_crowded(), is_crowded || self.there.len() > STRANGERS_MAX);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Come { origin, count } => self.come(origin, count),
            Event::Leave { place, known } => {
                let place = place % self.there.len().max(1);
                if let Some(name) = self.there.keys().nth(place).copied() {
                    self.leave(name, if known { Left::Known } else { Left::Failed });
                }
            }
            Event::Vouch { origin } => {
                self.vouching.push(origin);
                self.strangers.vouch(Origin::V4(origin));
            }
            Event::Unvouch { place } => {
                if !self.vouching.is_empty() {
                    let origin = self.vouching.swap_remove(place % self.vouching.len());
                    self.strangers.unvouch(Origin::V4(origin), self.now);
                }
            }
            Event::Turn { millis } => {
                self.end_turn();
                self.now += Duration::from_millis(millis);
            }
        }
        assert_eq!(self.strangers.len(), self.there.len());
        let most = ORIGINS_MAX + self.there.len() + self.vouching.len() + 1;
        assert!(self.strangers.origins_len() <= most);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes and goes: nobody is pushed out before it was listened to, nobody for a larger
    /// crowd than its own, nobody is locked out for nothing, and memory is bounded.
    #[test]
    fn the_doors_keep_their_rules(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::default();
        for event in events {
            world.happen(event);
        }
        // Once all have left and time has passed, nothing is remembered but who vouches.
        let names: Vec<u64> = world.there.keys().copied().collect();
        for name in names {
            world.leave(name, Left::Failed);
        }
        world.now += FAILURE_FORGIVEN * (FAILURES_PER_ORIGIN_MAX + 1);
        let probe = world.strangers.enter(Origin::Unknown, 0, world.now);
        world.strangers.leave(probe, Left::Known, world.now);
        world.vouching.sort_unstable();
        world.vouching.dedup();
        prop_assert_eq!(world.strangers.origins_len(), world.vouching.len());
    }
}
