//! The proxy_conns of a data core: from the dial to the close, and what their machines ask for.

use std::net::SocketAddr;

use tracing::{debug, info, trace, warn};
use zproxy_io::{Driver, Ending, Fault, Lease, Op, Outcome, Sock};
use zproxy_proto::id::ProxyId;
use zproxy_proto::lane::Notice;
use zproxy_proto::limits::{DIALS_MAX, START_SIZE};
use zproxy_proto::proxy_conn::{Action, Input, ProxyConn, Role, Why};
use zproxy_proto::wire::{Abort, AbortCode, Attach, Fin, Released, Start, encode_proxy_opening};
use zproxy_relay::{Key, Name, Path, kind};

use super::lanes::Haste;
use super::{CONNECT_PROXY, OPENING, Phase, Worker};
use crate::flows::why_ended;

/// A proxy_conn.
pub(super) struct Conn {
    pub(super) proxy: ProxyId,
    pub(super) sock: Sock,
    /// Whether a watch is in flight on it, perhaps since an earlier flow.
    pub(super) far_watched: bool,
    /// Asked about while no flow is on it.
    pub(super) path: Path,
    state: State,
}

enum State {
    /// Being connected; this is to be said first.
    Connecting(Attach),
    /// Connected. Frames about it may come before it is known that the opening was sent.
    Connected { machine: ProxyConn, work: Work },
}

/// What a connected proxy_conn is doing.
enum Work {
    /// The opening is being sent.
    Opening,
    /// Waiting for a `Start`, of which these bytes have come.
    Idle(Head),
    /// This flow is on it.
    Flow(Key),
    /// Its flow could not be served; waiting for the gateway to close it.
    Aborting,
}

/// The first bytes of a `Start`.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    bytes: [u8; START_SIZE],
    len: usize,
}

/// What the bytes that have come on an idle proxy_conn are.
enum Read {
    /// The beginning of a `Start`.
    Part,
    Start(Start),
    Garbage,
}

impl Head {
    /// Takes what is missing off the front of the lease.
    fn read(&mut self, lease: &mut Lease) -> Read {
        self.len += lease.take_head(&mut self.bytes[self.len..]);
        match Start::decode(&self.bytes[..self.len]) {
            Ok(Some(start)) => Read::Start(start),
            Ok(None) => Read::Part,
            Err(_) => Read::Garbage,
        }
    }
}

impl Conn {
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.state, State::Connecting(_) | State::Connected { work: Work::Opening, .. })
    }

    /// Whether it is open and no flow is on it.
    pub(super) fn is_resting(&self) -> bool {
        matches!(self.state, State::Connected { work: Work::Idle(_) | Work::Aborting, .. })
    }

    #[cfg(feature = "sim")]
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Connected { work: Work::Idle(_), .. })
    }

    pub(super) fn is_aborting(&self) -> bool {
        matches!(self.state, State::Connected { work: Work::Aborting, .. })
    }

    pub(super) fn is_half_closed(&self) -> bool {
        matches!(&self.state, State::Connected { machine, .. } if machine.is_half_closed())
    }

    /// Behind how many bytes of its flow the gateway has announced the end.
    pub(super) fn announced(&self) -> Option<u64> {
        match &self.state {
            State::Connected { machine, .. } => machine.announced(),
            State::Connecting(_) => None,
        }
    }

    /// The flow that is on it.
    pub(super) fn flow(&self) -> Option<Key> {
        match self.state {
            State::Connected { work: Work::Flow(flow), .. } => Some(flow),
            _ => None,
        }
    }

    fn set_work(&mut self, next: Work) {
        match &mut self.state {
            State::Connected { work, .. } => *work = next,
            State::Connecting(_) => unreachable!("it is connected"),
        }
    }
}

impl<D: Driver> Worker<D> {
    // --- opening --------------------------------------------------------------------------------

    pub(super) fn dial_proxy(&mut self, to: SocketAddr, attach: Attach, resting_max: usize) {
        let proxy = attach.proxy;
        let resting = self.conns.len() - self.flows.len();
        // The gateway asks again for what does not come.
        if self.phase != Phase::Serving || self.dialling >= DIALS_MAX || resting >= resting_max {
            debug!("proxy={proxy} not dialled");
            return;
        }
        let sock = match self.driver.socket(&to) {
            Ok(sock) => sock,
            Err(fault) => return self.note_unreachable(fault),
        };
        self.driver.keep_alive(sock);
        let state = State::Connecting(attach);
        let key = self.conns.insert(Conn {
            proxy,
            sock,
            far_watched: false,
            path: Path::default(),
            state,
        });
        self.dialling += 1;
        self.by_id.insert(proxy, key);
        self.proxy_dials.set(key, self.driver.now());
        let token = Name { kind: CONNECT_PROXY, key }.token();
        self.driver.speaks_first(sock);
        self.driver.submit(token, Op::Connect { sock, to });
    }

    pub(super) fn on_proxy_connected(&mut self, key: Key, outcome: &Outcome) {
        let Some(proxy) = self.conns.get(key).map(|conn| conn.proxy) else { return };
        let reach = self.reach_of(proxy);
        let conn = self.conns.get_mut(key).expect("it was there a moment ago");
        let State::Connecting(attach) = &conn.state else {
            unreachable!("a proxy_conn is connected once")
        };
        match outcome {
            Outcome::Connected => {
                let buf = encode_proxy_opening(attach).to_vec();
                let machine = ProxyConn::new(Role::Client, reach);
                conn.state = State::Connected { machine, work: Work::Opening };
                let token = Name { kind: OPENING, key }.token();
                self.driver.submit(token, Op::Send { sock: conn.sock, buf });
            }
            Outcome::Failed(fault) => self.fail_opening(key, *fault),
            other => unreachable!("not the result of a connect: {other:?}"),
        }
    }

    pub(super) fn on_opening_sent(&mut self, key: Key, outcome: &Outcome) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        match outcome {
            Outcome::Sent { .. } => {
                conn.set_work(Work::Idle(Head::default()));
                self.dialling -= 1;
                self.fill_conn(key);
                if std::mem::take(&mut self.is_proxy_unreachable) {
                    info!("thread=data-{} proxy_conns can be opened again", self.core);
                }
            }
            Outcome::Failed(fault) => self.fail_opening(key, *fault),
            other => unreachable!("not the result of a send: {other:?}"),
        }
    }

    /// The gateway asks again for what does not come.
    pub(super) fn fail_opening(&mut self, key: Key, fault: Fault) {
        self.note_unreachable(fault);
        self.drop_conn(key, Ending::Reset);
    }

    pub(super) fn note_unreachable(&mut self, fault: Fault) {
        if !std::mem::replace(&mut self.is_proxy_unreachable, true) {
            warn!("thread=data-{} proxy_conns cannot be opened: {fault}", self.core);
        }
    }

    /// Waits for bytes on a proxy_conn that no pump reads.
    fn fill_conn(&mut self, key: Key) {
        let conn = self.conns.get(key).expect("only a live proxy_conn is read");
        let token = Name { kind: kind::FILL_FAR, key }.token();
        self.driver.submit(token, Op::Fill { from: conn.sock });
    }

    /// Closes a proxy_conn and forgets it. No flow may be on it.
    pub(super) fn drop_conn(&mut self, key: Key, how: Ending) {
        let conn = self.conns.remove(key).expect("a proxy_conn is closed once");
        self.dialling -= usize::from(conn.is_opening());
        self.by_id.remove(&conn.proxy);
        self.close(conn.sock, how);
    }

    // --- bytes ----------------------------------------------------------------------------------

    /// The fill or the watch of a proxy_conn has come home.
    pub(super) fn on_conn(&mut self, key: Key, kind: u8, outcome: Outcome) {
        let Some(conn) = self.conns.get(key) else { return };
        let State::Connected { work, .. } = &conn.state else {
            unreachable!("nothing waits on a proxy_conn that is not connected")
        };
        match (work, outcome) {
            (Work::Flow(flow), outcome) => {
                let flow = *flow;
                self.on_far(flow, kind, outcome);
            }
            (Work::Idle(_), Outcome::Filled(lease)) => self.on_head(key, lease),
            (Work::Aborting, Outcome::Filled(lease)) => {
                self.handle(key, Input::Taken(lease.len() as u64));
                drop(lease);
                self.fill_conn(key);
            }
            (_, Outcome::Eof) => self.handle(key, Input::InBandEof),
            (_, Outcome::Failed(_) | Outcome::Hangup(Some(_))) => {
                self.handle(key, Input::ProxyFailed);
            }
            (_, Outcome::Hangup(None)) => {}
            (_, other) => unreachable!("not the result of a fill or a watch: {other:?}"),
        }
    }

    /// Bytes on an idle proxy_conn: a `Start`, and perhaps payload behind it.
    fn on_head(&mut self, key: Key, mut lease: Lease) {
        let conn = self.conns.get_mut(key).expect("its fill has just come home");
        let State::Connected { work: Work::Idle(head), .. } = &mut conn.state else {
            unreachable!("only an idle proxy_conn is read for a start")
        };
        match head.read(&mut lease) {
            Read::Part => self.fill_conn(key),
            Read::Garbage => self.handle(key, Input::Garbage),
            Read::Start(start) => self.start(key, start, lease),
        }
    }

    fn start(&mut self, key: Key, start: Start, lease: Lease) {
        let flow = self.begin(key, start);
        let conn = self.conns.get_mut(key).expect("it has just been read");
        conn.set_work(Work::Flow(flow));
        self.driver.renew(conn.sock);
        self.handle(key, Input::Start(start.flow));
        if lease.is_empty() {
            if self.conns.get(key).is_some() {
                self.fill_conn(key);
            }
        } else {
            self.hold(key, flow, lease);
        }
        // What had overtaken the start may have ended it.
        if self.flows.get(flow).is_some() {
            self.serve_start(flow, start.tunnel);
        }
    }

    // --- the machine ----------------------------------------------------------------------------

    /// Tells a proxy_conn's machine what happened and does what it asks for. Nothing happens to a
    /// proxy_conn that is gone.
    pub(super) fn handle(&mut self, key: Key, input: Input) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let State::Connected { machine, .. } = &mut conn.state else { return };
        #[cfg(all(feature = "sim", debug_assertions))]
        {
            zproxy_io::sim::mark_step("client", &machine.mode(), &input);
            trace!("proxy={} {:?}: {input:?}", conn.proxy, machine.mode());
        }
        let mut actions = machine.handle(input);
        while let Some(action) = actions.next() {
            // To close it is to end it.
            if action == Action::EndInbound && actions.peek() == Some(Action::FlowEnded) {
                self.note_public_end(self.flow_on(key));
            } else {
                self.act(key, action);
            }
        }
    }

    /// The flow that is on a proxy_conn in data mode.
    fn flow_on(&self, key: Key) -> Key {
        self.conns.get(key).and_then(Conn::flow).expect("a flow ends once, on its proxy_conn")
    }

    fn act(&mut self, key: Key, action: Action) {
        let conn = self.conns.get_mut(key).expect("closing a proxy_conn is the last action");
        let proxy = conn.proxy;
        match action {
            Action::SendStart(_) => unreachable!("a gateway's action"),
            Action::SendFin { flow, bytes } => {
                self.tell(Notice::Fin(Fin { proxy, flow, bytes }), Haste::Urgent);
            }
            Action::SendReleased(flow) => {
                // The gateway has other idle proxy_conns; this one is not missed for a moment.
                self.tell(Notice::Released(Released { proxy, flow }), Haste::Patient);
            }
            Action::SendAbort(flow, code) => {
                self.aborts.set(key, self.driver.now());
                self.tell(Notice::Abort(Abort { proxy, flow, code }), Haste::Urgent);
            }
            Action::ShutdownProxyWrite => self.driver.shutdown_write(conn.sock),
            Action::EndInbound => self.end_inbound(self.flow_on(key)),
            Action::FlowEnded => self.finish_clean(self.flow_on(key)),
            // The fill that is outstanding brings the next start.
            Action::BecomeIdle => conn.set_work(Work::Idle(Head::default())),
            Action::CloseClean(why) => {
                trace!("proxy={proxy} closed: {why}");
                self.drop_conn(key, Ending::Clean);
            }
            Action::CloseReset(why) => self.reset_conn(key, why),
            Action::Ignored(ignored) => trace!("proxy={proxy} ignored: {ignored:?}"),
        }
    }

    fn reset_conn(&mut self, key: Key, why: Why) {
        let conn = self.conns.get(key).expect("it is open");
        match why {
            Why::Violation(_) | Why::Missing(_) => warn!("proxy={} reset: {why}", conn.proxy),
            _ => debug!("proxy={} reset: {why}", conn.proxy),
        }
        if let Some(flow) = conn.flow() {
            let (end, by) = why_ended(why);
            self.finish(flow, end, by);
        }
        self.drop_conn(key, Ending::Reset);
    }

    /// The flow of this proxy_conn could not be served: what still comes is read and dropped.
    pub(super) fn give_up(&mut self, key: Key, code: AbortCode, is_read: bool) {
        let conn = self.conns.get_mut(key).expect("a flow is on a live proxy_conn");
        conn.set_work(Work::Aborting);
        // Either an abort, after which the gateway closes the proxy_conn, or a reset.
        self.handle(key, Input::StartFailed(code));
        if !is_read && self.conns.get(key).is_some() {
            self.fill_conn(key);
        }
    }
}
