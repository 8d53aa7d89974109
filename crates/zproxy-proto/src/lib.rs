//! What ZProxy's two programs say to each other, as pure machines.
//!
//! Nothing here does I/O, reads a clock or draws a random number: bytes, the time (a [`Duration`]
//! since an arbitrary monotonic start, `now`) and randomness are arguments, and what to do is a
//! return value. Nothing a peer sends can panic or make anything here grow beyond [`limits`].
//!
//! * [`limits`]: every bound of the product.
//! * [`id`]: the names of clients, connections, flows and tunnels.
//! * [`wire`]: prefaces, frames and their decoder.
//! * [`auth`]: the shared token and what is derived from it.
//! * [`control`]: the two ends of a ctl_conn.
//! * [`lane`]: the ends of flows, told between two data cores.
//! * [`registry`]: who owns which session, tunnel and public port.
//! * [`proxy_conn`]: the idle ↔ data machine of one proxy_conn.
//! * [`pool`]: idle proxy_conns and waiting public conns of one client on one data core.
//! * [`replay`]: each proxy id is accepted once.
//! * [`backoff`]: when to dial again.
//! * [`strangers`]: who may stay at the gateway's doors without having said who it is.
//!
//! [`Duration`]: std::time::Duration
#![forbid(unsafe_code)]

pub mod auth;
pub mod backoff;
pub mod control;
mod hex;
pub mod id;
pub mod lane;
pub mod limits;
pub mod pool;
pub mod proxy_conn;
pub mod registry;
pub mod replay;
pub mod strangers;
pub mod wire;
