//! Inputs without a fuzzer: seeds that are cut, joined and bent by a seeded generator. Far weaker
//! than coverage feedback, but the same on every machine, and enough to notice a target or a machine
//! that is plainly broken.

/// The longest input that is made.
const LEN_MAX: usize = 2_048;

/// Makes inputs. The same seed and corpus give the same inputs in the same order.
#[derive(Clone, Debug)]
pub struct Maker<'a> {
    corpus: &'a [Vec<u8>],
    state: u64,
}

impl<'a> Maker<'a> {
    /// From these seeds, of which there may be none.
    #[must_use]
    pub fn new(corpus: &'a [Vec<u8>], seed: u64) -> Self {
        Self { corpus, state: seed }
    }

    /// A number below `end` (0 when `end` is).
    fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        usize::try_from(word % (end.max(1) as u64)).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        const EDGES: [u8; 8] = [0, 1, 2, 3, 4, 8, 0x7f, 0xff];
        match self.below(4) {
            0 => EDGES[self.below(EDGES.len())],
            _ => self.below(256) as u8,
        }
    }

    fn seed(&mut self) -> &'a [u8] {
        let corpus: &'a [Vec<u8>] = self.corpus;
        match self.below(corpus.len()) {
            _ if corpus.is_empty() => &[],
            index => &corpus[index],
        }
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut bytes = match self.below(4) {
            0 => {
                let len = self.below(400);
                (0..len).map(|_| self.byte()).collect()
            }
            _ => self.seed().to_vec(),
        };
        for _ in 0..self.below(6) {
            self.bend(&mut bytes);
        }
        bytes.truncate(LEN_MAX);
        bytes
    }

    fn bend(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let end = (at + self.below(32)).min(bytes.len());
        match self.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.byte(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 => {
                let seed = self.seed();
                let from = self.below(seed.len() + 1);
                let count = self.below(64);
                let piece = seed[from..].iter().copied().take(count);
                bytes.splice(at..at, piece);
            }
            5 => bytes.truncate(at),
            _ => {
                let byte = self.byte();
                bytes.insert(at, byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same seed makes the same inputs, another makes others, and none is longer than it may be.
    #[test]
    fn inputs_are_repeatable() {
        let corpus = vec![b"one seed".to_vec(), vec![7; 3_000]];
        let make = |seed| {
            let mut maker = Maker::new(&corpus, seed);
            (0..200).map(|_| maker.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert!(make(1).iter().all(|input| input.len() <= LEN_MAX));
    }
}
