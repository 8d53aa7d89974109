//! Bytes to frames and back. Decoding is total: any bytes give a frame, a wish for more bytes, or a
//! [`WireError`], never a panic. Everything is big-endian.

mod code;
mod decoder;
mod frame;
mod opening;
mod text;

use std::fmt;

pub use code::{AbortCode, RefusedCode, TunnelRefusedCode};
pub use decoder::Decoder;
pub use frame::{
    Abort, Challenge, CloseTunnel, Fin, Frame, GoAway, Hello, OpenProxy, OpenTunnel, Proof,
    Refused, Released, TunnelOpen, TunnelRefused, Welcome,
};
pub use opening::{
    Attach, Attached, Kind, Start, decode_preface, decode_proxy_opening, encode_preface,
    encode_proxy_opening,
};
pub use text::{Name, NameError, Reason};

/// The protocol version of this crate.
pub const VERSION: u8 = 2;

/// Why bytes are not what the protocol says. Always the peer's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The first bytes are not `ZPXY`: not one of ours.
    Magic,
    /// A preface of another version.
    Version(u8),
    /// A preface of an unknown kind, or of one that does not belong here.
    Kind(u8),
    /// Reserved bytes of a preface are not zero.
    Reserved,
    /// A frame's length field is zero or above the limit.
    FrameLen(u32),
    /// An unknown frame type.
    FrameType(u8),
    /// A frame of a fixed layout with another length than that.
    FixedLen {
        /// The frame's name.
        frame: &'static str,
        /// The length of the body.
        len: usize,
    },
    /// A frame whose JSON body cannot be read as what it must be.
    Body {
        /// The frame's name.
        frame: &'static str,
    },
    /// Bytes in place of a `Start` that are none.
    Start,
    /// Bytes behind an `Attach`, where nothing may come.
    Trailing,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "not a ZProxy peer"),
            Self::Version(version) => write!(f, "unknown protocol version {version}"),
            Self::Kind(kind) => write!(f, "connection kind {kind} does not belong here"),
            Self::Reserved => write!(f, "reserved bytes are not zero"),
            Self::FrameLen(len) => write!(f, "frame length {len} is not allowed"),
            Self::FrameType(kind) => write!(f, "unknown frame type {kind}"),
            Self::FixedLen { frame, len } => write!(f, "{frame} with a body of {len} bytes"),
            Self::Body { frame } => write!(f, "{frame} with an unreadable body"),
            Self::Start => write!(f, "bytes on an idle proxy_conn that are no Start"),
            Self::Trailing => write!(f, "bytes behind an Attach"),
        }
    }
}

impl std::error::Error for WireError {}
