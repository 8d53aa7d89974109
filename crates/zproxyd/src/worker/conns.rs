//! The proxy_conns: what happens on them goes into their machine, and what the machine answers is
//! done here, in one place.

use tracing::{debug, warn};
use zproxy_io::{Driver, Ending, Op, Outcome};
use zproxy_proto::id::{FlowId, ProxyId};
use zproxy_proto::lane::Notice;
use zproxy_proto::limits::START_SIZE;
use zproxy_proto::pool::{Add, Origin};
use zproxy_proto::proxy_conn::{Action, Input, ProxyConn, Role, Why};
use zproxy_proto::wire::{Abort, AbortCode, Fin, Start};
use zproxy_relay::{Key, Keys, Name, Path, kind};

use super::lanes::Haste;
use super::{By, CLOSE_CONN, Conn, Life, PublicState, START, Worker};
use crate::mailbox::SessionNo;

/// Bytes of the public conn that travel with the `Start` at most: a request of the usual size.
const ALONG_MAX: usize = (4 << 10) - START_SIZE;
/// Spent `Start` buffers that are kept.
const SPARE_MAX: usize = 64;

impl<D: Driver> Worker<D> {
    /// Takes over an authenticated proxy_conn.
    pub(super) fn adopt(&mut self, session: SessionNo, proxy: ProxyId, handle: D::Handle) {
        let sock = self.driver.adopt(handle);
        let reach = self.reach_of(session, proxy);
        let Some(entry) = self.sessions.get_mut(&session) else {
            self.close_stray(sock);
            return;
        };
        let machine = ProxyConn::new(Role::Gateway, reach);
        let life = Life::Resting;
        let conn = Conn {
            sock,
            session,
            proxy,
            machine,
            life,
            far_watched: false,
            settling_looks: 0,
            path: Path::default(),
        };
        let key = self.conns.insert(conn);
        entry.conns.insert(proxy, key);
        // Always watched: this fill is the idle watch, and the first step of the next flow.
        let fill = Name { kind: kind::FILL_FAR, key };
        self.driver.submit(fill.token(), Op::Fill { from: sock });
        self.offer(key, Origin::Fresh);
    }

    /// Gives an idle proxy_conn to a waiting public conn or to the pool.
    fn offer(&mut self, key: Key, origin: Origin) {
        let Some(conn) = self.conns.get(key) else { return };
        let session = conn.session;
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.is_parting {
            return self.feed(key, Input::Retire);
        }
        let now = self.driver.now();
        let add = entry.pool.add(key, origin, now);
        self.touched.push(session);
        match add {
            Add::Serve(public, conn) => self.bind(public, conn, true),
            Add::Idle => {}
            Add::Surplus(conn) => self.feed(conn, Input::Retire),
        }
    }

    /// The fill of a proxy_conn has come home.
    pub(super) fn on_conn_filled(&mut self, key: Key, outcome: Outcome) {
        let Some(conn) = self.conns.get(key) else { return };
        match (conn.life, outcome) {
            (Life::Flowing(public), outcome) => {
                self.on_flow_done(public, kind::FILL_FAR, outcome);
            }
            (Life::Closing, _) => {}
            (Life::Resting, Outcome::Filled(_)) => self.feed(key, Input::Garbage),
            (Life::Resting, Outcome::Eof) => self.feed(key, Input::InBandEof),
            (Life::Resting, _) => self.feed(key, Input::ProxyFailed),
        }
    }

    /// The watch of a proxy_conn has come home, perhaps that of an earlier flow.
    pub(super) fn on_conn_watched(&mut self, key: Key, outcome: Outcome) {
        let Some(conn) = self.conns.get(key) else { return };
        match (conn.life, outcome) {
            (Life::Flowing(public), outcome) => {
                self.on_flow_done(public, kind::WATCH_FAR, outcome);
            }
            (Life::Resting, Outcome::Hangup(Some(_))) => self.feed(key, Input::ProxyFailed),
            (Life::Resting | Life::Closing, _) => {}
        }
    }

    /// The `Start` is in the proxy_conn's send buffer: payload may follow.
    pub(super) fn on_start_sent(&mut self, key: Key, outcome: Outcome) {
        let Some(conn) = self.conns.get(key) else { return };
        let Life::Flowing(public_key) = conn.life else { return };
        let Outcome::Sent { buf } = outcome else {
            self.feed(key, Input::ProxyFailed);
            return;
        };
        if self.spare.len() < SPARE_MAX {
            self.spare.push(buf);
        }
        let Some(public) = self.publics.get_mut(public_key) else { return };
        let PublicState::Flowing(bound) = &mut public.state else { return };
        let keys = Keys { flow: public_key, far: key };
        let heard = bound.flow.open_outbound(&mut self.driver, keys);
        let sent = bound.flow.outbound.put();
        self.on_heard(key, heard, sent);
    }

    /// Tells a proxy_conn's machine what happened and does what it answers.
    pub(super) fn feed(&mut self, key: Key, input: Input) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.life == Life::Closing {
            return;
        }
        #[cfg(all(feature = "sim", debug_assertions))]
        {
            zproxy_io::sim::mark_step("gateway", &conn.machine.mode(), &input);
            tracing::trace!("proxy={} {:?}: {input:?}", conn.proxy, conn.machine.mode());
        }
        let actions = conn.machine.handle(input);
        for action in actions {
            self.act(key, action);
        }
    }

    fn act(&mut self, key: Key, action: Action) {
        match action {
            Action::SendStart(flow) => self.send_start(key, flow),
            Action::SendFin { flow, bytes } => self.send_fin(key, flow, bytes),
            Action::SendAbort(flow, code) => {
                self.send_abort(key, flow, code);
            }
            Action::SendReleased(_) => unreachable!("only a client releases"),
            Action::ShutdownProxyWrite => {
                if let Some(conn) = self.conns.get(key) {
                    self.driver.shutdown_write(conn.sock);
                }
            }
            Action::EndInbound => self.end_inbound(key),
            Action::FlowEnded => {
                let first = self.bound_of(key).and_then(|bound| bound.ended_first);
                let by = first.unwrap_or(By::Public);
                if let Some(Life::Flowing(public)) = self.conns.get(key).map(|conn| conn.life) {
                    self.end_flow(public, Ending::Clean, "clean", by);
                }
            }
            Action::BecomeIdle => {
                mark!("gateway.reuse");
                self.offer(key, Origin::Returned);
            }
            Action::CloseClean(why) => {
                debug!("core={} conn closed: {why}", self.core);
                self.close_conn(key, Ending::Clean, "clean", By::Gateway);
            }
            Action::CloseReset(why) => self.reset_conn(key, why),
            Action::Ignored(_) => {}
        }
    }

    fn send_start(&mut self, key: Key, flow: FlowId) {
        let Some(conn) = self.conns.get(key) else { return };
        let Life::Flowing(public) = conn.life else { unreachable!("bound before its start") };
        let place = public;
        let public = self.publics.get_mut(place).expect("a bound public conn is live");
        let PublicState::Flowing(bound) = &mut public.state else { unreachable!("it is bound") };
        let start = Start { flow, tunnel: public.tunnel };
        let mut buf = self.spare.pop().unwrap_or_default();
        buf.clear();
        buf.extend_from_slice(&start.encode());
        // What the visitor has said already goes along: one packet, and one wake of the client.
        let taken = self.driver.take_now(public.sock, &mut buf, ALONG_MAX);
        bound.flow.outbound.note_along(taken);
        let name = Name { kind: START, key };
        self.driver.renew(conn.sock);
        self.driver.submit(name.token(), Op::Send { sock: conn.sock, buf });
        bound.flow.start_outbound(&mut self.driver, Keys { flow: place, far: key });
    }

    fn send_abort(&mut self, key: Key, flow: FlowId, code: AbortCode) {
        let Some(conn) = self.conns.get(key) else { return };
        let notice = Notice::Abort(Abort { proxy: conn.proxy, flow, code });
        self.tell(conn.session, notice, Haste::Urgent);
    }

    /// When the service has said all it had to say, it does not wait for the visitor's end, which
    /// only concludes the flow.
    fn send_fin(&mut self, key: Key, flow: FlowId, bytes: u64) {
        let concludes = self.bound_of(key).is_some_and(|it| it.ended_first == Some(By::Local));
        let Some(conn) = self.conns.get(key) else { return };
        let notice = Notice::Fin(Fin { proxy: conn.proxy, flow, bytes });
        let haste = if concludes { Haste::Patient } else { Haste::Urgent };
        self.tell(conn.session, notice, haste);
    }

    /// Everything that the client has sent is delivered: FIN goes on to the public conn.
    fn end_inbound(&mut self, key: Key) {
        let Some(bound) = self.bound_of(key) else { return };
        let near = bound.flow.near();
        self.driver.shutdown_write(near);
    }

    fn reset_conn(&mut self, key: Key, why: Why) {
        let (end, by) = describe(why);
        if let Why::Violation(violation) = why {
            let session = self.conns.get(key).map(|conn| conn.session);
            let client = session.and_then(|session| self.sessions.get(&session));
            let client = client.map_or("gone", |entry| &entry.client);
            warn!("core={} client={client} broke the protocol: {violation:?}", self.core);
        }
        // The other end learns of a reset in-band; of anything else it should hear the reason too.
        if let Some(Life::Flowing(_)) = self.conns.get(key).map(|conn| conn.life)
            && let Some(code) = abort_code(why)
            && let Some(bound) = self.bound_of(key)
        {
            let flow = bound.id;
            self.send_abort(key, flow, code);
        }
        self.close_conn(key, Ending::Reset, &end, by);
    }

    /// Closes a proxy_conn, and resets the flow on it if there is one.
    pub(super) fn close_conn(&mut self, key: Key, how: Ending, end: &str, by: By) {
        let Some(conn) = self.conns.get(key) else { return };
        if conn.life == Life::Closing {
            return;
        }
        if let Life::Flowing(public) = conn.life {
            self.end_flow(public, Ending::Reset, end, by);
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.life = Life::Closing;
        let (sock, session, proxy) = (conn.sock, conn.session, conn.proxy);
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry.conns.remove(&proxy);
            entry.pool.remove_idle(key);
            self.touched.push(session);
        }
        self.submit_close(CLOSE_CONN, key, sock, how);
    }
}

/// The words of a flow's line for an end that was not clean, and who caused it.
fn describe(why: Why) -> (String, By) {
    match why {
        Why::PeerClosed | Why::ProxyFailed => ("reset".to_owned(), By::Client),
        Why::Retired | Why::EndedInBand | Why::ReleaseLost => ("clean".to_owned(), By::Gateway),
        Why::Missing(bytes) => (format!("missing_{bytes}"), By::Client),
        Why::Violation(_) => ("protocol".to_owned(), By::Client),
        Why::PeerAborted(code) | Why::StartFailed(code) => (word(code).to_owned(), By::Local),
        Why::OwnFailed => ("reset".to_owned(), By::Public),
        Why::Deadline => ("idle".to_owned(), By::Gateway),
    }
}

/// An abort in one word, the same that the client's log uses.
fn word(code: AbortCode) -> &'static str {
    match code {
        AbortCode::Refused => "refused",
        AbortCode::Unreachable => "unreachable",
        AbortCode::Timeout => "timeout",
        AbortCode::NameUnresolved => "unresolved",
        AbortCode::Reset => "reset",
        AbortCode::Limit => "limit",
        AbortCode::NoTunnel => "no_tunnel",
        AbortCode::Shutdown => "shutdown",
        AbortCode::Protocol => "protocol",
        AbortCode::Idle => "idle",
        AbortCode::Missing => "missing",
        AbortCode::Failed | AbortCode::Other(_) => "failed",
    }
}

/// What the client is told about a flow that this side ended.
fn abort_code(why: Why) -> Option<AbortCode> {
    match why {
        Why::OwnFailed => Some(AbortCode::Reset),
        Why::Deadline => Some(AbortCode::Idle),
        Why::Missing(_) => Some(AbortCode::Missing),
        Why::Violation(_) => Some(AbortCode::Protocol),
        _ => None,
    }
}
