//! What the sweep has found once, as plans of their own that no change of the drawing changes.

use std::time::Duration;

use zproxy_io::sim::Weather;
use zproxy_proto::limits::{DEAD_AFTER, WAITING_PUBLICS_MAX};

use crate::Options;
use crate::plan::{Plan, Trouble, Visit};
use crate::programs::Times;
use crate::run::run_plan;
use crate::script::Script;

const MS: Duration = Duration::from_millis(1);

/// One client, one tunnel, nothing wrong: 5 ms from machine to machine.
fn calm() -> Plan {
    let weather = Weather { latency_min: 5 * MS, latency_max: 5 * MS, ..Weather::fair() };
    let (grace, drain) = (Duration::from_secs(20), Duration::from_secs(5));
    Plan {
        weather,
        times: Times { grace, drain, half_close: None, dead_after: DEAD_AFTER },
        gateway_cores: 1,
        client_cores: 1,
        owners: vec![0],
        is_named: false,
        visits: Vec::new(),
        troubles: Vec::new(),
    }
}

/// Visits at every `step`, from `from` on.
fn visits(from: Duration, step: Duration, count: u32) -> Vec<Visit> {
    let visit =
        |number| Visit { at: from + step * number, tunnel: 0, script: Script::plain(300, 5_000) };
    (0..count).map(visit).collect()
}

/// A visitor who comes while a client stops gets an answer or a reset, and never the clean end of an
/// answer that nobody gave: the client used to close its idle proxy_conns with FIN while a `Start` was
/// on its way to them.
#[test]
fn a_stopping_client_gives_no_empty_answers() {
    for seed in 0..20 {
        let mut plan = calm();
        plan.visits = visits(990 * MS, MS / 2, 60);
        plan.troubles = vec![(1_000 * MS, Trouble::Stop { who: Some(0), time: 100 * MS })];
        run_plan(seed, &plan, &Options::default()).unwrap_or_else(|why| panic!("{seed}: {why}"));
    }
}

/// The same when the client has no ctl_conn to say goodbye on.
#[test]
fn nor_does_one_without_a_ctl_conn() {
    for seed in 0..20 {
        let mut plan = calm();
        plan.visits = visits(990 * MS, 20 * MS, 80);
        let dark = Trouble::DarkenCtl { client: 0, side: 2, time: 8_000 * MS };
        let stop = Trouble::Stop { who: Some(0), time: 100 * MS };
        plan.troubles = vec![(500 * MS, dark), (1_000 * MS, stop)];
        run_plan(seed, &plan, &Options::default()).unwrap_or_else(|why| panic!("{seed}: {why}"));
    }
}

/// A client that stops in good order lets what it has sent last reach a slow visitor.
#[test]
fn a_stopping_client_cuts_nothing_off() {
    for seed in 0..20 {
        let mut plan = calm();
        let mut script = Script::plain(300, 400_000);
        script.visitor.read = 4_000;
        script.visitor.read_pause = 10 * MS;
        plan.visits = vec![Visit { at: 900 * MS, tunnel: 0, script }];
        plan.troubles = vec![(1_000 * MS, Trouble::Stop { who: Some(0), time: 100 * MS })];
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        assert_eq!(report.flows[1], 0, "seed {seed}: {report:?}");
    }
}

/// A proxy_conn that dies unseen takes its own flow along and no other: the watch of one used to be
/// named by the flow's place, and its result went to whichever proxy_conn had the same place.
#[test]
fn a_dead_proxy_conn_harms_its_own_flow_only() {
    for seed in 0..20 {
        let mut plan = calm();
        let mut script = Script::plain(600_000, 100);
        script.service.read = 100_000;
        script.service.read_pause = 4_000 * MS;
        plan.visits = visits(500 * MS, 300 * MS, 5);
        plan.visits.iter_mut().for_each(|visit| visit.script = script);
        plan.troubles = vec![(5_000 * MS, Trouble::CutProxyConn { client: 0 })];
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        assert!(report.flows[1] <= 1, "seed {seed}: {report:?}");
    }
}

/// More visitors at once than may wait for proxy_conns: the listeners pause, the rest wait in the
/// kernel, and all of them are served.
#[test]
fn a_crowd_is_served() {
    for seed in 0..4 {
        let mut plan = calm();
        plan.gateway_cores = 1 + (seed as usize % 2);
        plan.troubles = vec![(500 * MS, Trouble::Crowd { tunnel: 0, visitors: 3_500 })];
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        assert_eq!(report.flows[1], 0, "seed {seed}: {report:?}");
        if cfg!(debug_assertions) {
            let has = |mark| report.marks.get(mark).is_some_and(|count| *count > 0);
            assert!(has("accept_paused") && has("accept_resumed"), "seed {seed}: no pause");
        }
    }
}

/// Visitors who come quickly, spread over both CPUs of the gateway, are served by the data core on whose
/// CPU they arrive, until they become few. Nobody notices.
#[test]
fn many_are_served_where_they_arrive() {
    for seed in 0..2 {
        let mut plan = calm();
        plan.gateway_cores = 2;
        plan.visits = visits(500 * MS, MS, 1_500);
        plan.visits.append(&mut visits(5_000 * MS, MS, 2));
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        assert_eq!(report.flows[1], 0, "seed {seed}: {report:?}");
        if cfg!(debug_assertions) {
            let has = |mark| report.marks.get(mark).is_some_and(|count| *count >= 2);
            assert!(has("steering") && has("steering_over"), "seed {seed}: {:?}", report.marks);
        }
    }
}

/// More visitors within a moment than may wait at all: the gateway is not scheduled while the queues of
/// three listeners fill, and accepts all of them in one turn. Who finds no place is reset and counted;
/// everybody else is served.
#[test]
fn a_flood_is_served_as_far_as_there_is_room() {
    for seed in 0..2 {
        let mut plan = calm();
        plan.owners = vec![0; 3];
        plan.troubles = plan.flood(0, 500 * MS);
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        let [clean, failed, _] = report.flows;
        assert!(clean >= WAITING_PUBLICS_MAX && failed > 0, "seed {seed}: {report:?}");
        if cfg!(debug_assertions) {
            let refused = report.marks["waiting_list_full"];
            assert_eq!(refused, failed as u64, "seed {seed}: {report:?}");
        }
    }
}

/// A path on which an answer is under way is dark: long before it is bright again the flow is given up by
/// the end that waits for an acknowledgement. An outage that is shorter than that harms nobody.
#[test]
fn a_dark_path_is_given_up() {
    let (mut failed, mut given_up) = (0, [0; 2]);
    for (seed, side) in (0..12).map(|seed| (seed, seed as usize % 2)) {
        for (time, is_too_long) in [(60_000 * MS, true), (4_000 * MS, false)] {
            let mut plan = calm();
            plan.times.dead_after = 6_000 * MS;
            let mut script = Script::plain(60_000, 60_000);
            for pace in [&mut script.visitor, &mut script.service] {
                (pace.write, pace.write_pause) = (1_000, 20 * MS);
            }
            plan.visits = visits(500 * MS, 10 * MS, 3);
            plan.visits.iter_mut().for_each(|visit| visit.script = script);
            let dark = Trouble::DarkenProxyConn { client: 0, side, time };
            plan.troubles = vec![(1_000 * MS, dark)];
            let report = run_plan(seed, &plan, &Options::default());
            let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
            assert!(report.flows[1] <= 1, "seed {seed}: {report:?}");
            assert!(is_too_long || report.flows[1] == 0, "seed {seed}: {report:?}");
            failed += report.flows[1];
            for (count, mark) in given_up.iter_mut().zip(["gateway.dead_path", "client.dead_path"])
            {
                *count += report.marks.get(mark).copied().unwrap_or(0);
            }
        }
    }
    assert!(failed > 0, "all waited until the path was bright again");
    if cfg!(debug_assertions) {
        assert!(given_up.iter().all(|count| *count > 0), "{given_up:?}");
    }
}

/// A half-closed flow in which nothing moves is reset at its limit, and not before.
#[test]
fn a_half_closed_flow_has_its_limit() {
    for seed in 0..6 {
        let mut plan = calm();
        plan.times.half_close = Some(10_000 * MS);
        let rests = [0, 5_000, 9_500, 14_000, 30_000];
        plan.visits = visits(500 * MS, 100 * MS, 5);
        for (visit, rest) in plan.visits.iter_mut().zip(rests) {
            visit.script = Script::half_closed(rest * MS);
        }
        let report = run_plan(seed, &plan, &Options::default());
        let report = report.unwrap_or_else(|why| panic!("{seed}: {why}"));
        assert_eq!(report.flows[1], 2, "seed {seed}: {report:?}");
    }
}
