//! What the kernel knows about the processes under test: CPU time, memory, context switches, pipes.
//!
//! A system is a set of process trees. A tree is walked anew for each snapshot, because some
//! systems fork per connection; what their ended children used is in the parent's account.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::{Add, Sub};

/// Sums over some processes, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// User and system time of all threads, and of children that ended and were waited for.
    pub(crate) cpu_s: f64,
    pub(crate) switches_voluntary: u64,
    pub(crate) switches_involuntary: u64,
    /// Resident memory now.
    pub(crate) resident_bytes: u64,
    /// The sum of the largest resident memory of each process since [`reset_peaks`].
    pub(crate) peak_bytes: u64,
    /// Different pipes among the open descriptors.
    pub(crate) pipes: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu_s: self.cpu_s + other.cpu_s,
            switches_voluntary: self.switches_voluntary + other.switches_voluntary,
            switches_involuntary: self.switches_involuntary + other.switches_involuntary,
            resident_bytes: self.resident_bytes + other.resident_bytes,
            peak_bytes: self.peak_bytes + other.peak_bytes,
            pipes: self.pipes + other.pipes,
            descriptors: self.descriptors + other.descriptors,
            threads: self.threads + other.threads,
        }
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// How much more than `earlier`; what became less counts as none.
impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu_s: (self.cpu_s - earlier.cpu_s).max(0.0),
            switches_voluntary: self.switches_voluntary.saturating_sub(earlier.switches_voluntary),
            switches_involuntary: self
                .switches_involuntary
                .saturating_sub(earlier.switches_involuntary),
            resident_bytes: self.resident_bytes.saturating_sub(earlier.resident_bytes),
            peak_bytes: self.peak_bytes.saturating_sub(earlier.peak_bytes),
            pipes: self.pipes.saturating_sub(earlier.pipes),
            descriptors: self.descriptors.saturating_sub(earlier.descriptors),
            threads: self.threads.saturating_sub(earlier.threads),
        }
    }
}

/// Which numbers a snapshot takes: reading descriptors costs time that grows with their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    Quick,
    Descriptors,
}

/// The processes of the trees that start at `roots`, roots included; the ended are left out.
pub(crate) fn tree(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in all_pids() {
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open: Vec<u32> = roots.to_vec();
    while let Some(pid) = open.pop() {
        if !found.contains(&pid) {
            found.push(pid);
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Sums over the trees that start at `roots`.
pub(crate) fn usage(roots: &[u32], depth: Depth) -> Usage {
    tree(roots).into_iter().filter_map(|pid| usage_of(pid, depth)).sum()
}

/// CPU time of the one process `pid`, without its children.
pub(crate) fn cpu_s(pid: u32) -> f64 {
    let schedule = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let own = schedule.and_then(|text| Stat::parse(&text)).map_or(0, |stat| stat.own_ticks);
    own as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// CPU time that the whole machine has spent, and that a hypervisor kept from it.
pub(crate) fn machine_cpu_s() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    machine_ticks(&text) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Of the first line of `/proc/stat`: everything but idling, waiting for disks, and guests (who are
/// counted as users already).
fn machine_ticks(text: &str) -> u64 {
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(8).enumerate();
    let busy = ticks.filter(|(place, _)| !matches!(place, 3 | 4));
    busy.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()
}

/// Lets the largest resident memory begin anew, where the kernel permits it.
pub(crate) fn reset_peaks(roots: &[u32]) {
    for pid in tree(roots) {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

fn all_pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn usage_of(pid: u32, depth: Depth) -> Option<Usage> {
    let stat = Stat::of(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut usage = Usage {
        resident_bytes: field(&status, "VmRSS:") * 1024,
        peak_bytes: field(&status, "VmHWM:") * 1024,
        threads: field(&status, "Threads:"),
        ..Usage::default()
    };
    let mut tasks_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let schedule = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        tasks_ns += field(&schedule, "");
        usage.switches_voluntary += field(&status, "\nvoluntary_ctxt_switches:");
        usage.switches_involuntary += field(&status, "nonvoluntary_ctxt_switches:");
    }
    usage.cpu_s = stat.cpu_s(tasks_ns);
    if depth == Depth::Descriptors {
        let mut pipes = HashSet::new();
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
            usage.descriptors += 1;
            if let Ok(name) = fs::read_link(descriptor.path())
                && name.to_string_lossy().starts_with("pipe:")
            {
                pipes.insert(name);
            }
        }
        usage.pipes = pipes.len() as u64;
    }
    Some(usage)
}

/// The number behind `name` in a status file; 0 where it is missing (as for kernel threads).
fn field(status: &str, name: &str) -> u64 {
    let value = status.split_once(name).map(|(_, behind)| behind.trim_start());
    let digits = value.and_then(|value| value.split_whitespace().next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Of `/proc/PID/stat`: the parent, and the time used, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// With the children that ended and were waited for.
    ticks: u64,
}

impl Stat {
    /// CPU time of the process and its ended children, given what its living threads have used.
    ///
    /// The kernel tells the process's own time in two ways, and neither ever says too much: in whole
    /// ticks with the threads that ended, and in nanoseconds without them.
    fn cpu_s(&self, tasks_ns: u64) -> f64 {
        let tick_s = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let own_s = (self.own_ticks as f64 * tick_s).max(tasks_ns as f64 / 1e9);
        own_s + (self.ticks - self.own_ticks) as f64 * tick_s
    }

    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, behind) = text.rsplit_once(')')?;
        let fields: Vec<&str> = behind.split_whitespace().collect();
        let parent = fields.get(1)?.parse().ok()?;
        // utime, stime, cutime, cstime.
        let times = fields.get(11..15)?;
        let times: Vec<u64> = times.iter().filter_map(|ticks| ticks.parse().ok()).collect();
        let own_ticks = times.iter().take(2).sum();
        Some(Self { parent, own_ticks, ticks: times.iter().sum() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a program may hold blanks and parentheses without moving the fields behind it.
    #[test]
    fn stat_of_a_strange_name() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 3 4 20 0 9 0 100";
        assert_eq!(Stat::parse(text), Some(Stat { parent: 7, own_ticks: 30, ticks: 37 }));
        assert_eq!(Stat::parse("42 (a) S"), None);
    }

    /// Time below a tick is not lost, nor is that of threads that ended.
    #[test]
    fn cpu_time_from_both_accounts() {
        let tick_s = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let stat = Stat { parent: 1, own_ticks: 1, ticks: 3 };
        assert_eq!(stat.cpu_s(0), tick_s + 2.0 * tick_s);
        assert_eq!(stat.cpu_s(1_500_000_000), 1.5 + 2.0 * tick_s);
    }

    /// The two kinds of context switches are told apart, though one name ends in the other.
    #[test]
    fn fields_of_status() {
        let status = "Name:\tx\nVmHWM:\t  12 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t5\n\
            nonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "VmHWM:"), 12);
        assert_eq!(field(status, "\nvoluntary_ctxt_switches:"), 5);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), 7);
        assert_eq!(field(status, "VmSwap:"), 0);
    }

    /// Time without work counts for nothing, and guests are not counted twice.
    #[test]
    fn ticks_of_the_machine() {
        assert_eq!(machine_ticks("cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 5"), 63);
        assert_eq!(machine_ticks(""), 0);
    }

    /// This process has threads, memory and descriptors, and is in the tree of itself.
    #[test]
    fn own_usage() {
        let usage = usage(&[std::process::id()], Depth::Descriptors);
        assert!(usage.threads >= 1 && usage.resident_bytes > 0 && usage.descriptors > 0);
        assert!(usage.peak_bytes >= usage.resident_bytes / 2);
    }
}
