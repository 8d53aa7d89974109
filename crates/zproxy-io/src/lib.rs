//! How the kernel is asked.
//!
//! One seam, [`Driver`], stands between the machines above and the kernel below: operations shaped
//! like completions, one step above a system call. Two drivers implement it, [`Uring`] (one
//! io_uring per core) and [`Epoll`] (the reference), and one conformance suite judges both.
//!
//! This is the only crate of the workspace that may contain `unsafe`.

mod buf;
mod busy;
mod chunks;
mod doorbell;
mod driver;
mod epoll;
mod fault;
mod lease;
mod op;
mod pipe;
mod policy;
pub mod probe;
pub mod process;
#[cfg(feature = "sim")]
pub mod sim;
pub mod sock;
pub mod sys;
mod table;
mod uring;

pub use chunks::Chunks;
pub use doorbell::Doorbell;
pub use driver::{Driver, DriverConfig, DriverLost, FarEnd, ListenOptions, Open, Stats};
pub use epoll::Epoll;
pub use fault::Fault;
pub use lease::Lease;
pub use op::{Done, Ending, Op, Outcome, Sock, SourceNow, Token};
pub use policy::RelayMode;
pub use uring::{RingError, Uring};
