//! Bytes that know where they belong: byte *k* of a direction of a flow is a function of the flow,
//! the direction and *k*, so a lost, repeated or foreign byte is seen at once.
//!
//! A stream is one long rotation of a pseudo-random block of prime length, entered at a place that
//! depends on flow and direction. Checking it is a `memcmp`, fast enough for many gigabytes.

use std::sync::LazyLock;

/// The block's length in bytes: a prime, so that no power of two is a whole number of turns.
const BLOCK_SIZE: usize = 1_048_573;

/// Two turns of the block, so that any piece of at most one turn lies in one slice.
static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(0x5a50_5859);
    let mut block: Vec<u8> = (0..BLOCK_SIZE).map(|_| rng.byte()).collect();
    block.extend_from_within(..);
    block
});

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the public side to the local side.
    Up,
    /// From the local side to the public side.
    Down,
}

/// The bytes of one direction of one flow, from the first to the last.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    phase: u64,
}

impl Pattern {
    /// The pattern of that direction of that flow.
    #[must_use]
    pub fn new(flow: u64, direction: Direction) -> Self {
        let mut rng = Rng::new(flow.wrapping_mul(2).wrapping_add(direction as u64));
        Self { phase: rng.next() % BLOCK_SIZE as u64 }
    }

    /// At most `len` bytes beginning at `position` (fewer only when `len` exceeds one block).
    #[must_use]
    pub fn at(&self, position: u64, len: usize) -> &'static [u8] {
        let start = usize::try_from((position + self.phase) % BLOCK_SIZE as u64)
            .expect("smaller than the block");
        &BLOCK[start..start + len.min(BLOCK_SIZE)]
    }

    /// Compares received bytes with what belongs at `position`.
    ///
    /// # Errors
    /// The position of the first wrong byte.
    pub fn check(&self, mut position: u64, mut bytes: &[u8]) -> Result<(), u64> {
        while !bytes.is_empty() {
            let wanted = self.at(position, bytes.len());
            let (head, rest) = bytes.split_at(wanted.len());
            if head != wanted {
                let same = head.iter().zip(wanted).take_while(|(have, want)| have == want).count();
                return Err(position + same as u64);
            }
            position += head.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

/// A small seeded generator (splitmix64): the same seed gives the same test.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A generator with that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator whose seed is new for every run, printed, and set by `ZPROXY_TESTS_SEED`.
    ///
    /// # Panics
    /// When the variable is no number.
    #[must_use]
    pub fn seeded(what: &str) -> Self {
        let seed = match std::env::var("ZPROXY_TESTS_SEED") {
            Ok(seed) => seed.parse().expect("ZPROXY_TESTS_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| u64::from(since.subsec_nanos())),
        };
        eprintln!("{what}: ZPROXY_TESTS_SEED={seed}");
        Self::new(seed)
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "this is no iterator: it never ends")]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// A size for one write: mostly small, sometimes one byte, sometimes large.
    pub fn chunk(&mut self) -> usize {
        let bound = match self.below(4) {
            0 => 16,
            1 => 1_500,
            2 => 16_384,
            _ => 131_072,
        };
        usize::try_from(1 + self.below(bound)).expect("small")
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, Pattern};

    /// A piece of one flow is refused in another flow, the other direction, and any other place.
    #[test]
    fn foreign_bytes_are_seen() {
        let own = Pattern::new(7, Direction::Up);
        let piece = own.at(5_000_000_000, 4_096);
        assert_eq!(own.check(5_000_000_000, piece), Ok(()));
        assert!(own.check(5_000_000_001, piece).is_err());
        assert!(Pattern::new(7, Direction::Down).check(5_000_000_000, piece).is_err());
        assert!(Pattern::new(8, Direction::Up).check(5_000_000_000, piece).is_err());
    }

    /// The place of the first wrong byte is named exactly.
    #[test]
    fn the_first_wrong_byte_is_named() {
        let pattern = Pattern::new(1, Direction::Down);
        let mut bytes = pattern.at(100, 1_000).to_vec();
        bytes[321] ^= 1;
        assert_eq!(pattern.check(100, &bytes), Err(421));
    }
}
