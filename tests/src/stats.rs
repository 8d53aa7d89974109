//! What a program says when it is asked what it holds and what it has counted (SIGUSR1).

use std::time::Duration;

use rustix::process::Signal;

use crate::program::Program;
use crate::programs::field;

/// The lines of one answer, one per thread that has a driver.
#[derive(Clone, Debug)]
pub struct Stats {
    lines: Vec<String>,
}

/// True for a line of an answer.
#[must_use]
pub fn is_stats(line: &str) -> bool {
    line.contains(" stats ") && line.contains("socks_opened=")
}

impl Stats {
    /// Asks a program and waits until `threads` of it have answered. Nobody else may ask it meanwhile.
    ///
    /// # Panics
    /// When they do not answer in time.
    #[must_use]
    pub fn of(program: &mut Program, threads: usize) -> Self {
        let before = program.err.matching(is_stats).len();
        program.signal(Signal::USR1);
        let wanted = before + threads;
        let lines =
            program.err.wait_for_count("the stats", wanted, Duration::from_secs(20), is_stats);
        Self { lines: lines[before..].to_vec() }
    }

    /// A count of the data cores, added up.
    ///
    /// # Panics
    /// When no data core names it.
    #[must_use]
    pub fn cores(&self, what: &str) -> u64 {
        let counts: Vec<u64> = self
            .lines
            .iter()
            .filter_map(|line| field(line, "core").and(count(line, what)))
            .collect();
        assert!(!counts.is_empty(), "no {what}= in: {self:?}");
        counts.iter().sum()
    }

    /// A count of the control thread.
    ///
    /// # Panics
    /// When it does not name it.
    #[must_use]
    pub fn control(&self, what: &str) -> u64 {
        let found = self.lines.iter().find(|line| line.contains("control stats "));
        let found = found.and_then(|line| count(line, what));
        found.unwrap_or_else(|| panic!("no {what}= of the control thread in: {self:?}"))
    }

    /// Sockets that the data cores have open.
    #[must_use]
    pub fn socks(&self) -> u64 {
        self.cores("socks_opened") - self.cores("socks_closed")
    }

    /// Pipes that are out on lease.
    #[must_use]
    pub fn pipes(&self) -> u64 {
        self.cores("pipes_leased") - self.cores("pipes_returned")
    }

    /// Buffers that are out on lease.
    #[must_use]
    pub fn bufs(&self) -> u64 {
        self.cores("bufs_leased") - self.cores("bufs_returned")
    }
}

fn count(line: &str, what: &str) -> Option<u64> {
    let text = field(line, what)?;
    Some(text.parse().unwrap_or_else(|why| panic!("{what}={text} ({why}) in: {line}")))
}
