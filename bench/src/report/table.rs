//! Tables for a terminal.

use crate::results::{Entry, Results};
use crate::stats::{Spread, digits};
use crate::workload::Workload;

/// A table with left-aligned first column and right-aligned others.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: impl IntoIterator<Item = String>) -> Self {
        Self { rows: vec![heading.into_iter().collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// With aligned columns.
    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text.push_str(&format!("| {} |\n", row.join(" | ")));
            if number == 0 {
                let rule = row.iter().enumerate().map(|(column, _)| match column {
                    0 => "---",
                    _ => "---:",
                });
                text.push_str(&format!("| {} |\n", rule.collect::<Vec<_>>().join(" | ")));
            }
        }
        text
    }
}

/// `median (min..max)`.
pub(crate) fn with_spread(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    format!("{} ({}..{})", digits(median), digits(min), digits(max))
}

/// All systems under one workload: the metric that counts with its spread, the others as medians.
pub(crate) fn of_workload(results: &Results, workload: &Workload) -> String {
    let name = workload.to_string();
    let columns = workload.columns();
    let heading = columns.iter().map(|(_, heading)| (*heading).to_owned());
    let mut table = Table::new(std::iter::once(name.clone()).chain(heading));
    for system in results.systems_run() {
        let Some(entry) = results.entry(&name, system) else { continue };
        if entry.rounds.is_empty() {
            table.row([system.to_owned(), "did not run".to_owned()]);
            continue;
        }
        let cells = columns.iter().enumerate().map(|(at, (metric, _))| cell(entry, metric, at));
        table.row(std::iter::once(system.to_owned()).chain(cells));
    }
    table.text()
}

fn cell(entry: &Entry, metric: &str, column: usize) -> String {
    match entry.spread(metric) {
        Some(spread) if column == 0 && entry.rounds.len() > 1 => with_spread(spread),
        Some(spread) => digits(spread.median),
        None => "-".to_owned(),
    }
}

/// Every workload of the results.
pub(crate) fn all(results: &Results) -> String {
    let mut names: Vec<&str> = Vec::new();
    for entry in &results.entries {
        if !names.contains(&entry.workload.as_str()) {
            names.push(&entry.workload);
        }
    }
    let workloads = names.iter().filter_map(|name| name.parse::<Workload>().ok());
    workloads.map(|workload| of_workload(results, &workload) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::sample;

    /// Columns line up, the first to the left, and the metric that counts shows its spread.
    #[test]
    fn table_of_a_workload() {
        let workload = "bulk-down-8".parse().expect("a workload");
        let text = of_workload(&sample(), &workload);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("bulk-down-8"));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let ours = ["zproxy-uring", "16.0", "(15.0..17.0)", "0.50", "-", "-", "9.50", "-"];
        assert_eq!(words(lines[1]), ours);
        let theirs = ["rathole", "8.00", "(7.00..9.00)", "1.00", "-", "-", "9.50", "-"];
        assert_eq!(words(lines[2]), theirs);
        // Numbers end where their heading ends.
        assert_eq!(lines[1].find("0.50"), lines[2].find("1.00"));
        assert_eq!(lines[0].find("CPU s/GB").map(|at| at + 4), lines[1].find("0.50"));
        assert_eq!(lines.len(), 3);
        let failed = of_workload(&sample(), &"bulk-down-64".parse().expect("a workload"));
        assert!(failed.contains("rathole       did not run"), "{failed}");
    }

    /// Markdown has a rule under the heading, numbers to the right.
    #[test]
    fn markdown_of_a_table() {
        let mut table = Table::new(["a".to_owned(), "b".to_owned()]);
        table.row(["x".to_owned(), "1".to_owned()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | ---: |\n| x | 1 |\n");
    }
}
