//! When the public listeners accept, and what they prefer. They pause while descriptors are short, and
//! while so many visitors of a session wait for proxy_conns that further ones had better wait in the
//! kernel.

use std::time::Duration;

use tracing::{debug, info, warn};
use zproxy_io::{Driver, Fault, Op, Outcome};
use zproxy_relay::{Key, Name};

use super::{ACCEPT, Listener, Worker};
use crate::mailbox::{Report, SessionNo};

/// Whether a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    /// Connections are being accepted.
    On,
    /// The accept was recalled, because a crowd waits, and is not home yet.
    Recalled,
    /// None is accepted for now, and no accept is in flight.
    Paused(Until),
    /// Being closed.
    Off,
}

/// When a paused listener accepts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Out of descriptors; tried again at this time.
    Time(Duration),
    /// When the crowd of the listener's session has shrunk.
    Room,
}

impl<D: Driver> Worker<D> {
    /// Listeners that do not accept for now.
    pub(super) fn paused(&self) -> usize {
        let is_paused = |listener: &Listener| matches!(listener.state, Accepting::Paused(_));
        self.listeners.iter().filter(|(_, listener)| is_paused(listener)).count()
    }

    /// Lets a listener on which nothing is in flight accept, unless its session is crowded.
    pub(super) fn accept(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        if self.sessions.get(&listener.session).is_some_and(|entry| entry.is_crowded) {
            listener.state = Accepting::Paused(Until::Room);
            return;
        }
        listener.state = Accepting::On;
        let name = Name { kind: ACCEPT, key };
        self.driver.submit(name.token(), Op::Accept { listener: listener.sock });
    }

    pub(super) fn on_accept(&mut self, key: Key, outcome: Outcome) {
        let fault = match outcome {
            Outcome::Accepted { sock, peer } => return self.on_public(key, sock, peer),
            Outcome::Failed(fault) => fault,
            other => unreachable!("not the result of an accept: {other:?}"),
        };
        let Some(listener) = self.listeners.get_mut(key) else { return };
        match listener.state {
            Accepting::Off => {}
            // The crowd may be gone by now.
            Accepting::Recalled if fault == Fault::Cancelled => self.accept(key),
            _ => {
                mark!("publics_paused");
                let now = self.driver.now();
                let (until, is_news) = self.shortage.note(now);
                listener.state = Accepting::Paused(Until::Time(until));
                if is_news {
                    warn!("core={} accepting paused: {fault}", self.core);
                }
                if self.shortage.is_pressing(now) {
                    self.outgoing.push(Report::Short);
                }
            }
        }
    }

    /// Tells the kernel which connections this core prefers, if that has changed.
    pub(super) fn steer(&mut self, now: Duration) {
        if self.arrivals.poll(now) {
            let cpu = self.arrivals.preferred();
            if cpu.is_some() {
                mark!("steering");
            } else {
                mark!("steering_over");
            }
            debug!("core={} prefers arrivals of cpu={cpu:?}", self.core);
            for (_, listener) in self.listeners.iter() {
                self.driver.prefer_arrivals(listener.sock, cpu);
            }
        }
    }

    /// When the first listener that was short accepts again. Listeners are looked through only during
    /// a shortage: there may be hundreds, and this is asked every turn.
    pub(super) fn paused_until(&self) -> Option<Duration> {
        self.shortage.poll_timeout()?;
        let until = |listener: &Listener| match listener.state {
            Accepting::Paused(Until::Time(until)) => Some(until),
            _ => None,
        };
        self.listeners.iter().filter_map(|(_, listener)| until(listener)).min()
    }

    pub(super) fn resume_accepting(&mut self, now: Duration) {
        if self.shortage.poll_timeout().is_none() {
            return;
        }
        let is_due = |listener: &Listener| matches!(listener.state, Accepting::Paused(Until::Time(until)) if until <= now);
        let due = self.listeners.iter().filter(|(_, listener)| is_due(listener));
        for key in due.map(|(key, _)| key).collect::<Vec<_>>() {
            self.accept(key);
        }
        if self.shortage.is_over(now) {
            info!("core={} accepting again", self.core);
        }
    }

    /// Pauses the listeners of a session when its waiting list has become long, and lets them accept
    /// again when it is short. Early enough: what the kernel has accepted by the time it learns of the
    /// pause still finds a place.
    pub(super) fn poll_crowd(&mut self, session: SessionNo, now: Duration) {
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let is_crowded = entry.pool.poll_crowded();
        if is_crowded == entry.is_crowded {
            return;
        }
        entry.is_crowded = is_crowded;
        let (_, is_news) = entry.crowding.note(now);
        if is_crowded {
            mark!("accept_paused");
            self.crowds += 1;
        } else {
            mark!("accept_resumed");
        }
        if is_news {
            let (core, client, waiting) = (self.core, &entry.client, entry.pool.waiting_len());
            warn!("core={core} client={client} accepting paused: {waiting} visitors wait");
        }
        let from = match is_crowded {
            true => Accepting::On,
            false => Accepting::Paused(Until::Room),
        };
        let is_meant = |it: &Listener| it.session == session && it.state == from;
        let meant = self.listeners.iter().filter(|(_, listener)| is_meant(listener));
        for key in meant.map(|(key, _)| key).collect::<Vec<_>>() {
            match is_crowded {
                true => self.recall(key),
                false => self.accept(key),
            }
        }
    }

    fn recall(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.state = Accepting::Recalled;
        let sock = listener.sock;
        self.driver.recall_accept(sock);
    }
}
