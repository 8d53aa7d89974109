//! What the cases share: kits, the world around a driver, far ends, pumps and bytes.

#[macro_use]
mod cases;
pub(crate) mod bytes;
pub(crate) mod far;
mod kit;
mod pump;
#[cfg(feature = "sim")]
mod simulated;
mod world;

pub(crate) use cases::alone;
pub(crate) use far::{Far, Meets};
pub(crate) use kit::{BusyEpollKit, BusyUringKit, EpollKit, Kit, UringKit, has_driver, judge};
pub(crate) use pump::{End, Pump, run_pumps};
#[cfg(feature = "sim")]
pub(crate) use simulated::SimKit;
pub(crate) use world::{PATIENCE, World};
