//! The public side: tunnels' listeners, and public conns from accept to close.

use std::net::SocketAddr;

use tracing::{info, warn};
use zproxy_io::{Driver, Ending, Op, Outcome, Sock};
use zproxy_proto::id::{FlowId, TunnelId};
use zproxy_proto::pool::Take;
use zproxy_proto::proxy_conn::{Input, ProxyConn};
use zproxy_relay::{Direction, End, Flow, Heard, Key, Keys, Name, kind};

use super::{
    Accepting, Bound, By, CLOSE_LISTENER, CLOSE_PUBLIC, Course, LOOK_INTERVAL, Life, Listener,
    Public, PublicState, Tunnel, Worker,
};
use crate::mailbox::{Report, SessionNo};

impl<D: Driver> Worker<D> {
    pub(super) fn open_tunnel(
        &mut self,
        session: SessionNo,
        tunnel: TunnelId,
        name: String,
        listener: D::Handle,
    ) {
        let sock = self.driver.adopt(listener);
        if let Some(cpu) = self.arrivals.preferred() {
            self.driver.prefer_arrivals(sock, Some(cpu));
        }
        let state = Accepting::On;
        let key = self.listeners.insert(Listener { sock, session, tunnel, state });
        if self.course != Course::Serving || !self.sessions.contains_key(&session) {
            self.close_listener(key);
            return;
        }
        self.tunnels.insert(tunnel, Tunnel { name, listener: key });
        self.accept(key);
        self.unreported.push(tunnel);
        self.report_served();
    }

    fn report_served(&mut self) {
        if self.listeners_closing == 0 {
            for tunnel in self.unreported.drain(..) {
                self.outgoing.push(Report::Serving { tunnel });
            }
        }
    }

    pub(super) fn on_listener_closed(&mut self, key: Key) {
        self.listeners.remove(key);
        self.listeners_closing -= 1;
        self.report_served();
    }

    pub(super) fn close_tunnel(&mut self, tunnel: TunnelId) {
        if let Some(tunnel) = self.tunnels.remove(&tunnel) {
            self.close_listener(tunnel.listener);
        }
    }

    fn close_listener(&mut self, key: Key) {
        let Some(listener) = self.listeners.get_mut(key) else { return };
        listener.state = Accepting::Off;
        self.listeners_closing += 1;
        let sock = listener.sock;
        self.submit_close(CLOSE_LISTENER, key, sock, Ending::Clean);
    }

    /// A public connection has come.
    pub(super) fn on_public(&mut self, listener: Key, sock: Sock, peer: Option<SocketAddr>) {
        let found = self.listeners.get(listener).filter(|it| it.state != Accepting::Off);
        let Some(listener) = found else {
            self.close_stray(sock);
            return;
        };
        let (session, tunnel) = (listener.session, listener.tunnel);
        let now = self.driver.now();
        let arrival = self.arrivals.enter(|| self.driver.arrival_cpu(sock));
        let state = PublicState::Waiting;
        let public = Public { sock, peer, session, tunnel, accepted_at: now, arrival, state };
        let key = self.publics.insert(public);
        self.publics_live += 1;
        self.next_look.get_or_insert(now + LOOK_INTERVAL);
        let Some(entry) = self.sessions.get_mut(&session) else {
            self.refuse_public(key, "no_session");
            return;
        };
        if entry.is_parting {
            self.refuse_public(key, "client_stopping");
            return;
        }
        let take = entry.pool.take(key, now);
        self.touched.push(session);
        match take {
            Take::Conn(conn) => self.bind(key, conn, false),
            Take::Waiting => {
                mark!("waiting");
                // A visitor that leaves while it waits is noticed and not paired.
                let watch = Name { kind: kind::WATCH_NEAR, key };
                self.driver.submit(watch.token(), Op::Watch { sock });
                self.poll_crowd(session, now);
            }
            Take::Full => {
                mark!("waiting_list_full");
                self.refuse_public(key, "waiting_list_full");
            }
        }
    }

    /// Pairs a public conn with an idle proxy_conn: one `Start`, and bytes behind it. `is_watched`
    /// tells whether a watch of the public conn is in flight.
    pub(super) fn bind(&mut self, key: Key, conn_key: Key, is_watched: bool) {
        let now = self.driver.now();
        let id = FlowId::new(self.core, self.next_flow);
        self.next_flow = (self.next_flow + 1) & FlowId::SERIAL_MAX;
        let conn = self.conns.get_mut(conn_key).expect("the pool holds live conns");
        let public = self.publics.get_mut(key).expect("a public conn that is served is live");
        assert_eq!(conn.life, Life::Resting, "a conn carries one flow at a time");
        let mut flow = Flow::new(public.sock, conn.sock);
        flow.near_watched = is_watched;
        flow.far_watched = conn.far_watched;
        flow.inbound.inherit_fill();
        conn.life = Life::Flowing(key);
        let keys = Keys { flow: key, far: conn_key };
        flow.open_inbound(&mut self.driver, keys);
        let bound = Bound { id, conn: conn_key, bound_at: now, flow, ended_first: None };
        public.state = PublicState::Flowing(bound);
        self.feed(conn_key, Input::Bind(id));
    }

    /// Resets a public conn that has no flow, and says why.
    pub(super) fn refuse_public(&mut self, key: Key, why: &str) {
        let Some(public) = self.publics.get(key) else { return };
        let waited = self.driver.now().saturating_sub(public.accepted_at);
        warn!(
            flow = %"none",
            client = %self.client_of(public),
            tunnel = %self.tunnel_of(public),
            public = public.peer.map(tracing::field::display),
            "in" = 0,
            out = 0,
            ms = waited.as_millis() as u64,
            end = %why,
            by = %By::Gateway.name(),
            "visitor refused"
        );
        self.close_public(key, Ending::Reset);
    }

    fn client_of(&self, public: &Public) -> &str {
        self.sessions.get(&public.session).map_or("gone", |entry| &entry.client)
    }

    fn tunnel_of(&self, public: &Public) -> &str {
        self.tunnels.get(&public.tunnel).map_or("closed", |tunnel| &tunnel.name)
    }

    fn close_public(&mut self, key: Key, how: Ending) {
        let Some(public) = self.publics.get_mut(key) else { return };
        if matches!(public.state, PublicState::Closing) {
            return;
        }
        public.state = PublicState::Closing;
        self.publics_live -= 1;
        self.arrivals.leave(public.arrival);
        let sock = public.sock;
        self.submit_close(CLOSE_PUBLIC, key, sock, how);
    }

    /// Takes the flow off a public conn, closes that, and writes the flow's line.
    pub(super) fn end_flow(&mut self, key: Key, how: Ending, end: &str, by: By) {
        let Some(public) = self.publics.get_mut(key) else { return };
        let state = std::mem::replace(&mut public.state, PublicState::Waiting);
        let PublicState::Flowing(bound) = state else {
            public.state = state;
            return;
        };
        if let Some(conn) = self.conns.get_mut(bound.conn) {
            conn.life = Life::Resting;
            conn.far_watched = bound.flow.far_watched;
        }
        let public = &self.publics.get(key).expect("it was there a moment ago");
        let now = self.driver.now();
        let proxy = self.conns.get(bound.conn).map(|conn| conn.proxy);
        info!(
            flow = %bound.id,
            client = %self.client_of(public),
            tunnel = %self.tunnel_of(public),
            public = public.peer.map(tracing::field::display),
            proxy = proxy.map(tracing::field::display),
            "in" = bound.flow.outbound.put(),
            out = bound.flow.inbound.put(),
            ms = now.saturating_sub(public.accepted_at).as_millis() as u64,
            bind_ms = bound.bound_at.saturating_sub(public.accepted_at).as_micros() as f64 / 1e3,
            end = %end,
            by = %by.name(),
            "flow ended"
        );
        self.close_public(key, how);
    }

    /// The gateway ends now: flows that are left get their line.
    pub(super) fn cut_off(&mut self) {
        let is_flowing = |public: &Public| matches!(public.state, PublicState::Flowing(_));
        let left = self.publics.iter().filter(|(_, public)| is_flowing(public));
        for key in left.map(|(key, _)| key).collect::<Vec<_>>() {
            self.end_flow(key, Ending::Reset, "shutdown", By::Gateway);
        }
    }

    /// Remembers which end of a flow ended first.
    pub(super) fn note_first_end(&mut self, conn: Key, by: By) {
        if let Some(bound) = self.bound_of(conn) {
            bound.ended_first.get_or_insert(by);
        }
    }

    /// The flow on a conn.
    pub(super) fn bound_of(&mut self, conn: Key) -> Option<&mut Bound> {
        let Life::Flowing(key) = self.conns.get(conn)?.life else { return None };
        match &mut self.publics.get_mut(key)?.state {
            PublicState::Flowing(bound) => Some(bound),
            PublicState::Waiting | PublicState::Closing => None,
        }
    }

    /// The result of an operation that is named by its public conn.
    pub(super) fn on_flow_done(&mut self, key: Key, kind: u8, outcome: Outcome) {
        let Some(public) = self.publics.get_mut(key) else { return };
        match &mut public.state {
            PublicState::Flowing(bound) => {
                let conn = bound.conn;
                self.on_bound_done(key, conn, kind, outcome);
            }
            PublicState::Waiting if matches!(outcome, Outcome::Hangup(_)) => {
                let session = public.session;
                if let Some(entry) = self.sessions.get_mut(&session) {
                    entry.pool.cancel_wait(key);
                    self.touched.push(session);
                }
                mark!("left_while_waiting");
                self.refuse_public(key, "left_while_waiting");
            }
            PublicState::Waiting | PublicState::Closing => {}
        }
    }

    fn on_bound_done(&mut self, key: Key, conn: Key, kind: u8, outcome: Outcome) {
        let taken = match (&outcome, kind) {
            (Outcome::Filled(lease), kind::FILL_FAR) => lease.len(),
            (Outcome::Drained { refilled, .. }, kind::DRAIN_INBOUND) => *refilled,
            _ => 0,
        };
        if taken > 0 && !self.note_taken(key, conn, taken) {
            return;
        }
        let Some(public) = self.publics.get_mut(key) else { return };
        let PublicState::Flowing(bound) = &mut public.state else { return };
        if taken > 0 {
            let total = bound.flow.inbound.taken() + taken as u64;
            let machine = self.conns.get(conn).map(|conn| &conn.machine);
            if machine.and_then(ProxyConn::announced) == Some(total) {
                bound.flow.inbound.end_sink();
            }
        }
        let keys = Keys { flow: key, far: conn };
        let heard = bound.flow.on_done(&mut self.driver, keys, kind, outcome);
        let (delivered, sent) = (bound.flow.inbound.put(), bound.flow.outbound.put());
        if kind == kind::DRAIN_INBOUND && !matches!(heard, Heard::Failed(..)) {
            self.feed(conn, Input::Delivered(delivered));
        }
        self.on_heard(conn, heard, sent);
    }

    /// Reports bytes taken from the proxy_conn before they go on; false when they must not.
    fn note_taken(&mut self, key: Key, conn: Key, count: usize) -> bool {
        let Some(public) = self.publics.get(key) else { return false };
        let PublicState::Flowing(bound) = &public.state else { return false };
        let total = bound.flow.inbound.taken() + count as u64;
        self.feed(conn, Input::Taken(total));
        self.conns.get(conn).is_some_and(|conn| conn.life == Life::Flowing(key))
    }

    /// What a flow's operation meant, `sent` bytes having been put into the proxy_conn.
    pub(super) fn on_heard(&mut self, conn: Key, heard: Heard, sent: u64) {
        match heard {
            Heard::Nothing | Heard::Ending(Direction::Inbound, _) => {}
            Heard::Ending(Direction::Outbound, total) => {
                self.note_first_end(conn, By::Public);
                self.feed(conn, Input::OwnEnding(total));
            }
            Heard::Ended(Direction::Outbound) => {
                self.note_first_end(conn, By::Public);
                self.feed(conn, Input::OwnEnd(sent));
            }
            Heard::Ended(Direction::Inbound) => {
                self.note_first_end(conn, By::Local);
                self.feed(conn, Input::InBandEof);
            }
            Heard::Failed(End::Near, _) => self.feed(conn, Input::OwnFailed),
            Heard::Failed(End::Far, _) => self.feed(conn, Input::ProxyFailed),
        }
    }
}
