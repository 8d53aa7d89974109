//! Teardown: everything in flight comes home before a socket, or the driver, goes.

use std::time::Duration;

use io_uring::{cqueue, opcode, types};

use super::Uring;
use super::entry::{Entry, Key, Part, Places, Work, named_by, user_data};
use crate::{Done, Ending, Fault, Outcome, Sock, Token, sock, sys};

impl Uring {
    pub(super) fn cancel(&mut self, key: Key, part: Part) {
        let target = types::CancelBuilder::user_data(user_data(key, part));
        let entry = opcode::AsyncCancel2::new(target).build();
        // A vigil has no entry to be cancelled again, and needs none: it is never between two tries.
        let key = if part == Part::Vigil { Key::MAX } else { key };
        self.ring.push(&[entry.user_data(user_data(key, Part::Cancel))]);
    }

    /// A cancellation is over. One that met its target while that was between two tries has found
    /// nothing (ENOENT, EALREADY), and the target may wait again: once more, then. What was cancelled
    /// says so itself.
    pub(super) fn on_cancelled(&mut self, key: Key, result: i32) {
        if !matches!(-result, libc::ENOENT | libc::EALREADY) {
            return;
        }
        // The entry may be another one by now; then nobody wants it home.
        let Some(entry) = self.entries.get(key) else { return };
        if entry.pending > 0
            && self.is_wanted_home(entry)
            && let Some(part) = waiting_part(entry)
        {
            self.cancel(key, part);
        }
    }

    fn is_wanted_home(&self, entry: &Entry) -> bool {
        match &entry.work {
            Work::Accept { is_recalled: true, .. } => true,
            work => Places::of(work).socks().any(|sock| self.is_closing(sock)),
        }
    }

    /// Starts closing: wakes what waits on the socket, and closes when all of it is home.
    pub(super) fn close(&mut self, token: Token, sock: Sock, how: Ending) {
        let Some(entity) = self.socks.get_mut(sock) else {
            self.ready.push(Done { token, outcome: Outcome::Closed });
            return;
        };
        assert!(entity.closing.is_none(), "a socket is closed once");
        entity.closing = Some((token, how));
        let keys = [entity.inbound, entity.outbound, entity.watch];
        if let Some(token) = entity.parked.take() {
            self.ready.push(Done { token, outcome: Outcome::Failed(Fault::Cancelled) });
        }
        self.end_vigil(sock);
        for key in keys.into_iter().flatten() {
            let entry = self.entries.get(key).expect("an operation in flight has its entry");
            if let Some(part) = waiting_part(entry) {
                self.cancel(key, part);
            }
        }
        self.close_when_empty(sock);
    }

    pub(super) fn close_when_empty(&mut self, sock: Sock) {
        let Some(entity) = self.socks.get(sock) else { return };
        let Some((token, how)) = entity.closing else { return };
        let busy = entity.inbound.or(entity.outbound).or(entity.watch);
        if busy.is_some() || !entity.vigil.is_absent() {
            return;
        }
        let entity = self.socks.remove(sock).expect("it was there a moment ago");
        match how {
            Ending::Clean => sock::close_clean(entity.fd),
            Ending::Reset => sock::close_reset(entity.fd),
        }
        self.stats.socks_closed += 1;
        self.ready.push(Done { token, outcome: Outcome::Closed });
    }
}

/// The submission to cancel so that an operation comes home; none when it comes by itself.
fn waiting_part(entry: &Entry) -> Option<Part> {
    match &entry.work {
        Work::Fill(fill) => fill.waiting_part(),
        Work::Drain(drain) => drain.waiting_part(),
        _ => Some(Part::Main),
    }
}

/// Brings everything home before the memory that the kernel writes to is freed.
impl Drop for Uring {
    fn drop(&mut self) {
        let everything = types::CancelBuilder::any().all();
        let entry = opcode::AsyncCancel2::new(everything).build();
        self.ring.push(&[entry.user_data(user_data(Key::MAX, Part::Cancel))]);
        let give_up = sys::now() + Duration::from_secs(2);
        // Entries are only counted down here; nothing is continued.
        while !self.entries.is_empty() && sys::now() < give_up {
            if self.ring.enter(Some(Duration::from_millis(50))).is_err() {
                break;
            }
            while let Some(completion) = self.ring.next_completion() {
                self.abandon(&completion);
            }
        }
        if !self.entries.is_empty() {
            self.group.abandon();
            std::mem::forget(std::mem::take(&mut self.entries));
        }
    }
}

impl Uring {
    /// Frees an entry when its last completion is home, and what the completion carries.
    fn abandon(&mut self, completion: &cqueue::Entry) {
        let (key, part) = named_by(completion.user_data());
        if matches!(part, Part::Cancel | Part::Vigil) {
            return;
        }
        let entry = self.entries.place(key).as_mut().expect("an entry waits for its completions");
        if matches!(entry.work, Work::Accept { .. }) && completion.result() >= 0 {
            drop(sys::own(completion.result()));
        }
        if !cqueue::more(completion.flags()) {
            entry.pending -= 1;
            if entry.pending == 0 {
                self.entries.remove(key);
            }
        }
    }
}
