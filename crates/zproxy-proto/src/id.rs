//! The names of things. Each kind has its own type, so one cannot stand for another, and each has a
//! short `Display` form for logs. None of them is a credential.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hex;

/// One installation of `zproxy`: made once, kept in its state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub Uuid);

/// One run of `zproxyd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub Uuid);

macro_rules! uuid_id {
    ($name:ident) => {
        impl $name {
            /// A fresh id from 16 random bytes.
            #[must_use]
            pub fn from_random(random: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(random).into_uuid())
            }

            /// The 16 bytes of the id.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text.trim()).map(Self)
            }
        }
    };
}
uuid_id!(ClientId);
uuid_id!(ServerId);

/// One ctl_conn, chosen at random by the gateway. An `Attach` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CtlId(pub [u8; 16]);
hex::serde_as_hex!(CtlId);

impl fmt::Display for CtlId {
    /// The first eight of its 32 digits, enough to tell ctl_conns apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// One tunnel, chosen by the gateway and unique for the life of its process. 0 is never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TunnelId(pub u32);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One proxy_conn, chosen by the client that dials it: gateway data core, client data core, serial.
/// So both programs can send a frame that names it to the right core without a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyId(pub u64);

impl ProxyId {
    /// The `serial`-th proxy_conn of this client data core. Serials grow per client data core and
    /// session, whatever the gateway core.
    #[must_use]
    pub const fn new(gateway_core: u16, client_core: u16, serial: u32) -> Self {
        Self((gateway_core as u64) << 48 | (client_core as u64) << 32 | serial as u64)
    }

    /// Index of the gateway's data core that owns it.
    #[must_use]
    pub const fn gateway_core(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Index of the client's data core that owns it.
    #[must_use]
    pub const fn client_core(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Its serial on that client data core.
    #[must_use]
    pub const fn serial(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for ProxyId {
    /// `gateway core.client core.serial`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.gateway_core(), self.client_core(), self.serial())
    }
}

/// One flow, chosen by the gateway's data core that accepted its public conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

impl FlowId {
    /// The largest serial.
    pub const SERIAL_MAX: u64 = (1 << 48) - 1;

    /// The `serial`-th flow of this gateway data core.
    ///
    /// # Panics
    /// When the serial is above [`Self::SERIAL_MAX`] (at a million flows a second: in nine years).
    #[must_use]
    pub const fn new(gateway_core: u16, serial: u64) -> Self {
        assert!(serial <= Self::SERIAL_MAX, "flow serials are used up");
        Self((gateway_core as u64) << 48 | serial)
    }

    /// Index of the gateway's data core that owns it.
    #[must_use]
    pub const fn gateway_core(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Its serial on that data core.
    #[must_use]
    pub const fn serial(self) -> u64 {
        self.0 & Self::SERIAL_MAX
    }
}

impl fmt::Display for FlowId {
    /// `gateway core.serial`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.gateway_core(), self.serial())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a packed id come back as they went in, at the edges too.
    #[test]
    fn packed_ids_keep_their_parts() {
        for (gateway, client, serial) in [(0, 0, 0), (1, 2, 3), (u16::MAX, 0, 7), (9, 1023, !0)] {
            let id = ProxyId::new(gateway, client, serial);
            assert_eq!(
                (id.gateway_core(), id.client_core(), id.serial()),
                (gateway, client, serial)
            );
        }
        let flow = FlowId::new(u16::MAX, FlowId::SERIAL_MAX);
        assert_eq!((flow.gateway_core(), flow.serial()), (u16::MAX, FlowId::SERIAL_MAX));
        assert_eq!(ProxyId::new(1, 2, 3).to_string(), "1.2.3");
        assert_eq!(FlowId::new(1, 9).to_string(), "1.9");
    }

    /// A client id survives being written to a file and read back.
    #[test]
    fn client_id_is_a_version_4_uuid() {
        let id = ClientId::from_random([7; 16]);
        assert_eq!(id.0.get_version_num(), 4);
        assert_eq!(format!("{id}\n").parse::<ClientId>().unwrap(), id);
        assert!("x".parse::<ClientId>().is_err());
    }
}
