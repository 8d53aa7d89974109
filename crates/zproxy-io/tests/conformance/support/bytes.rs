//! Bytes that know their place, and small random numbers.

/// Byte `offset` of stream `seed`. Every byte depends on its place and its stream, so a lost,
/// repeated or foreign one is seen.
pub(crate) fn pattern(seed: u64, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut out = out;
    while !out.is_empty() {
        let word = mix(seed, at / 8).to_le_bytes();
        let from = (at % 8) as usize;
        let count = out.len().min(8 - from);
        out[..count].copy_from_slice(&word[from..from + count]);
        out = &mut out[count..];
        at += count as u64;
    }
}

pub(crate) fn patterned(seed: u64, offset: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    pattern(seed, offset, &mut bytes);
    bytes
}

/// Checks that `bytes` are what stream `seed` has from `offset` on.
#[track_caller]
pub(crate) fn check(seed: u64, offset: u64, bytes: &[u8]) {
    let wanted = patterned(seed, offset, bytes.len());
    if let Some(wrong) = bytes.iter().zip(&wanted).position(|(have, want)| have != want) {
        panic!("stream {seed}: byte {} is wrong", offset + wrong as u64);
    }
}

fn mix(seed: u64, index: u64) -> u64 {
    let mut word = (index ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word ^ (word >> 32)
}

/// A seeded generator. It prints its seed, which the harness shows when the case fails.
pub(crate) struct Random {
    state: u64,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        println!("random seed {seed}");
        Self { state: seed }
    }

    /// From 1 to `max`.
    pub(crate) fn upto(&mut self, max: usize) -> usize {
        self.state = self.state.wrapping_add(1);
        usize::try_from(mix(0x5EED, self.state) % max as u64).expect("below max") + 1
    }
}
