//! The doors: the gateway's own two listeners, and which strangers may stay behind them.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, warn};
use zproxy_io::{Driver, Ending, Op, Outcome, Sock, Token as OpToken};
use zproxy_proto::auth::Nonce;
use zproxy_proto::control::{GatewayConfig, GatewaySession};
use zproxy_proto::limits::{HANDSHAKE_DEADLINE, PROXY_OPENING_SIZE};
use zproxy_proto::strangers::{Left, Origin};
use zproxy_relay::{Key, Name};

use super::{ACCEPT, CLOSE_STRAY, Control, PROGRESS_INTERVAL, Peer, PeerKind};
use crate::mailbox::Tell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DoorKind {
    Ctl,
    Proxy,
}

/// One of the gateway's own listeners.
pub(super) struct Door {
    pub(super) sock: Sock,
    pub(super) kind: DoorKind,
    /// Out of descriptors until then.
    pub(super) paused_until: Option<Duration>,
}

/// What was counted at the doors since it was logged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Connections closed because too many were unauthenticated.
    crowded_out: u64,
    /// Peers closed for garbage, silence or a bad proof.
    pub(super) turned_away: u64,
    /// Connections closed at accept, because too many from there had failed.
    locked_out: u64,
    /// Whether a line has told of a peer that was refused.
    pub(super) is_refusal_named: bool,
}

/// Where a peer comes from.
fn origin(addr: Option<SocketAddr>) -> Origin {
    Origin::from(addr.map(|addr| addr.ip()))
}

impl<D: Driver> Control<D> {
    pub(super) fn open_door(&mut self, kind: DoorKind, listener: D::Handle) {
        let sock = self.driver.adopt(listener);
        let key = self.doors.insert(Door { sock, kind, paused_until: None });
        self.driver.submit(Name { kind: ACCEPT, key }.token(), Op::Accept { listener: sock });
    }

    pub(super) fn on_accept(&mut self, key: Key, outcome: Outcome) {
        let Some(door) = self.doors.get_mut(key) else {
            if let Outcome::Accepted { sock, .. } = outcome {
                self.close_stray(sock);
            }
            return;
        };
        match outcome {
            Outcome::Accepted { sock, peer } => {
                let kind = door.kind;
                self.on_peer(kind, sock, peer);
            }
            Outcome::Failed(zproxy_io::Fault::Cancelled) => {}
            Outcome::Failed(fault) => {
                mark!("clients_paused");
                let (until, is_news) = self.shortage.note(self.driver.now());
                door.paused_until = Some(until);
                if is_news {
                    warn!("accepting clients paused: {fault}");
                }
                self.on_short();
            }
            other => unreachable!("not the result of an accept: {other:?}"),
        }
    }

    /// The gateway is out of descriptors, here or on a data core. Whoever may accept next, idle
    /// proxy_conns on any data core hold what it needs.
    pub(super) fn on_short(&mut self) {
        if self.shortage.is_pressing(self.driver.now()) {
            self.tell_all(|| Tell::Short);
        }
    }

    fn close_stray(&mut self, sock: Sock) {
        let token = OpToken(u64::from(CLOSE_STRAY) << 56);
        self.driver.submit(token, Op::Close { sock, how: Ending::Reset });
    }

    fn on_peer(&mut self, kind: DoorKind, sock: Sock, addr: Option<SocketAddr>) {
        let now = self.driver.now();
        if !self.strangers.admits(origin(addr), now) {
            self.counts.locked_out += 1;
            self.close_stray(sock);
            return;
        }
        let is_proxy = kind == DoorKind::Proxy;
        let kind = match kind {
            DoorKind::Ctl => {
                let config = GatewayConfig {
                    token: self.token.clone(),
                    server_id: self.server_id,
                    nonce: Nonce(self.random.bytes()),
                    data_cores: u16::try_from(self.post.cores()).unwrap_or(u16::MAX),
                    heartbeat: self.heartbeat,
                };
                let machine = Box::new(GatewaySession::new(config, now));
                PeerKind::Ctl { machine, session: None, said_goodbye: false }
            }
            DoorKind::Proxy => {
                PeerKind::Proxy { head: Vec::new(), deadline: now + HANDSHAKE_DEADLINE }
            }
        };
        let (pass, is_sending, is_closing, alarm) = (None, false, false, None);
        let key = self.peers.insert(Peer { sock, addr, kind, pass, is_sending, is_closing, alarm });
        let pass = self.strangers.enter(origin(addr), key, now);
        self.peers.get_mut(key).expect("inserted just now").pass = Some(pass);
        self.set_alarm(key);
        // Many come in one turn, and most have said who they are by now: they need not wait for the
        // next one, and do not crowd anybody out.
        let mut buf = Vec::new();
        let count =
            if is_proxy { self.driver.take_now(sock, &mut buf, PROXY_OPENING_SIZE) } else { 0 };
        if count > 0 {
            self.on_received(key, Outcome::Received { buf, count });
        } else {
            self.receive(key, buf);
        }
    }

    /// Ends a turn at the doors: when there are too many strangers, some make room.
    pub(super) fn make_room(&mut self) {
        while let Some(key) = self.strangers.crowded_out() {
            self.counts.crowded_out += 1;
            self.close_peer(key, Ending::Reset);
        }
        self.strangers.end_turn();
    }

    /// A peer is no stranger any more, if it was one.
    pub(super) fn note_leaving(&mut self, key: Key, how: Left) {
        let pass = self.peers.get_mut(key).and_then(|peer| peer.pass.take());
        if let Some(pass) = pass {
            self.strangers.leave(pass, how, self.driver.now());
        }
    }

    /// Closes a peer that is not authenticated.
    pub(super) fn turn_away(&mut self, key: Key, why: &str) {
        self.counts.turned_away += 1;
        if let Some(peer) = self.peers.get(key) {
            let addr = peer.addr.map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
            debug!("peer={addr} turned away: {why}");
        }
        self.close_peer(key, Ending::Reset);
    }

    /// Where a client stands, which vouches for that address as long as it has a session.
    pub(super) fn vouch(&mut self, key: Key) -> Origin {
        let origin = origin(self.peers.get(key).and_then(|peer| peer.addr));
        self.strangers.vouch(origin);
        origin
    }

    pub(super) fn unvouch(&mut self, origin: Origin) {
        let now = self.driver.now();
        self.strangers.unvouch(origin, now);
    }

    /// One line for many strangers: a flood must not flood the log.
    pub(super) fn log_counts(&mut self, now: Duration) {
        let Counts { crowded_out, turned_away, locked_out, .. } = self.counts;
        let count = crowded_out + turned_away + locked_out;
        if count == 0 || now < self.counts_logged_at + PROGRESS_INTERVAL {
            return;
        }
        self.counts = Counts::default();
        self.counts_logged_at = now;
        warn!(
            "unauthenticated peers: turned_away={turned_away} crowded_out={crowded_out} \
             locked_out={locked_out}"
        );
    }
}
