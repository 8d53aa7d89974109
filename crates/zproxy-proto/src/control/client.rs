//! The client's end of a ctl_conn.

use std::collections::VecDeque;
use std::time::Duration;

use crate::auth::{self, Nonce, SessionKey, Ticket, Token, Transcript};
use crate::id::{ClientId, TunnelId};
use crate::limits::{DATA_CORES_MAX, HANDSHAKE_DEADLINE};
use crate::wire::{
    Challenge, CloseTunnel, Decoder, Frame, GoAway, Hello, Kind, Name, OpenProxy, OpenTunnel,
    Proof, TunnelOpen, TunnelRefused, VERSION, Welcome, encode_preface,
};

use super::heart::{Heart, Pulse};
use super::{End, Heartbeat, Outgoing, Violation};

/// What a client's session needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The shared secret.
    pub token: Token,
    /// Who this client is.
    pub client_id: ClientId,
    /// What people call it.
    pub name: Name,
    /// Random, for this ctl_conn only.
    pub nonce: Nonce,
    /// From the last welcome of this run, if there was one.
    pub resume: Option<Ticket>,
    /// Number of this client's data cores.
    pub data_cores: u16,
}

/// What the gateway wants or tells.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// We are logged in; the gateway has proved that it knows the token. `data_cores` and
    /// `proxy_port` are in range.
    Welcomed(Welcome),
    /// A service is exposed.
    TunnelOpen(TunnelOpen),
    /// A service is not exposed.
    TunnelRefused(TunnelRefused),
    /// A service is not exposed any more.
    CloseTunnel(TunnelId),
    /// Proxy_conns are wanted. The core is in range; the count is as it came.
    OpenProxy(OpenProxy),
    /// The gateway is going to stop.
    GoAway(GoAway),
    /// The ctl_conn is over: close it. The last event.
    Ended(End),
}

/// See [`super`].
#[derive(Debug)]
pub struct ClientSession {
    config: ClientConfig,
    /// The client's own wish; the shorter times of both sides count.
    heartbeat: Option<Heartbeat>,
    phase: Phase,
    decoder: Decoder,
    outgoing: Outgoing,
    events: VecDeque<ClientEvent>,
}

#[derive(Debug)]
enum Phase {
    Challenge { deadline: Duration },
    Welcome { deadline: Duration, gateway: Gateway },
    Open { heart: Heart, key: SessionKey, gateway_cores: u16 },
    Ended,
}

/// What the challenge told about the gateway.
#[derive(Debug)]
enum Gateway {
    Proved(SessionKey),
    /// It does not know our token. We answer nevertheless, so that it can tell us so; but we do not
    /// take its welcome.
    Unproven,
}

impl ClientSession {
    /// A session on a connection that has just been made. It has something to send at once.
    #[must_use]
    pub fn new(config: ClientConfig, now: Duration) -> Self {
        let mut outgoing = Outgoing(encode_preface(Kind::Ctl).to_vec());
        outgoing.push(&Frame::Hello(Hello {
            client_id: config.client_id,
            name: config.name.clone(),
            nonce: config.nonce,
            resume: config.resume,
            versions: vec![VERSION],
            data_cores: config.data_cores,
        }));
        Self {
            config,
            heartbeat: None,
            phase: Phase::Challenge { deadline: now + HANDSHAKE_DEADLINE },
            decoder: Decoder::new(),
            outgoing,
            events: VecDeque::new(),
        }
    }

    /// With a heartbeat of the client's own: the shorter times of both sides count.
    #[must_use]
    pub fn with_heartbeat(self, heartbeat: Heartbeat) -> Self {
        Self { heartbeat: Some(heartbeat), ..self }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Bytes to send. Ask again when they are sent.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outgoing.take()
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Challenge { deadline } | Phase::Welcome { deadline, .. } => Some(*deadline),
            Phase::Open { heart, .. } => Some(heart.due()),
            Phase::Ended => None,
        }
    }

    /// The key of this ctl_conn's proxy_conns, once we are welcomed.
    #[must_use]
    pub fn session_key(&self) -> Option<&SessionKey> {
        match &self.phase {
            Phase::Open { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whether we are welcomed and the ctl_conn is not over.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Whether the ctl_conn is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// Bytes have come.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Duration) {
        if self.is_ended() {
            return;
        }
        if let Phase::Open { heart, .. } = &mut self.phase {
            heart.heard(now);
        }
        self.decoder.push(bytes);
        while !self.is_ended() {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.on_frame(frame, now),
                Ok(None) => break,
                Err(error) => self.end(End::Violation(error.into())),
            }
        }
        self.check_backlog();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.phase {
            Phase::Challenge { deadline } | Phase::Welcome { deadline, .. } if now >= *deadline => {
                self.end(End::HandshakeTimeout);
            }
            Phase::Open { heart, .. } => match heart.pulse(now) {
                Pulse::Rest => {}
                Pulse::Ping(number) => self.send(&Frame::Ping(number)),
                Pulse::Dead => self.end(End::Silent),
            },
            _ => {}
        }
    }

    /// Asks for a tunnel.
    pub fn open_tunnel(&mut self, open: OpenTunnel) {
        self.send(&Frame::OpenTunnel(open));
    }

    /// Gives a tunnel up.
    pub fn close_tunnel(&mut self, tunnel: TunnelId) {
        self.send(&Frame::CloseTunnel(CloseTunnel { tunnel }));
    }

    /// The client is going to stop.
    pub fn go_away(&mut self, go_away: GoAway) {
        self.send(&Frame::GoAway(go_away));
    }

    /// Queues a frame of an open ctl_conn. Otherwise it is dropped, as if it had been lost with the
    /// ctl_conn.
    fn send(&mut self, frame: &Frame) {
        if self.is_open() {
            self.outgoing.push(frame);
            self.check_backlog();
        }
    }

    fn check_backlog(&mut self) {
        if self.outgoing.is_full() {
            self.outgoing.take();
            self.end(End::Backlog);
        }
    }

    fn end(&mut self, end: End) {
        if !self.is_ended() {
            self.phase = Phase::Ended;
            self.events.push_back(ClientEvent::Ended(end));
        }
    }

    fn on_frame(&mut self, frame: Frame, now: Duration) {
        if let Frame::Refused(refused) = frame {
            return self.end(End::Refused { code: refused.code, reason: refused.reason });
        }
        let name = frame.name();
        match (&self.phase, frame) {
            (Phase::Challenge { deadline }, Frame::Challenge(challenge)) => {
                let deadline = *deadline;
                self.on_challenge(&challenge, deadline);
            }
            (Phase::Welcome { .. }, Frame::Welcome(welcome)) => self.on_welcome(welcome, now),
            (Phase::Open { gateway_cores, .. }, frame) => {
                let gateway_cores = *gateway_cores;
                self.on_open_frame(frame, gateway_cores);
            }
            _ => self.end(End::Violation(Violation::Unexpected(name))),
        }
    }

    fn on_challenge(&mut self, challenge: &Challenge, deadline: Duration) {
        let token = &self.config.token;
        let transcript = Transcript {
            client_id: self.config.client_id,
            server_id: challenge.server_id,
            client_nonce: self.config.nonce,
            server_nonce: challenge.nonce,
        };
        let gateway = if auth::verify_gateway_proof(token, &transcript, &challenge.proof) {
            Gateway::Proved(auth::session_key(token, &transcript))
        } else {
            Gateway::Unproven
        };
        let proof = auth::client_proof(token, &transcript);
        self.outgoing.push(&Frame::Proof(Proof { proof }));
        self.phase = Phase::Welcome { deadline, gateway };
    }

    fn on_welcome(&mut self, welcome: Welcome, now: Duration) {
        let Phase::Welcome { gateway, .. } = &self.phase else {
            unreachable!("called in this phase only")
        };
        let Gateway::Proved(key) = gateway else { return self.end(End::GatewayUnproven) };
        if !(1..=DATA_CORES_MAX).contains(&welcome.data_cores) || welcome.proxy_port == 0 {
            return self.end(End::Violation(Violation::OutOfRange("Welcome")));
        }
        let theirs = Heartbeat::from_ms(welcome.heartbeat_ms, welcome.deadline_ms);
        let beat = self.heartbeat.map_or(theirs, |ours| Heartbeat {
            interval: ours.interval.min(theirs.interval),
            deadline: ours.deadline.min(theirs.deadline),
        });
        self.phase = Phase::Open {
            heart: Heart::new(beat, now),
            key: key.clone(),
            gateway_cores: welcome.data_cores,
        };
        self.events.push_back(ClientEvent::Welcomed(welcome));
    }

    fn on_open_frame(&mut self, frame: Frame, gateway_cores: u16) {
        let name = frame.name();
        let event = match frame {
            Frame::TunnelOpen(open) => ClientEvent::TunnelOpen(open),
            Frame::TunnelRefused(refused) => ClientEvent::TunnelRefused(refused),
            Frame::CloseTunnel(close) => ClientEvent::CloseTunnel(close.tunnel),
            Frame::OpenProxy(open) if open.core < gateway_cores => ClientEvent::OpenProxy(open),
            Frame::OpenProxy(_) => return self.end(End::Violation(Violation::OutOfRange(name))),
            Frame::GoAway(go_away) => ClientEvent::GoAway(go_away),
            Frame::Ping(number) => return self.outgoing.push(&Frame::Pong(number)),
            Frame::Pong(_) => return,
            _ => return self.end(End::Violation(Violation::Unexpected(name))),
        };
        self.events.push_back(event);
    }
}
