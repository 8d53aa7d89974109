//! Places for conns and flows, and the tokens that name them.

use zproxy_io::{Chunks, Token};

/// Names a place; stale once the place has been freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

/// Generations fit 24 bits of a token.
const GENERATION_MASK: u32 = (1 << 24) - 1;

/// What an operation's token says: which of the owner's kinds of operation (`kind`, below 255) it is,
/// and the place it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The owner's number for the kind of operation.
    pub kind: u8,
    /// The place.
    pub key: Key,
}

impl Name {
    /// The token: kind, generation, index.
    #[must_use]
    pub fn token(self) -> Token {
        debug_assert!(self.kind < u8::MAX, "the kind of the doorbell's token");
        let kind = u64::from(self.kind) << 56;
        Token(kind | u64::from(self.key.generation) << 32 | u64::from(self.key.index))
    }

    /// What the token says; not for [`Token::DOORBELL`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each field is cut out of the token")]
    pub fn of(token: Token) -> Self {
        let generation = (token.0 >> 32) as u32 & GENERATION_MASK;
        Self { kind: (token.0 >> 56) as u8, key: Key { index: token.0 as u32, generation } }
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

/// A table whose keys go stale.
#[derive(Debug)]
pub struct Slots<T> {
    places: Chunks<Place<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { places: Chunks::default(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slots<T> {
    /// Puts an entry into a free place.
    ///
    /// # Panics
    /// With more than 2^32 entries.
    pub fn insert(&mut self, entry: T) -> Key {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.entry = Some(entry);
            return Key { index, generation: place.generation };
        }
        let index = self.places.push(Place { generation: 0, entry: Some(entry) });
        let index = u32::try_from(index).expect("fewer than 2^32 entries");
        Key { index, generation: 0 }
    }

    /// The entry, unless the key is stale.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        if place.generation == key.generation { place.entry.as_ref() } else { None }
    }

    /// The entry, unless the key is stale.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation { place.entry.as_mut() } else { None }
    }

    /// Frees the place, unless the key is stale.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        self.len -= 1;
        Some(entry)
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().zip(0u32..).filter_map(|(place, index)| {
            let key = Key { index, generation: place.generation };
            place.entry.as_ref().map(|entry| (key, entry))
        })
    }

    /// All entries with their keys.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.places.iter_mut().zip(0u32..).filter_map(|(place, index)| {
            let key = Key { index, generation: place.generation };
            place.entry.as_mut().map(|entry| (key, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key does not reach the entry that took over its place.
    #[test]
    fn keys_go_stale() {
        let mut slots = Slots::default();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!((slots.get(old), slots.get(new)), (None, Some(&"new")));
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.len(), 1);
    }

    /// A token carries the whole name, whatever the generation.
    #[test]
    fn tokens_carry_names() {
        for generation in [0, 1, GENERATION_MASK] {
            let name = Name { kind: 17, key: Key { index: u32::MAX, generation } };
            assert_eq!(Name::of(name.token()), name);
        }
    }
}
