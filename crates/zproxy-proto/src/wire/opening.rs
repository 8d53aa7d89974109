//! What connections open with: preface, `Attach`, and the `Start` of each flow.

use crate::auth::Mac;
use crate::id::{CtlId, FlowId, ProxyId, TunnelId};
use crate::limits::{ATTACH_SIZE, PREFACE_SIZE, PROXY_OPENING_SIZE, START_SIZE};

use super::{VERSION, WireError};

const MAGIC: [u8; 4] = *b"ZPXY";
/// Where the kind stands in a preface.
const KIND_AT: usize = 5;
const START_MAGIC: [u8; 4] = *b"ZST1";

/// The kinds of connection between the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ctl_conn.
    Ctl,
    /// A proxy_conn.
    Proxy,
    /// A lane.
    Lane,
}

impl Kind {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Ctl => 1,
            Self::Proxy => 2,
            Self::Lane => 3,
        }
    }
}

/// The first bytes of a connection.
#[must_use]
pub const fn encode_preface(kind: Kind) -> [u8; PREFACE_SIZE] {
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, VERSION, kind.number(), 0, 0]
}

/// Reads a preface from the first bytes of a connection, of which more may follow. `None` means
/// that all of them are right so far.
///
/// # Errors
/// At the first wrong byte, however few there are.
pub fn decode_preface(bytes: &[u8]) -> Result<Option<Kind>, WireError> {
    if bytes.iter().zip(MAGIC).any(|(&byte, magic)| byte != magic) {
        return Err(WireError::Magic);
    }
    if let Some(&version) = bytes.get(4).filter(|&&version| version != VERSION) {
        return Err(WireError::Version(version));
    }
    let kind = match bytes.get(KIND_AT) {
        Some(1) => Kind::Ctl,
        Some(2) => Kind::Proxy,
        Some(3) => Kind::Lane,
        Some(&other) => return Err(WireError::Kind(other)),
        None => return Ok(None),
    };
    if bytes.iter().take(PREFACE_SIZE).skip(6).any(|&byte| byte != 0) {
        return Err(WireError::Reserved);
    }
    Ok((bytes.len() >= PREFACE_SIZE).then_some(kind))
}

/// What attaches to a session on the proxy port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attached {
    /// A proxy_conn.
    Conn,
    /// A lane.
    Lane,
}

impl Attached {
    const fn kind(self) -> Kind {
        match self {
            Self::Conn => Kind::Proxy,
            Self::Lane => Kind::Lane,
        }
    }
}

/// Follows the preface of a proxy_conn or of a lane: whose it is, and proof that it is.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// What it is, as the preface says.
    pub what: Attached,
    /// The ctl_conn whose session key made the code.
    pub ctl_id: CtlId,
    /// The name of the proxy_conn. A lane is named in the same way, of the same serials: the name
    /// tells the two data cores, and can be used once.
    pub proxy: ProxyId,
    /// [`crate::auth::attach_mac`] over all of it.
    pub mac: Mac,
}

/// Everything a client sends on a proxy_conn before the first flow, on a lane before the first frame.
#[must_use]
pub fn encode_proxy_opening(attach: &Attach) -> [u8; PROXY_OPENING_SIZE] {
    let mut bytes = [0; PROXY_OPENING_SIZE];
    bytes[..8].copy_from_slice(&encode_preface(attach.what.kind()));
    bytes[8..24].copy_from_slice(&attach.ctl_id.0);
    bytes[24..32].copy_from_slice(&attach.proxy.0.to_be_bytes());
    bytes[32..].copy_from_slice(&attach.mac.0);
    bytes
}

/// Reads what a proxy_conn or a lane opens with from the first bytes that it has sent. `None` means that
/// more must come.
///
/// # Errors
/// At the first wrong byte, and when there are more bytes than an opening has.
pub fn decode_proxy_opening(bytes: &[u8]) -> Result<Option<Attach>, WireError> {
    let preface = decode_preface(bytes)?;
    // The kind stands in front of the last bytes of the preface, which are not waited for.
    if let Some(&kind) = bytes.get(KIND_AT).filter(|&&kind| kind == Kind::Ctl.number()) {
        return Err(WireError::Kind(kind));
    }
    let what = match preface {
        None => return Ok(None),
        Some(Kind::Lane) => Attached::Lane,
        Some(_) => Attached::Conn,
    };
    let body = &bytes[PREFACE_SIZE..];
    if body.len() > ATTACH_SIZE {
        return Err(WireError::Trailing);
    }
    let Some((ctl_id, rest)) = body.split_first_chunk::<16>() else { return Ok(None) };
    let Some((proxy, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
    let Some(mac) = rest.first_chunk::<32>() else { return Ok(None) };
    Ok(Some(Attach {
        what,
        ctl_id: CtlId(*ctl_id),
        proxy: ProxyId(u64::from_be_bytes(*proxy)),
        mac: Mac(*mac),
    }))
}

/// Sent by the gateway on an idle proxy_conn. Raw bytes of the flow follow at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which local service it is for.
    pub tunnel: TunnelId,
    /// The flow that begins.
    pub flow: FlowId,
}

impl Start {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; START_SIZE] {
        let mut bytes = [0; START_SIZE];
        bytes[..4].copy_from_slice(&START_MAGIC);
        bytes[4..8].copy_from_slice(&self.tunnel.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.flow.0.to_be_bytes());
        bytes
    }

    /// Reads it from the bytes that have come on an idle proxy_conn since it became idle. `None`
    /// means that more must come. Bytes behind the first [`START_SIZE`] are the flow's.
    ///
    /// # Errors
    /// At the first wrong byte.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        if bytes.iter().zip(START_MAGIC).any(|(&byte, magic)| byte != magic) {
            return Err(WireError::Start);
        }
        let Some((_, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let Some((tunnel, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let Some(flow) = rest.first_chunk::<8>() else { return Ok(None) };
        Ok(Some(Self {
            tunnel: TunnelId(u32::from_be_bytes(*tunnel)),
            flow: FlowId(u64::from_be_bytes(*flow)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A preface is recognised exactly when it is complete, and wrong at its first wrong byte.
    #[test]
    fn preface_is_right_byte_by_byte() {
        for kind in [Kind::Ctl, Kind::Proxy, Kind::Lane] {
            let right = encode_preface(kind);
            for len in 0..8 {
                assert_eq!(decode_preface(&right[..len]), Ok(None));
            }
            assert_eq!(decode_preface(&right), Ok(Some(kind)));
            for place in 0..8 {
                let mut wrong = right;
                wrong[place] ^= 0x80;
                assert!(decode_preface(&wrong[..=place]).is_err(), "byte {place}");
                assert!(decode_preface(&wrong).is_err(), "byte {place}");
            }
        }
        assert_eq!(decode_preface(b"GET / HTTP/1.1\r\n"), Err(WireError::Magic));
        assert_eq!(decode_preface(b"ZPXY\x01"), Err(WireError::Version(1)));
    }

    /// An opening comes back as it went out, wherever it is cut, and nothing may follow it.
    #[test]
    fn proxy_opening_round_trip() {
        for what in [Attached::Conn, Attached::Lane] {
            let (ctl_id, proxy) = (CtlId([1; 16]), ProxyId::new(3, 4, 5));
            let attach = Attach { what, ctl_id, proxy, mac: Mac([6; 32]) };
            let mut bytes = encode_proxy_opening(&attach).to_vec();
            for len in 0..bytes.len() {
                assert!(decode_proxy_opening(&bytes[..len]).unwrap().is_none());
            }
            let read = decode_proxy_opening(&bytes).unwrap().unwrap();
            assert_eq!((read.what, read.ctl_id, read.proxy), (what, ctl_id, proxy));
            assert_eq!(read.mac.0, [6; 32]);
            bytes.push(0);
            assert_eq!(decode_proxy_opening(&bytes).unwrap_err(), WireError::Trailing);
        }
        let ctl = encode_preface(Kind::Ctl);
        assert_eq!(decode_proxy_opening(&ctl[..KIND_AT]).unwrap().map(|_| ()), None);
        for len in KIND_AT + 1..=ctl.len() {
            assert_eq!(decode_proxy_opening(&ctl[..len]).unwrap_err(), WireError::Kind(1));
        }
    }

    /// A Start comes back as it went out, and payload behind it is left alone.
    #[test]
    fn start_round_trip() {
        let start = Start { tunnel: TunnelId(7), flow: FlowId::new(1, 2) };
        let mut bytes = start.encode().to_vec();
        for len in 0..bytes.len() {
            assert_eq!(Start::decode(&bytes[..len]), Ok(None));
        }
        bytes.extend_from_slice(b"payload");
        assert_eq!(Start::decode(&bytes), Ok(Some(start)));
        assert_eq!(Start::decode(b"G"), Err(WireError::Start));
    }
}
