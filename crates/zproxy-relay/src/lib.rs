//! How bytes move, above the driver seam and below the programs.
//!
//! A [`Pump`] is one direction of a flow on one side; a [`Flow`] is two of them between a near end
//! (public or local conn) and a far end (proxy_conn, or the other conn of a one-hop forward).
//! [`Slots`] and [`Name`] give operations their tokens, a [`Mailbox`] carries messages between
//! threads. Nothing here knows the protocol.

#![forbid(unsafe_code)]

mod arrivals;
mod flow;
mod line;
mod mailbox;
mod path;
mod pump;
mod shortage;
mod slots;

pub use arrivals::{Arrival, Arrivals, Board, Seen};
pub use flow::{Direction, End, Flow, Heard, Keys, kind};
pub use line::Line;
pub use mailbox::{Mailbox, Sender};
pub use path::{Path, PathLimit};
pub use pump::{Pump, Side, Step};
pub use shortage::{SMALL_PIPES, Shortage, SmallPipes};
pub use slots::{Key, Name, Slots};
