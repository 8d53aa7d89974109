//! Which path the bytes of one direction take, decided per socket and per moment.
//!
//! Small messages are cheapest received by the ring itself, into a small buffer that the kernel
//! picks; messages of some KiB into a large buffer that is still in the cache; a stream that fills
//! its rounds is cheapest spliced through a pipe. So a direction begins with the smallest path of its
//! driver, takes the next larger one when a fill takes a whole buffer, and goes back when its fills
//! have been small several times in a row. How a fill waits has two forms too, on the ring: by itself,
//! or, in a conversation, by the standing poll of its socket.

/// Which path the driver may choose (`--relay`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayMode {
    /// Per direction and per moment.
    #[default]
    Auto,
    /// Always through a pipe.
    Splice,
    /// Always through a buffer.
    Copy,
}

/// A path, from the smallest up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A receive on the ring into a small buffer of its group, then send. Only the ring has it.
    Receive,
    /// recv into a large buffer, then send.
    Copy,
    /// Splice into a pipe, then out of it.
    Splice,
}

/// A spliced fill below this many bytes is small: copying it would have cost about the same.
const SMALL_SPLICE: usize = 16 << 10;
/// A copied fill of up to this many bytes is small: half of what the smallest path can take, so that
/// messages of one size do not change the path to and fro.
const SMALL_COPY: usize = 2 << 10;
/// So many small fills in a row lead back. One alone says little: a fast sink empties a stream at
/// any moment.
const SMALL_FILLS_MAX: u8 = 4;

/// So many small fills of a socket are asked for one by one; then it is a conversation, and one
/// standing poll for all that are to come is cheaper. A flow of one request and one answer never gets
/// there.
const FILLS_MAX: u8 = 3;

/// The state of one source socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    mode: RelayMode,
    smallest: Path,
    path: Path,
    small_fills: u8,
    /// Fills since the path was last changed.
    fills: u8,
}

impl Policy {
    /// The policy of a socket whose driver has no smaller path than `smallest`.
    pub(crate) fn new(mode: RelayMode, smallest: Path) -> Self {
        let smallest = if mode == RelayMode::Splice { Path::Splice } else { smallest };
        Self { mode, smallest, path: smallest, small_fills: 0, fills: 0 }
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Whether a pipe must be used wherever one can be had.
    pub(crate) fn is_splice_only(&self) -> bool {
        self.mode == RelayMode::Splice
    }

    /// Another fill begins on the socket, and will most likely wait.
    pub(crate) fn note_fill(&mut self) {
        self.fills = self.fills.saturating_add(1);
    }

    /// Whether a standing poll of the socket pays.
    pub(crate) fn is_conversation(&self) -> bool {
        self.fills > FILLS_MAX
    }

    /// A fill took `count` bytes into a buffer of `space` bytes.
    pub(crate) fn note_copied(&mut self, count: usize, space: usize) {
        let is_full = count == space;
        match self.path {
            Path::Receive if is_full => self.change(Path::Copy),
            Path::Copy if is_full && self.mode == RelayMode::Auto => self.change(Path::Splice),
            Path::Copy => self.note_small(count <= SMALL_COPY, self.smallest),
            Path::Receive | Path::Splice => {}
        }
    }

    /// A fill spliced `count` bytes.
    pub(crate) fn note_spliced(&mut self, count: usize) {
        if self.mode == RelayMode::Auto {
            self.note_small(count < SMALL_SPLICE, Path::Copy);
        }
    }

    fn note_small(&mut self, is_small: bool, smaller: Path) {
        self.small_fills = if is_small { self.small_fills + 1 } else { 0 };
        if self.small_fills >= SMALL_FILLS_MAX {
            self.change(smaller);
        }
    }

    fn change(&mut self, path: Path) {
        self.path = path;
        self.small_fills = 0;
        self.fills = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full buffer leads to the next larger path, and four small fills in a row back.
    #[test]
    fn up_at_once_and_down_slowly() {
        let mut policy = Policy::new(RelayMode::Auto, Path::Receive);
        policy.note_copied(4095, 4096);
        assert_eq!(policy.path(), Path::Receive);
        policy.note_copied(4096, 4096);
        assert_eq!(policy.path(), Path::Copy);
        policy.note_copied(65536, 65536);
        assert_eq!(policy.path(), Path::Splice);
        for count in [1, 1, 1, 1 << 20, 1, 1, 1] {
            policy.note_spliced(count);
            assert_eq!(policy.path(), Path::Splice);
        }
        policy.note_spliced(1);
        assert_eq!(policy.path(), Path::Copy);
        for count in [64, 64, 64, 4096, 64, 64, 64] {
            policy.note_copied(count, 65536);
            assert_eq!(policy.path(), Path::Copy);
        }
        policy.note_copied(64, 65536);
        assert_eq!(policy.path(), Path::Receive);
    }

    /// The fourth fill makes a conversation, and a change of the path ends it.
    #[test]
    fn conversations() {
        let mut policy = Policy::new(RelayMode::Auto, Path::Receive);
        let fills = [false, false, false, true, true].map(|is_conversation| {
            policy.note_fill();
            policy.is_conversation() == is_conversation
        });
        assert_eq!(fills, [true; 5]);
        policy.note_copied(4096, 4096);
        assert!(!policy.is_conversation());
    }

    /// A driver without the smallest path never takes it, and a forced path is never left.
    #[test]
    fn bounds() {
        let mut epoll = Policy::new(RelayMode::Auto, Path::Copy);
        let mut copy = Policy::new(RelayMode::Copy, Path::Receive);
        let mut splice = Policy::new(RelayMode::Splice, Path::Receive);
        copy.note_copied(4096, 4096);
        for _ in 0..9 {
            epoll.note_copied(1, 65536);
            copy.note_copied(65536, 65536);
            splice.note_spliced(1);
            splice.note_copied(1, 65536);
        }
        let paths = [epoll, copy, splice].map(|policy| policy.path());
        assert_eq!(paths, [Path::Copy, Path::Copy, Path::Splice]);
    }
}
