//! Every interleaving of two ends of one proxy_conn, in a small world.
//!
//! Two machines talk through a proxy_conn (bytes and FIN, in order) and a lane (frames, in
//! order), which know nothing of each other's order. Sources send a byte or none and end at any time,
//! sinks stall, the lane is lost and comes back, ends fail. All reachable states are visited.

use std::collections::{BTreeSet, HashSet, VecDeque};

use zproxy_proto::id::FlowId;
use zproxy_proto::proxy_conn::{Action, Input, Mode, ProxyConn, Reach, Role, Why};
use zproxy_proto::wire::AbortCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum InBand {
    Start(FlowId),
    Byte(FlowId),
    Fin,
    Rst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Frame {
    Fin(FlowId, u64),
    Released(FlowId),
    Abort(FlowId, AbortCode),
    /// Not frames, but what the control core tells in the same order.
    Lost,
    Back,
}

/// What becomes of a frame that an end sends over a lane of whose loss it has not heard yet,
/// when the next one is already there. Both may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stale {
    Dropped,
    Delivered,
}

/// One side: its machine and the connections around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Whether this end believes in a lane, and whether that belief is right.
    lane: Reach,
    reaches: bool,
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
            lane: Reach::Up,
            reaches: true,
        }
    }

    /// An end whose lane is still on the way.
    fn waiting(role: Role) -> Self {
        Self {
            machine: ProxyConn::new(role, Reach::Lost),
            frames: VecDeque::from([Frame::Back]),
            lane: Reach::Lost,
            ..Self::new(role)
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.machine.mode(), Mode::Closed(_))
    }

    fn begin(&mut self) {
        (self.sent, self.source_ended, self.taken, self.delivered) = (0, false, 0, 0);
        self.ends_behind = None;
    }
}

/// What really happened to one flow: the truth that the machines must arrive at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Truth {
    /// By side: bytes its source sent, if it has ended.
    ended_at: [Option<u64>; 2],
    /// By side: whether its sink was told the end.
    told_end: [bool; 2],
    /// By side: whether it counted the flow as over.
    over: [bool; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// Gateway, client.
    ends: [End; 2],
    flows: Vec<Truth>,
    flows_left: u8,
    losses_left: u8,
    failures_left: u8,
    reconnected: bool,
    failed: bool,
    lost: bool,
    late: bool,
}

#[derive(Clone, Copy)]
struct Scope {
    flows: u8,
    bytes_each: u64,
    losses: u8,
    failures: u8,
    stale: Stale,
    /// The lane reaches the gateway later than the proxy_conn does.
    late: bool,
}

const GATEWAY: usize = 0;
const CLIENT: usize = 1;

fn flow_index(flow: FlowId) -> usize {
    flow.serial() as usize - 1
}

/// Explores a scope; collects the marks that were reached.
struct Explorer {
    scope: Scope,
    marks: BTreeSet<String>,
}

impl Explorer {
    fn run(scope: Scope) -> (usize, BTreeSet<String>) {
        let mut explorer = Self { scope, marks: BTreeSet::new() };
        let first = World {
            ends: [
                if scope.late { End::waiting(Role::Gateway) } else { End::new(Role::Gateway) },
                End::new(Role::Client),
            ],
            flows: Vec::new(),
            flows_left: scope.flows,
            losses_left: scope.losses,
            failures_left: scope.failures,
            reconnected: false,
            failed: false,
            lost: false,
            late: scope.late,
        };
        let mut seen = HashSet::from([first.clone()]);
        let mut open = vec![first];
        while let Some(world) = open.pop() {
            let next = explorer.successors(&world);
            if next.is_empty() {
                check_rest(&world);
            }
            for world in next {
                if !seen.contains(&world) {
                    seen.insert(world.clone());
                    open.push(world);
                }
            }
        }
        (seen.len(), explorer.marks)
    }

    fn successors(&mut self, world: &World) -> Vec<World> {
        let mut next = Vec::new();
        if world.flows_left > 0 && world.ends[GATEWAY].machine.mode() == Mode::Idle {
            next.push(self.with(world, |explorer, world| explorer.bind(world)));
        }
        for side in [GATEWAY, CLIENT] {
            self.source_moves(world, side, &mut next);
            if !world.ends[side].in_band.is_empty() {
                next.push(self.with(world, |explorer, world| explorer.take_in_band(world, side)));
            }
            if !world.ends[side].frames.is_empty() {
                next.push(self.with(world, |explorer, world| explorer.take_frame(world, side)));
            }
            let end = &world.ends[side];
            if end.taken > end.delivered && matches!(end.machine.mode(), Mode::Data(_)) {
                next.push(self.with(world, |explorer, world| {
                    world.ends[side].delivered += 1;
                    let delivered = world.ends[side].delivered;
                    explorer.feed(world, side, Input::Delivered(delivered));
                }));
            }
        }
        self.lane_moves(world, &mut next);
        next
    }

    fn with(&mut self, world: &World, change: impl FnOnce(&mut Self, &mut World)) -> World {
        let mut world = world.clone();
        change(self, &mut world);
        world
    }

    fn source_moves(&mut self, world: &World, side: usize, next: &mut Vec<World>) {
        let Mode::Data(flow) = world.ends[side].machine.mode() else { return };
        if !world.ends[side].source_ended {
            if world.ends[side].sent < self.scope.bytes_each {
                next.push(self.with(world, |explorer, world| {
                    world.ends[side].sent += 1;
                    explorer.put(world, side, InBand::Byte(flow));
                }));
            }
            next.push(self.with(world, |explorer, world| {
                let sent = world.ends[side].sent;
                world.ends[side].source_ended = true;
                world.flows[flow_index(flow)].ended_at[side] = Some(sent);
                explorer.feed(world, side, Input::OwnEnd(sent));
            }));
            if world.ends[side].sent < self.scope.bytes_each {
                next.push(self.with(world, |explorer, world| {
                    let total = world.ends[side].sent + 1;
                    world.ends[side].source_ended = true;
                    world.ends[side].ends_behind = Some(total);
                    world.flows[flow_index(flow)].ended_at[side] = Some(total);
                    explorer.feed(world, side, Input::OwnEnding(total));
                }));
            }
        }
        if let Some(total) = world.ends[side].ends_behind {
            next.push(self.with(world, |explorer, world| {
                if world.ends[side].sent < total {
                    world.ends[side].sent += 1;
                    explorer.put(world, side, InBand::Byte(flow));
                } else {
                    world.ends[side].ends_behind = None;
                    explorer.feed(world, side, Input::OwnEnd(total));
                }
            }));
        }
        if world.failures_left > 0 {
            let mut failures = vec![Input::OwnFailed, Input::Deadline];
            // Only before the local conn exists, so nothing has come from it or gone to it.
            let end = &world.ends[side];
            if side == CLIENT && (end.sent, end.delivered, end.source_ended) == (0, 0, false) {
                failures.push(Input::StartFailed(AbortCode::Refused));
            }
            for failure in failures {
                next.push(self.with(world, |explorer, world| {
                    world.failures_left -= 1;
                    world.failed = true;
                    explorer.feed(world, side, failure);
                }));
            }
        }
    }

    fn lane_moves(&mut self, world: &World, next: &mut Vec<World>) {
        if world.losses_left > 0 {
            // Of the frames in flight any number may still arrive; "all or none" covers that, since
            // frames may also be taken before the loss.
            for keep in [[true, true], [true, false], [false, true], [false, false]] {
                next.push(self.with(world, |_, world| {
                    world.losses_left -= 1;
                    world.lost = true;
                    for (end, keep) in world.ends.iter_mut().zip(keep) {
                        if !keep {
                            end.frames.clear();
                        }
                        end.frames.push_back(Frame::Lost);
                        end.reaches = false;
                    }
                }));
            }
        }
        if world.lost && !world.reconnected && world.ends[CLIENT].lane == Reach::Lost {
            next.push(self.with(world, |_, world| {
                world.reconnected = true;
                for end in &mut world.ends {
                    end.frames.push_back(Frame::Back);
                }
            }));
        }
    }

    fn bind(&mut self, world: &mut World) {
        world.flows_left -= 1;
        world.flows.push(Truth::default());
        let flow = FlowId::new(0, world.flows.len() as u64);
        world.ends[GATEWAY].begin();
        self.feed(world, GATEWAY, Input::Bind(flow));
    }

    fn take_in_band(&mut self, world: &mut World, side: usize) {
        let end = &mut world.ends[side];
        let thing = end.in_band.pop_front().unwrap();
        let mode = end.machine.mode();
        let input = match (thing, mode) {
            (InBand::Fin, _) => Input::InBandEof,
            (InBand::Rst, _) => Input::ProxyFailed,
            (InBand::Start(flow), Mode::Idle) => {
                assert_eq!(side, CLIENT);
                end.begin();
                Input::Start(flow)
            }
            (InBand::Byte(flow), Mode::Data(current)) => {
                assert_eq!(flow, current, "a foreign byte: {world:#?}");
                end.taken += 1;
                Input::Taken(end.taken)
            }
            (InBand::Byte(_), Mode::Aborting(_)) => return,
            (thing, mode) => panic!("{thing:?} in {mode:?}: {world:#?}"),
        };
        self.feed(world, side, input);
    }

    fn take_frame(&mut self, world: &mut World, side: usize) {
        let end = &mut world.ends[side];
        let input = match end.frames.pop_front().unwrap() {
            Frame::Fin(flow, bytes) => Input::PeerFin(flow, bytes),
            Frame::Released(flow) => Input::PeerReleased(flow),
            Frame::Abort(flow, code) => Input::PeerAbort(flow, code),
            Frame::Lost => {
                end.lane = Reach::Lost;
                Input::LaneLost
            }
            Frame::Back => {
                (end.lane, end.reaches) = (Reach::Up, true);
                Input::LaneBack
            }
        };
        self.feed(world, side, input);
    }

    /// Puts something into the proxy_conn.
    fn put(&mut self, world: &mut World, side: usize, thing: InBand) {
        assert!(!world.ends[side].shut, "{thing:?} behind a FIN: {world:#?}");
        if world.ends[1 - side].is_closed() {
            // The kernel of a closed end answers bytes with a reset, which also destroys what is
            // still unread at the sender.
            if thing != InBand::Fin {
                self.reset(world, side);
            }
        } else {
            world.ends[1 - side].in_band.push_back(thing);
        }
    }

    /// The proxy_conn is reset under `side`.
    fn reset(&mut self, world: &mut World, side: usize) {
        assert!(world.failed, "a reset although nothing failed: {world:#?}");
        world.ends[side].in_band = VecDeque::from([InBand::Rst]);
    }

    fn send(&mut self, world: &mut World, side: usize, frame: Frame) {
        assert_eq!(world.ends[side].lane, Reach::Up, "{frame:?} without a lane: {world:#?}");
        let stale = world.reconnected && self.scope.stale == Stale::Delivered;
        if world.ends[side].reaches || stale {
            world.ends[1 - side].frames.push_back(frame);
        }
    }

    fn feed(&mut self, world: &mut World, side: usize, input: Input) {
        let before = world.ends[side].machine.mode();
        match (side, before, input) {
            (CLIENT, Mode::Idle, Input::PeerFin(..)) => self.marks.insert("early Fin".into()),
            (GATEWAY, Mode::Data(_), Input::PeerReleased(_)) => {
                self.marks.insert("early Released".into())
            }
            (_, Mode::Data(_), Input::PeerFin(..)) => self.marks.insert("Fin".into()),
            (_, Mode::Data(_), Input::InBandEof) => self.marks.insert("FIN".into()),
            _ => false,
        };
        let actions = world.ends[side].machine.handle(input);
        for action in actions {
            self.act(world, side, before, action);
        }
        let after = world.ends[side].machine.mode();
        let name = ["gateway", "client"][side];
        if mark(before) != mark(after) {
            self.marks.insert(format!("{name}: {} -> {}", mark(before), mark(after)));
        }
    }

    fn act(&mut self, world: &mut World, side: usize, before: Mode, action: Action) {
        match action {
            Action::SendStart(flow) => self.put(world, side, InBand::Start(flow)),
            Action::SendFin { flow, bytes } => self.send(world, side, Frame::Fin(flow, bytes)),
            Action::SendReleased(flow) => self.send(world, side, Frame::Released(flow)),
            Action::SendAbort(flow, code) => self.send(world, side, Frame::Abort(flow, code)),
            Action::ShutdownProxyWrite => {
                self.put(world, side, InBand::Fin);
                world.ends[side].shut = true;
            }
            Action::EndInbound => self.told_end(world, side, before),
            Action::FlowEnded => {
                let flow = current(world, side, before);
                let truth = &mut world.flows[flow];
                assert!(truth.told_end[side] && truth.ended_at[side].is_some());
                assert!(!truth.over[side], "over twice");
                truth.over[side] = true;
            }
            Action::BecomeIdle => {
                assert!(!world.ends[side].shut, "reused behind a FIN");
                self.marks.insert(format!("idle again: {side}"));
            }
            Action::CloseClean(why) => {
                let is_excused = world.lost || world.failed || world.late;
                assert!(is_excused, "closed for nothing ({why:?}): {world:#?}");
                self.close_clean(world, side, why);
            }
            Action::CloseReset(why) => {
                assert!(world.failed, "{why:?} although nothing failed: {world:#?}");
                let violation = matches!(why, Why::Violation(_) | Why::Missing(_));
                assert!(!violation, "{why:?} between honest ends: {world:#?}");
                world.ends[side].in_band.clear();
                if !world.ends[1 - side].is_closed() {
                    self.reset(world, 1 - side);
                }
            }
            Action::Ignored(why) => {
                self.marks.insert(format!("ignored: {why:?}"));
            }
        }
    }

    /// The end that a sink is told must be the one that its peer's source has come to.
    fn told_end(&mut self, world: &mut World, side: usize, before: Mode) {
        let flow = current(world, side, before);
        let delivered = world.ends[side].delivered;
        let truth = &mut world.flows[flow];
        assert_eq!(truth.ended_at[1 - side], Some(delivered), "a wrong end");
        assert!(!truth.told_end[side], "ended twice");
        truth.told_end[side] = true;
    }

    fn close_clean(&mut self, world: &mut World, side: usize, why: Why) {
        self.marks.insert(format!("clean: {why:?}"));
        let unread = |thing: &InBand| !matches!(thing, InBand::Fin | InBand::Rst);
        if world.ends[side].in_band.iter().any(unread) {
            // The kernel answers a close with unread bytes with a reset.
            if !world.ends[1 - side].is_closed() {
                self.reset(world, 1 - side);
            }
        } else if !world.ends[side].shut {
            self.put(world, side, InBand::Fin);
        }
        world.ends[side].shut = true;
        world.ends[side].in_band.clear();
    }
}

/// The flow on which `side` is or, during the last action of it, was.
fn current(world: &World, side: usize, before: Mode) -> usize {
    match (before, world.ends[side].machine.mode()) {
        (Mode::Data(flow), _) | (_, Mode::Data(flow) | Mode::Settling(flow)) => flow_index(flow),
        // A Fin that overtook its Start may end an empty inbound direction at once.
        (Mode::Idle, _) => world.flows.len() - 1,
        (before, after) => panic!("no flow in {before:?} -> {after:?}"),
    }
}

/// When nothing can happen any more, nothing may be stuck.
fn check_rest(world: &World) {
    let modes = [world.ends[GATEWAY].machine.mode(), world.ends[CLIENT].machine.mode()];
    let both_idle = modes == [Mode::Idle, Mode::Idle];
    let both_closed = world.ends.iter().all(End::is_closed);
    assert!(both_idle || both_closed, "stuck in {modes:?}: {world:#?}");
    if !world.failed {
        for truth in &world.flows {
            assert_eq!(truth.told_end, [true, true], "a lost end: {world:#?}");
            assert_eq!(truth.over, [true, true], "a flow that is never over: {world:#?}");
        }
        assert!(
            both_idle || world.lost || world.late,
            "closed although nothing happened: {world:#?}"
        );
    }
}

fn mark(mode: Mode) -> &'static str {
    match mode {
        Mode::Idle => "idle",
        Mode::Data(_) => "data",
        Mode::Settling(_) => "settling",
        Mode::Aborting(_) => "aborting",
        Mode::Closed(_) => "closed",
    }
}

fn explore(scope: Scope, expected: &[&str]) {
    let (states, marks) = Explorer::run(scope);
    println!("{states} states, {marks:#?}");
    for mark in expected {
        assert!(marks.contains(*mark), "{mark:?} was never reached, only {marks:#?}");
    }
}

const CALM: Scope =
    Scope { flows: 3, bytes_each: 1, losses: 0, failures: 0, stale: Stale::Dropped, late: false };

/// While nothing fails every flow ends at its right byte on both sides, no byte reaches another
/// flow, and the proxy_conn is used again each time.
#[test]
fn calm() {
    let reached = [
        "gateway: data -> settling",
        "gateway: settling -> idle",
        "gateway: data -> idle",
        "client: data -> idle",
        "early Fin",
        "early Released",
        "idle again: 0",
        "idle again: 1",
    ];
    explore(CALM, &reached);
}

/// More bytes in flight change nothing.
#[test]
fn calm_with_longer_flows() {
    explore(Scope { flows: 2, bytes_each: 2, ..CALM }, &["gateway: settling -> idle"]);
}

/// The loss of the lane, wherever it falls and whatever it swallows, resets nothing, loses no
/// byte and no end, and leaves nothing stuck.
#[test]
fn lane_lost() {
    for stale in [Stale::Dropped, Stale::Delivered] {
        let reached = [
            "clean: EndedInBand",
            "clean: PeerClosed",
            "clean: ReleaseLost",
            "gateway: data -> closed",
            "client: data -> closed",
        ];
        explore(Scope { flows: 2, losses: 1, stale, ..CALM }, &reached);
    }
}

/// A lane that comes later than the proxy_conn: what the client says meanwhile waits in it, the
/// gateway ends in-band, and both understand each other; also when it is lost on top of that.
#[test]
fn a_late_lane() {
    for (losses, stale) in [(0, Stale::Dropped), (1, Stale::Dropped), (1, Stale::Delivered)] {
        let reached = ["clean: EndedInBand", "gateway: settling -> idle", "client: data -> idle"];
        explore(Scope { flows: 2, losses, stale, late: true, ..CALM }, &reached);
    }
}

/// After a failure of either end nothing is stuck and no byte reaches another flow.
#[test]
fn an_end_fails() {
    let reached = [
        "client: data -> aborting",
        "client: aborting -> closed",
        "gateway: data -> closed",
        "ignored: Closed",
    ];
    explore(Scope { flows: 2, failures: 1, ..CALM }, &reached);
}

/// A failure and a loss together leave nothing stuck either.
#[test]
fn an_end_fails_and_the_lane_is_lost() {
    for stale in [Stale::Dropped, Stale::Delivered] {
        let scope = Scope { flows: 1, losses: 1, failures: 1, stale, ..CALM };
        explore(scope, &["client: aborting -> closed"]);
    }
}
