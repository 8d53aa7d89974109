//! The gateway's end of a ctl_conn.

use std::collections::VecDeque;
use std::time::Duration;

use crate::auth::{self, Nonce, SessionKey, Ticket, Token, Transcript};
use crate::id::{CtlId, ServerId, TunnelId};
use crate::limits::{
    DATA_CORES_MAX, FRAME_LEN_MAX, HANDSHAKE_DEADLINE, PREFACE_SIZE, STRANGER_FRAME_LEN_MAX,
    VERSIONS_MAX,
};
use crate::wire::{
    Challenge, CloseTunnel, Decoder, Frame, GoAway, Hello, Kind, OpenProxy, OpenTunnel, Reason,
    Refused, RefusedCode, TunnelOpen, TunnelRefused, VERSION, Welcome, WireError, decode_preface,
};

use super::heart::{Heart, Pulse};
use super::{End, Heartbeat, Outgoing, Violation};

/// What a gateway's session needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The shared secret.
    pub token: Token,
    /// Who this gateway is.
    pub server_id: ServerId,
    /// Random, for this ctl_conn only.
    pub nonce: Nonce,
    /// Number of this gateway's data cores.
    pub data_cores: u16,
    /// How the ctl_conn is kept alive; the client is told.
    pub heartbeat: Heartbeat,
}

/// What the client wants or tells.
#[derive(Clone, Debug)]
pub enum GatewayEvent {
    /// The client has proved that it knows the token. Answer with [`GatewaySession::welcome`] or
    /// [`GatewaySession::refuse`] within the handshake deadline. `data_cores` is in range.
    Authenticated(Hello),
    /// It wants a tunnel. Answer with `tunnel_open` or `tunnel_refused`.
    OpenTunnel(OpenTunnel),
    /// It does not want a tunnel any more. (The id is as it came: anybody's.)
    CloseTunnel(TunnelId),
    /// It is going to stop.
    GoAway(GoAway),
    /// The ctl_conn is over: send what is left to send, then close. The last event.
    Ended(End),
}

/// What a welcome says, apart from what the session knows itself.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Names the ctl_conn.
    pub ctl_id: CtlId,
    /// Number of the session.
    pub epoch: u64,
    /// Where to dial proxy_conns.
    pub proxy_port: u16,
    /// Whether an earlier session goes on.
    pub resumed: bool,
    /// For coming back.
    pub ticket: Ticket,
    /// Tunnels that the client may have.
    pub tunnels_max: u32,
}

/// See [`super`].
#[derive(Debug)]
pub struct GatewaySession {
    config: GatewayConfig,
    phase: Phase,
    decoder: Decoder,
    outgoing: Outgoing,
    events: VecDeque<GatewayEvent>,
}

#[derive(Debug)]
enum Phase {
    /// Waits for the preface, of which these bytes have come.
    Preface {
        deadline: Duration,
        bytes: Vec<u8>,
    },
    Hello {
        deadline: Duration,
    },
    Proof {
        deadline: Duration,
        hello: Hello,
        transcript: Transcript,
    },
    /// Waits for the owner's decision.
    Deciding {
        deadline: Duration,
        key: SessionKey,
    },
    Open {
        heart: Heart,
        key: SessionKey,
    },
    Ended,
}

impl GatewaySession {
    /// A session on a connection that has just been accepted.
    #[must_use]
    pub fn new(config: GatewayConfig, now: Duration) -> Self {
        let deadline = now + HANDSHAKE_DEADLINE;
        let mut decoder = Decoder::new();
        decoder.limit_frames(STRANGER_FRAME_LEN_MAX);
        Self {
            config,
            phase: Phase::Preface { deadline, bytes: Vec::new() },
            decoder,
            outgoing: Outgoing::default(),
            events: VecDeque::new(),
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GatewayEvent> {
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
            Phase::Preface { deadline, .. }
            | Phase::Hello { deadline }
            | Phase::Proof { deadline, .. }
            | Phase::Deciding { deadline, .. } => Some(*deadline),
            Phase::Open { heart, .. } => Some(heart.due()),
            Phase::Ended => None,
        }
    }

    /// The key of this ctl_conn's proxy_conns, once the client is authenticated.
    #[must_use]
    pub fn session_key(&self) -> Option<&SessionKey> {
        match &self.phase {
            Phase::Deciding { key, .. } | Phase::Open { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whether the client is welcomed and the ctl_conn not over.
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
        match &mut self.phase {
            Phase::Ended => return,
            Phase::Preface { bytes: preface, .. } => {
                let missing = PREFACE_SIZE.saturating_sub(preface.len()).min(bytes.len());
                let (head, rest) = bytes.split_at(missing);
                preface.extend_from_slice(head);
                self.on_preface();
                self.decoder.push(rest);
            }
            Phase::Open { heart, .. } => {
                heart.heard(now);
                self.decoder.push(bytes);
            }
            _ => self.decoder.push(bytes),
        }
        while !matches!(self.phase, Phase::Ended | Phase::Preface { .. }) {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.on_frame(frame),
                Ok(None) => break,
                Err(error) => self.violation(error.into()),
            }
        }
        self.check_backlog();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.phase {
            Phase::Preface { deadline, .. } if now >= *deadline => {
                self.end(End::HandshakeTimeout);
            }
            Phase::Hello { deadline }
            | Phase::Proof { deadline, .. }
            | Phase::Deciding { deadline, .. }
                if now >= *deadline =>
            {
                let reason = "the handshake took too long".into();
                self.say_refused(RefusedCode::Timeout, reason);
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

    /// Logs the client in.
    ///
    /// # Panics
    /// Except after the event `Authenticated`, as long as the ctl_conn is not over.
    pub fn welcome(&mut self, session: Session, now: Duration) {
        let Phase::Deciding { key, .. } = &self.phase else {
            assert!(self.is_ended(), "a welcome answers an Authenticated, once");
            return;
        };
        let heart = Heart::new(self.config.heartbeat, now);
        self.phase = Phase::Open { heart, key: key.clone() };
        self.decoder.limit_frames(FRAME_LEN_MAX);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.send(&Frame::Welcome(Welcome {
            ctl_id: session.ctl_id,
            epoch: session.epoch,
            proxy_port: session.proxy_port,
            heartbeat_ms: ms(self.config.heartbeat.interval),
            deadline_ms: ms(self.config.heartbeat.deadline),
            data_cores: self.config.data_cores,
            resumed: session.resumed,
            ticket: session.ticket,
            tunnels_max: session.tunnels_max,
        }));
    }

    /// Sends the client away, at any time. The event `Ended` follows.
    pub fn refuse(&mut self, code: RefusedCode, reason: impl Into<Reason>) {
        if !self.is_ended() {
            let reason = reason.into();
            self.say_refused(code, reason.clone());
            self.end(End::Refused { code, reason });
        }
    }

    /// A service is exposed.
    pub fn tunnel_open(&mut self, open: TunnelOpen) {
        self.send(&Frame::TunnelOpen(open));
    }

    /// A service is not exposed.
    pub fn tunnel_refused(&mut self, refused: TunnelRefused) {
        self.send(&Frame::TunnelRefused(refused));
    }

    /// A service is not exposed any more.
    pub fn close_tunnel(&mut self, tunnel: TunnelId) {
        self.send(&Frame::CloseTunnel(CloseTunnel { tunnel }));
    }

    /// Proxy_conns are wanted.
    pub fn open_proxy(&mut self, open: OpenProxy) {
        self.send(&Frame::OpenProxy(open));
    }

    /// The gateway is going to stop.
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

    fn say_refused(&mut self, code: RefusedCode, reason: Reason) {
        self.outgoing.push(&Frame::Refused(Refused { code, reason }));
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
            self.events.push_back(GatewayEvent::Ended(end));
        }
    }

    fn violation(&mut self, violation: Violation) {
        self.say_refused(RefusedCode::Protocol, violation.to_string().into());
        self.end(End::Violation(violation));
    }

    fn on_preface(&mut self) {
        let Phase::Preface { deadline, bytes } = &self.phase else {
            unreachable!("called in this phase only")
        };
        match decode_preface(bytes) {
            Ok(None) => {}
            Ok(Some(Kind::Ctl)) => self.phase = Phase::Hello { deadline: *deadline },
            Ok(Some(kind @ (Kind::Proxy | Kind::Lane))) => {
                let reason = "this is the ctl port, not the proxy port";
                self.say_refused(RefusedCode::Protocol, reason.into());
                self.end(End::Violation(WireError::Kind(kind.number()).into()));
            }
            Err(error @ WireError::Version(version)) => {
                let reason = format!("version {version} is not spoken here, only {VERSION}");
                self.say_refused(RefusedCode::Version, reason.into());
                self.end(End::Violation(error.into()));
            }
            // Not one of ours: a frame would mean nothing to it.
            Err(error) => self.end(End::Violation(error.into())),
        }
    }

    fn on_frame(&mut self, frame: Frame) {
        match &self.phase {
            Phase::Hello { deadline } => match frame {
                Frame::Hello(hello) => {
                    let deadline = *deadline;
                    self.on_hello(hello, deadline);
                }
                frame => self.violation(Violation::Unexpected(frame.name())),
            },
            Phase::Proof { .. } => match frame {
                Frame::Proof(proof) => self.on_proof(&proof.proof),
                frame => self.violation(Violation::Unexpected(frame.name())),
            },
            Phase::Open { .. } => self.on_open_frame(frame),
            Phase::Deciding { .. } => self.violation(Violation::Unexpected(frame.name())),
            Phase::Preface { .. } | Phase::Ended => unreachable!("no frames in this phase"),
        }
    }

    fn on_hello(&mut self, hello: Hello, deadline: Duration) {
        let cores_fit = (1..=DATA_CORES_MAX).contains(&hello.data_cores);
        if !cores_fit || hello.versions.len() > VERSIONS_MAX {
            return self.violation(Violation::OutOfRange("Hello"));
        }
        if !hello.versions.contains(&VERSION) {
            let reason = format!("no version in common, only {VERSION} is spoken here");
            return self.refuse(RefusedCode::Version, reason);
        }
        let transcript = Transcript {
            client_id: hello.client_id,
            server_id: self.config.server_id,
            client_nonce: hello.nonce,
            server_nonce: self.config.nonce,
        };
        self.outgoing.push(&Frame::Challenge(Challenge {
            server_id: self.config.server_id,
            nonce: self.config.nonce,
            proof: auth::gateway_proof(&self.config.token, &transcript),
        }));
        self.phase = Phase::Proof { deadline, hello, transcript };
    }

    fn on_proof(&mut self, proof: &auth::Mac) {
        let Phase::Proof { deadline, hello, transcript } = &self.phase else {
            unreachable!("called in this phase only")
        };
        if !auth::verify_client_proof(&self.config.token, transcript, proof) {
            return self.refuse(RefusedCode::BadToken, BAD_TOKEN);
        }
        let key = auth::session_key(&self.config.token, transcript);
        let hello = hello.clone();
        self.phase = Phase::Deciding { deadline: *deadline, key };
        self.events.push_back(GatewayEvent::Authenticated(hello));
    }

    fn on_open_frame(&mut self, frame: Frame) {
        let name = frame.name();
        let event = match frame {
            Frame::OpenTunnel(open) => GatewayEvent::OpenTunnel(open),
            Frame::CloseTunnel(close) => GatewayEvent::CloseTunnel(close.tunnel),
            Frame::GoAway(go_away) => GatewayEvent::GoAway(go_away),
            Frame::Ping(number) => return self.outgoing.push(&Frame::Pong(number)),
            Frame::Pong(_) => return,
            _ => return self.violation(Violation::Unexpected(name)),
        };
        self.events.push_back(event);
    }
}

/// The same for everything that can be wrong about a proof.
const BAD_TOKEN: &str = "the client does not know the token of this gateway";
