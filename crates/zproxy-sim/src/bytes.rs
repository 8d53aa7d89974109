//! Bytes that know their place: byte `k` of flow `f` in direction `d` is a function of all three, so a
//! lost, repeated or foreign byte is seen at once.

/// A direction of a flow, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the visitor to the service.
    Up,
    /// From the service to the visitor.
    Down,
}

/// Bytes at the front of the way up that tell the flow's number.
pub(crate) const HEAD_SIZE: u64 = 8;
const HEAD_MARK: u32 = 0xF10B_A5E5;

/// What a stream carries from `offset` on.
pub(crate) fn pattern(flow: u32, way: Way, offset: u64, out: &mut [u8]) {
    let mut at = offset;
    let mut out = out;
    while !out.is_empty() {
        let word = word(flow, way, at / 8).to_le_bytes();
        let from = (at % 8) as usize;
        let count = out.len().min(8 - from);
        out[..count].copy_from_slice(&word[from..from + count]);
        out = &mut out[count..];
        at += count as u64;
    }
}

fn word(flow: u32, way: Way, index: u64) -> u64 {
    if way == Way::Up && index == 0 {
        return u64::from(HEAD_MARK ^ flow) << 32 | u64::from(flow);
    }
    let stream = u64::from(flow) << 1 | u64::from(way == Way::Down);
    let mut word = (index ^ stream.rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word ^ (word >> 32)
}

/// The flow that a head names; none: it is no head.
pub(crate) fn flow_of(head: [u8; HEAD_SIZE as usize]) -> Option<u32> {
    let word = u64::from_le_bytes(head);
    let flow = (word & u64::from(u32::MAX)) as u32;
    ((word >> 32) as u32 == HEAD_MARK ^ flow).then_some(flow)
}

/// The first of `bytes` that is not what the stream has there.
pub(crate) fn first_wrong(flow: u32, way: Way, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut wanted = vec![0; bytes.len()];
    pattern(flow, way, offset, &mut wanted);
    let wrong = bytes.iter().zip(&wanted).position(|(have, want)| have != want)?;
    Some(offset + wrong as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head names its flow, and streams differ from each other.
    #[test]
    fn streams_are_told_apart() {
        let take = |flow, way, offset| {
            let mut out = [0; 8];
            pattern(flow, way, offset, &mut out);
            out
        };
        assert_eq!(flow_of(take(77, Way::Up, 0)), Some(77));
        assert_eq!(flow_of(take(77, Way::Down, 0)), None);
        assert_ne!(take(77, Way::Up, 64), take(78, Way::Up, 64));
        assert_ne!(take(77, Way::Up, 64), take(77, Way::Down, 64));
        let mut bytes = take(77, Way::Up, 61);
        assert_eq!(first_wrong(77, Way::Up, 61, &bytes), None);
        bytes[5] ^= 1;
        assert_eq!(first_wrong(77, Way::Up, 61, &bytes), Some(66));
    }
}
