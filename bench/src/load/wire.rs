//! The first bytes of every connection of the load generator.
//!
//! A tunnel leads to one LocalServer, so one service plays every part: the connection's first eight
//! bytes say which. They also name the measurement, so that bytes which a relay delivers late are
//! never counted for the next one.

/// Size of the greeting.
pub(crate) const HELLO_SIZE: usize = 8;

/// Size of a whole request of [`Part::Answer`], the greeting included.
pub(crate) const REQUEST_SIZE: usize = 128;

/// Size of the reply to a request.
pub(crate) const REPLY_SIZE: usize = 1024;

const MAGIC: [u8; 2] = *b"zb";

/// What the service does on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Confirms with one byte, then reads everything and counts it.
    Sink,
    /// Writes for ever.
    Source,
    /// Writes for ever, and reads and counts.
    Both,
    /// Sends every byte back.
    Echo,
    /// Takes a request, sends a reply and closes.
    Answer,
    /// Confirms with one byte, then says nothing.
    Hold,
}

impl Part {
    const ALL: [(Self, u8); 6] = [
        (Self::Sink, b'S'),
        (Self::Source, b'D'),
        (Self::Both, b'B'),
        (Self::Echo, b'E'),
        (Self::Answer, b'A'),
        (Self::Hold, b'H'),
    ];

    fn letter(self) -> u8 {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or(0, |(_, letter)| *letter)
    }
}

/// The greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// What the service shall do.
    pub(crate) part: Part,
    /// The measurement this connection belongs to, modulo 256.
    pub(crate) generation: u8,
}

impl Hello {
    /// As sent.
    pub(crate) fn encode(self) -> [u8; HELLO_SIZE] {
        [MAGIC[0], MAGIC[1], self.part.letter(), self.generation, 0, 0, 0, 0]
    }

    /// As received; a stranger's bytes are none.
    pub(crate) fn decode(bytes: [u8; HELLO_SIZE]) -> Option<Self> {
        let [first, second, letter, generation, 0, 0, 0, 0] = bytes else { return None };
        let (part, _) = Part::ALL.into_iter().find(|(_, known)| *known == letter)?;
        ([first, second] == MAGIC).then_some(Self { part, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every greeting is read as it was meant, and foreign bytes are refused.
    #[test]
    fn greetings_survive_the_wire() {
        for (part, _) in Part::ALL {
            let hello = Hello { part, generation: 201 };
            assert_eq!(Hello::decode(hello.encode()), Some(hello));
        }
        assert_eq!(Hello::decode(*b"GET / HT"), None);
        assert_eq!(Hello::decode(*b"zbS\x01\x00\x00\x00\x01"), None);
    }
}
