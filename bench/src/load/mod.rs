//! The load: a LocalServer that plays every part, and clients that drive it through whatever is
//! measured.

pub(crate) mod bulk;
pub(crate) mod client;
mod driver;
mod poller;
pub(crate) mod server;
pub(crate) mod wire;
