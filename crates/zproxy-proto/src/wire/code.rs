//! Codes that say why: for programs to act on. A code that we do not know is still an answer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a flow was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbortCode {
    /// Nothing listens on the local address.
    Refused,
    /// No route to the local address.
    Unreachable,
    /// The local address did not answer in time.
    Timeout,
    /// The name of the LocalServer does not resolve.
    NameUnresolved,
    /// The public or local side reset the connection.
    Reset,
    /// A limit of the sender is reached (descriptors, flows).
    Limit,
    /// The client has no such tunnel.
    NoTunnel,
    /// The sender is shutting down.
    Shutdown,
    /// The receiver broke the protocol on this proxy_conn.
    Protocol,
    /// The flow was silent for longer than the deadline.
    Idle,
    /// Bytes that the other end announced never came.
    Missing,
    /// The sender could not go on for another reason.
    Failed,
    /// A code of a newer version.
    Other(u8),
}

impl AbortCode {
    /// Its number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Unreachable => 2,
            Self::Timeout => 3,
            Self::NameUnresolved => 4,
            Self::Reset => 5,
            Self::Limit => 6,
            Self::NoTunnel => 7,
            Self::Shutdown => 8,
            Self::Protocol => 9,
            Self::Idle => 10,
            Self::Missing => 11,
            Self::Failed => 12,
            Self::Other(number) => number,
        }
    }

    /// The code of a number.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Refused,
            2 => Self::Unreachable,
            3 => Self::Timeout,
            4 => Self::NameUnresolved,
            5 => Self::Reset,
            6 => Self::Limit,
            7 => Self::NoTunnel,
            8 => Self::Shutdown,
            9 => Self::Protocol,
            10 => Self::Idle,
            11 => Self::Missing,
            12 => Self::Failed,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for AbortCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "nothing listens on the local address",
            Self::Unreachable => "the local address cannot be reached",
            Self::Timeout => "the local address did not answer in time",
            Self::NameUnresolved => "the local name does not resolve",
            Self::Reset => "the connection was reset",
            Self::Limit => "a limit is reached",
            Self::NoTunnel => "the client has no such tunnel",
            Self::Shutdown => "shutting down",
            Self::Protocol => "the protocol was broken",
            Self::Idle => "silent for too long",
            Self::Missing => "announced bytes are missing",
            Self::Failed => "failed",
            Self::Other(number) => return write!(f, "unknown reason {number}"),
        })
    }
}

/// Why a gateway refuses a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// The client does not know the token.
    BadToken,
    /// No protocol version in common.
    Version,
    /// The gateway has as many clients as it may.
    Limit,
    /// The gateway is shutting down; come back later.
    ShuttingDown,
    /// The client broke the protocol.
    Protocol,
    /// Another ctl_conn of the same client has taken its place.
    Replaced,
    /// The handshake took too long.
    Timeout,
    /// A code of a newer version.
    #[serde(other)]
    Other,
}

impl RefusedCode {
    /// Whether trying again without a change of configuration is pointless.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::BadToken | Self::Version)
    }
}

impl fmt::Display for RefusedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadToken => "bad_token",
            Self::Version => "version",
            Self::Limit => "limit",
            Self::ShuttingDown => "shutting_down",
            Self::Protocol => "protocol",
            Self::Replaced => "replaced",
            Self::Timeout => "timeout",
            Self::Other => "other",
        })
    }
}

/// Why a gateway does not open a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunnelRefusedCode {
    /// Something else has the public port.
    PortTaken,
    /// The gateway does not give this port to clients.
    PortNotAllowed,
    /// The client has a tunnel of this name on another port.
    NameTaken,
    /// The client has as many tunnels as it may, or no port is left.
    Limit,
    /// The gateway could not listen on the port.
    BindFailed,
    /// The gateway is out of descriptors or memory; come back later.
    Shortage,
    /// The gateway is shutting down.
    ShuttingDown,
    /// A code of a newer version.
    #[serde(other)]
    Other,
}

impl TunnelRefusedCode {
    /// Whether trying again without a change of configuration is pointless.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::PortNotAllowed | Self::NameTaken)
    }

    /// Whether it is sure to pass: not even a client that has just been started gives up.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Shortage | Self::ShuttingDown)
    }
}

impl fmt::Display for TunnelRefusedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortTaken => "port_taken",
            Self::PortNotAllowed => "port_not_allowed",
            Self::NameTaken => "name_taken",
            Self::Limit => "limit",
            Self::BindFailed => "bind_failed",
            Self::Shortage => "shortage",
            Self::ShuttingDown => "shutting_down",
            Self::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number is a code and every code is its number.
    #[test]
    fn abort_codes_round_trip() {
        for number in 0..=u8::MAX {
            let code = AbortCode::from_number(number);
            assert_eq!(code.number(), number);
            assert!(!code.to_string().is_empty());
        }
    }

    /// JSON codes are their log form, and unknown ones are `Other`.
    #[test]
    fn json_codes() {
        for code in [RefusedCode::BadToken, RefusedCode::ShuttingDown, RefusedCode::Replaced] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
        for code in [TunnelRefusedCode::PortTaken, TunnelRefusedCode::BindFailed] {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
        }
        assert_eq!(serde_json::from_str::<RefusedCode>("\"new\"").unwrap(), RefusedCode::Other);
        let unknown: TunnelRefusedCode = serde_json::from_str("\"new\"").unwrap();
        assert_eq!(unknown, TunnelRefusedCode::Other);
    }
}
