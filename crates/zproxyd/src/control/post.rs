//! The post: what the control core tells the data cores, gathered over a turn, and how much of it has
//! not been taken yet.
//!
//! A letter takes memory, and often a descriptor, until its data core takes it. A client can cause
//! letters faster than a data core that is starved of CPU takes them. So while the post is full,
//! nothing more is read from ctl_conns that have just spoken, and TCP holds their clients back.

use zproxy_io::Driver;
use zproxy_proto::limits::LETTERS_MAX;
use zproxy_relay::Sender;

use crate::mailbox::Tell;

/// The way to every data core.
pub(super) struct Post<D: Driver> {
    trays: Vec<Tray<D>>,
}

struct Tray<D: Driver> {
    sender: Sender<Tell<D>>,
    /// Letters of this turn.
    letters: Vec<Tell<D>>,
    /// Letters that had not been taken when the last turn ended.
    waiting: usize,
}

impl<D: Driver> Post<D> {
    pub(super) fn new(senders: Vec<Sender<Tell<D>>>) -> Self {
        let trays = senders.into_iter();
        let trays = trays.map(|sender| Tray { sender, letters: Vec::new(), waiting: 0 }).collect();
        Self { trays }
    }

    /// Data cores.
    pub(super) fn cores(&self) -> usize {
        self.trays.len()
    }

    /// For a data core, at the end of the turn; dropped if there is no such core.
    pub(super) fn tell(&mut self, core: u16, letter: Tell<D>) {
        if let Some(to) = self.trays.get_mut(usize::from(core)) {
            to.letters.push(letter);
        }
    }

    /// For every data core, at the end of the turn.
    pub(super) fn tell_all(&mut self, letter: impl Fn() -> Tell<D>) {
        for to in &mut self.trays {
            to.letters.push(letter());
        }
    }

    /// For every data core, now and past the letters of this turn.
    pub(super) fn tell_all_now(&self, letter: impl Fn() -> Tell<D>) {
        for to in &self.trays {
            to.sender.send(letter());
        }
    }

    /// Ends a turn.
    pub(super) fn send(&mut self) {
        for to in &mut self.trays {
            to.sender.send_all(&mut to.letters);
            to.waiting = to.sender.waiting();
        }
    }

    /// Whether a data core has as many letters to take as it may have.
    pub(super) fn is_full_for(&self, core: u16) -> bool {
        self.trays.get(usize::from(core)).is_some_and(Tray::is_full)
    }

    /// Whether any data core has.
    pub(super) fn is_full(&self) -> bool {
        self.trays.iter().any(Tray::is_full)
    }
}

impl<D: Driver> Tray<D> {
    fn is_full(&self) -> bool {
        self.waiting + self.letters.len() >= LETTERS_MAX
    }
}
