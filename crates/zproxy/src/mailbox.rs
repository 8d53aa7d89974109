//! What the control thread and the data cores tell each other. Neither bytes of flows nor their ends do this.

use std::net::SocketAddr;

use zproxy_proto::id::TunnelId;
use zproxy_proto::wire::Attach;

use crate::resolver::Addresses;

/// From the control thread (or the resolver) to a data core.
#[derive(Debug)]
pub(crate) enum Tell {
    /// Dial a proxy_conn, if there are fewer without a flow than this.
    Dial { to: SocketAddr, attach: Attach, resting_max: usize },
    /// A `Start` with this id is for the tunnel of this number.
    Tunnel { id: TunnelId, number: usize },
    /// Dial a lane.
    DialLane { to: SocketAddr, attach: Attach },
    /// The ctl_conn is gone; what is not attached yet never will be.
    CtlLost,
    /// The session is over: its flows are reset and its proxy_conns closed.
    SessionOver,
    /// The resolver's answer for the tunnel of this number.
    Resolved { number: usize, addresses: Addresses },
    /// No new flows; report what is left.
    Drain,
    /// Log what was counted.
    Stats,
    /// Close everything and end.
    Stop,
}

/// To the control thread.
#[derive(Debug)]
pub(crate) enum Report {
    /// A lane to the gateway's data core was lost, or could not be made.
    LaneLost { core: usize, gateway_core: u16 },
    /// So many flows, and proxy_conns with and without one, are left on a data core that is draining.
    Left { core: usize, flows: usize, conns: usize },
    /// A data core has ended; not well when nobody had asked for it.
    Ended { core: usize, is_well: bool },
    /// The resolver's answer for the gateway's name, to the question of this number.
    Resolved { question: u64, addresses: Addresses },
    /// The operator asks what was counted.
    Stats,
    /// The operator asks to stop: finish, and at once when asked again.
    Stop,
}
