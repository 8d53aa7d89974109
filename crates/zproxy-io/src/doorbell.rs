//! The bell that wakes a driver: an eventfd that any thread may ring. In a simulation, a flag.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// Wakes one driver from any thread. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell {
    bell: Bell,
}

#[derive(Clone, Debug)]
enum Bell {
    Event(Arc<OwnedFd>),
    #[cfg(feature = "sim")]
    Flag(Arc<AtomicBool>),
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { bell: Bell::Event(Arc::new(sys::eventfd()?)) })
    }

    /// A bell that the simulated kernel looks at.
    #[cfg(feature = "sim")]
    pub(crate) fn of_flag(flag: Arc<AtomicBool>) -> Self {
        Self { bell: Bell::Flag(flag) }
    }

    /// Makes the driver's next or present `wait` return [`crate::Outcome::Rung`]. Rings that come
    /// before the driver answers are one ring.
    pub fn ring(&self) {
        match &self.bell {
            // The only failure of an 8-byte write to a non-blocking eventfd is a full counter, and
            // then the bell is already ringing.
            Bell::Event(event) => {
                let _ = sys::write(event.as_raw_fd(), &1u64.to_ne_bytes());
            }
            #[cfg(feature = "sim")]
            Bell::Flag(flag) => flag.store(true, Ordering::Release),
        }
    }

    /// Silences the bell; the driver calls this when it has heard it.
    pub(crate) fn hush(&self) {
        let mut count = [0u8; 8];
        let _ = sys::read(self.fd(), &mut count);
    }

    pub(crate) fn fd(&self) -> RawFd {
        match &self.bell {
            Bell::Event(event) => event.as_raw_fd(),
            #[cfg(feature = "sim")]
            Bell::Flag(_) => unreachable!("a simulated bell has no descriptor"),
        }
    }
}
