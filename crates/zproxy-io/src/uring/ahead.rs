//! Fills that are begun before they are asked for.

use super::Uring;
use super::entry::{Entry, Places, Work};
use super::rounds::Fill;
use crate::{Done, Outcome, Sock, Token};

/// A fill of a socket that the driver begins together with the send of what came before, because it
/// is all but certain to be asked for next: one submission for both, instead of two.
#[derive(Debug)]
pub(super) enum Ahead {
    No,
    /// In flight (key of the entry).
    Flying(usize),
    /// At home before it was asked for.
    Landed(Outcome),
}

impl Uring {
    /// Begins the fill that will be asked for when the present drain is over.
    pub(super) fn start_ahead(&mut self, from: Sock) {
        let key = self.entries.insert(None);
        let mut fill = Fill::new(from);
        let step = self.first_fill(&mut fill, key);
        self.entity(from).ahead = Ahead::Flying(key);
        let (places, work) = (Places::default(), Work::Fill(fill));
        self.settle(key, Entry { token: None, places, pending: 0, work }, step);
    }

    /// Answers a fill with the one that was begun ahead. True when there is one.
    pub(super) fn join_ahead(&mut self, token: Token, from: Sock) -> bool {
        if self.is_closing(from) {
            return false;
        }
        match std::mem::replace(&mut self.entity(from).ahead, Ahead::No) {
            Ahead::No => return false,
            Ahead::Landed(outcome) => self.ready.push(Done { token, outcome }),
            Ahead::Flying(key) => {
                let places = Places { inbound: Some(from), ..Places::default() };
                self.occupy(places, key);
                let entry = self.entries[key].as_mut().expect("an entry waits for its completions");
                entry.token = Some(token);
                entry.places = places;
            }
        }
        true
    }

    /// A fill that nobody has asked for is home.
    pub(super) fn land_ahead(&mut self, work: &Work, outcome: Outcome) {
        let Work::Fill(fill) = work else { unreachable!("only fills are begun ahead") };
        let from = fill.from;
        let Some(entity) = self.socks.get_mut(from) else { return };
        entity.ahead = Ahead::Landed(outcome);
        self.close_when_empty(from);
    }
}
