//! The idle ↔ data machine of one proxy_conn, for both of its ends.
//!
//! A proxy_conn carries one flow at a time and is used again only at quiescence. In-band travel
//! `Start` and payload; over the lane travel `Fin`, `Released` and `Abort`. The two are
//! separate TCP streams, so either may overtake the other; that is why ends are announced as
//! counts. When the lane is lost, what it may have swallowed is said again in-band by a FIN, and
//! a proxy_conn on which that happened is closed after its flow.
//!
//! The machine moves no bytes. Its owner reports what happened as an [`Input`] and does the
//! [`Action`]s it gets, in order. Counts are totals of the current flow.

use crate::id::FlowId;
use crate::wire::AbortCode;

/// Which end of the proxy_conn this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The end that accepted it and sends `Start`.
    Gateway,
    /// The end that dialled it and waits for `Start`.
    Client,
}

/// Whether frames reach the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// There is a lane.
    Up,
    /// There is none at the moment.
    Lost,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Gateway: a public conn was paired with this idle proxy_conn.
    Bind(FlowId),
    /// Client: a `Start` was read from this idle proxy_conn.
    Start(FlowId),
    /// Client: the flow cannot be served (no such tunnel, the dial failed).
    StartFailed(AbortCode),
    /// The own source (public or local conn) has ended behind `0` bytes, of which the last are on their
    /// way into the proxy_conn. [`Input::OwnEnd`] follows when they are there. May be left out.
    OwnEnding(u64),
    /// The own source (public or local conn) has ended; all `0` bytes of it are in the proxy_conn.
    OwnEnd(u64),
    /// The own public or local conn failed.
    OwnFailed,
    /// So many bytes of the flow have been taken from the proxy_conn. Report it before they are
    /// delivered: the answer may forbid that.
    Taken(u64),
    /// So many bytes of the flow have been delivered to the public or local conn.
    Delivered(u64),
    /// The peer has ended the proxy_conn in-band (FIN).
    InBandEof,
    /// The proxy_conn failed.
    ProxyFailed,
    /// Frame `Fin`: the flow and how many bytes the peer has sent.
    PeerFin(FlowId, u64),
    /// Frame `Released`.
    PeerReleased(FlowId),
    /// Frame `Abort`.
    PeerAbort(FlowId, AbortCode),
    /// The lane is gone, with every frame that had not arrived.
    LaneLost,
    /// There is another lane.
    LaneBack,
    /// A deadline of the owner has passed (idle flow, half-closed flow, settling, aborting).
    Deadline,
    /// The peer sent bytes that are no `Start`.
    Garbage,
    /// The proxy_conn is surplus (or the program ends): close it if it carries no flow.
    Retire,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write a `Start`, then the payload, into the proxy_conn.
    SendStart(FlowId),
    /// Send a notice over the lane.
    SendFin {
        /// The flow whose outbound direction has ended.
        flow: FlowId,
        /// Bytes put into the proxy_conn.
        bytes: u64,
    },
    /// Send a notice over the lane.
    SendReleased(FlowId),
    /// Send a notice over the lane, and guard the proxy_conn with
    /// [`crate::limits::ABORT_DEADLINE`]: the gateway is to close it.
    SendAbort(FlowId, AbortCode),
    /// `shutdown(SHUT_WR)` on the proxy_conn.
    ShutdownProxyWrite,
    /// `shutdown(SHUT_WR)` on the public or local conn: everything is delivered. (A client that is
    /// still dialling does it when it is connected.)
    EndInbound,
    /// Both directions are over: close the public or local conn cleanly and account for the flow. When it
    /// comes right behind [`Action::EndInbound`], closing is ending.
    FlowEnded,
    /// The proxy_conn is idle again: gateway, back to the pool; client, expect a `Start`.
    BecomeIdle,
    /// Close the proxy_conn cleanly. No flow is on it.
    CloseClean(Why),
    /// Close the proxy_conn with RST, and the public or local conn too if there is one.
    CloseReset(Why),
    /// Nothing; count it.
    Ignored(Ignored),
}

/// Why a proxy_conn is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The peer closed it while it carried no flow.
    PeerClosed,
    /// The owner wanted it.
    Retired,
    /// Its flow ended well, but with the help of an in-band FIN.
    EndedInBand,
    /// The lane was lost before the peer's release arrived.
    ReleaseLost,
    /// The in-band end came so many bytes too early.
    Missing(u64),
    /// The peer broke the protocol.
    Violation(Violation),
    /// The peer aborted the flow.
    PeerAborted(AbortCode),
    /// The own public or local conn failed.
    OwnFailed,
    /// The client could not serve the flow.
    StartFailed(AbortCode),
    /// The proxy_conn failed.
    ProxyFailed,
    /// A deadline passed.
    Deadline,
}

/// How a peer broke the protocol on a proxy_conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// Bytes although no flow is on the proxy_conn, or other bytes than a `Start`.
    BytesOutOfTurn,
    /// More bytes than announced, or an announcement of fewer than have come.
    CountExceeded,
    /// A second `Fin` for a flow.
    FinTwice,
    /// `Released` before the flow was over.
    ReleasedEarly,
}

/// Why an input had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// A frame names another flow than the current one: late.
    OtherFlow,
    /// The machine is closed or closing.
    Closed,
    /// An early notice was dropped for another one.
    NoticeReplaced,
    /// The own end failed after the flow was over.
    NoFlow,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PeerClosed => write!(f, "closed by the peer while idle"),
            Self::Retired => write!(f, "not needed"),
            Self::EndedInBand => write!(f, "ended without a lane"),
            Self::ReleaseLost => write!(f, "the lane was lost before the release"),
            Self::Missing(bytes) => write!(f, "{bytes} announced bytes are missing"),
            Self::Violation(Violation::BytesOutOfTurn) => write!(f, "bytes out of turn"),
            Self::Violation(Violation::CountExceeded) => write!(f, "more bytes than announced"),
            Self::Violation(Violation::FinTwice) => write!(f, "the end was announced twice"),
            Self::Violation(Violation::ReleasedEarly) => write!(f, "released before the end"),
            Self::PeerAborted(code) | Self::StartFailed(code) => code.fmt(f),
            Self::OwnFailed => write!(f, "the connection was reset"),
            Self::ProxyFailed => write!(f, "the proxy_conn failed"),
            Self::Deadline => write!(f, "a deadline passed"),
        }
    }
}

/// The state, for logs and for the owner's decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// No flow; usable.
    Idle,
    /// This flow is on it.
    Data(FlowId),
    /// Gateway: the flow is over on this side, the client has not released it yet.
    Settling(FlowId),
    /// Client: the flow could not be served, the gateway is to close.
    Aborting(FlowId),
    /// Closed, or to be closed.
    Closed(Why),
}

/// One end of one proxy_conn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyConn {
    role: Role,
    reach: Reach,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle(Idle),
    Data(Data),
    Settling(FlowId),
    Aborting(FlowId, AbortCode),
    Closed(Why),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Idle {
    /// The flow before: frames that name it are late, not early.
    last: Option<FlowId>,
    /// Client: a frame that overtook its flow's `Start`.
    early: Option<Early>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Early {
    Fin(FlowId, u64),
    Abort(FlowId, AbortCode),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Data {
    flow: FlowId,
    out: Outbound,
    inbound: Inbound,
    release: Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outbound {
    Open,
    /// A `Fin` with this count has gone ahead of the last bytes. Once the lane is lost, so may the `Fin`
    /// be, and a FIN has to say it again.
    Ahead {
        bytes: u64,
        is_lost: bool,
    },
    /// Ended by a `Fin` with this count.
    Announced(u64),
    /// Ended by a FIN.
    InBand,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Inbound {
    taken: u64,
    delivered: u64,
    end: InboundEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum InboundEnd {
    Unknown,
    /// By a `Fin` with this count.
    Announced(u64),
    /// By a FIN behind this count.
    InBand(u64),
}

/// Gateway: whether the client has released the flow while bytes were still being delivered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Release {
    Awaited,
    Done,
}

impl Outbound {
    fn is_over(self) -> bool {
        matches!(self, Self::Announced(_) | Self::InBand)
    }
}

impl Inbound {
    fn is_over(&self) -> bool {
        match self.end {
            InboundEnd::Unknown => false,
            InboundEnd::Announced(bytes) | InboundEnd::InBand(bytes) => self.delivered == bytes,
        }
    }
}

impl Data {
    fn new(flow: FlowId) -> Self {
        let inbound = Inbound { taken: 0, delivered: 0, end: InboundEnd::Unknown };
        Self { flow, out: Outbound::Open, inbound, release: Release::Awaited }
    }

    fn is_over(&self) -> bool {
        self.out.is_over() && self.inbound.is_over()
    }

    fn used_in_band(&self) -> bool {
        self.out == Outbound::InBand || matches!(self.inbound.end, InboundEnd::InBand(_))
    }
}

impl ProxyConn {
    /// A fresh, attached proxy_conn.
    #[must_use]
    pub fn new(role: Role, reach: Reach) -> Self {
        Self { role, reach, state: State::Idle(Idle::default()) }
    }

    /// Where it stands.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match &self.state {
            State::Idle(_) => Mode::Idle,
            State::Data(data) => Mode::Data(data.flow),
            State::Settling(flow) => Mode::Settling(*flow),
            State::Aborting(flow, _) => Mode::Aborting(*flow),
            State::Closed(why) => Mode::Closed(*why),
        }
    }

    /// Whether a flow's own source has ended while the peer's has not been delivered to its end, or
    /// the other way round: what a half-close deadline guards.
    #[must_use]
    pub fn is_half_closed(&self) -> bool {
        match &self.state {
            State::Data(data) => data.out.is_over() != data.inbound.is_over(),
            _ => false,
        }
    }

    /// Behind how many bytes of the current flow the peer has announced its end.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        match &self.state {
            State::Data(Data {
                inbound: Inbound { end: InboundEnd::Announced(bytes), .. },
                ..
            }) => Some(*bytes),
            _ => None,
        }
    }

    /// Takes what happened and tells what to do.
    ///
    /// # Panics
    /// When the owner breaks its side: `Bind` of a proxy_conn that is not idle or is a client's,
    /// `Start` likewise, a second `OwnEnd`, counts that shrink or deliver more than was taken.
    pub fn handle(&mut self, input: Input) -> Actions {
        let mut actions = Actions::default();
        self.note_lane(input);
        match &mut self.state {
            State::Closed(_) => actions.push(Action::Ignored(Ignored::Closed)),
            State::Idle(_) => self.on_idle(input, &mut actions),
            State::Data(_) => self.on_data(input, &mut actions),
            State::Settling(flow) => {
                let flow = *flow;
                self.on_settling(flow, input, &mut actions);
            }
            State::Aborting(flow, code) => {
                let (flow, code) = (*flow, *code);
                self.on_aborting(flow, code, input, &mut actions);
            }
        }
        actions
    }

    fn note_lane(&mut self, input: Input) {
        match input {
            Input::LaneLost => self.reach = Reach::Lost,
            Input::LaneBack => self.reach = Reach::Up,
            _ => {}
        }
    }

    fn on_idle(&mut self, input: Input, actions: &mut Actions) {
        let State::Idle(idle) = &mut self.state else { unreachable!("dispatched by state") };
        match input {
            Input::Bind(flow) => {
                assert_eq!(self.role, Role::Gateway, "a client does not bind");
                self.state = State::Data(Data::new(flow));
                actions.push(Action::SendStart(flow));
            }
            Input::Start(flow) => {
                assert_eq!(self.role, Role::Client, "a gateway is not started");
                let early = idle.early;
                self.start(flow, early, actions);
            }
            Input::PeerFin(flow, bytes) if self.role == Role::Client && idle.last != Some(flow) => {
                idle.keep(Early::Fin(flow, bytes), actions);
            }
            Input::PeerAbort(flow, code)
                if self.role == Role::Client && idle.last != Some(flow) =>
            {
                idle.keep(Early::Abort(flow, code), actions);
            }
            Input::PeerFin(..) | Input::PeerAbort(..) | Input::PeerReleased(_) => {
                actions.push(Action::Ignored(Ignored::OtherFlow));
            }
            Input::InBandEof => self.close_clean(Why::PeerClosed, actions),
            Input::ProxyFailed => self.close_reset(Why::ProxyFailed, actions),
            Input::Deadline => self.close_clean(Why::Deadline, actions),
            Input::Retire => self.close_clean(Why::Retired, actions),
            Input::Garbage | Input::Taken(_) => self.violation(Violation::BytesOutOfTurn, actions),
            // Idle proxy_conns outlive the lane: `Start` travels in-band.
            Input::LaneLost | Input::LaneBack => {}
            Input::OwnFailed => actions.push(Action::Ignored(Ignored::NoFlow)),
            Input::StartFailed(_)
            | Input::OwnEnding(_)
            | Input::OwnEnd(_)
            | Input::Delivered(_) => unreachable!("{input:?} without a flow"),
        }
    }

    /// The client enters data mode and hears what had overtaken the `Start`.
    fn start(&mut self, flow: FlowId, early: Option<Early>, actions: &mut Actions) {
        self.state = State::Data(Data::new(flow));
        match early {
            Some(Early::Fin(of, bytes)) if of == flow => self.on_fin(bytes, actions),
            Some(Early::Abort(of, code)) if of == flow => {
                self.close_reset(Why::PeerAborted(code), actions);
            }
            Some(_) => actions.push(Action::Ignored(Ignored::OtherFlow)),
            None => {}
        }
    }

    fn on_data(&mut self, input: Input, actions: &mut Actions) {
        let State::Data(data) = &mut self.state else { unreachable!("dispatched by state") };
        match input {
            Input::OwnEnding(bytes) => self.on_own_ending(bytes, actions),
            Input::OwnEnd(bytes) => self.on_own_end(bytes, actions),
            Input::Taken(total) => self.on_taken(total, actions),
            Input::Delivered(total) => self.on_delivered(total, actions),
            Input::InBandEof => self.on_in_band_eof(actions),
            Input::PeerFin(flow, bytes) if flow == data.flow => self.on_fin(bytes, actions),
            Input::PeerReleased(flow) if flow == data.flow => self.on_released(actions),
            Input::PeerAbort(flow, code) if flow == data.flow => {
                self.close_reset(Why::PeerAborted(code), actions);
            }
            Input::PeerFin(..) | Input::PeerReleased(_) | Input::PeerAbort(..) => {
                actions.push(Action::Ignored(Ignored::OtherFlow));
            }
            Input::LaneLost => self.on_lane_lost(actions),
            Input::LaneBack | Input::Retire => {}
            Input::StartFailed(code) => self.on_start_failed(code, actions),
            Input::OwnFailed => self.close_reset(Why::OwnFailed, actions),
            Input::ProxyFailed => self.close_reset(Why::ProxyFailed, actions),
            Input::Deadline => self.close_reset(Why::Deadline, actions),
            Input::Garbage => self.violation(Violation::BytesOutOfTurn, actions),
            Input::Bind(_) | Input::Start(_) => unreachable!("{input:?} in data mode"),
        }
    }

    fn data(&mut self) -> &mut Data {
        match &mut self.state {
            State::Data(data) => data,
            other => unreachable!("data mode expected, not {other:?}"),
        }
    }

    /// The peer may hear of the end before it has the last bytes, and so can pass both on together.
    fn on_own_ending(&mut self, bytes: u64, actions: &mut Actions) {
        let is_told = self.is_end_told_by_frame();
        let data = self.data();
        assert_eq!(data.out, Outbound::Open, "a source ends once");
        if is_told {
            data.out = Outbound::Ahead { bytes, is_lost: false };
            actions.push(Action::SendFin { flow: data.flow, bytes });
        }
    }

    fn on_own_end(&mut self, bytes: u64, actions: &mut Actions) {
        let is_told = self.is_end_told_by_frame();
        let data = self.data();
        data.out = match data.out {
            Outbound::Open if is_told => {
                actions.push(Action::SendFin { flow: data.flow, bytes });
                Outbound::Announced(bytes)
            }
            Outbound::Ahead { bytes: told, is_lost: false } => {
                assert_eq!(told, bytes, "no byte comes behind the last");
                Outbound::Announced(bytes)
            }
            Outbound::Open | Outbound::Ahead { is_lost: true, .. } => {
                actions.push(Action::ShutdownProxyWrite);
                Outbound::InBand
            }
            Outbound::Announced(_) | Outbound::InBand => panic!("a source ends once"),
        };
        self.end_if_over(actions);
    }

    /// Once one direction has ended in-band the proxy_conn is not used again, so a frame would win
    /// nothing.
    fn is_end_told_by_frame(&mut self) -> bool {
        self.reach == Reach::Up && !self.data().used_in_band()
    }

    fn on_taken(&mut self, total: u64, actions: &mut Actions) {
        let data = self.data();
        assert!(total >= data.inbound.taken, "totals do not shrink");
        data.inbound.taken = total;
        match data.inbound.end {
            InboundEnd::Announced(bytes) if total > bytes => {
                self.violation(Violation::CountExceeded, actions);
            }
            InboundEnd::InBand(bytes) => assert_eq!(total, bytes, "nothing comes behind a FIN"),
            InboundEnd::Announced(_) | InboundEnd::Unknown => {}
        }
    }

    fn on_delivered(&mut self, total: u64, actions: &mut Actions) {
        let inbound = &mut self.data().inbound;
        assert!(total >= inbound.delivered, "totals do not shrink");
        assert!(total <= inbound.taken, "delivered {total} of {} taken bytes", inbound.taken);
        let was_over = inbound.is_over();
        inbound.delivered = total;
        self.inbound_changed(was_over, actions);
    }

    fn on_in_band_eof(&mut self, actions: &mut Actions) {
        let inbound = &mut self.data().inbound;
        let was_over = inbound.is_over();
        match inbound.end {
            InboundEnd::Announced(bytes) if inbound.taken < bytes => {
                let missing = bytes - inbound.taken;
                self.close_reset(Why::Missing(missing), actions);
            }
            InboundEnd::Announced(_) | InboundEnd::Unknown | InboundEnd::InBand(_) => {
                inbound.end = InboundEnd::InBand(inbound.taken);
                self.inbound_changed(was_over, actions);
            }
        }
    }

    fn on_fin(&mut self, bytes: u64, actions: &mut Actions) {
        let inbound = &mut self.data().inbound;
        let was_over = inbound.is_over();
        match inbound.end {
            InboundEnd::Announced(_) => self.violation(Violation::FinTwice, actions),
            _ if bytes < inbound.taken => self.violation(Violation::CountExceeded, actions),
            // The FIN that repeats a lost `Fin` has overtaken a `Fin` that was not lost.
            InboundEnd::InBand(came) if came < bytes => {
                self.close_reset(Why::Missing(bytes - came), actions);
            }
            InboundEnd::InBand(_) => {}
            InboundEnd::Unknown => {
                inbound.end = InboundEnd::Announced(bytes);
                self.inbound_changed(was_over, actions);
            }
        }
    }

    fn on_released(&mut self, actions: &mut Actions) {
        let role = self.role;
        let data = self.data();
        let client_can_be_done = role == Role::Gateway
            && data.out != Outbound::Open
            && data.inbound.end != InboundEnd::Unknown;
        if client_can_be_done {
            data.release = Release::Done;
        } else {
            self.violation(Violation::ReleasedEarly, actions);
        }
    }

    /// What the lost lane may have swallowed is said again in-band.
    fn on_lane_lost(&mut self, actions: &mut Actions) {
        let data = self.data();
        // A release proves that the client has heard of the end.
        match &mut data.out {
            _ if data.release == Release::Done => {}
            Outbound::Ahead { is_lost, .. } => *is_lost = true,
            Outbound::Announced(_) => {
                data.out = Outbound::InBand;
                actions.push(Action::ShutdownProxyWrite);
            }
            Outbound::Open | Outbound::InBand => {}
        }
    }

    fn on_start_failed(&mut self, code: AbortCode, actions: &mut Actions) {
        assert_eq!(self.role, Role::Client, "a gateway does not dial");
        if self.reach == Reach::Lost {
            self.close_reset(Why::StartFailed(code), actions);
            return;
        }
        let flow = self.data().flow;
        self.state = State::Aborting(flow, code);
        actions.push(Action::SendAbort(flow, code));
    }

    fn inbound_changed(&mut self, was_over: bool, actions: &mut Actions) {
        if !was_over && self.data().inbound.is_over() {
            actions.push(Action::EndInbound);
            self.end_if_over(actions);
        }
    }

    fn end_if_over(&mut self, actions: &mut Actions) {
        let role = self.role;
        let data = self.data();
        if !data.is_over() {
            return;
        }
        let flow = data.flow;
        actions.push(Action::FlowEnded);
        if data.used_in_band() {
            self.close_clean(Why::EndedInBand, actions);
        } else if role == Role::Client {
            actions.push(Action::SendReleased(flow));
            self.become_idle(flow, actions);
        } else if data.release == Release::Done {
            self.become_idle(flow, actions);
        } else {
            self.state = State::Settling(flow);
        }
    }

    fn on_settling(&mut self, flow: FlowId, input: Input, actions: &mut Actions) {
        match input {
            Input::PeerReleased(of) if of == flow => self.become_idle(flow, actions),
            Input::PeerAbort(of, code) if of == flow => {
                self.close_reset(Why::PeerAborted(code), actions);
            }
            Input::PeerFin(of, _) if of == flow => self.violation(Violation::FinTwice, actions),
            Input::PeerFin(..) | Input::PeerReleased(_) | Input::PeerAbort(..) => {
                actions.push(Action::Ignored(Ignored::OtherFlow));
            }
            Input::InBandEof => self.close_clean(Why::PeerClosed, actions),
            Input::LaneLost => self.close_clean(Why::ReleaseLost, actions),
            Input::Retire => self.close_clean(Why::Retired, actions),
            Input::ProxyFailed => self.close_reset(Why::ProxyFailed, actions),
            Input::Deadline => self.close_reset(Why::Deadline, actions),
            Input::Taken(_) | Input::Garbage => self.violation(Violation::BytesOutOfTurn, actions),
            Input::LaneBack => {}
            Input::OwnFailed => actions.push(Action::Ignored(Ignored::NoFlow)),
            Input::Bind(_)
            | Input::Start(_)
            | Input::StartFailed(_)
            | Input::OwnEnding(_)
            | Input::OwnEnd(_)
            | Input::Delivered(_) => unreachable!("{input:?} while settling"),
        }
    }

    fn on_aborting(&mut self, flow: FlowId, code: AbortCode, input: Input, actions: &mut Actions) {
        match input {
            Input::PeerFin(of, _) | Input::PeerReleased(of) | Input::PeerAbort(of, _) => {
                let ignored = if of == flow { Ignored::Closed } else { Ignored::OtherFlow };
                actions.push(Action::Ignored(ignored));
            }
            // Payload of the flow that nobody will get.
            Input::Taken(_) | Input::LaneBack => {}
            Input::ProxyFailed => self.close_reset(Why::ProxyFailed, actions),
            // The `Abort` may be lost; a reset says nearly the same. A clean close would not do: the
            // gateway would take it for the end of an empty answer.
            Input::InBandEof | Input::LaneLost | Input::Deadline | Input::Retire => {
                self.close_reset(Why::StartFailed(code), actions);
            }
            Input::Garbage => self.violation(Violation::BytesOutOfTurn, actions),
            Input::OwnFailed => actions.push(Action::Ignored(Ignored::NoFlow)),
            Input::Bind(_)
            | Input::Start(_)
            | Input::StartFailed(_)
            | Input::OwnEnding(_)
            | Input::OwnEnd(_)
            | Input::Delivered(_) => unreachable!("{input:?} while aborting"),
        }
    }

    fn become_idle(&mut self, last: FlowId, actions: &mut Actions) {
        self.state = State::Idle(Idle { last: Some(last), early: None });
        actions.push(Action::BecomeIdle);
    }

    fn violation(&mut self, violation: Violation, actions: &mut Actions) {
        self.close_reset(Why::Violation(violation), actions);
    }

    fn close_clean(&mut self, why: Why, actions: &mut Actions) {
        self.state = State::Closed(why);
        actions.push(Action::CloseClean(why));
    }

    fn close_reset(&mut self, why: Why, actions: &mut Actions) {
        self.state = State::Closed(why);
        actions.push(Action::CloseReset(why));
    }
}

impl Idle {
    /// Remembers a frame until its `Start` arrives; the last one counts, because an `Abort` may
    /// follow a `Fin`.
    fn keep(&mut self, early: Early, actions: &mut Actions) {
        if self.early.replace(early).is_some() {
            actions.push(Action::Ignored(Ignored::NoticeReplaced));
        }
    }
}

/// A few actions, in the order in which they must be done. Held in place: there may be a million
/// inputs a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    items: [Option<Action>; Self::MAX],
    len: usize,
    next: usize,
}

impl Actions {
    /// The most that one input can ask for.
    const MAX: usize = 6;

    fn push(&mut self, action: Action) {
        self.items[self.len] = Some(action);
        self.len += 1;
    }

    /// What is to be done next, without taking it.
    #[must_use]
    pub fn peek(&self) -> Option<Action> {
        self.items.get(self.next).copied().flatten()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == self.len
    }
}

impl Iterator for Actions {
    type Item = Action;

    fn next(&mut self) -> Option<Action> {
        let action = self.peek();
        self.next += usize::from(action.is_some());
        action
    }
}
