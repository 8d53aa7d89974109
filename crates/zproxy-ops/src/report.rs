//! The check report: what was looked at, how it stands, and what to do about it.

use std::fmt;

use crate::Code;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but less well than it could.
    Warn,
    /// Does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub value: String,
    /// How that stands.
    pub verdict: Verdict,
    /// What to do about it, or what it is good for.
    pub advice: String,
}

/// All lines, in the order in which they were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The lines.
    pub rows: Vec<Row>,
}

impl Report {
    /// Adds a line.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        value: impl Into<String>,
        verdict: Verdict,
        advice: impl Into<String>,
    ) {
        let (name, value, advice) = (name.into(), value.into(), advice.into());
        self.rows.push(Row { name, value, verdict, advice });
    }

    /// The worst verdict; an empty report is fine.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// 0 when nothing fails, else 1.
    #[must_use]
    pub fn code(&self) -> Code {
        if self.verdict() == Verdict::Fail { Code::Failed } else { Code::Fine }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Row) -> &str| {
            self.rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0)
        };
        let (name_width, value_width) = (width(|row| &row.name), width(|row| &row.value));
        for Row { name, value, verdict, advice } in &self.rows {
            let line =
                format!("{verdict:<4}  {name:<name_width$}  {value:<value_width$}  {advice}");
            writeln!(f, "{}", line.trim_end())?;
        }
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let (warned, failed) = (count(Verdict::Warn), count(Verdict::Fail));
        write!(f, "{} checks: {warned} to improve, {failed} failed", self.rows.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns line up, and one failure decides the exit code.
    #[test]
    fn a_report_lines_up_and_judges() {
        let mut report = Report::default();
        assert_eq!(report.code(), Code::Fine);
        report.add("kernel", "6.18", Verdict::Ok, "");
        report.add("descriptors", "1024", Verdict::Warn, "raise it");
        assert_eq!(report.code(), Code::Fine);
        let expected = "ok    kernel       6.18\nwarn  descriptors  1024  raise it\n\
                        2 checks: 1 to improve, 0 failed";
        assert_eq!(report.to_string(), expected);
        report.add("port", "taken", Verdict::Fail, "choose another");
        assert_eq!(report.code(), Code::Failed);
    }
}
