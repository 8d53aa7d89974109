//! What is worth a table of its own in the README, and a plot: one quantity over several workloads.

use crate::results::Results;
use crate::workload::Workload;

/// How a view is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Columns are amounts of work; the value is what the first column's heading counts.
    Lines(&'static str),
    Bars,
}

/// One cell's source and heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) workload: String,
    pub(crate) metric: &'static str,
    pub(crate) heading: String,
}

/// One quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// A file name.
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) shape: Shape,
}

/// Every view that the results have something for.
pub(crate) fn all(results: &Results) -> Vec<View> {
    let mut views = Vec::new();
    for (direction, words) in [("down", "down"), ("up", "up"), ("both", "both ways, summed")] {
        let family = format!("bulk-{direction}");
        let shape = Shape::Lines("connections");
        views.push(over(
            results,
            &family,
            "gbit_s",
            &format!("Throughput {words}"),
            "Gbit/s",
            shape,
        ));
        let title = format!("CPU time per GB, {words}");
        views.push(over(results, &family, "cpu_s_per_gb", &title, "CPU s per GB", shape));
    }
    for (size, words) in [("64", "64 B"), ("1024", "1 KiB"), ("16384", "16 KiB")] {
        let family = format!("echo-{size}");
        let shape = Shape::Lines("connections");
        let title = format!("Echo of {words}");
        views.push(over(results, &family, "rate", &title, "messages per second", shape));
        views.push(percentiles(results, &family, &format!("{title}, latency")));
    }
    let shape = Shape::Lines("at a time");
    let title = "Connect, request, response, close";
    views.push(over(results, "short", "rate", title, "connections per second", shape));
    let title = "CPU time per 1,000 short connections";
    views.push(over(results, "short", "cpu_s_per_1000", title, "CPU s per 1,000", shape));
    views.push(percentiles(results, "short", "Short connections, latency"));
    let columns = [("kib_per_flow_first", "gateway or relay"), ("kib_per_flow_second", "client")];
    views.push(several(results, "idle", &columns, "Memory of an idle flow", "KiB per flow"));
    let columns = [("p50_us", "p50"), ("p99_us", "p99")];
    let title = "Echo of 64 B beside 8 bulk connections";
    views.push(several(results, "mixed", &columns, title, "us"));
    let columns = [("gbit_s", "Gbit/s")];
    let title = "Fast flows beside slow readers";
    views.push(several(results, "slow", &columns, title, "Gbit/s"));
    let columns = [("peak_mib", "MiB")];
    let title = "Peak memory beside slow readers";
    views.push(several(results, "slow", &columns, title, "MiB"));
    let shape = Shape::Lines("tunnels");
    for (metric, title, unit) in [
        ("p50_us", "Echo of 64 B, 32 connections over all tunnels", "p50 us"),
        ("ready_ms", "From start until every tunnel carries bytes", "ms"),
        ("gateway_mib", "Memory of the gateway", "MiB"),
        ("client_mib", "Memory of the client", "MiB"),
    ] {
        views.push(over(results, "tunnels", metric, title, unit, shape));
    }
    views.retain(|view| !view.columns.is_empty());
    views
}

/// Workloads of a family that have results, by their last number.
fn family(results: &Results, family: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for entry in results.entries.iter().filter(|entry| !entry.rounds.is_empty()) {
        let is_meant = entry.workload.parse::<Workload>().is_ok_and(|one| one.is_meant_by(family));
        if is_meant && !found.iter().any(|(name, _)| *name == entry.workload) {
            let last = entry.workload.rsplit('-').next().unwrap_or_default();
            found.push((entry.workload.clone(), last.to_owned()));
        }
    }
    found.sort_by_key(|(_, last)| last.parse::<usize>().unwrap_or(0));
    found
}

fn over(
    results: &Results,
    of: &str,
    metric: &'static str,
    title: &str,
    unit: &'static str,
    shape: Shape,
) -> View {
    let columns = family(results, of);
    let columns = columns
        .into_iter()
        .map(|(workload, heading)| Column { workload, metric, heading })
        .collect();
    let id = format!("{of}-{}", metric.replace('_', "-"));
    View { id, title: title.to_owned(), unit, columns, shape }
}

fn several(
    results: &Results,
    of: &str,
    metrics: &[(&'static str, &str)],
    title: &str,
    unit: &'static str,
) -> View {
    let columns = family(results, of).into_iter().flat_map(|(workload, _)| {
        metrics.iter().map(move |(metric, heading)| Column {
            workload: workload.clone(),
            metric,
            heading: (*heading).to_owned(),
        })
    });
    let first = metrics.first().map_or("", |(metric, _)| metric).replace('_', "-");
    View {
        id: format!("{of}-{first}"),
        title: title.to_owned(),
        unit,
        columns: columns.collect(),
        shape: Shape::Bars,
    }
}

fn percentiles(results: &Results, of: &str, title: &str) -> View {
    let columns =
        family(results, of).into_iter().flat_map(|(workload, conns)| {
            [("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")].map(|(metric, name)| {
                Column { workload: workload.clone(), metric, heading: format!("{name} of {conns}") }
            })
        });
    View {
        id: format!("{of}-latency"),
        title: title.to_owned(),
        unit: "us",
        columns: columns.collect(),
        shape: Shape::Bars,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    /// Only what was measured is shown, ordered by the amount of work; a workload that failed
    /// everywhere is left out.
    #[test]
    fn views_of_what_there_is() {
        let views = all(&sample());
        let ids: Vec<&str> = views.iter().map(|view| view.id.as_str()).collect();
        assert_eq!(ids, ["bulk-down-gbit-s", "bulk-down-cpu-s-per-gb"]);
        let headings: Vec<&str> =
            views[0].columns.iter().map(|column| column.heading.as_str()).collect();
        assert_eq!(headings, ["1", "8"]);
    }
}
