//! A list that grows in small steps and never moves what it holds.
//!
//! A vector doubles: between two sizes half of its memory is idle, and a growing table of flows copies
//! itself while flows wait. Tables of sockets and flows are lists of chunks instead.

use std::ops::{Index, IndexMut};

/// Entries in a chunk.
const SIZE: usize = 64;

/// A list that is never shortened.
#[derive(Debug)]
pub struct Chunks<T> {
    /// All full but the last.
    chunks: Vec<Vec<T>>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Chunks<T> {
    /// Appends an entry and tells its index.
    pub fn push(&mut self, entry: T) -> usize {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == SIZE) {
            self.chunks.push(Vec::with_capacity(SIZE));
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        chunk.push(entry);
        number * SIZE + chunk.len() - 1
    }

    /// The entry at an index, if there is one.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / SIZE)?.get(index % SIZE)
    }

    /// The entry at an index, if there is one.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / SIZE)?.get_mut(index % SIZE)
    }

    /// All entries, in the order of their indexes.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// All entries, in the order of their indexes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / SIZE][index % SIZE]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / SIZE][index % SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is the list that was pushed, and nothing that is in it has ever moved.
    #[test]
    fn nothing_moves() {
        let mut chunks = Chunks::default();
        let mut places = Vec::new();
        for number in 0..10 * SIZE + 1 {
            assert_eq!(chunks.push(number), number);
            places.push(std::ptr::from_ref(&chunks[number]));
        }
        assert!(chunks.iter().copied().eq(0..10 * SIZE + 1));
        assert!(chunks.iter().map(std::ptr::from_ref).eq(places));
        chunks.iter_mut().for_each(|number| *number += 1);
        chunks[SIZE] += 1;
        assert_eq!((chunks.get(SIZE), chunks.get(10 * SIZE)), (Some(&66), Some(&641)));
        assert_eq!(chunks.get(10 * SIZE + 1), None);
        assert_eq!(chunks.get_mut(11 * SIZE), None);
    }
}
