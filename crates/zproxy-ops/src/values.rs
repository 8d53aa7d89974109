//! The types of flag and file values. Each is read from text, with an error that says what would be
//! right; a configuration file may write numbers as numbers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, SeqAccess, Visitor};
use zproxy_io::RelayMode;

/// Makes a `FromStr` type readable from a configuration file, with the same errors as on the
/// command line.
macro_rules! text_value {
    ($($name:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = $crate::values::scalar_text(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use text_value;

/// A string, a number, or a list of them, as the text that would be typed on the command line.
pub(crate) fn scalar_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    struct Text;
    impl<'de> Visitor<'de> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a number")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<String, E> {
            Ok(number.to_string())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<String, A::Error> {
            let mut parts = Vec::new();
            while let Some(Part(part)) = seq.next_element()? {
                parts.push(part);
            }
            Ok(parts.join(","))
        }
    }
    struct Part(String);
    impl<'de> serde::Deserialize<'de> for Part {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            scalar_text(from).map(Self)
        }
    }
    from.deserialize_any(Text)
}

/// A TCP port, 0 included (what 0 means is the flag's business).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u16);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a port is a whole number from 0 to 65535".to_owned();
        text.trim().parse().map(Self).map_err(|_| wrong())
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest port, at least 1.
    pub first: u16,
    /// The highest port, at least `first`.
    pub last: u16,
}

impl PortRange {
    /// Whether the port lies in the range.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write two ports from 1 to 65535, for example 20000-29999".to_owned();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |digits: &str| digits.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 {
            return Err(wrong());
        }
        if first > last {
            return Err(format!("the range {text} runs backwards; write {last}-{first}"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Where to connect: a name or an address, and a port. The name is resolved when it is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
}

/// The longest name that DNS allows.
const HOST_LEN_MAX: usize = 253;

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (host, port) = split_host_port(text)?;
        if host.is_empty() {
            return Err(format!("there is no host; write HOST:PORT, for example 127.0.0.1:{port}"));
        }
        // Names may be written in any script. An IPv6 address has colons and perhaps a zone.
        let allowed = if text.starts_with('[') { "-._:%" } else { "-._" };
        let plain = |c: char| c.is_alphanumeric() || allowed.contains(c);
        if host.len() > HOST_LEN_MAX || !host.chars().all(plain) {
            return Err(format!("{host:?} is not a host; write HOST:PORT without anything else"));
        }
        Ok(Self { host: host.to_owned(), port: parse_port_to_dial(port)? })
    }
}

/// Splits at the last colon; brackets must hold an IPv6 address and are taken off.
fn split_host_port(text: &str) -> Result<(&str, &str), String> {
    if let Some((_, rest)) = text.split_once("://") {
        return Err(format!(
            "this is a URL; write only HOST:PORT ({})",
            rest.trim_end_matches('/')
        ));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let wrong = || "write an IPv6 address and its port as [::1]:8080".to_owned();
        let (host, port) = rest.split_once("]:").ok_or_else(wrong)?;
        // A zone (fe80::1%eth0) is the resolver's business.
        let address = host.split('%').next().unwrap_or(host);
        address.parse::<Ipv6Addr>().map_err(|_| wrong())?;
        return Ok((host, port));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address needs brackets and a port; write [{text}]:PORT"));
    }
    match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => {
            Err("an IPv6 address needs brackets; write [::1]:8080".to_owned())
        }
        Some(parts) => Ok(parts),
        None if text.is_empty() => Err("it is empty; write HOST:PORT".to_owned()),
        None if text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("there is no host; write HOST:PORT, for example 127.0.0.1:{text}"))
        }
        None => Err(format!("there is no port; write HOST:PORT, for example {text}:8080")),
    }
}

fn parse_port_to_dial(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => {
            Err(format!("{text:?} is not a port; it is a whole number from 1 to 65535"))
        }
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// An address to listen on, without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddr(pub IpAddr);

impl FromStr for BindAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.trim();
        let bare = bare.strip_prefix('[').and_then(|b| b.strip_suffix(']')).unwrap_or(bare);
        bare.parse().map(Self).map_err(|_| {
            "write an IP address without a port, for example 0.0.0.0, 127.0.0.1 or [::]".to_owned()
        })
    }
}

/// An address and port to listen on; port 0 is any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr {
    /// The address; none where only `:PORT` was written, which means every address.
    pub ip: Option<IpAddr>,
    /// The port; 0 is any free one.
    pub port: u16,
}

impl ListenAddr {
    /// The socket address, with `every` for `:PORT`.
    #[must_use]
    pub fn resolve(&self, every: IpAddr) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(every), self.port)
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = "write ADDR:PORT, for example 127.0.0.1:8080, [::]:8080 or :8080";
        let (host, port) = split_host_port(text.trim()).map_err(|_| right.to_owned())?;
        let Port(port) = port.parse().map_err(|error| format!("{error}; {right}"))?;
        let ip = match host {
            "" => None,
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ip => Some(ip.parse().map_err(|_| format!("\"{ip}\" is not an IP address; {right}"))?),
        };
        Ok(Self { ip, port })
    }
}

/// A span of time in seconds; fractions are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

/// Ten years: longer waits are a typing error.
const SECONDS_MAX: f64 = 315_360_000.0;

impl Seconds {
    /// The time, or none for 0, which switches the limit off.
    #[must_use]
    pub fn or_off(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim();
        let number = number.strip_suffix('s').unwrap_or(number);
        match number.parse::<f64>() {
            Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
                Ok(Self(Duration::from_secs_f64(seconds)))
            }
            _ => Err("write a number of seconds, for example 30 or 0.5".to_owned()),
        }
    }
}

/// A short span of time in whole microseconds, at most a tenth of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Micros(pub Duration);

/// A tenth of a second: whoever watches longer might as well never sleep.
const MICROS_MAX: u64 = 100_000;

impl FromStr for Micros {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().parse::<u64>() {
            Ok(micros) if micros <= MICROS_MAX => Ok(Self(Duration::from_micros(micros))),
            _ => Err(format!("write a whole number of microseconds from 0 to {MICROS_MAX}")),
        }
    }
}

/// A number of threads, as the seeds count them: 0 or less means 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCount(pub i64);

impl FromStr for ThreadCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.trim().parse().map(Self).map_err(|_| "write a number of threads, for example 4".into())
    }
}

/// How the kernel is asked to move bytes (`--backend`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The ring where the kernel offers it, else epoll with one line saying why.
    #[default]
    Auto,
    /// io_uring, or a failure that says why not.
    Uring,
    /// epoll.
    Epoll,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err("write auto, uring or epoll".to_owned()),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Which path the bytes take through the kernel (`--relay`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay(pub RelayMode);

impl FromStr for Relay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(RelayMode::Auto)),
            "splice" => Ok(Self(RelayMode::Splice)),
            "copy" => Ok(Self(RelayMode::Copy)),
            _ => Err("write auto, splice or copy".to_owned()),
        }
    }
}

impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            RelayMode::Auto => "auto",
            RelayMode::Splice => "splice",
            RelayMode::Copy => "copy",
        })
    }
}

/// Whether a data core takes the connections that arrive on its own CPU (`--steer`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steer {
    /// Where they arrive spread over the CPUs of the data cores.
    #[default]
    Auto,
    /// They are always spread over the data cores by chance.
    Never,
}

impl FromStr for Steer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            _ => Err("write auto or never".to_owned()),
        }
    }
}

impl fmt::Display for Steer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Never => "never",
        })
    }
}

text_value!(
    Port,
    PortRange,
    HostPort,
    BindAddr,
    ListenAddr,
    Seconds,
    Micros,
    ThreadCount,
    Backend,
    Relay,
    Steer
);

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts and ports are read with and without brackets, and shown as they are typed.
    #[test]
    fn host_ports_parse() {
        for text in ["127.0.0.1:80", "example.com:8090", "[::1]:443", "a_b-c.d:1"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        let zone: HostPort = "[fe80::1%eth0]:9".parse().unwrap();
        assert_eq!((zone.host.as_str(), zone.port), ("fe80::1%eth0", 9));
    }

    /// Every wrong address is refused with a message that says what would be right.
    #[test]
    fn wrong_host_ports_are_refused() {
        for (text, says) in [
            ("", "HOST:PORT"),
            ("example.com", "example.com:8080"),
            ("8080", "127.0.0.1:8080"),
            (":8080", "127.0.0.1:8080"),
            ("a:0", "1 to 65535"),
            ("a:70000", "1 to 65535"),
            ("a:", "1 to 65535"),
            ("::1", "[::1]:PORT"),
            ("::1:80:x", "brackets"),
            ("[::1]", "[::1]:8080"),
            ("[nonsense]:80", "[::1]:8080"),
            ("http://a:80/", "a:80"),
            ("a b:80", "not a host"),
            ("user@a:80", "not a host"),
            ("a\u{202e}b:80", "not a host"),
            ("[fe80::1%eth0\n]:80", "not a host"),
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    /// Listen addresses may leave the address out.
    #[test]
    fn listen_addresses_parse() {
        let every = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let show = |text: &str| text.parse::<ListenAddr>().map(|a| a.resolve(every).to_string());
        assert_eq!(show("127.0.0.1:0").unwrap(), "127.0.0.1:0");
        assert_eq!(show(":8080").unwrap(), "[::]:8080");
        assert_eq!(show("[::1]:8080").unwrap(), "[::1]:8080");
        assert_eq!(show("localhost:1").unwrap(), "127.0.0.1:1");
        for text in ["", "8080", "example.com:80", "127.0.0.1", "127.0.0.1:70000"] {
            let error = text.parse::<ListenAddr>().unwrap_err();
            assert!(error.contains("ADDR:PORT"), "{text}: {error}");
        }
    }

    /// Port ranges hold both ends and refuse what is not a range.
    #[test]
    fn port_ranges_parse() {
        let range: PortRange = "20000-20002".parse().unwrap();
        assert!(range.contains(20000) && range.contains(20002) && !range.contains(20003));
        assert_eq!("80".parse::<PortRange>(), Ok(PortRange { first: 80, last: 80 }));
        for text in ["", "0-9", "5-", "9-5", "1-70000", "a-b"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    /// Seconds take fractions and refuse what is no span of time.
    #[test]
    fn seconds_parse() {
        assert_eq!("0.25".parse(), Ok(Seconds(Duration::from_millis(250))));
        assert_eq!("30s".parse(), Ok(Seconds(Duration::from_secs(30))));
        assert_eq!(Seconds(Duration::ZERO).or_off(), None);
        for text in ["", "-1", "nan", "inf", "1e300", "soon", "5m"] {
            assert!(text.parse::<Seconds>().is_err(), "{text}");
        }
    }

    /// Microseconds are whole and at most a tenth of a second.
    #[test]
    fn micros_parse() {
        assert_eq!("0".parse(), Ok(Micros(Duration::ZERO)));
        assert_eq!("50".parse(), Ok(Micros(Duration::from_micros(50))));
        assert_eq!("100000".parse(), Ok(Micros(Duration::from_millis(100))));
        for text in ["", "-1", "0.5", "100001", "50us", "on"] {
            assert!(text.parse::<Micros>().unwrap_err().contains("100000"), "{text}");
        }
    }

    /// A bind address comes with or without brackets and never with a port.
    #[test]
    fn bind_addresses_parse() {
        assert_eq!("[::]".parse(), Ok(BindAddr(IpAddr::V6(Ipv6Addr::UNSPECIFIED))));
        assert_eq!("10.0.0.1".parse(), Ok(BindAddr("10.0.0.1".parse().unwrap())));
        for text in ["", "10.0.0.1:80", "[::]:80", "example.com"] {
            assert!(text.parse::<BindAddr>().is_err(), "{text}");
        }
    }
}
