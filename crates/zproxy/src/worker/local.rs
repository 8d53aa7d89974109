//! The flows of a data core: from a `Start` over the dial to the end.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;
use zproxy_io::{Driver, Ending, Fault, Lease, Outcome, Sock};
use zproxy_proto::id::{FlowId, TunnelId};
use zproxy_proto::proxy_conn::Input;
use zproxy_proto::wire::{AbortCode, Start};
use zproxy_relay::{self as relay, Direction, Flow, Heard, Key, Keys, Name, kind};

use super::conns::Conn;
use super::{CLOSE, CONNECT_LOCAL, Phase, Worker};
use crate::dial::{Dial, DialFault};
use crate::flows::{By, End, Ended};
use crate::mailbox::Tell;
use crate::resolver::Addresses;
use crate::targets::Known;

/// A flow and its local conn.
pub(super) struct Local {
    pub(super) conn: Key,
    id: FlowId,
    /// The number of its service, once that is known.
    service: Option<usize>,
    started_at: Duration,
    /// Who ended a direction first.
    first_end: Option<By>,
    /// What the local conn failed of.
    fault: Option<Fault>,
    /// What the proxy_conn has brought while the local conn was not there yet.
    early: Early,
    pub(super) stage: Stage,
}

#[derive(Default)]
struct Early {
    payload: Payload,
    /// Everything the peer will ever send has come: the local conn is told when it is there.
    is_ended: bool,
}

#[derive(Default)]
enum Payload {
    /// A fill waits for it.
    #[default]
    Awaited,
    /// Held until it can be put. The proxy_conn is not read meanwhile.
    Held(Lease),
    /// There is none, and the proxy_conn has ended in-band.
    Ended,
}

pub(super) enum Stage {
    /// The control thread has not told yet what the tunnel is.
    Unknown {
        tunnel: TunnelId,
    },
    /// The resolver is at work.
    Resolving,
    Dialling(Dial),
    /// The dial has come to nothing; its socket is closed.
    Failed,
    Flowing {
        flow: Flow,
        bound_at: Duration,
    },
}

impl Local {
    pub(super) fn id(&self) -> FlowId {
        self.id
    }

    /// Whether its local conn is not there yet.
    pub(super) fn is_dialling(&self) -> bool {
        !matches!(self.stage, Stage::Flowing { .. })
    }
}

impl<D: Driver> Worker<D> {
    // --- from the start to the local conn -------------------------------------------------------

    /// Makes a place for the flow.
    pub(super) fn begin(&mut self, conn: Key, start: Start) -> Key {
        let now = self.driver.now();
        let flow = self.flows.insert(Local {
            conn,
            id: start.flow,
            service: None,
            started_at: now,
            first_end: None,
            fault: None,
            early: Early::default(),
            stage: Stage::Unknown { tunnel: start.tunnel },
        });
        self.local_dials.set(flow, now);
        flow
    }

    /// Keeps payload until the local conn is there.
    pub(super) fn hold(&mut self, conn: Key, key: Key, lease: Lease) {
        self.handle(conn, Input::Taken(lease.len() as u64));
        if let Some(local) = self.flows.get_mut(key) {
            local.early.payload = Payload::Held(lease);
        }
    }

    pub(super) fn serve_start(&mut self, key: Key, tunnel: TunnelId) {
        if self.phase != Phase::Serving {
            return self.fail_start(key, AbortCode::Shutdown);
        }
        // The ctl_conn may be slower than the proxy_conn: the tunnel's id may still be to come.
        if let Some(&number) = self.tunnels.get(&tunnel) {
            self.find_target(key, number);
        } else {
            mark!("start_before_tunnel");
        }
    }

    pub(super) fn find_target(&mut self, key: Key, number: usize) {
        let Some(local) = self.flows.get_mut(key) else { return };
        local.service = Some(number);
        local.stage = Stage::Resolving;
        match self.services[number].target.addresses(key, self.driver.now()) {
            Known::Addresses(addresses) => self.dial_local(key, addresses),
            Known::Ask(target) => {
                let mail = self.mailbox.sender();
                self.resolver
                    .ask(target, move |addresses| mail.send(Tell::Resolved { number, addresses }));
            }
            Known::Asked => {}
        }
    }

    pub(super) fn on_resolved(&mut self, number: usize, addresses: &Addresses) {
        let now = self.driver.now();
        for key in self.services[number].target.answer(Arc::clone(addresses), now) {
            self.dial_local(key, Arc::clone(addresses));
        }
    }

    fn dial_local(&mut self, key: Key, addresses: Addresses) {
        // The flow may have ended while the resolver was at work.
        let Some(local) = self.flows.get_mut(key) else { return };
        let connect = Name { kind: CONNECT_LOCAL, key }.token();
        let speaks_first = matches!(local.early.payload, Payload::Held(_));
        match Dial::start(&mut self.driver, addresses, speaks_first, connect) {
            Ok(dial) => local.stage = Stage::Dialling(dial),
            Err(fault) => self.fail_dial(key, fault),
        }
    }

    pub(super) fn on_local_connected(&mut self, key: Key, outcome: &Outcome) {
        let Some(local) = self.flows.get_mut(key) else { return };
        let Stage::Dialling(dial) = &mut local.stage else { unreachable!("only a dial connects") };
        match outcome {
            Outcome::Connected => {
                let near = dial.sock;
                self.bind(key, near);
            }
            Outcome::Failed(fault) => {
                let (connect, close) =
                    (Name { kind: CONNECT_LOCAL, key }, Name { kind: CLOSE, key });
                self.closing += 1;
                let next = dial.next(&mut self.driver, *fault, connect.token(), close.token());
                if let Err(fault) = next {
                    local.stage = Stage::Failed;
                    self.fail_dial(key, fault);
                }
            }
            other => unreachable!("not the result of a connect: {other:?}"),
        }
    }

    fn fail_dial(&mut self, key: Key, fault: DialFault) {
        if let Some(service) = self.flows.get(key).and_then(|local| local.service) {
            let Local { id, .. } = self.flows.get(key).expect("just found");
            let to = self.services[service].target.at();
            debug!("flow={id} local={to} cannot be dialled: {fault}");
        }
        self.fail_start(key, abort_code(fault));
    }

    /// The flow cannot be served.
    pub(super) fn fail_start(&mut self, key: Key, code: AbortCode) {
        let conn = self.flows.get(key).expect("it is being started").conn;
        let by = match code {
            AbortCode::NoTunnel | AbortCode::Shutdown => By::Zproxy,
            _ => By::Local,
        };
        let is_read = self.finish(key, code.into(), by);
        self.give_up(conn, code, is_read);
    }

    /// The local conn is there: bytes may move.
    fn bind(&mut self, key: Key, near: Sock) {
        let now = self.driver.now();
        let local = self.flows.get_mut(key).expect("its dial has just succeeded");
        let conn = self.conns.get_mut(local.conn).expect("a flow is on a live proxy_conn");
        let keys = Keys { flow: key, far: local.conn };
        let mut flow = Flow::new(near, conn.sock);
        flow.far_watched = conn.far_watched;
        flow.dialled = Some(relay::End::Near);
        flow.start_outbound(&mut self.driver, keys);
        let opened = flow.open_outbound(&mut self.driver, keys);
        assert_eq!(opened, Heard::Nothing, "nothing has come yet");
        match std::mem::take(&mut local.early.payload) {
            Payload::Awaited => flow.inbound.inherit_fill(),
            Payload::Held(lease) => {
                if conn.announced() == Some(lease.len() as u64) {
                    flow.inbound.end_sink();
                }
                mark!("payload_before_dial");
                let heard = flow.feed_inbound(&mut self.driver, keys, lease);
                assert_eq!(heard, Heard::Nothing, "the local conn is not open yet");
            }
            Payload::Ended => drop(flow.inbound.on_eof()),
        }
        // That the proxy_conn has ended is known to its machine already.
        let _ = flow.open_inbound(&mut self.driver, keys);
        let is_ended = local.early.is_ended;
        local.stage = Stage::Flowing { flow, bound_at: now };
        if is_ended {
            mark!("end_before_dial");
            self.driver.shutdown_write(near);
        }
        self.looks.want(now);
    }

    // --- bytes ----------------------------------------------------------------------------------

    /// The fill or the watch of the flow's proxy_conn has come home.
    pub(super) fn on_far(&mut self, key: Key, kind: u8, outcome: Outcome) {
        let local = self.flows.get_mut(key).expect("a proxy_conn's flow is alive");
        if !local.is_dialling() {
            return self.on_flow(key, kind, outcome);
        }
        let conn = local.conn;
        match outcome {
            Outcome::Filled(lease) => self.hold(conn, key, lease),
            Outcome::Eof => {
                local.early.payload = Payload::Ended;
                self.handle(conn, Input::InBandEof);
            }
            Outcome::Failed(_) | Outcome::Hangup(Some(_)) => self.handle(conn, Input::ProxyFailed),
            Outcome::Hangup(None) => {}
            other => unreachable!("not the result of a fill or a watch: {other:?}"),
        }
    }

    /// An operation of a flow has come home.
    pub(super) fn on_flow(&mut self, key: Key, kind: u8, outcome: Outcome) {
        let Some(local) = self.flows.get_mut(key) else { return };
        let Stage::Flowing { flow, .. } = &mut local.stage else {
            unreachable!("only a flow moves bytes")
        };
        let conn = local.conn;
        // The machine must know of bytes before they are delivered, because it may forbid that.
        let taken = match (&outcome, kind) {
            (Outcome::Filled(lease), kind::FILL_FAR) => lease.len() as u64,
            (Outcome::Drained { refilled, .. }, kind::DRAIN_INBOUND) => *refilled as u64,
            _ => 0,
        };
        let total = flow.inbound.taken() + taken;
        if taken > 0 {
            self.handle(conn, Input::Taken(total));
        }
        let Some(local) = self.flows.get_mut(key) else { return };
        let Stage::Flowing { flow, .. } = &mut local.stage else {
            unreachable!("it was flowing a moment ago")
        };
        if taken > 0 && self.conns.get(conn).and_then(Conn::announced) == Some(total) {
            flow.inbound.end_sink();
        }
        let delivered = flow.inbound.put();
        let keys = Keys { flow: key, far: conn };
        let heard = flow.on_done(&mut self.driver, keys, kind, outcome);
        let total = flow.inbound.put();
        if total > delivered {
            self.handle(conn, Input::Delivered(total));
        }
        self.on_heard(key, conn, heard);
    }

    /// The flow may have ended meanwhile; its proxy_conn is concerned all the same.
    pub(super) fn on_heard(&mut self, key: Key, conn: Key, heard: Heard) {
        match heard {
            Heard::Nothing | Heard::Ending(Direction::Inbound, _) => {}
            Heard::Ending(Direction::Outbound, total) => {
                if let Some(local) = self.flows.get_mut(key) {
                    local.first_end.get_or_insert(By::Local);
                    self.handle(conn, Input::OwnEnding(total));
                }
            }
            Heard::Ended(Direction::Inbound) => self.handle(conn, Input::InBandEof),
            Heard::Failed(relay::End::Far, _) => self.handle(conn, Input::ProxyFailed),
            Heard::Ended(Direction::Outbound) => {
                if let Some(local) = self.flows.get_mut(key)
                    && let Stage::Flowing { flow, .. } = &local.stage
                {
                    local.first_end.get_or_insert(By::Local);
                    let sent = flow.outbound.put();
                    self.handle(conn, Input::OwnEnd(sent));
                }
            }
            Heard::Failed(relay::End::Near, fault) => {
                if let Some(local) = self.flows.get_mut(key) {
                    local.fault = Some(fault);
                    self.handle(conn, Input::OwnFailed);
                }
            }
        }
    }

    /// Everything the peer has sent is delivered, and no more will come.
    pub(super) fn end_inbound(&mut self, key: Key) {
        let local = self.note_public_end(key);
        if let Stage::Flowing { flow, .. } = &local.stage {
            let near = flow.near();
            self.driver.shutdown_write(near);
        } else {
            local.early.is_ended = true;
        }
    }

    pub(super) fn note_public_end(&mut self, key: Key) -> &mut Local {
        let local = self.flows.get_mut(key).expect("a direction belongs to a flow");
        local.first_end.get_or_insert(By::Public);
        local
    }

    // --- ends -----------------------------------------------------------------------------------

    /// Both directions have ended well; the proxy_conn goes on.
    pub(super) fn finish_clean(&mut self, key: Key) {
        let by = self.flows.get(key).and_then(|local| local.first_end);
        self.finish(key, End::Clean, by.unwrap_or(By::Zproxy));
    }

    /// The flow has ended: closes the local conn and writes the line. Tells whether a fill is
    /// outstanding on the proxy_conn.
    pub(super) fn finish(&mut self, key: Key, end: End, by: By) -> bool {
        let local = self.flows.remove(key).expect("a flow ends once");
        let how = if end == End::Clean { Ending::Clean } else { Ending::Reset };
        let (mut inward, mut outward, mut bind) = (0, 0, None);
        let mut is_read = matches!(local.early.payload, Payload::Awaited);
        match local.stage {
            Stage::Unknown { .. } | Stage::Resolving | Stage::Failed => {}
            Stage::Dialling(dial) => self.close(dial.sock, Ending::Reset),
            Stage::Flowing { flow, bound_at } => {
                self.close(flow.near(), how);
                is_read = flow.inbound.is_filling();
                if let Some(conn) = self.conns.get_mut(local.conn) {
                    conn.far_watched = flow.far_watched;
                }
                (inward, outward) = (flow.inbound.put(), flow.outbound.put());
                bind = Some(bound_at.saturating_sub(local.started_at));
            }
        }
        let tunnel = local.service.map_or("?", |number| self.services[number].name.as_str());
        let (flow, lived) = (&local.id, self.driver.now().saturating_sub(local.started_at));
        let end = match (end, local.fault) {
            (End::Reset, Some(fault)) => fault.into(),
            _ => end,
        };
        Ended { flow, tunnel: &tunnel, public: None, inward, outward, lived, bind, end, by }.log();
        is_read
    }
}

fn abort_code(fault: DialFault) -> AbortCode {
    match fault {
        DialFault::Unresolved => AbortCode::NameUnresolved,
        DialFault::TimedOut => AbortCode::Timeout,
        DialFault::Fault(fault) => match fault {
            Fault::Refused => AbortCode::Refused,
            Fault::Unreachable => AbortCode::Unreachable,
            Fault::TimedOut => AbortCode::Timeout,
            Fault::Reset => AbortCode::Reset,
            Fault::NoDescriptors | Fault::NoMemory | Fault::NoAddress => AbortCode::Limit,
            Fault::Cancelled | Fault::Other(_) => AbortCode::Failed,
        },
    }
}
