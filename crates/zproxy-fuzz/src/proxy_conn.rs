//! Lists of operations on the two ends of a proxy_conn and the two connections between them, and on
//! one end whose peer lies.
//!
//! `zproxy-proto/tests/proxy_conn_model.rs` visits every state of a small world; here are long runs
//! of a large one: many flows, bytes in any number, the lane lost again and again.

use std::collections::VecDeque;

use zproxy_proto::id::FlowId;
use zproxy_proto::proxy_conn::{Action, Input as Happening, Mode, ProxyConn, Reach, Role, Why};
use zproxy_proto::wire::AbortCode;

use crate::input::Input;

/// More operations only repeat themselves.
const OPERATIONS_MAX: usize = 1_000;

const GATEWAY: usize = 0;
const CLIENT: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InBand {
    Start(FlowId),
    Bytes(FlowId, u64),
    Fin,
    Rst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Fin(FlowId, u64),
    Released(FlowId),
    Abort(FlowId, AbortCode),
    /// Not frames, but what is told in the same order: the loss of the lane, and the next one
    /// with its number.
    Lost,
    Back(u32),
}

/// One side: its machine and the connections around it.
#[derive(Debug)]
struct End {
    machine: ProxyConn,
    /// Of the current flow.
    sent: u64,
    source_ended: bool,
    /// The source has ended, but not all of its bytes are sent.
    ends_behind: Option<u64>,
    taken: u64,
    delivered: u64,
    /// In-band things on their way to this end.
    in_band: VecDeque<InBand>,
    /// Frames on their way to this end.
    frames: VecDeque<Frame>,
    /// Whether this end has shut its side of the proxy_conn.
    shut: bool,
    /// What this end believes of the lane, and the number of the last that it has heard of.
    belief: Reach,
    lane: u32,
}

impl End {
    fn new(role: Role) -> Self {
        Self {
            machine: ProxyConn::new(role, Reach::Up),
            sent: 0,
            source_ended: false,
            ends_behind: None,
            taken: 0,
            delivered: 0,
            in_band: VecDeque::new(),
            frames: VecDeque::new(),
            shut: false,
            belief: Reach::Up,
            lane: 0,
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.machine.mode(), Mode::Closed(_))
    }

    fn is_in_data(&self) -> bool {
        matches!(self.machine.mode(), Mode::Data(_))
    }

    fn begin(&mut self) {
        (self.sent, self.source_ended, self.taken, self.delivered) = (0, false, 0, 0);
        self.ends_behind = None;
    }
}

/// What really happened to one flow: the truth that the machines must arrive at.
#[derive(Clone, Debug, Default)]
struct Truth {
    /// By side: bytes its source sent, if it has ended.
    ended_at: [Option<u64>; 2],
    /// By side: whether its sink was told the end.
    told_end: [bool; 2],
    /// By side: whether it counted the flow as over.
    over: [bool; 2],
}

#[derive(Debug)]
struct World {
    ends: [End; 2],
    flows: Vec<Truth>,
    /// The number of the present lane; none: it is lost.
    lane: Option<u32>,
    lanes: u32,
    failed: bool,
    lost: bool,
    /// What an end sends over a lane of whose loss it has not heard arrives by the next one.
    stale_arrives: bool,
}

impl World {
    /// A late lane reaches the gateway behind the proxy_conn; what the client says meanwhile waits.
    fn new(is_late: bool) -> Self {
        let mut gateway = End::new(Role::Gateway);
        if is_late {
            gateway.machine = ProxyConn::new(Role::Gateway, Reach::Lost);
            gateway.belief = Reach::Lost;
            gateway.frames.push_back(Frame::Back(0));
        }
        Self {
            ends: [gateway, End::new(Role::Client)],
            flows: Vec::new(),
            lane: Some(0),
            lanes: 0,
            failed: false,
            lost: is_late,
            stale_arrives: false,
        }
    }

    fn bind(&mut self) {
        if self.ends[GATEWAY].machine.mode() == Mode::Idle {
            self.flows.push(Truth::default());
            let flow = FlowId::new(0, self.flows.len() as u64);
            self.ends[GATEWAY].begin();
            self.feed(GATEWAY, Happening::Bind(flow));
        }
    }

    fn source_sends(&mut self, side: usize, count: u64) {
        let Mode::Data(flow) = self.ends[side].machine.mode() else { return };
        let end = &mut self.ends[side];
        let left = end.ends_behind.map_or(u64::MAX, |total| total - end.sent);
        let count = count.min(left);
        if (!end.source_ended || end.ends_behind.is_some()) && count > 0 {
            end.sent += count;
            self.put(side, InBand::Bytes(flow, count));
        }
    }

    /// The source ends, `behind` bytes before the last of it is sent; or they are, if it has ended.
    fn source_ends(&mut self, side: usize, behind: u64) {
        let Mode::Data(flow) = self.ends[side].machine.mode() else { return };
        let end = &mut self.ends[side];
        if !std::mem::replace(&mut end.source_ended, true) {
            let total = end.sent + behind;
            self.flows[index(flow)].ended_at[side] = Some(total);
            if behind == 0 {
                return self.feed(side, Happening::OwnEnd(total));
            }
            end.ends_behind = Some(total);
            self.feed(side, Happening::OwnEnding(total));
        } else if let Some(total) = end.ends_behind {
            self.source_sends(side, u64::MAX);
            // A reset may have come of it.
            if self.ends[side].is_in_data() {
                self.ends[side].ends_behind = None;
                self.feed(side, Happening::OwnEnd(total));
            }
        }
    }

    fn sink_takes(&mut self, side: usize, count: u64) {
        let end = &mut self.ends[side];
        let count = count.min(end.taken - end.delivered);
        if end.is_in_data() && count > 0 {
            end.delivered += count;
            let delivered = end.delivered;
            self.feed(side, Happening::Delivered(delivered));
        }
    }

    /// Something comes out of the proxy_conn; of bytes, up to `most`.
    fn take_in_band(&mut self, side: usize, most: u64) {
        let end = &mut self.ends[side];
        let Some(mut thing) = end.in_band.pop_front() else { return };
        if let InBand::Bytes(flow, count) = &mut thing
            && *count > most
        {
            end.in_band.push_front(InBand::Bytes(*flow, *count - most));
            *count = most;
        }
        let happening = match (thing, end.machine.mode()) {
            (_, Mode::Closed(_)) => return,
            (InBand::Fin, _) => Happening::InBandEof,
            (InBand::Rst, _) => Happening::ProxyFailed,
            (InBand::Start(flow), Mode::Idle) => {
                assert_eq!(side, CLIENT, "a gateway is not started");
                end.begin();
                Happening::Start(flow)
            }
            (InBand::Bytes(flow, count), Mode::Data(current)) => {
                assert_eq!(flow, current, "foreign bytes");
                end.taken += count;
                Happening::Taken(end.taken)
            }
            (InBand::Bytes(..), Mode::Aborting(_)) => return,
            (thing, mode) => panic!("{thing:?} in {mode:?}: {self:#?}"),
        };
        self.feed(side, happening);
    }

    fn take_frame(&mut self, side: usize) {
        let end = &mut self.ends[side];
        let happening = match end.frames.pop_front() {
            None => return,
            Some(Frame::Fin(flow, bytes)) => Happening::PeerFin(flow, bytes),
            Some(Frame::Released(flow)) => Happening::PeerReleased(flow),
            Some(Frame::Abort(flow, code)) => Happening::PeerAbort(flow, code),
            Some(Frame::Lost) => {
                end.belief = Reach::Lost;
                Happening::LaneLost
            }
            Some(Frame::Back(lane)) => {
                (end.belief, end.lane) = (Reach::Up, lane);
                Happening::LaneBack
            }
        };
        self.feed(side, happening);
    }

    /// The lane is lost, and the frames on it that `keep` does not keep, by side.
    fn lose(&mut self, keep: [bool; 2]) {
        if self.lane.take().is_none() {
            return;
        }
        self.lost = true;
        for (end, keep) in self.ends.iter_mut().zip(keep) {
            if !keep {
                // What an end is told by its own side is no frame, and is not lost.
                end.frames.retain(|frame| matches!(frame, Frame::Lost | Frame::Back(_)));
            }
            end.frames.push_back(Frame::Lost);
        }
    }

    /// The client makes the next lane, which it does when it has heard of the loss.
    fn come_back(&mut self) {
        if self.lane.is_none() && self.ends[CLIENT].belief == Reach::Lost {
            self.lanes += 1;
            self.lane = Some(self.lanes);
            for end in &mut self.ends {
                end.frames.push_back(Frame::Back(self.lanes));
            }
        }
    }

    fn fail(&mut self, side: usize, kind: u8) {
        let end = &self.ends[side];
        // Only before the local conn exists, so nothing has come from it or gone to it.
        let is_dialling = side == CLIENT
            && end.is_in_data()
            && (end.sent, end.delivered, end.source_ended) == (0, 0, false);
        let happening = match kind {
            0 if is_dialling => Happening::StartFailed(AbortCode::Refused),
            0 | 1 if end.is_in_data() => Happening::OwnFailed,
            2 if !matches!(end.machine.mode(), Mode::Idle) => Happening::Deadline,
            3 => Happening::Retire,
            _ => return,
        };
        self.failed = true;
        self.feed(side, happening);
    }

    fn put(&mut self, side: usize, thing: InBand) {
        assert!(!self.ends[side].shut, "{thing:?} behind a FIN: {self:#?}");
        if !self.ends[1 - side].is_closed() {
            self.ends[1 - side].in_band.push_back(thing);
        } else if thing != InBand::Fin {
            // The kernel of a closed end answers bytes with a reset, which also destroys what is
            // still unread at the sender.
            self.reset(side);
        }
    }

    fn reset(&mut self, side: usize) {
        assert!(self.failed, "a reset although nothing failed: {self:#?}");
        self.ends[side].in_band = VecDeque::from([InBand::Rst]);
    }

    fn send(&mut self, side: usize, frame: Frame) {
        let end = &self.ends[side];
        assert_eq!(end.belief, Reach::Up, "{frame:?} without a lane: {self:#?}");
        let reaches = self.lane == Some(end.lane);
        if reaches || (self.lane.is_some() && self.stale_arrives) {
            self.ends[1 - side].frames.push_back(frame);
        }
    }

    fn feed(&mut self, side: usize, happening: Happening) {
        let before = self.ends[side].machine.mode();
        let actions = self.ends[side].machine.handle(happening);
        for action in actions {
            self.act(side, before, action);
        }
        let half = self.ends[side].machine.is_half_closed();
        assert!(!half || self.ends[side].is_in_data(), "half-closed without a flow");
    }

    fn act(&mut self, side: usize, before: Mode, action: Action) {
        match action {
            Action::SendStart(flow) => self.put(side, InBand::Start(flow)),
            Action::SendFin { flow, bytes } => self.send(side, Frame::Fin(flow, bytes)),
            Action::SendReleased(flow) => self.send(side, Frame::Released(flow)),
            Action::SendAbort(flow, code) => self.send(side, Frame::Abort(flow, code)),
            Action::ShutdownProxyWrite => {
                self.put(side, InBand::Fin);
                self.ends[side].shut = true;
            }
            Action::EndInbound => {
                let (flow, delivered) = (self.current(side, before), self.ends[side].delivered);
                let truth = &mut self.flows[flow];
                assert_eq!(truth.ended_at[1 - side], Some(delivered), "a wrong end");
                assert!(!truth.told_end[side], "ended twice");
                truth.told_end[side] = true;
            }
            Action::FlowEnded => {
                let flow = self.current(side, before);
                let truth = &mut self.flows[flow];
                assert!(truth.told_end[side] && truth.ended_at[side].is_some());
                assert!(!truth.over[side], "over twice");
                truth.over[side] = true;
            }
            Action::BecomeIdle => assert!(!self.ends[side].shut, "used again behind a FIN"),
            Action::CloseClean(why) => {
                assert!(self.lost || self.failed, "closed for nothing ({why:?}): {self:#?}");
                self.close_clean(side);
            }
            Action::CloseReset(why) => {
                assert!(self.failed, "{why:?} although nothing failed: {self:#?}");
                let violation = matches!(why, Why::Violation(_) | Why::Missing(_));
                assert!(!violation, "{why:?} between honest ends: {self:#?}");
                self.ends[side].in_band.clear();
                if !self.ends[1 - side].is_closed() {
                    self.reset(1 - side);
                }
            }
            Action::Ignored(_) => {}
        }
    }

    fn close_clean(&mut self, side: usize) {
        let unread = |thing: &InBand| !matches!(thing, InBand::Fin | InBand::Rst);
        if self.ends[side].in_band.iter().any(unread) {
            // The kernel answers a close with unread bytes with a reset.
            if !self.ends[1 - side].is_closed() {
                self.reset(1 - side);
            }
        } else if !self.ends[side].shut {
            self.put(side, InBand::Fin);
        }
        self.ends[side].shut = true;
        self.ends[side].in_band.clear();
    }

    /// The flow on which `side` is or, during the last action of it, was.
    fn current(&self, side: usize, before: Mode) -> usize {
        match (before, self.ends[side].machine.mode()) {
            (Mode::Data(flow), _) | (_, Mode::Data(flow) | Mode::Settling(flow)) => index(flow),
            // A Fin that overtook its Start may end an empty inbound direction at once.
            (Mode::Idle, _) => self.flows.len() - 1,
            (before, after) => panic!("no flow in {before:?} -> {after:?}"),
        }
    }

    /// Lets everything come to its end, and judges where it ends.
    fn rest(&mut self) {
        for _ in 0..100 {
            for side in [GATEWAY, CLIENT] {
                while !self.ends[side].in_band.is_empty() {
                    self.take_in_band(side, u64::MAX);
                }
                while !self.ends[side].frames.is_empty() {
                    self.take_frame(side);
                }
                self.sink_takes(side, u64::MAX);
                self.source_ends(side, 0);
            }
            self.come_back();
        }
        let modes = [self.ends[GATEWAY].machine.mode(), self.ends[CLIENT].machine.mode()];
        let both_idle = modes == [Mode::Idle, Mode::Idle];
        let both_closed = self.ends.iter().all(End::is_closed);
        assert!(both_idle || both_closed, "stuck in {modes:?}: {self:#?}");
        if !self.failed {
            for truth in &self.flows {
                assert_eq!(truth.told_end, [true, true], "a lost end: {self:#?}");
                assert_eq!(truth.over, [true, true], "a flow that is never over: {self:#?}");
            }
            assert!(both_idle || self.lost, "closed although nothing happened: {self:#?}");
        }
    }
}

fn index(flow: FlowId) -> usize {
    usize::try_from(flow.serial()).expect("few flows") - 1
}

/// A count of bytes: mostly small, sometimes enormous.
fn count(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        number @ 0..=200 => u64::from(number),
        number => 1 << (number - 201),
    }
}

/// Between honest ends every flow ends at its right byte on both sides, no byte reaches another
/// flow, and when all has arrived nothing is stuck, whatever is delayed or lost on the way.
pub fn proxy_conn(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.byte() > 200);
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        let side = usize::from(kind & 1);
        match kind >> 1 & 15 {
            0 | 1 => world.bind(),
            2 if kind & 0x20 == 0 => world.source_sends(side, count(&mut input)),
            2 => world.source_ends(side, count(&mut input)),
            3 => world.source_ends(side, 0),
            4..=6 => world.take_in_band(side, count(&mut input).max(1)),
            7 | 8 => world.take_frame(side),
            9 | 10 => world.sink_takes(side, count(&mut input)),
            11 => {
                let choice = input.byte();
                world.stale_arrives = choice & 4 != 0;
                if choice & 0x30 == 0x30 {
                    world.lose([choice & 1 != 0, choice & 2 != 0]);
                }
            }
            12 => world.come_back(),
            13 => {
                let choice = input.byte();
                if choice >= 0xf0 {
                    world.fail(side, choice & 3);
                }
            }
            14 => {
                (0..4).for_each(|_| world.take_in_band(side, u64::MAX));
                (0..4).for_each(|_| world.take_frame(side));
                world.sink_takes(side, u64::MAX);
            }
            _ => {
                world.rest();
                if world.ends[GATEWAY].is_closed() {
                    world = World::new(kind >> 5 == 7);
                }
            }
        }
    }
    world.rest();
}

/// One end with an honest owner and a peer that is not.
struct Owner {
    machine: ProxyConn,
    role: Role,
    serial: u64,
    taken: u64,
    delivered: u64,
    out_ended: bool,
    /// The source has ended behind so many bytes, of which the last are on their way.
    ends_behind: Option<u64>,
    inbound_open: bool,
}

impl Owner {
    /// Whether nothing has come from the own source yet, as far as anybody was told.
    fn is_silent(&self) -> bool {
        !self.out_ended && self.ends_behind.is_none()
    }

    /// What happens, if it can at this moment: the owner is honest, so only its own part is bound to
    /// what was before.
    fn happening(&mut self, kind: u8, count: u64, other: bool) -> Option<Happening> {
        let serial = if other { count % (FlowId::SERIAL_MAX + 1) } else { self.serial };
        let flow = FlowId::new(0, serial);
        let in_data = matches!(self.machine.mode(), Mode::Data(_));
        Some(match kind {
            0 if self.machine.mode() == Mode::Idle => {
                self.serial += 1;
                (self.taken, self.delivered, self.out_ended) = (0, 0, false);
                self.ends_behind = None;
                self.inbound_open = true;
                let flow = FlowId::new(0, self.serial);
                match self.role {
                    Role::Gateway => Happening::Bind(flow),
                    Role::Client => Happening::Start(flow),
                }
            }
            1 if in_data && !self.out_ended && other && self.ends_behind.is_none() => {
                self.ends_behind = Some(count);
                Happening::OwnEnding(count)
            }
            1 if in_data && !self.out_ended => {
                self.out_ended = true;
                Happening::OwnEnd(self.ends_behind.unwrap_or(count))
            }
            2 if self.inbound_open => {
                self.taken = self.taken.saturating_add(count);
                Happening::Taken(self.taken)
            }
            3 if in_data => {
                self.delivered += count.min(self.taken - self.delivered);
                Happening::Delivered(self.delivered)
            }
            4 if self.inbound_open => {
                self.inbound_open = false;
                Happening::InBandEof
            }
            5 => Happening::OwnFailed,
            6 if self.role == Role::Client
                && in_data
                && self.delivered == 0
                && self.is_silent() =>
            {
                Happening::StartFailed(AbortCode::Refused)
            }
            7 => Happening::PeerFin(flow, count),
            8 => Happening::PeerFin(flow, self.taken.saturating_add(count)),
            9 => Happening::PeerReleased(flow),
            10 => Happening::PeerAbort(flow, AbortCode::from_number(count as u8)),
            11 => Happening::LaneLost,
            12 => Happening::LaneBack,
            13 if count == 0 => Happening::Deadline,
            14 if self.inbound_open => Happening::Garbage,
            15 if count == 1 => Happening::Retire,
            _ => return None,
        })
    }
}

/// A lying peer makes a proxy_conn close at worst. A sink is ended at most once per flow and never
/// gets more than was announced, and a flow that ended has sent its end.
pub fn proxy_conn_liar(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let role = if input.flag() { Role::Client } else { Role::Gateway };
    let mut owner = Owner {
        machine: ProxyConn::new(role, if input.flag() { Reach::Lost } else { Reach::Up }),
        role,
        serial: 0,
        taken: 0,
        delivered: 0,
        out_ended: false,
        ends_behind: None,
        inbound_open: true,
    };
    let mut ended = 0;
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        let count = count(&mut input);
        let Some(happening) = owner.happening(kind & 15, count, kind & 16 != 0) else { continue };
        if matches!(happening, Happening::Bind(_) | Happening::Start(_)) {
            ended = 0;
        }
        for action in owner.machine.handle(happening) {
            match action {
                Action::EndInbound => ended += 1,
                Action::FlowEnded => assert!(owner.out_ended && ended == 1),
                Action::CloseClean(why) | Action::CloseReset(why) => {
                    assert_eq!(owner.machine.mode(), Mode::Closed(why));
                    assert!(!why.to_string().is_empty());
                }
                _ => {}
            }
        }
        assert!(ended <= 1, "a sink was ended twice");
        if matches!(owner.machine.mode(), Mode::Closed(_)) {
            break;
        }
    }
}
