//! Text that people wrote or will read: bounded, and without anything that could forge a log line.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{NAME_LEN_MAX, REASON_LEN_MAX};

/// The name of a client or a tunnel: 1 to [`NAME_LEN_MAX`] ASCII letters, digits and `-_.:/@+[]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It is empty.
    Empty,
    /// It has more than [`NAME_LEN_MAX`] bytes.
    TooLong,
    /// It has a character that names must not have.
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a name must not be empty"),
            Self::TooLong => write!(f, "a name has at most {NAME_LEN_MAX} characters"),
            Self::Character(c) => {
                write!(f, "a name has letters, digits and -_.:/@+[] only, not {c:?}")
            }
        }
    }
}

impl std::error::Error for NameError {}

impl Name {
    /// The text as a name.
    ///
    /// # Errors
    /// When it is empty, too long, or has a character that names must not have.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(c) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character(c));
        }
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong);
        }
        Ok(Self(text))
    }

    /// A name as near to `text` as the rules allow: other characters become `-`, what is too long
    /// is cut, and nothing at all becomes `unnamed`. For names that come from the surroundings,
    /// such as a host name.
    #[must_use]
    pub fn lossy(text: &str) -> Self {
        let text = text.trim();
        let mut name: String =
            text.chars().take(NAME_LEN_MAX).map(|c| if allowed(c) { c } else { '-' }).collect();
        if name.is_empty() {
            name.push_str("unnamed");
        }
        Self(name)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.:/@+[]".contains(c)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// A reason that a person can act on: one line of at most [`REASON_LEN_MAX`] bytes. Longer text is
/// cut and control characters become spaces, in what we send and in what we are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Cow<'_, str>", into = "String")]
pub struct Reason(String);

impl Reason {
    /// The text, made fit.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut fit = String::new();
        for c in text.chars() {
            if fit.len() + c.len_utf8() > REASON_LEN_MAX {
                break;
            }
            fit.push(if unprintable(c) { ' ' } else { c });
        }
        Self(fit)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Control characters, and the format characters that reorder or break lines on a terminal.
fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<Cow<'_, str>> for Reason {
    fn from(text: Cow<'_, str>) -> Self {
        Self::new(&text)
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are short and plain; what is not can be made so.
    #[test]
    fn names_are_plain() {
        assert_eq!(Name::new("web-1.example:80").unwrap().as_str(), "web-1.example:80");
        assert_eq!(Name::new("").unwrap_err(), NameError::Empty);
        assert_eq!(Name::new("a b").unwrap_err(), NameError::Character(' '));
        assert_eq!(Name::new("a\n").unwrap_err(), NameError::Character('\n'));
        assert_eq!(Name::new("x".repeat(65)).unwrap_err(), NameError::TooLong);
        assert_eq!(Name::lossy("käse box\n").as_str(), "k-se-box");
        assert_eq!(Name::lossy(" ").as_str(), "unnamed");
        assert_eq!(Name::lossy(&"y".repeat(99)).as_str().len(), 64);
    }

    /// A reason is one short line, cut between characters.
    #[test]
    fn reasons_are_one_short_line() {
        assert_eq!(Reason::new("a\nb\x1b[31m\u{202e}c").as_str(), "a b [31m c");
        assert!(Reason::new(&"é".repeat(300)).as_str().len() <= REASON_LEN_MAX);
    }
}
