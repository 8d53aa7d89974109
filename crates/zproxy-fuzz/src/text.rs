//! Text that people type or peers send: values of flags and keys, names, reasons, ids.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use zproxy_ops::cores::{self, CORE_NUMBERS_MAX, CoreList};
use zproxy_ops::logs::{Level, LogFormat};
use zproxy_ops::values::{
    Backend, BindAddr, HostPort, ListenAddr, Micros, Port, PortRange, Relay, Seconds, ThreadCount,
};
use zproxy_proto::auth::Token;
use zproxy_proto::id::ClientId;
use zproxy_proto::limits::{NAME_LEN_MAX, REASON_LEN_MAX};
use zproxy_proto::registry;
use zproxy_proto::wire::{Name, Reason};

/// Nothing that is shown may forge a line of a log or turn a terminal's text around.
fn check_shown(shown: &str) {
    let is_strange =
        |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(!shown.contains(is_strange), "{shown:?}");
}

/// What is read is shown in a form that is read as the same.
fn round_trip<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let shown = value.to_string();
    check_shown(&shown);
    assert_eq!(shown.parse::<T>().expect("what is shown can be typed"), value, "{text:?}");
    Some(value)
}

/// An error is a sentence for a person.
fn is_read<T: FromStr<Err: Display>>(text: &str) -> bool {
    match text.parse::<T>() {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Every value has one meaning, keeps it when it is shown and typed again, and lies in its bounds.
pub fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = text.as_ref();

    round_trip::<HostPort>(text);
    round_trip::<Backend>(text);
    round_trip::<Relay>(text);
    round_trip::<LogFormat>(text);
    round_trip::<ClientId>(text);
    round_trip::<Name>(text);
    is_read::<Port>(text);
    is_read::<BindAddr>(text);
    is_read::<ListenAddr>(text);
    is_read::<ThreadCount>(text);
    is_read::<Level>(text);
    if let Ok(Seconds(time)) = text.parse() {
        assert!(time.as_secs() <= 10 * 366 * 24 * 3600, "{time:?}");
    }
    if let Ok(Micros(time)) = text.parse() {
        assert!(time.as_millis() <= 100, "{time:?}");
    }
    if let Ok(token) = Token::parse(text) {
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
    port_ranges(text);
    core_lists(text);

    let name = Name::lossy(text);
    assert_eq!(Name::new(name.as_str()), Ok(name.clone()), "a lossy name is a name");
    assert!(name.as_str().len() <= NAME_LEN_MAX);
    let reason = Reason::new(text);
    assert!(reason.as_str().len() <= REASON_LEN_MAX);
    check_shown(reason.as_str());
    assert_eq!(Reason::new(reason.as_str()), reason, "a reason that was made fit stays");
}

/// The operator's notion of a range of ports and the registry's are the same.
fn port_ranges(text: &str) {
    let typed = round_trip::<PortRange>(text);
    let meant = round_trip::<registry::PortRange>(text);
    assert_eq!(typed.is_some(), meant.is_some(), "{text:?}");
    let (Some(typed), Some(meant)) = (typed, meant) else { return };
    assert!(typed.first >= 1 && typed.first <= typed.last);
    assert_eq!(meant.size(), u32::from(typed.last) - u32::from(typed.first) + 1);
    for port in [0, typed.first - 1, typed.first, typed.last, typed.last.wrapping_add(1)] {
        assert_eq!(typed.contains(port), meant.contains(port), "{port} in {text:?}");
    }
}

/// Every core is listed once, and the list is shown as one that means the same.
fn core_lists(text: &str) {
    let Ok(list) = text.parse::<CoreList>() else { return };
    let mut numbers = list.numbers().to_vec();
    assert!(!numbers.is_empty() && numbers.iter().all(|&core| core < CORE_NUMBERS_MAX));
    assert_eq!(cores::show(&numbers).parse::<CoreList>().as_ref(), Ok(&list), "{text:?}");
    assert_eq!(list.check(&numbers).as_ref(), Ok(&numbers));
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), list.numbers().len(), "{text:?}");
}
