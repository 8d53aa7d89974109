//! The sockets of one driver, by name. A name carries a generation, so one that outlived its socket
//! is recognised.

use crate::{Chunks, Sock};

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

/// A table of `T` whose keys are [`Sock`]s.
#[derive(Debug)]
pub(crate) struct Table<T> {
    places: Chunks<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { places: Chunks::default(), free: Vec::new() }
    }
}

impl<T> Table<T> {
    pub(crate) fn insert(&mut self, entry: T) -> Sock {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.entry = Some(entry);
            return Sock { index, generation: place.generation };
        }
        let index = self.places.push(Place { generation: 0, entry: Some(entry) });
        let index = u32::try_from(index).expect("descriptors are fewer than 2^32");
        Sock { index, generation: 0 }
    }

    /// The name of whatever is in a place now.
    pub(crate) fn name(&self, index: u32) -> Option<Sock> {
        let place = self.places.get(index as usize)?;
        place.entry.as_ref().map(|_| Sock { index, generation: place.generation })
    }

    /// The entry, unless the name is stale.
    pub(crate) fn get(&self, sock: Sock) -> Option<&T> {
        let place = self.places.get(sock.index as usize)?;
        if place.generation == sock.generation { place.entry.as_ref() } else { None }
    }

    /// The entry, unless the name is stale.
    pub(crate) fn get_mut(&mut self, sock: Sock) -> Option<&mut T> {
        let place = self.places.get_mut(sock.index as usize)?;
        if place.generation == sock.generation { place.entry.as_mut() } else { None }
    }

    /// Takes the entry out; the name is stale from now on.
    pub(crate) fn remove(&mut self, sock: Sock) -> Option<T> {
        let place = self.places.get_mut(sock.index as usize)?;
        if place.generation != sock.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(sock.index);
        Some(entry)
    }
}
