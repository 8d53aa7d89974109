//! What was promised, next to what was measured: the ratio of the medians, which decides the word, and the
//! median of the ratios of neighbouring rounds, which drifts less. Never a verdict of a test.

use super::table::Table;
use crate::results::Results;
use crate::stats::digits;
use crate::workload::Workload;

/// A promise as a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }

    fn show(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

/// A number of the results: workload, system, metric.
#[derive(Clone, Debug, PartialEq)]
struct Cell {
    workload: String,
    system: String,
    metric: &'static str,
}

impl Cell {
    fn key(&self) -> (&str, &str, &str) {
        (&self.workload, &self.system, self.metric)
    }
}

/// One promise: the first number divided by the second.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    what: String,
    ours: Cell,
    theirs: Cell,
    bound: Bound,
}

fn cell(workload: &str, system: &str, metric: &'static str) -> Cell {
    Cell { workload: workload.to_owned(), system: system.to_owned(), metric }
}

fn target(
    what: &str,
    workload: &str,
    metric: &'static str,
    pair: (&str, &str),
    bound: Bound,
) -> Target {
    let (ours, theirs) = pair;
    Target {
        what: what.to_owned(),
        ours: cell(workload, ours, metric),
        theirs: cell(workload, theirs, metric),
        bound,
    }
}

/// The floor under both backends, relative to rathole.
fn floor() -> Vec<Target> {
    let mut targets = Vec::new();
    for ours in ["zproxy-uring", "zproxy-epoll"] {
        let pair = (ours, "rathole");
        for direction in ["down", "up"] {
            let workload = format!("bulk-{direction}-8");
            let what = format!("throughput, 8 connections {direction}");
            targets.push(target(&what, &workload, "gbit_s", pair, Bound::AtLeast(1.3)));
            let what = format!("CPU s per GB, 8 connections {direction}");
            targets.push(target(&what, &workload, "cpu_s_per_gb", pair, Bound::AtMost(0.6)));
        }
        let what = "p50 of a 64 B echo, 1 connection";
        targets.push(target(what, "echo-64-1", "p50_us", pair, Bound::AtMost(1.3)));
    }
    targets
}

/// What the ring promises relative to rathole.
fn against_rathole(results: &Results) -> Vec<Target> {
    let pair = ("zproxy-uring", "rathole");
    let mut targets = Vec::new();
    for direction in ["down", "up"] {
        for (conns, least) in [(1, 2.4), (8, 1.9)] {
            let what = format!("throughput, {conns} connections {direction}");
            let workload = format!("bulk-{direction}-{conns}");
            targets.push(target(&what, &workload, "gbit_s", pair, Bound::AtLeast(least)));
        }
        let what = format!("CPU s per GB, 8 connections {direction}");
        let workload = format!("bulk-{direction}-8");
        targets.push(target(&what, &workload, "cpu_s_per_gb", pair, Bound::AtMost(0.35)));
    }
    let what = "p50 of a 64 B echo, 1 connection";
    targets.push(target(what, "echo-64-1", "p50_us", pair, Bound::AtMost(0.95)));
    let what = "rate of a 64 B echo, 32 connections";
    targets.push(target(what, "echo-64-32", "rate", pair, Bound::AtLeast(1.3)));
    let what = "short connections, 32 at a time";
    targets.push(target(what, "short-32", "rate", pair, Bound::AtLeast(2.0)));
    let what = "p50 of short connections, 1 at a time";
    targets.push(target(what, "short-1", "p50_us", pair, Bound::AtMost(0.7)));
    for idle in workloads(results).into_iter().filter(|name| name.starts_with("idle-")) {
        let what = "memory per idle flow and side";
        targets.push(target(what, &idle, "kib_per_flow_side", pair, Bound::AtMost(0.25)));
    }
    targets.push(Target {
        what: "p99 of an echo beside bulk, against rathole's p50".to_owned(),
        ours: cell("mixed", "zproxy-uring", "p99_us"),
        theirs: cell("mixed", "rathole", "p50_us"),
        bound: Bound::AtMost(3.0),
    });
    targets
}

/// One hop beside the established relays.
fn one_hop(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    let bulk = workloads(results).into_iter().filter(|name| name.starts_with("bulk-"));
    for workload in bulk {
        for theirs in ["nginx", "haproxy"] {
            let pair = ("forward-uring", theirs);
            let what = format!("one hop against {theirs}, throughput");
            targets.push(target(&what, &workload, "gbit_s", pair, Bound::AtLeast(1.0)));
            let what = format!("one hop against {theirs}, CPU s per GB");
            targets.push(target(&what, &workload, "cpu_s_per_gb", pair, Bound::AtMost(1.0)));
        }
    }
    targets
}

/// The ring beside our own epoll backend: never much worse, better where it should shine.
fn own_backends(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for name in workloads(results) {
        let Ok(workload) = name.parse::<Workload>() else { continue };
        let Some((metric, heading)) = workload.columns().first() else { continue };
        let is_less_better = matches!(workload, Workload::Idle { .. } | Workload::Mixed);
        let should_win = matches!(workload, Workload::Ask { .. })
            || workload == Workload::Echo { size: 64, conns: 32 };
        let bound = match (is_less_better, should_win) {
            (true, _) => Bound::AtMost(1.05),
            (false, true) => Bound::AtLeast(1.0),
            (false, false) => Bound::AtLeast(0.95),
        };
        let pair = ("zproxy-uring", "zproxy-epoll");
        targets.push(target(&format!("ring against epoll, {heading}"), &name, metric, pair, bound));
    }
    targets
}

fn workloads(results: &Results) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in &results.entries {
        if !names.contains(&entry.workload) {
            names.push(entry.workload.clone());
        }
    }
    names
}

/// The floor, as far as it was measured.
pub(crate) fn show_floor(results: &Results) -> String {
    show(results, &floor())
}

/// Everything promised, as far as it was measured.
pub(crate) fn show_all(results: &Results) -> String {
    let mut targets = against_rathole(results);
    targets.extend(one_hop(results));
    targets.extend(own_backends(results));
    show(results, &targets)
}

fn show(results: &Results, targets: &[Target]) -> String {
    let headings =
        ["measure", "workload", "system", "value", "against", "ratio", "in pairs", "promised", ""];
    let mut table = Table::new(headings.map(str::to_owned));
    let (mut rows, mut kept) = (0, 0);
    let value = |cell: &Cell| {
        let spread = results.spread(&cell.workload, &cell.system, cell.metric)?;
        Some(spread.median)
    };
    for target in targets {
        let (Some(ours), Some(theirs)) = (value(&target.ours), value(&target.theirs)) else {
            continue;
        };
        let ratio = ours / theirs;
        let paired = results.paired(target.ours.key(), target.theirs.key());
        let holds = target.bound.holds(ratio);
        rows += 1;
        kept += usize::from(holds);
        table.row([
            target.what.clone(),
            target.ours.workload.clone(),
            target.ours.system.clone(),
            digits(ours),
            digits(theirs),
            digits(ratio),
            paired.map_or_else(|| "-".to_owned(), |spread| digits(spread.median)),
            target.bound.show(),
            if holds { "pass" } else { "FAIL" }.to_owned(),
        ]);
    }
    match rows {
        0 => String::new(),
        _ => format!("{}{kept} of {rows} hold\n", table.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    /// A ratio at its bound holds; what was not measured has no row.
    #[test]
    fn rows_and_words() {
        let text = show_floor(&sample());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].contains("2.00      1.88") && lines[1].ends_with("pass"), "{text}");
        assert!(lines[2].contains("0.50") && lines[2].ends_with("pass"), "{text}");
        assert_eq!(lines[3], "2 of 2 hold");
        let all = show_all(&sample());
        assert!(all.lines().any(|line| line.contains(">= 2.4") && line.ends_with("FAIL")), "{all}");
        assert!(Bound::AtLeast(1.3).holds(1.3) && !Bound::AtMost(0.6).holds(0.61));
    }
}
