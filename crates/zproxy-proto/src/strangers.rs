//! Who may stay at the gateway's doors without having said who it is.
//!
//! A peer is a *stranger* from accept until it is authenticated. Strangers are counted by *origin*:
//! an IPv4 address, or the /64 of an IPv6 one, because that is what one machine can choose from.
//!
//! * Whoever came and proved nothing is a *failure* of its origin. An origin with too many failures
//!   is not let in until they are forgiven, unless a client with a session stands at the same
//!   address and vouches for it: behind one NAT, one bad machine must not lock out the others.
//! * When there are too many strangers, of one origin or in all, the oldest of the origin that has
//!   the most makes room. An honest peer is done within a round trip or two, so it is among the
//!   youngest; and however many one origin sends, they push out each other.
//! * Nobody makes room before the turn after the one in which it came: what it has sent already is
//!   read by then. Thousands of honest peers may stand in the accept queue at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::limits::{
    FAILURE_FORGIVEN, FAILURES_PER_ORIGIN_MAX, ORIGINS_MAX, STRANGERS_AT_ONCE_MAX, STRANGERS_MAX,
    STRANGERS_PER_ORIGIN_MAX,
};

/// Where strangers come from, as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// An IPv4 address, also one that came mapped into IPv6.
    V4(u32),
    /// The upper half of an IPv6 address.
    V6(u64),
    /// The kernel did not say.
    Unknown,
}

impl From<Option<IpAddr>> for Origin {
    fn from(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(v4)) => Self::V4(v4.into()),
            Some(IpAddr::V6(v6)) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::V6([a, b, c, d].iter().fold(0, |all, &part| all << 16 | u64::from(part)))
            }
            None => Self::Unknown,
        }
    }
}

/// A stranger's right to be there, to be given back with [`Strangers::leave`].
#[derive(Debug)]
#[must_use = "a stranger is counted until its pass is given back"]
pub struct Pass {
    origin: Origin,
    serial: u64,
}

/// How somebody stopped being a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It has proved who it is.
    Known,
    /// It has left, or was sent away.
    Failed,
}

/// See the module. `K` is the owner's name for a stranger.
#[derive(Clone, Debug)]
pub struct Strangers<K> {
    origins: HashMap<Origin, Entry<K>>,
    /// Origins that have strangers, the most crowded last; of two, the one whose oldest is older.
    crowds: BTreeSet<(usize, Reverse<u64>, Origin)>,
    /// Origins that are known for their failures only, and when these are forgiven.
    resting: BTreeSet<(Duration, Origin)>,
    len: usize,
    next_serial: u64,
    /// Strangers with a smaller serial have been there for a whole turn.
    turn_began: u64,
}

#[derive(Clone, Debug)]
struct Entry<K> {
    /// By serial, so the oldest is the first.
    strangers: BTreeMap<u64, K>,
    /// Every failure so far is forgiven then.
    forgiven_at: Duration,
    vouchers: u32,
}

impl<K> Default for Entry<K> {
    fn default() -> Self {
        Self { strangers: BTreeMap::new(), forgiven_at: Duration::ZERO, vouchers: 0 }
    }
}

impl<K> Entry<K> {
    fn crowd(&self, origin: Origin) -> Option<(usize, Reverse<u64>, Origin)> {
        let (oldest, _) = self.strangers.first_key_value()?;
        Some((self.strangers.len(), Reverse(*oldest), origin))
    }

    fn is_resting(&self) -> bool {
        self.strangers.is_empty() && self.vouchers == 0
    }
}

impl<K> Default for Strangers<K> {
    fn default() -> Self {
        Self {
            origins: HashMap::new(),
            crowds: BTreeSet::new(),
            resting: BTreeSet::new(),
            len: 0,
            next_serial: 0,
            turn_began: 0,
        }
    }
}

impl<K: Copy> Strangers<K> {
    /// Nobody is there.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Strangers that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Origins that are remembered, for whatever reason.
    #[must_use]
    pub fn origins_len(&self) -> usize {
        self.origins.len()
    }

    /// Whether another stranger from there may come in.
    #[must_use]
    pub fn admits(&self, origin: Origin, now: Duration) -> bool {
        if self.len >= STRANGERS_AT_ONCE_MAX {
            return false;
        }
        let Some(entry) = self.origins.get(&origin) else { return true };
        entry.vouchers > 0
            || entry.forgiven_at <= now + FAILURE_FORGIVEN * (FAILURES_PER_ORIGIN_MAX - 1)
    }

    /// Counts a stranger in. Ask [`Self::admits`] first.
    pub fn enter(&mut self, origin: Origin, name: K, now: Duration) -> Pass {
        self.forgive(now);
        let serial = self.next_serial;
        self.next_serial += 1;
        self.len += 1;
        self.change(origin, |entry| {
            entry.strangers.insert(serial, name);
        });
        Pass { origin, serial }
    }

    /// Counts a stranger out.
    pub fn leave(&mut self, pass: Pass, how: Left, now: Duration) {
        let Pass { origin, serial } = pass;
        self.len -= 1;
        self.change(origin, |entry| {
            let found = entry.strangers.remove(&serial);
            assert!(found.is_some(), "a pass is given back once");
            if how == Left::Failed {
                let most = now + FAILURE_FORGIVEN * FAILURES_PER_ORIGIN_MAX;
                entry.forgiven_at = (entry.forgiven_at.max(now) + FAILURE_FORGIVEN).min(most);
            }
        });
        self.forgive(now);
    }

    /// A client with a session stands there.
    pub fn vouch(&mut self, origin: Origin) {
        self.change(origin, |entry| entry.vouchers += 1);
    }

    /// One that vouched is gone.
    pub fn unvouch(&mut self, origin: Origin, now: Duration) {
        self.change(origin, |entry| {
            assert!(entry.vouchers > 0, "who leaves has come");
            entry.vouchers -= 1;
        });
        self.forgive(now);
    }

    /// Whether somebody will have to make room when the next turn ends: take it soon.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let largest = self.crowds.last().map_or(0, |(count, ..)| *count);
        self.len > STRANGERS_MAX || largest > STRANGERS_PER_ORIGIN_MAX
    }

    /// The stranger that must make room, if one must. It has to leave before this is asked again.
    #[must_use]
    pub fn crowded_out(&self) -> Option<K> {
        for (count, Reverse(oldest), origin) in self.crowds.iter().rev() {
            // What follows is smaller.
            if self.len <= STRANGERS_MAX && *count <= STRANGERS_PER_ORIGIN_MAX {
                return None;
            }
            if *oldest < self.turn_began {
                return self.origins.get(origin)?.strangers.get(oldest).copied();
            }
        }
        None
    }

    /// Everybody who is there now has been listened to when the next turn ends.
    pub fn end_turn(&mut self) {
        self.turn_began = self.next_serial;
    }

    /// Changes one origin, and where it stands in the orders.
    fn change(&mut self, origin: Origin, change: impl FnOnce(&mut Entry<K>)) {
        let entry = self.origins.entry(origin).or_default();
        if let Some(crowd) = entry.crowd(origin) {
            self.crowds.remove(&crowd);
        } else {
            self.resting.remove(&(entry.forgiven_at, origin));
        }
        change(entry);
        if let Some(crowd) = entry.crowd(origin) {
            self.crowds.insert(crowd);
        } else if entry.is_resting() {
            self.resting.insert((entry.forgiven_at, origin));
        }
    }

    /// Forgets origins whose failures are forgiven, and beyond the limit those with the fewest.
    fn forgive(&mut self, now: Duration) {
        while let Some((forgiven_at, origin)) = self.resting.first().copied()
            && (forgiven_at <= now || self.resting.len() > ORIGINS_MAX)
        {
            self.resting.pop_first();
            self.origins.remove(&origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn v4(number: u32) -> Origin {
        Origin::V4(number)
    }

    fn fail(strangers: &mut Strangers<u32>, origin: Origin, times: u32, now: Duration) {
        for _ in 0..times {
            assert!(strangers.admits(origin, now));
            let pass = strangers.enter(origin, 0, now);
            strangers.leave(pass, Left::Failed, now);
        }
    }

    /// A /64 is one origin, IPv4 is told apart by address, and mapped addresses are IPv4.
    #[test]
    fn origins() {
        let of = |text: &str| Origin::from(Some(text.parse::<IpAddr>().unwrap()));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(Origin::from(None), Origin::Unknown);
    }

    /// An origin that fails too often is not let in, others are, and it is again with time.
    #[test]
    fn failures_are_held_against_their_origin_for_a_while() {
        let mut strangers = Strangers::new();
        fail(&mut strangers, v4(1), FAILURES_PER_ORIGIN_MAX, NOW);
        assert!(!strangers.admits(v4(1), NOW));
        assert!(strangers.admits(v4(2), NOW));
        let later = NOW + FAILURE_FORGIVEN;
        assert!(strangers.admits(v4(1), later));
        fail(&mut strangers, v4(1), 1, later);
        assert!(!strangers.admits(v4(1), later));
        let much_later = later + FAILURE_FORGIVEN * FAILURES_PER_ORIGIN_MAX;
        fail(&mut strangers, v4(2), 1, much_later);
        assert_eq!(strangers.origins_len(), 1, "what is forgiven is forgotten");
        fail(&mut strangers, v4(1), FAILURES_PER_ORIGIN_MAX, much_later);
    }

    /// Who proves itself costs its origin nothing, however many do.
    #[test]
    fn success_costs_nothing() {
        let mut strangers = Strangers::new();
        for _ in 0..100_000 {
            assert!(strangers.admits(v4(1), NOW));
            let pass = strangers.enter(v4(1), 0, NOW);
            strangers.leave(pass, Left::Known, NOW);
        }
        assert_eq!(strangers.origins_len(), 0);
    }

    /// Where a client has a session, its neighbours' failures lock nobody out.
    #[test]
    fn a_client_vouches_for_its_address() {
        let mut strangers = Strangers::new();
        strangers.vouch(v4(1));
        fail(&mut strangers, v4(1), 10 * FAILURES_PER_ORIGIN_MAX, NOW);
        assert!(strangers.admits(v4(1), NOW));
        strangers.unvouch(v4(1), NOW);
        assert!(!strangers.admits(v4(1), NOW));
    }

    /// One origin's strangers push out each other, the oldest first, and never another origin's.
    #[test]
    fn a_crowd_pushes_out_itself() {
        let mut strangers = Strangers::new();
        let honest = strangers.enter(v4(9), 9, NOW);
        strangers.end_turn();
        let numbers = 100..100 + STRANGERS_PER_ORIGIN_MAX as u32 + 3;
        let mut passes: Vec<_> =
            numbers.map(|number| Some(strangers.enter(v4(1), number, NOW))).collect();
        assert_eq!(strangers.crowded_out(), None, "nobody before it was listened to");
        assert!(strangers.is_crowded());
        strangers.end_turn();
        for (number, place) in (100..103).zip(&mut passes) {
            assert_eq!(strangers.crowded_out(), Some(number));
            strangers.leave(place.take().unwrap(), Left::Failed, NOW);
        }
        assert_eq!(strangers.crowded_out(), None);
        assert!(!strangers.is_crowded());
        strangers.leave(honest, Left::Known, NOW);
    }

    /// When the whole place is full, the most crowded origin makes room, and among equals the one
    /// that has been there longest.
    #[test]
    fn the_most_crowded_makes_room() {
        let mut strangers = Strangers::new();
        let mut passes = BTreeMap::new();
        for number in 0..STRANGERS_MAX as u32 - 1 {
            passes.insert(number, strangers.enter(v4(1000 - number % 1000), number, NOW));
        }
        let number = 5_000;
        passes.insert(number, strangers.enter(v4(5_000), number, NOW));
        strangers.end_turn();
        assert_eq!(strangers.crowded_out(), None);
        let number = 6_000;
        passes.insert(number, strangers.enter(v4(6_000), number, NOW));
        let first = strangers.crowded_out().unwrap();
        assert_eq!(first, 0, "of the origins with two, the one whose first came first");
        strangers.leave(passes.remove(&first).unwrap(), Left::Failed, NOW);
        assert_eq!(strangers.crowded_out(), None);
    }

    /// What is remembered of origins is bounded; those with the fewest failures are forgotten first.
    #[test]
    fn memory_is_bounded() {
        let mut strangers = Strangers::new();
        fail(&mut strangers, v4(7), FAILURES_PER_ORIGIN_MAX, NOW);
        for number in 0..2 * ORIGINS_MAX as u32 {
            fail(&mut strangers, v4(1_000 + number), 1, NOW);
        }
        assert!(strangers.origins_len() <= ORIGINS_MAX + 1, "{}", strangers.origins_len());
        assert!(!strangers.admits(v4(7), NOW));
        let mut passes = Vec::new();
        while strangers.admits(Origin::Unknown, NOW) {
            passes.push(strangers.enter(Origin::Unknown, 0, NOW));
        }
        assert_eq!(strangers.len(), STRANGERS_AT_ONCE_MAX);
    }
}
