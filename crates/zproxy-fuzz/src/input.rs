//! A fuzzer's bytes as numbers. Each decision takes its bytes from the front and always as many, so
//! that a changed byte changes one decision and a deleted one shifts the rest.

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of an input.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The next byte; `None` ends a list of operations.
    pub fn next_byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    /// The next byte; behind the end there are zeros.
    pub fn byte(&mut self) -> u8 {
        self.next_byte().unwrap_or(0)
    }

    /// The next two bytes as a number.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next byte as one of `count` choices.
    pub fn below(&mut self, count: u8) -> u8 {
        self.byte() % count
    }

    /// The next byte as a decision.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// What is left, as bytes.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers come from the front, and behind the end there are zeros.
    #[test]
    fn numbers_come_from_the_front() {
        let mut input = Input::new(&[7, 1, 2, 255, 9]);
        assert_eq!((input.next_byte(), input.word(), input.below(16)), (Some(7), 0x102, 15));
        assert_eq!(input.clone().rest(), [9]);
        assert!(input.flag());
        assert_eq!((input.next_byte(), input.byte(), input.word()), (None, 0, 0));
    }
}
