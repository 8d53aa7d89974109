//! The bell that wakes a driver: an eventfd that any thread may ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::sys;

/// Wakes one driver from any thread. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell {
    event: Arc<OwnedFd>,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(sys::eventfd()?) })
    }

    /// Makes the driver's next or present `wait` return [`crate::Outcome::Rung`]. Rings that come
    /// before the driver answers are one ring.
    pub fn ring(&self) {
        // The only failure of an 8-byte write to a non-blocking eventfd is a full counter, and then
        // the bell is already ringing.
        let _ = sys::write(self.event.as_raw_fd(), &1u64.to_ne_bytes());
    }

    /// Silences the bell; the driver calls this when it has heard it.
    pub(crate) fn hush(&self) {
        let mut count = [0u8; 8];
        let _ = sys::read(self.event.as_raw_fd(), &mut count);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
