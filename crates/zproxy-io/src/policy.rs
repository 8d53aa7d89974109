//! Which path the bytes of one direction take, decided per socket and per moment.
//!
//! Small messages are cheapest copied through a buffer; a stream that fills its rounds is cheapest
//! spliced through a pipe. So a direction starts by copying, changes to splicing when a fill takes
//! a whole buffer, and changes back when its fills have been small several times in a row.

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

/// A path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// recv, then send.
    Copy,
    /// Splice into a pipe, then out of it.
    Splice,
}

/// A spliced fill below this many bytes is small: copying it would have cost about the same.
const SMALL_FILL: usize = 16 << 10;
/// So many small fills in a row end splicing. One alone says little: a fast sink empties a stream
/// at any moment.
const SMALL_FILLS_MAX: u8 = 4;

/// The state of one source socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    mode: RelayMode,
    path: Path,
    small_fills: u8,
}

impl Policy {
    pub(crate) fn new(mode: RelayMode) -> Self {
        let path = if mode == RelayMode::Splice { Path::Splice } else { Path::Copy };
        Self { mode, path, small_fills: 0 }
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Whether a pipe must be used wherever one can be had.
    pub(crate) fn is_splice_only(&self) -> bool {
        self.mode == RelayMode::Splice
    }

    /// A copied fill took `count` of `space` bytes.
    pub(crate) fn note_copied(&mut self, count: usize, space: usize) {
        if self.mode == RelayMode::Auto && count == space {
            self.path = Path::Splice;
            self.small_fills = 0;
        }
    }

    /// A spliced fill took `count` bytes.
    pub(crate) fn note_spliced(&mut self, count: usize) {
        if self.mode != RelayMode::Auto {
            return;
        }
        self.small_fills = if count < SMALL_FILL { self.small_fills + 1 } else { 0 };
        if self.small_fills >= SMALL_FILLS_MAX {
            self.path = Path::Copy;
            self.small_fills = 0;
        }
    }
}
