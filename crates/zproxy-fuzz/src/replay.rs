//! The window of proxy ids against a set that forgets nothing.

use std::collections::{BTreeMap, BTreeSet};

use zproxy_proto::id::ProxyId;
use zproxy_proto::limits::{DATA_CORES_MAX, REPLAY_WINDOW};
use zproxy_proto::replay::Replay;

use crate::input::Input;

/// An id is accepted exactly if it is new, not older than the window, and of a core that can be.
pub fn replay(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut replay = Replay::new();
    let mut seen: BTreeMap<u16, BTreeSet<u32>> = BTreeMap::new();
    while let Some(kind) = input.next_byte() {
        let client_core = match kind >> 6 {
            3 => input.word(),
            core => u16::from(core),
        };
        let known = seen.get(&client_core).and_then(|serials| serials.last().copied());
        let (newest, step) = (known.unwrap_or(0), u32::from(input.word()));
        let serial = match kind & 7 {
            0 => step,
            1 => u32::MAX - step,
            2 | 3 => newest.saturating_add(step),
            4 => newest.saturating_add(step << 16),
            5 => newest.saturating_sub(REPLAY_WINDOW as u32 - 2).saturating_add(step % 4),
            _ => newest.saturating_sub(step),
        };
        let proxy = ProxyId::new(u16::from(kind >> 3 & 7), client_core, serial);
        let is_recent =
            known.is_none_or(|newest| u64::from(serial) + REPLAY_WINDOW as u64 > u64::from(newest));
        let right = client_core < DATA_CORES_MAX
            && is_recent
            && seen.entry(client_core).or_default().insert(serial);
        assert_eq!(replay.accept(proxy), right, "{proxy}, newest {known:?}");
    }
}
