//! Each proxy id is accepted once: an overheard `Attach` is worth nothing.
//!
//! Serials of one client data core arrive nearly in order, so the newest [`REPLAY_WINDOW`] of them
//! are remembered as bits; older ones are refused.

use std::collections::BTreeMap;

use crate::id::ProxyId;
use crate::limits::{DATA_CORES_MAX, REPLAY_WINDOW};

const WORDS: usize = REPLAY_WINDOW / 64;

/// The serials seen from one client data core.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the highest serial seen.
    next: u64,
    /// Bit `serial % REPLAY_WINDOW` is set when that serial of the window was seen.
    seen: Box<[u64; WORDS]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: Box::new([0; WORDS]) }
    }
}

impl ReplayWindow {
    /// Whether `serial` is new; it is remembered.
    pub fn accept(&mut self, serial: u32) -> bool {
        let serial = u64::from(serial);
        if serial >= self.next {
            self.advance(serial);
        } else if self.next - serial > REPLAY_WINDOW as u64 {
            return false;
        }
        let (word, bit) = place(serial);
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    /// Makes `serial` the highest of the window and forgets what falls out of it.
    fn advance(&mut self, serial: u64) {
        if serial - self.next >= REPLAY_WINDOW as u64 {
            self.seen.fill(0);
        } else {
            for skipped in self.next..=serial {
                let (word, bit) = place(skipped);
                self.seen[word] &= !bit;
            }
        }
        self.next = serial + 1;
    }
}

fn place(serial: u64) -> (usize, u64) {
    let index = (serial % REPLAY_WINDOW as u64) as usize;
    (index / 64, 1 << (index % 64))
}

/// The windows of one session, one per client data core that has attached anything.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    windows: BTreeMap<u16, ReplayWindow>,
}

impl Replay {
    /// No proxy id seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `proxy` is new in this session; it is remembered. Ask only after its MAC has proved
    /// genuine, or anybody could use serials up.
    pub fn accept(&mut self, proxy: ProxyId) -> bool {
        proxy.client_core() < DATA_CORES_MAX
            && self.windows.entry(proxy.client_core()).or_default().accept(proxy.serial())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A serial is accepted once, in any order within the window.
    #[test]
    fn each_serial_once() {
        let mut window = ReplayWindow::default();
        for serial in [5, 3, 4, 0, 9, 8] {
            assert!(window.accept(serial));
        }
        for serial in [5, 3, 4, 0, 9, 8] {
            assert!(!window.accept(serial));
        }
        assert!(window.accept(1));
    }

    /// The window slides: its oldest serial still counts, the one before is refused, and bits of
    /// forgotten serials do not stand for new ones.
    #[test]
    fn the_window_slides() {
        let width = REPLAY_WINDOW as u32;
        let mut window = ReplayWindow::default();
        for serial in 0..width {
            assert!(window.accept(serial));
        }
        assert!(window.accept(width + 10));
        assert!(!window.accept(10), "fell out of the window");
        assert!(!window.accept(11), "was seen");
        for serial in width..width + 10 {
            assert!(window.accept(serial), "{serial} was skipped, never seen");
        }
        assert!(window.accept(u32::MAX));
        assert!(!window.accept(u32::MAX));
        assert!(!window.accept(width + 11));
        assert!(window.accept(u32::MAX - width + 1));
        assert!(!window.accept(u32::MAX - width));
    }

    /// A model with a plain set agrees, for a random walk.
    #[test]
    fn agrees_with_a_set() {
        let mut window = ReplayWindow::default();
        let mut seen = std::collections::HashSet::new();
        let (mut state, mut highest) = (1u64, 0u32);
        for _ in 0..100_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let serial = (highest + 40).saturating_sub((state >> 33) as u32 % 9000);
            let in_window = seen.is_empty() || serial + REPLAY_WINDOW as u32 > highest;
            assert_eq!(window.accept(serial), in_window && seen.insert(serial), "{serial}");
            highest = highest.max(serial);
        }
    }

    /// Cores have windows of their own, whatever gateway core they attach to.
    #[test]
    fn per_client_core() {
        let mut replay = Replay::new();
        assert!(replay.accept(ProxyId::new(0, 0, 1)));
        assert!(!replay.accept(ProxyId::new(1, 0, 1)));
        assert!(replay.accept(ProxyId::new(0, 1, 1)));
        assert!(!replay.accept(ProxyId::new(0, DATA_CORES_MAX, 1)));
    }
}
