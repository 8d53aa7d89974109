//! The way to the gateway: resolve, dial, talk, lose, rest, and again.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::warn;
use zproxy_io::{Driver, Ending, Op, Outcome, Sock};
use zproxy_proto::auth::Nonce;
use zproxy_proto::control::{ClientConfig, ClientSession, Heartbeat};
use zproxy_proto::id::CtlId;
use zproxy_proto::wire::GoAway;
use zproxy_relay::{Key, Name};

use super::{CONNECT, Control, Phase, RECV, SEND, lost_by};
use crate::dial::{Dial, DialFault};
use crate::mailbox::{Report, Tell};
use crate::resolver::{self, Addresses};

/// Bytes received at a time on the ctl_conn.
const RECV_SIZE: usize = 16 << 10;

/// Where the way to the gateway stands.
#[derive(Debug)]
pub(super) enum Link {
    /// To be dialled at this time.
    Resting(Duration),
    /// The resolver is at work.
    Resolving,
    Dialling {
        key: Key,
        dial: Dial,
        deadline: Duration,
    },
    Up(Box<Ctl>),
    /// Not wanted any more.
    Off,
}

/// A ctl_conn.
#[derive(Debug)]
pub(super) struct Ctl {
    key: Key,
    sock: Sock,
    /// Where the gateway was reached.
    pub(super) gateway: SocketAddr,
    pub(super) session: ClientSession,
    is_sending: bool,
    /// Why nothing more will come.
    pub(super) lost: Option<String>,
    /// What proxy_conns need to know, once we are welcomed.
    pub(super) door: Option<Door>,
}

/// How a proxy_conn gets in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    pub(super) ctl_id: CtlId,
    pub(super) at: SocketAddr,
    /// Data cores of the gateway.
    pub(super) gateway_cores: usize,
    /// Proxy_conns without a flow that a data core may have.
    pub(super) resting_max: usize,
}

impl Link {
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Resting(until) => Some(*until),
            Self::Dialling { deadline, .. } => Some(*deadline),
            Self::Up(ctl) => ctl.session.poll_timeout(),
            Self::Resolving | Self::Off => None,
        }
    }

    /// Tells the session something, if there is one.
    pub(super) fn with_session(&mut self, tell: impl FnOnce(&mut ClientSession)) {
        if let Self::Up(ctl) = self {
            tell(&mut ctl.session);
        }
    }
}

impl<D: Driver> Control<'_, D> {
    pub(crate) fn is_welcomed(&self) -> bool {
        matches!(&self.link, Link::Up(ctl) if ctl.door.is_some())
    }

    /// Does what is due.
    pub(super) fn advance_link(&mut self, now: Duration) {
        match &mut self.link {
            Link::Resting(until) if *until <= now => self.resolve(),
            Link::Dialling { deadline, .. } if *deadline <= now => {
                self.dial_failed(DialFault::TimedOut);
            }
            Link::Up(ctl) => ctl.session.handle_timeout(now),
            _ => {}
        }
    }

    fn resolve(&mut self) {
        let server = &self.settings.server;
        if let Some(address) = resolver::literal(server) {
            return self.dial([address].into());
        }
        self.question += 1;
        self.link = Link::Resolving;
        let (question, mail) = (self.question, self.mailbox.sender());
        self.resolver.ask(server.clone(), move |addresses| {
            mail.send(Report::Resolved { question, addresses });
        });
    }

    pub(super) fn on_resolved(&mut self, question: u64, addresses: Addresses) {
        if matches!(self.link, Link::Resolving) && question == self.question {
            self.dial(addresses);
        }
    }

    /// Dials the addresses in their order, each with the whole time limit.
    fn dial(&mut self, addresses: Addresses) {
        let key = self.attempts.insert(());
        let connect = Name { kind: CONNECT, key }.token();
        match Dial::start(&mut self.driver, addresses, true, connect) {
            Ok(dial) => {
                let deadline = self.driver.now() + self.settings.connect_timeout;
                self.link = Link::Dialling { key, dial, deadline };
            }
            Err(fault) => {
                self.attempts.remove(key);
                self.unreachable(&fault);
            }
        }
    }

    /// This address does not answer: the next one, or a rest.
    fn dial_failed(&mut self, fault: DialFault) {
        let Link::Dialling { key, dial, .. } = std::mem::replace(&mut self.link, Link::Off) else {
            unreachable!("called while dialling")
        };
        let rest = dial.rest();
        self.close(key, dial.sock, Ending::Reset);
        if rest.is_empty() {
            self.unreachable(&fault);
        } else {
            self.dial(rest);
        }
    }

    fn unreachable(&mut self, fault: &DialFault) {
        let server = &self.settings.server;
        self.rest(&format!("the gateway {server} cannot be reached: {fault}"));
    }

    /// Waits before the next try, or does not try again when the program is about to end.
    pub(super) fn rest(&mut self, why: &str) {
        if self.phase != Phase::Serving {
            self.link = Link::Off;
            return warn!("{why}");
        }
        let wait = self.backoff.next_wait(self.random.number());
        warn!("{why}; next try in {:.1} s", wait.as_secs_f64());
        self.link = Link::Resting(self.driver.now() + wait);
    }

    pub(super) fn on_connected(&mut self, key: Key, outcome: &Outcome) {
        match outcome {
            Outcome::Connected => self.open(key),
            Outcome::Failed(fault) => self.dial_failed(DialFault::Fault(*fault)),
            other => unreachable!("not the result of a connect: {other:?}"),
        }
    }

    fn open(&mut self, key: Key) {
        let Link::Dialling { dial, .. } = &self.link else { unreachable!("only a dial connects") };
        let (sock, gateway) = (dial.sock, dial.to);
        self.driver.keep_alive(sock);
        let config = ClientConfig {
            token: self.token.clone(),
            client_id: self.identity.id,
            name: self.name.clone(),
            nonce: Nonce(self.random.bytes()),
            resume: self.ticket,
            data_cores: u16::try_from(self.cores.len()).expect("the settings bound data cores"),
        };
        let heartbeat = Heartbeat {
            interval: self.settings.heartbeat.interval,
            deadline: self.settings.heartbeat.deadline,
        };
        let session = ClientSession::new(config, self.driver.now()).with_heartbeat(heartbeat);
        let ctl = Ctl { key, sock, gateway, session, is_sending: false, lost: None, door: None };
        self.link = Link::Up(Box::new(ctl));
        self.receive(key, sock, Vec::with_capacity(RECV_SIZE));
    }

    fn receive(&mut self, key: Key, sock: Sock, buf: Vec<u8>) {
        self.submit(RECV, key, Op::Recv { sock, buf, max: RECV_SIZE });
    }

    pub(super) fn on_received(&mut self, outcome: Outcome) {
        let now = self.driver.now();
        let Link::Up(ctl) = &mut self.link else { unreachable!("the key is not stale") };
        match outcome {
            Outcome::Received { mut buf, count } if count > 0 => {
                ctl.session.handle_bytes(&buf, now);
                buf.clear();
                let (key, sock) = (ctl.key, ctl.sock);
                self.receive(key, sock, buf);
            }
            // What was said before comes first: a refusal, for instance.
            outcome => ctl.lost = Some(lost_by(&outcome)),
        }
    }

    pub(super) fn on_sent(&mut self, outcome: &Outcome) {
        let Link::Up(ctl) = &mut self.link else { unreachable!("the key is not stale") };
        match outcome {
            Outcome::Sent { .. } => ctl.is_sending = false,
            // The gateway may have said why; the receive tells.
            Outcome::Failed(_) => {}
            other => unreachable!("not the result of a send: {other:?}"),
        }
    }

    /// One send at a time; what comes meanwhile waits in the session, which bounds it.
    pub(super) fn transmit(&mut self) {
        let Link::Up(ctl) = &mut self.link else { return };
        if ctl.is_sending {
            return;
        }
        if let Some(buf) = ctl.session.poll_transmit() {
            ctl.is_sending = true;
            let (key, sock) = (ctl.key, ctl.sock);
            self.submit(SEND, key, Op::Send { sock, buf });
        }
    }

    /// The ctl_conn is gone. Flows go on.
    pub(super) fn lose(&mut self, why: &str) {
        let was_welcomed = self.is_welcomed();
        let Link::Up(ctl) = std::mem::replace(&mut self.link, Link::Off) else {
            unreachable!("there is one to lose")
        };
        self.close(ctl.key, ctl.sock, Ending::Reset);
        if was_welcomed {
            self.tell_all(|| Tell::CtlLost);
        }
        self.rest(why);
    }

    /// Asks the gateway for no more flows.
    pub(super) fn say_goodbye(&mut self, limit: Duration) {
        if !self.is_welcomed() {
            return self.hang_up();
        }
        let drain_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let reason = "the client is shutting down".into();
        self.link.with_session(|session| session.go_away(GoAway { reason, drain_ms }));
    }

    /// Closes the ctl_conn when the last frames have left.
    pub(super) fn leave(&mut self) {
        self.transmit();
        let is_sending = matches!(&self.link, Link::Up(ctl) if ctl.is_sending);
        if !is_sending {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        match std::mem::replace(&mut self.link, Link::Off) {
            Link::Up(ctl) => self.close(ctl.key, ctl.sock, Ending::Clean),
            Link::Dialling { key, dial, .. } => self.close(key, dial.sock, Ending::Reset),
            Link::Resting(_) | Link::Resolving | Link::Off => {}
        }
    }
}
