//! What the control core and the data cores tell each other. Neither bytes of flows nor their ends do this.

use zproxy_io::Driver;
use zproxy_ops::signals::Wish;
use zproxy_proto::id::{ProxyId, TunnelId};

/// A session of a client, numbered by the control core; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionNo(pub(crate) u64);

impl std::fmt::Display for SessionNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// From the control core to a data core.
pub(crate) enum Tell<D: Driver> {
    /// A session has begun; its ctl_conn is up.
    Session { session: SessionNo, client: String },
    /// The session's ctl_conn is lost; no proxy_conns can be asked for.
    CtlLost { session: SessionNo },
    /// The session goes on over another ctl_conn.
    CtlBack { session: SessionNo },
    /// The client is stopping: nobody is given to it any more, and its idle proxy_conns are closed.
    Parting { session: SessionNo },
    /// The session is over: its flows are reset, its proxy_conns and listeners closed.
    SessionOver { session: SessionNo },
    /// Serve a tunnel with this listener.
    Tunnel { session: SessionNo, tunnel: TunnelId, name: String, listener: D::Handle },
    /// Stop serving a tunnel; its flows go on.
    TunnelOver { tunnel: TunnelId },
    /// An authenticated proxy_conn.
    Conn { session: SessionNo, proxy: ProxyId, handle: D::Handle },
    /// An authenticated lane to the client's data core in its name.
    Lane { session: SessionNo, name: ProxyId, handle: D::Handle },
    /// The gateway is out of descriptors: idle proxy_conns give some back.
    Short,
    /// No new public connections; report what is left until nothing is.
    Drain,
    /// Log what was counted.
    Stats,
    /// End now.
    Stop,
}

/// From a data core to the control core.
pub(crate) enum Report {
    /// Ask the client for so many proxy_conns for this data core.
    Want { session: SessionNo, core: u16, count: u16 },
    /// This data core serves the tunnel, and no older listener of its is open any more: whoever
    /// connects from now on is served by the tunnel.
    Serving { tunnel: TunnelId },
    /// An accept found no descriptor. Those that idle on other data cores are wanted too.
    Short,
    /// While draining: public connections left on this data core.
    Left { core: u16, publics: usize },
    /// The data core has ended; without an error when it was told to.
    Ended { core: u16, error: Option<String> },
    /// The operator asks for something.
    Asked(Wish),
}
