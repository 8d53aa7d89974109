//! Teardown: everything in flight comes home before a socket, or the driver, goes.

use std::time::Duration;

use io_uring::{cqueue, opcode, types};

use super::Uring;
use super::entry::{CANCEL, Key, Part, Work, user_data};
use crate::{Done, Ending, Outcome, Sock, Token, sock, sys};

impl Uring {
    pub(super) fn cancel(&mut self, key: Key, part: Part) {
        let target = types::CancelBuilder::user_data(user_data(key, part));
        self.ring.push(&[opcode::AsyncCancel2::new(target).build().user_data(CANCEL)]);
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
        for key in keys.into_iter().flatten() {
            let entry =
                self.entries[key as usize].as_ref().expect("an operation in flight has its entry");
            let part = match &entry.work {
                Work::Fill(fill) => fill.waiting_part(),
                Work::Drain(drain) => drain.waiting_part(),
                _ => Some(Part::Main),
            };
            if let Some(part) = part {
                self.cancel(key, part);
            }
        }
        self.close_when_empty(sock);
    }

    pub(super) fn close_when_empty(&mut self, sock: Sock) {
        let Some(entity) = self.socks.get(sock) else { return };
        let Some((token, how)) = entity.closing else { return };
        if entity.inbound.or(entity.outbound).or(entity.watch).is_some() {
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

/// Brings everything home before the memory that the kernel writes to is freed.
impl Drop for Uring {
    fn drop(&mut self) {
        let everything = types::CancelBuilder::any().all();
        self.ring.push(&[opcode::AsyncCancel2::new(everything).build().user_data(CANCEL)]);
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
        if completion.user_data() == CANCEL {
            return;
        }
        let key = (completion.user_data() & u64::from(u32::MAX)) as usize;
        let entry = self.entries[key].as_mut().expect("an entry waits for its completions");
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
