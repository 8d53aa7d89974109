//! What the flows of both commands have in common: limits of time, looks, and the line at the end.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::info;
use zproxy_io::Fault;
use zproxy_proto::proxy_conn::Why;
use zproxy_proto::wire::AbortCode;
use zproxy_relay::PathLimit;

use crate::dial::DialFault;

/// How often flows are looked at, unless a limit of time asks for more.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Limits of time for flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowLimits {
    /// From the moment a flow is wanted until its dial has succeeded.
    pub(crate) connect: Duration,
    /// In which nothing moves; none: any.
    pub(crate) idle: Option<Duration>,
    /// In which nothing moves while one direction has ended; none: any.
    pub(crate) half_close: Option<Duration>,
    /// In which an end owes an acknowledgement.
    pub(crate) path: PathLimit,
}

/// When to look at flows: about once a second while there are any, and else never.
#[derive(Debug)]
pub(crate) struct Looks {
    interval: Duration,
    limits: FlowLimits,
    next: Option<Duration>,
}

impl Looks {
    pub(crate) fn new(limits: FlowLimits) -> Self {
        let shortest = [limits.idle, limits.half_close].into_iter().flatten().min();
        let interval = shortest.map_or(LOOK_INTERVAL, |limit| limit / 4);
        let interval = interval.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL);
        Self { interval, limits, next: None }
    }

    /// There is a flow now.
    pub(crate) fn want(&mut self, now: Duration) {
        self.next.get_or_insert(now + self.interval);
    }

    /// The time of the next look, if one is wanted.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.next
    }

    /// How long an end of a flow may owe an acknowledgement.
    pub(crate) fn path(&self) -> &PathLimit {
        &self.limits.path
    }

    /// Whether to look now; another look has to be wanted again.
    pub(crate) fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self.next.is_some_and(|next| next <= now);
        if is_due {
            self.next = None;
        }
        is_due
    }

    /// Whether a flow that stood still for so many looks has met its limit.
    pub(crate) fn is_overdue(&self, still: u32, is_half_closed: bool) -> bool {
        let half_close = self.limits.half_close.filter(|_| is_half_closed);
        let limit = [self.limits.idle, half_close].into_iter().flatten().min();
        limit.is_some_and(|limit| self.interval * still >= limit)
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions, by FIN.
    Clean,
    Reset,
    Timeout,
    Refused,
    Unreachable,
    Unresolved,
    /// Silent for longer than allowed.
    Idle,
    Limit,
    Shutdown,
    NoTunnel,
    Protocol,
    /// Announced bytes never came.
    Missing,
    Failed,
}

/// Who ended a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The public conn.
    Public,
    /// The LocalServer.
    Local,
    /// The gateway, or the way there.
    Gateway,
    /// This program.
    Zproxy,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unresolved => "unresolved",
            Self::Idle => "idle",
            Self::Limit => "limit",
            Self::Shutdown => "shutdown",
            Self::NoTunnel => "no_tunnel",
            Self::Protocol => "protocol",
            Self::Missing => "missing",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Local => "local",
            Self::Gateway => "gateway",
            Self::Zproxy => "zproxy",
        })
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Reset => Self::Reset,
            Fault::Refused => Self::Refused,
            Fault::Unreachable => Self::Unreachable,
            Fault::TimedOut => Self::Timeout,
            Fault::NoDescriptors | Fault::NoMemory | Fault::NoAddress => Self::Limit,
            Fault::Cancelled | Fault::Other(_) => Self::Failed,
        }
    }
}

impl From<DialFault> for End {
    fn from(fault: DialFault) -> Self {
        match fault {
            DialFault::Unresolved => Self::Unresolved,
            DialFault::TimedOut => Self::Timeout,
            DialFault::Fault(fault) => fault.into(),
        }
    }
}

impl From<AbortCode> for End {
    fn from(code: AbortCode) -> Self {
        match code {
            AbortCode::Refused => Self::Refused,
            AbortCode::Unreachable => Self::Unreachable,
            AbortCode::Timeout => Self::Timeout,
            AbortCode::NameUnresolved => Self::Unresolved,
            AbortCode::Reset => Self::Reset,
            AbortCode::Limit => Self::Limit,
            AbortCode::NoTunnel => Self::NoTunnel,
            AbortCode::Shutdown => Self::Shutdown,
            AbortCode::Protocol => Self::Protocol,
            AbortCode::Idle => Self::Idle,
            AbortCode::Missing => Self::Missing,
            AbortCode::Failed | AbortCode::Other(_) => Self::Failed,
        }
    }
}

/// How and by whom a flow ended whose proxy_conn is to be closed.
pub(crate) fn why_ended(why: Why) -> (End, By) {
    match why {
        Why::PeerAborted(AbortCode::Reset) => (End::Reset, By::Public),
        Why::PeerAborted(code) => (code.into(), By::Gateway),
        Why::OwnFailed => (End::Reset, By::Local),
        Why::StartFailed(code) => (code.into(), By::Local),
        Why::ProxyFailed => (End::Reset, By::Gateway),
        Why::Missing(_) => (End::Missing, By::Gateway),
        Why::Violation(_) => (End::Protocol, By::Gateway),
        Why::Deadline => (End::Idle, By::Zproxy),
        Why::PeerClosed | Why::Retired | Why::EndedInBand | Why::ReleaseLost => {
            (End::Clean, By::Gateway)
        }
    }
}

/// What is logged when a flow has ended.
pub(crate) struct Ended<'a> {
    pub(crate) flow: &'a dyn fmt::Display,
    /// The tunnel's name, or the address that is forwarded.
    pub(crate) tunnel: &'a dyn fmt::Display,
    /// The address of the public conn, where this program knows it.
    pub(crate) public: Option<SocketAddr>,
    /// Bytes from the public conn to the LocalServer.
    pub(crate) inward: u64,
    /// Bytes from the LocalServer to the public conn.
    pub(crate) outward: u64,
    pub(crate) lived: Duration,
    /// Until the LocalServer was connected, if it was.
    pub(crate) bind: Option<Duration>,
    pub(crate) end: End,
    pub(crate) by: By,
}

impl Ended<'_> {
    /// Writes the line.
    pub(crate) fn log(&self) {
        info!(
            flow = %self.flow,
            tunnel = %self.tunnel,
            public = self.public.map(tracing::field::display),
            "in" = self.inward,
            out = self.outward,
            ms = self.lived.as_millis() as u64,
            bind_ms = self.bind.map(|bind| bind.as_millis() as u64),
            end = %self.end,
            by = %self.by,
            "flow ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(idle: Option<u64>, half_close: Option<u64>) -> FlowLimits {
        let (idle, half_close) =
            (idle.map(Duration::from_millis), half_close.map(Duration::from_millis));
        let path = PathLimit::new(None);
        FlowLimits { connect: Duration::from_secs(5), idle, half_close, path }
    }

    /// There is no timer without a flow, and a look has to be wanted again.
    #[test]
    fn looks_are_wanted() {
        let mut looks = Looks::new(limits(None, None));
        let now = Duration::from_secs(100);
        assert_eq!(looks.next(), None);
        looks.want(now);
        looks.want(now + Duration::from_millis(500));
        assert_eq!(looks.next(), Some(now + LOOK_INTERVAL));
        assert!(!looks.is_due(now));
        assert!(looks.is_due(now + LOOK_INTERVAL));
        assert_eq!(looks.next(), None);
    }

    /// A limit counts from the first look at which nothing had moved, and short limits are looked
    /// for more often.
    #[test]
    fn limits_are_met() {
        let looks = Looks::new(limits(None, None));
        assert!(!looks.is_overdue(u32::MAX, true));
        let looks = Looks::new(limits(Some(10_000), Some(3_000)));
        assert_eq!((looks.is_overdue(13, false), looks.is_overdue(14, false)), (false, true));
        let looks = Looks::new(limits(None, Some(400)));
        assert_eq!(looks.interval, Duration::from_millis(100));
        assert_eq!((looks.is_overdue(4, false), looks.is_overdue(4, true)), (false, true));
    }
}
