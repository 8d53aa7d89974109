//! The tables of the README.

use super::table::Table;
use super::views::{self, Shape};
use crate::results::Results;
use crate::stats::digits;

/// One table per view, and how they were made.
pub(crate) fn all(results: &Results) -> String {
    let machine = &results.machine;
    let method = &results.method;
    let mut text = format!(
        "{} cores ({}), Linux {}, loopback. Medians of {} interleaved rounds of {} s after {} s of \
         warm-up; load generator on the same machine, its threads for small messages {}.\n",
        machine.cores,
        machine.cpu,
        machine.kernel,
        method.rounds,
        method.window_s,
        method.warm_up_s,
        match method.load_placement.as_str() {
            "spread" => "one per CPU",
            _ => "wherever the scheduler had them",
        },
    );
    if let Some(others) = results.other_cores() {
        text.push_str(&format!("Other programs used {} cores.\n", digits(others.median)));
    }
    let versions = results.systems.iter().filter(|system| system.skipped.is_none());
    let versions = versions.map(|system| match &system.version {
        Some(version) => format!("{} ({version})", system.name),
        None => system.name.clone(),
    });
    text.push_str(&format!("Systems: {}.\n", versions.collect::<Vec<_>>().join(", ")));
    for system in &results.systems {
        if let Some(why) = &system.skipped {
            text.push_str(&format!("Skipped: {} ({why}).\n", system.name));
        }
    }
    for view in views::all(results) {
        let by = match view.shape {
            Shape::Lines(what) => format!(", by {what}"),
            Shape::Bars => String::new(),
        };
        text.push_str(&format!("\n**{}** ({}{by})\n\n", view.title, view.unit));
        let headings = view.columns.iter().map(|column| column.heading.clone());
        let mut table = Table::new(std::iter::once("system".to_owned()).chain(headings));
        for system in results.systems_run() {
            let cells: Vec<Option<f64>> = (view.columns.iter())
                .map(|column| {
                    let spread = results.spread(&column.workload, system, column.metric);
                    spread.map(|spread| spread.median)
                })
                .collect();
            if cells.iter().any(Option::is_some) {
                let cells = cells.into_iter().map(|cell| cell.map_or("-".into(), digits));
                table.row(std::iter::once(system.to_owned()).chain(cells));
            }
        }
        text.push_str(&table.markdown());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    /// Every system that ran has a row, the skipped one is named with the reason.
    #[test]
    fn markdown_of_results() {
        let text = all(&sample());
        assert!(text.contains("| rathole | 8.00 | 8.00 |"), "{text}");
        assert!(text.contains("**Throughput down** (Gbit/s, by connections)"), "{text}");
        assert!(text.contains("Skipped: bore (not installed)."), "{text}");
    }
}
