//! The whole transition table as a text in the repository, so that a changed edge shows in review.
//! `ZPROXY_UPDATE_SNAPSHOTS=1 cargo test -p zproxy-proto` writes it anew.

use std::fmt::Write as _;

use zproxy_proto::id::FlowId;
use zproxy_proto::proxy_conn::{Input, ProxyConn, Reach, Role};
use zproxy_proto::wire::AbortCode;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/proxy_conn.txt");

const FLOW: FlowId = FlowId::new(0, 5);
const OTHER: FlowId = FlowId::new(0, 6);

/// A state by the inputs that lead to it.
struct State {
    name: &'static str,
    role: Role,
    path: &'static [Input],
}

const fn gateway(name: &'static str, path: &'static [Input]) -> State {
    State { name, role: Role::Gateway, path }
}

const fn client(name: &'static str, path: &'static [Input]) -> State {
    State { name, role: Role::Client, path }
}

use Input::{
    Bind, Delivered, InBandEof, LaneBack, LaneLost, OwnEnd, OwnEnding, PeerFin, PeerReleased,
    Start, Taken,
};

const STATES: &[State] = &[
    gateway("idle", &[]),
    gateway("data, 2 of 3 bytes delivered", &[Bind(FLOW), Taken(3), Delivered(2)]),
    gateway("data, out ended", &[Bind(FLOW), OwnEnd(9)]),
    gateway("data, out ending", &[Bind(FLOW), OwnEnding(9)]),
    gateway(
        "data, out ending, all delivered, released",
        &[Bind(FLOW), OwnEnding(9), Taken(3), Delivered(3), PeerFin(FLOW, 3), PeerReleased(FLOW)],
    ),
    gateway("data, out ending, lane lost", &[Bind(FLOW), OwnEnding(9), LaneLost]),
    gateway("data, 4 bytes announced, 3 taken", &[Bind(FLOW), Taken(3), PeerFin(FLOW, 4)]),
    gateway(
        "data, out ended, 4 bytes announced, 4 taken, 3 delivered",
        &[Bind(FLOW), OwnEnd(9), Taken(4), Delivered(3), PeerFin(FLOW, 4)],
    ),
    gateway(
        "data, the same, released",
        &[Bind(FLOW), OwnEnd(9), Taken(4), Delivered(3), PeerFin(FLOW, 4), PeerReleased(FLOW)],
    ),
    gateway("data, lane lost", &[Bind(FLOW), LaneLost]),
    gateway("data, out ended, lane lost", &[Bind(FLOW), OwnEnd(9), LaneLost]),
    gateway("data, in-band end behind 3 bytes, 0 delivered", &[Bind(FLOW), Taken(3), InBandEof]),
    gateway("settling", &[Bind(FLOW), OwnEnd(9), PeerFin(FLOW, 0)]),
    gateway("closed", &[InBandEof]),
    client("idle", &[]),
    client("idle, with an early Fin", &[PeerFin(FLOW, 4)]),
    client("idle, after a flow", &[Start(OTHER), OwnEnd(0), PeerFin(OTHER, 0)]),
    client("data, 2 of 3 bytes delivered", &[Start(FLOW), Taken(3), Delivered(2)]),
    client("data, out ended", &[Start(FLOW), OwnEnd(9)]),
    client("data, out ending", &[Start(FLOW), OwnEnding(9)]),
    client(
        "data, out ending, lane lost and back",
        &[Start(FLOW), OwnEnding(9), LaneLost, LaneBack],
    ),
    client("data, 4 bytes announced, 4 taken", &[Start(FLOW), Taken(4), PeerFin(FLOW, 4)]),
    client(
        "data, out ended, 4 bytes announced, 4 taken, 3 delivered",
        &[Start(FLOW), OwnEnd(9), Taken(4), Delivered(3), PeerFin(FLOW, 4)],
    ),
    client("data, lane lost", &[Start(FLOW), LaneLost]),
    client("aborting", &[Start(FLOW), Input::StartFailed(AbortCode::Refused)]),
    client("closed", &[InBandEof]),
];

const INPUTS: &[Input] = &[
    Bind(FLOW),
    Start(FLOW),
    Input::StartFailed(AbortCode::Refused),
    OwnEnding(9),
    OwnEnd(9),
    Input::OwnFailed,
    Taken(4),
    Taken(5),
    Delivered(3),
    Delivered(4),
    InBandEof,
    Input::ProxyFailed,
    PeerFin(FLOW, 0),
    PeerFin(FLOW, 3),
    PeerFin(FLOW, 4),
    PeerFin(OTHER, 4),
    PeerReleased(FLOW),
    PeerReleased(OTHER),
    Input::PeerAbort(FLOW, AbortCode::Timeout),
    Input::PeerAbort(OTHER, AbortCode::Timeout),
    LaneLost,
    LaneBack,
    Input::Deadline,
    Input::Garbage,
    Input::Retire,
];

fn table() -> String {
    let mut text = String::from(
        "The idle/data machine: state, then one line per input: what to do, and the mode if it \
         changes.\n\"!\" marks inputs that the owner must not give there.\n",
    );
    for state in STATES {
        let mut machine = ProxyConn::new(state.role, Reach::Up);
        for input in state.path {
            machine.handle(*input);
        }
        writeln!(text, "\n{:?}: {}", state.role, state.name).unwrap();
        for input in INPUTS {
            writeln!(text, "  {:32} {}", format!("{input:?}"), edge(&machine, *input)).unwrap();
        }
    }
    text
}

fn edge(machine: &ProxyConn, input: Input) -> String {
    let mut next = machine.clone();
    // Broken contracts are part of the table, too.
    let Ok(actions) = std::panic::catch_unwind(move || (next.handle(input), next)) else {
        return "!".into();
    };
    let (actions, next) = actions;
    let mut words: Vec<String> = actions.map(|action| format!("{action:?}")).collect();
    if next.mode() != machine.mode() {
        words.push(format!("-> {:?}", next.mode()));
    } else if words.is_empty() {
        words.push("-".into());
    }
    words.join(", ")
}

/// The table is the one that was reviewed.
#[test]
fn transition_table_is_as_reviewed() {
    // Broken contracts would fill the output with their panics.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let table = table();
    std::panic::set_hook(hook);
    if std::env::var_os("ZPROXY_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(SNAPSHOT, &table).unwrap();
    }
    let reviewed = std::fs::read_to_string(SNAPSHOT).unwrap_or_default();
    for (number, (line, reviewed)) in table.lines().zip(reviewed.lines()).enumerate() {
        assert_eq!(line, reviewed, "line {} of {SNAPSHOT}", number + 1);
    }
    assert_eq!(table.lines().count(), reviewed.lines().count(), "lines of {SNAPSHOT}");
}
