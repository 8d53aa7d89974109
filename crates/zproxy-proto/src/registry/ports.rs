//! Public ports: which may be given away, and which one a tunnel gets.

use std::fmt;
use std::str::FromStr;

use crate::id::ClientId;
use crate::wire::Name;

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a port range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRangeError {
    /// It is not `A-B` (or `A`) with numbers from 1 to 65535.
    Form,
    /// The first port is above the last.
    Backwards,
}

impl fmt::Display for PortRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => write!(f, "a port range is A-B with ports from 1 to 65535"),
            Self::Backwards => write!(f, "the first port of a range is not above the last"),
        }
    }
}

impl std::error::Error for PortRangeError {}

impl PortRange {
    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// When `first` is 0 or above `last`.
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        match (first, last) {
            (0, _) => Err(PortRangeError::Form),
            _ if first > last => Err(PortRangeError::Backwards),
            _ => Ok(Self { first, last }),
        }
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports there are.
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// All ports, beginning somewhere in the middle.
    fn walk_from(self, offset: u64) -> impl Iterator<Item = u16> {
        let start = self.first + (offset % u64::from(self.size())) as u16;
        (start..=self.last).chain(self.first..start)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse().map_err(|_| PortRangeError::Form);
        Self::new(port(first)?, port(last)?)
    }
}

/// Which public ports clients may have.
#[derive(Clone, Debug, Default)]
pub struct PortPolicy {
    /// Only these, and port 0 is served from them. Without it any, and the kernel picks for port 0.
    pub range: Option<PortRange>,
    /// Never these: the gateway's own.
    pub excluded: Vec<u16>,
    /// Never one below this.
    pub lowest: u16,
}

impl PortPolicy {
    /// Whether clients may have `port`.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        port != 0
            && port >= self.lowest
            && !self.excluded.contains(&port)
            && self.range.is_none_or(|range| range.contains(port))
    }

    /// The ports that a tunnel without a wish may get, in an order that is the same each time it
    /// asks.
    pub(super) fn pickable(&self, client: ClientId, name: &Name) -> impl Iterator<Item = u16> {
        let offset = fnv1a(client.as_bytes().iter().chain(name.as_str().as_bytes()));
        let ranged = self.range.into_iter().flat_map(move |range| range.walk_from(offset));
        ranged.filter(|port| self.allows(*port))
    }
}

/// A hash that stays the same from build to build.
fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges are read as they are shown, and nonsense is not a range.
    #[test]
    fn ranges_are_parsed() {
        let range: PortRange = "20000-20009".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.size()), ("20000-20009", 10));
        assert!(range.contains(20000) && range.contains(20009) && !range.contains(20010));
        assert_eq!("80".parse::<PortRange>().unwrap().size(), 1);
        assert_eq!("1-65535".parse::<PortRange>().unwrap().size(), 65535);
        for bad in ["", "-", "1-", "0-5", "70000-70001", "a-b", "1-2-3"] {
            assert_eq!(bad.parse::<PortRange>(), Err(PortRangeError::Form), "{bad}");
        }
        assert_eq!("9-8".parse::<PortRange>(), Err(PortRangeError::Backwards));
    }

    /// A walk from any offset meets each port once.
    #[test]
    fn walks_meet_each_port_once() {
        let range = PortRange::new(65530, 65535).unwrap();
        for offset in [0, 5, 6, u64::MAX] {
            let mut ports: Vec<u16> = range.walk_from(offset).collect();
            ports.sort_unstable();
            assert_eq!(ports, [65530, 65531, 65532, 65533, 65534, 65535]);
        }
    }
}
