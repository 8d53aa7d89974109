//! The frames of a ctl_conn. Cold bodies are JSON whose unknown fields are ignored; hot ones have a
//! fixed layout.

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::{Mac, Nonce, Ticket};
use crate::id::{ClientId, CtlId, FlowId, ProxyId, ServerId, TunnelId};
use crate::limits::{FRAME_HEADER_SIZE, FRAME_LEN_MAX};

use super::{AbortCode, Name, Reason, RefusedCode, TunnelRefusedCode, WireError};

/// c → d: who wants to log in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Kept by the client from run to run.
    pub client_id: ClientId,
    /// For people.
    pub name: Name,
    /// Fresh for this handshake.
    pub nonce: Nonce,
    /// The ticket of the session that this run of the client had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Ticket>,
    /// Protocol versions the client speaks.
    pub versions: Vec<u8>,
    /// Number of the client's data cores; bounds the client core in a proxy id.
    #[serde(default = "one")]
    pub data_cores: u16,
}

fn one() -> u16 {
    1
}

/// d → c: proof that the gateway knows the token, and the request to do the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Challenge {
    /// Chosen at random when the gateway starts.
    pub server_id: ServerId,
    /// Fresh for this handshake.
    pub nonce: Nonce,
    /// [`crate::auth::gateway_proof`]
    pub proof: Mac,
}

/// c → d: proof that the client knows the token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// [`crate::auth::client_proof`]
    pub proof: Mac,
}

/// d → c: the client is logged in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// Names this ctl_conn in an `Attach`.
    pub ctl_id: CtlId,
    /// Number of the session; the same after a resume.
    pub epoch: u64,
    /// Where to dial proxy_conns, at the address of the ctl_conn.
    pub proxy_port: u16,
    /// Time between two pings, in milliseconds.
    pub heartbeat_ms: u64,
    /// Silence that means death, in milliseconds.
    pub deadline_ms: u64,
    /// Number of the gateway's data cores; bounds the gateway core in a proxy id.
    pub data_cores: u16,
    /// Whether the session of the ticket goes on, with its tunnels and proxy_conns.
    pub resumed: bool,
    /// For the next [`Hello::resume`].
    pub ticket: Ticket,
    /// Tunnels that one client may have.
    pub tunnels_max: u32,
}

/// d → c: the client is not logged in, or not any more. The gateway closes behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For the program.
    pub code: RefusedCode,
    /// For a person.
    pub reason: Reason,
}

/// c → d: expose a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTunnel {
    /// Unique within the client.
    pub name: Name,
    /// The wanted public port; 0 is any.
    #[serde(default)]
    pub public_port: u16,
    /// The public port it had before; tried first when `public_port` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_port: Option<u16>,
}

/// d → c: a service is exposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelOpen {
    /// As in [`OpenTunnel`].
    pub name: Name,
    /// Names it in a `Start`.
    pub tunnel: TunnelId,
    /// Where the gateway listens for it.
    pub public: SocketAddr,
}

/// d → c: a service is not exposed. Other tunnels are not concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRefused {
    /// As in [`OpenTunnel`].
    pub name: Name,
    /// For the program.
    pub code: TunnelRefusedCode,
    /// For a person.
    pub reason: Reason,
}

/// Both ways: a service is not exposed any more. Its flows go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseTunnel {
    /// Which.
    pub tunnel: TunnelId,
}

/// d → c: dial this many proxy_conns for this data core of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenProxy {
    /// Index of the gateway's data core.
    pub core: u16,
    /// How many.
    pub count: u16,
}

/// Both ways: the sender's direction of a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fin {
    /// The proxy_conn that carries the flow.
    pub proxy: ProxyId,
    /// The flow.
    pub flow: FlowId,
    /// Bytes that the sender has put into the proxy_conn for this flow.
    pub bytes: u64,
}

/// c → d: the client expects the next `Start` on this proxy_conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// The proxy_conn.
    pub proxy: ProxyId,
    /// The flow that has ended.
    pub flow: FlowId,
}

/// Both ways: the flow failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The proxy_conn that carries the flow.
    pub proxy: ProxyId,
    /// The flow.
    pub flow: FlowId,
    /// Why.
    pub code: AbortCode,
}

/// Both ways: the sender is going to stop. Flows may finish meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// For a person.
    pub reason: Reason,
    /// Time that flows have to finish, in milliseconds.
    pub drain_ms: u64,
}

/// One frame of a ctl_conn.
#[derive(Clone, Debug)]
pub enum Frame {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Challenge`].
    Challenge(Challenge),
    /// See [`Proof`].
    Proof(Proof),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`Refused`].
    Refused(Refused),
    /// See [`OpenTunnel`].
    OpenTunnel(OpenTunnel),
    /// See [`TunnelOpen`].
    TunnelOpen(TunnelOpen),
    /// See [`TunnelRefused`].
    TunnelRefused(TunnelRefused),
    /// See [`CloseTunnel`].
    CloseTunnel(CloseTunnel),
    /// See [`OpenProxy`].
    OpenProxy(OpenProxy),
    /// See [`Fin`].
    Fin(Fin),
    /// See [`Released`].
    Released(Released),
    /// See [`Abort`].
    Abort(Abort),
    /// Are you there?
    Ping(u64),
    /// I am (with the number of the ping).
    Pong(u64),
    /// See [`GoAway`].
    GoAway(GoAway),
}

/// The types of frames on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Refused = 5,
    OpenTunnel = 6,
    TunnelOpen = 7,
    TunnelRefused = 8,
    CloseTunnel = 9,
    OpenProxy = 10,
    Fin = 11,
    Released = 12,
    Abort = 13,
    Ping = 14,
    Pong = 15,
    GoAway = 16,
}

impl Type {
    const ALL: [Self; 16] = [
        Self::Hello,
        Self::Challenge,
        Self::Proof,
        Self::Welcome,
        Self::Refused,
        Self::OpenTunnel,
        Self::TunnelOpen,
        Self::TunnelRefused,
        Self::CloseTunnel,
        Self::OpenProxy,
        Self::Fin,
        Self::Released,
        Self::Abort,
        Self::Ping,
        Self::Pong,
        Self::GoAway,
    ];

    pub(super) fn of(number: u8) -> Result<Self, WireError> {
        let index = usize::from(number).wrapping_sub(1);
        Self::ALL.get(index).copied().ok_or(WireError::FrameType(number))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Challenge => "Challenge",
            Self::Proof => "Proof",
            Self::Welcome => "Welcome",
            Self::Refused => "Refused",
            Self::OpenTunnel => "OpenTunnel",
            Self::TunnelOpen => "TunnelOpen",
            Self::TunnelRefused => "TunnelRefused",
            Self::CloseTunnel => "CloseTunnel",
            Self::OpenProxy => "OpenProxy",
            Self::Fin => "Fin",
            Self::Released => "Released",
            Self::Abort => "Abort",
            Self::Ping => "Ping",
            Self::Pong => "Pong",
            Self::GoAway => "GoAway",
        }
    }

    /// Bytes of the body, when its layout is fixed.
    fn fixed_len(self) -> Option<usize> {
        match self {
            Self::OpenProxy => Some(4),
            Self::Fin => Some(24),
            Self::Released => Some(16),
            Self::Abort => Some(17),
            Self::Ping | Self::Pong => Some(8),
            _ => None,
        }
    }

    /// Whether a body of `len` bytes can be right.
    pub(super) fn check_len(self, len: usize) -> Result<(), WireError> {
        match self.fixed_len() {
            Some(fixed) if fixed != len => Err(WireError::FixedLen { frame: self.name(), len }),
            _ => Ok(()),
        }
    }
}

impl Frame {
    fn kind(&self) -> Type {
        match self {
            Self::Hello(_) => Type::Hello,
            Self::Challenge(_) => Type::Challenge,
            Self::Proof(_) => Type::Proof,
            Self::Welcome(_) => Type::Welcome,
            Self::Refused(_) => Type::Refused,
            Self::OpenTunnel(_) => Type::OpenTunnel,
            Self::TunnelOpen(_) => Type::TunnelOpen,
            Self::TunnelRefused(_) => Type::TunnelRefused,
            Self::CloseTunnel(_) => Type::CloseTunnel,
            Self::OpenProxy(_) => Type::OpenProxy,
            Self::Fin(_) => Type::Fin,
            Self::Released(_) => Type::Released,
            Self::Abort(_) => Type::Abort,
            Self::Ping(_) => Type::Ping,
            Self::Pong(_) => Type::Pong,
            Self::GoAway(_) => Type::GoAway,
        }
    }

    /// What it is called in logs and in `docs/protocol.md`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// When it is longer than a frame may be, which the types of its fields rule out (a caller's
    /// list of versions apart).
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(self.kind() as u8);
        self.encode_body(out);
        let len = out.len() - at - 4;
        assert!(len <= FRAME_LEN_MAX, "{} of {len} bytes", self.name());
        out[at..at + 4].copy_from_slice(&(len as u32).to_be_bytes());
    }

    /// The frame alone.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_HEADER_SIZE + 24);
        self.encode_into(&mut out);
        out
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(body) => encode_json(body, out),
            Self::Challenge(body) => encode_json(body, out),
            Self::Proof(body) => encode_json(body, out),
            Self::Welcome(body) => encode_json(body, out),
            Self::Refused(body) => encode_json(body, out),
            Self::OpenTunnel(body) => encode_json(body, out),
            Self::TunnelOpen(body) => encode_json(body, out),
            Self::TunnelRefused(body) => encode_json(body, out),
            Self::CloseTunnel(body) => encode_json(body, out),
            Self::GoAway(body) => encode_json(body, out),
            Self::OpenProxy(OpenProxy { core, count }) => {
                out.extend_from_slice(&core.to_be_bytes());
                out.extend_from_slice(&count.to_be_bytes());
            }
            Self::Fin(Fin { proxy, flow, bytes }) => {
                put_numbers(out, &[proxy.0, flow.0, *bytes]);
            }
            Self::Released(Released { proxy, flow }) => put_numbers(out, &[proxy.0, flow.0]),
            Self::Abort(Abort { proxy, flow, code }) => {
                put_numbers(out, &[proxy.0, flow.0]);
                out.push(code.number());
            }
            Self::Ping(number) | Self::Pong(number) => put_numbers(out, &[*number]),
        }
    }

    /// Reads a body whose length [`Type::check_len`] has passed.
    pub(super) fn decode(kind: Type, body: &[u8]) -> Result<Self, WireError> {
        Ok(match kind {
            Type::Hello => Self::Hello(decode_json(kind, body)?),
            Type::Challenge => Self::Challenge(decode_json(kind, body)?),
            Type::Proof => Self::Proof(decode_json(kind, body)?),
            Type::Welcome => Self::Welcome(decode_json(kind, body)?),
            Type::Refused => Self::Refused(decode_json(kind, body)?),
            Type::OpenTunnel => Self::OpenTunnel(decode_json(kind, body)?),
            Type::TunnelOpen => Self::TunnelOpen(decode_json(kind, body)?),
            Type::TunnelRefused => Self::TunnelRefused(decode_json(kind, body)?),
            Type::CloseTunnel => Self::CloseTunnel(decode_json(kind, body)?),
            Type::GoAway => Self::GoAway(decode_json(kind, body)?),
            Type::OpenProxy => {
                let [core, count] = chunks(kind, body)?;
                Self::OpenProxy(OpenProxy {
                    core: u16::from_be_bytes(core),
                    count: u16::from_be_bytes(count),
                })
            }
            Type::Fin => {
                let [proxy, flow, bytes] = numbers(kind, body)?;
                Self::Fin(Fin { proxy: ProxyId(proxy), flow: FlowId(flow), bytes })
            }
            Type::Released => {
                let [proxy, flow] = numbers(kind, body)?;
                Self::Released(Released { proxy: ProxyId(proxy), flow: FlowId(flow) })
            }
            Type::Abort => {
                let fixed_len = WireError::FixedLen { frame: kind.name(), len: body.len() };
                let (&code, ids) = body.split_last().ok_or(fixed_len)?;
                let [proxy, flow] = numbers(kind, ids)?;
                let code = AbortCode::from_number(code);
                Self::Abort(Abort { proxy: ProxyId(proxy), flow: FlowId(flow), code })
            }
            Type::Ping => Self::Ping(numbers::<1>(kind, body)?[0]),
            Type::Pong => Self::Pong(numbers::<1>(kind, body)?[0]),
        })
    }
}

fn encode_json<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, body).expect("bodies are plain data and a Vec takes all bytes");
}

fn decode_json<T: DeserializeOwned>(kind: Type, body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|_| WireError::Body { frame: kind.name() })
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn numbers<const N: usize>(kind: Type, body: &[u8]) -> Result<[u64; N], WireError> {
    Ok(chunks::<8, N>(kind, body)?.map(u64::from_be_bytes))
}

/// The body as exactly `N` chunks of `SIZE` bytes.
fn chunks<const SIZE: usize, const N: usize>(
    kind: Type,
    body: &[u8],
) -> Result<[[u8; SIZE]; N], WireError> {
    match body.as_chunks::<SIZE>() {
        (chunks, []) => chunks.try_into().ok(),
        _ => None,
    }
    .ok_or(WireError::FixedLen { frame: kind.name(), len: body.len() })
}
