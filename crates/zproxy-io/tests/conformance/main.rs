//! The conformance suite: what every driver must do, on real loopback sockets.
//!
//! A case is a function over [`support::Kit`]; `conformance!` makes one test of it per driver. The
//! far ends are plain `std::net` sockets which the case drives itself. No case sleeps to
//! synchronise, and each gives up when nothing has happened for ten seconds.
//!
//! With the feature `sim`, which testing the whole workspace has, the cases without threads run on the
//! simulated driver too, with simulated far ends: what it does must be what the kernel does.

#[macro_use]
mod support;

mod accept;
mod between;
mod closing;
mod connect;
mod descriptors;
mod differential;
mod doorbell;
mod endings;
mod far_end;
mod handover;
mod pressure;
mod pump;
mod queue;
mod stream;
mod tail;
mod urgent;
