//! The workloads: what is asked of every system, and what is made of the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::load::client::{Group, Outcome, Role};
use crate::processes::Usage;
use crate::stats::percentile;
use crate::systems::System;

/// The direction of bulk transfer, as the public client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
    Both,
}

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Bulk {
        direction: Direction,
        conns: usize,
    },
    Echo {
        size: usize,
        conns: usize,
    },
    /// Connect, request, response, close.
    Ask {
        conns: usize,
    },
    Idle {
        flows: usize,
    },
    /// Bulk beside a small echo.
    Mixed,
    /// Slow readers beside fast flows.
    Slow,
    Tunnels {
        count: usize,
    },
}

/// The metric of what neither relay nor load generator used, in cores.
pub(crate) const OTHER_CORES: &str = "other_cores";

/// Connections in the mixed run.
const MIXED_BULK_CONNS: usize = 8;

/// Connections of each kind beside the slow readers.
const SLOW_CONNS: usize = 4;

/// Connections over all tunnels.
const TUNNEL_CONNS: usize = 32;

/// What a slow reader reads, and how often.
const SIP_SIZE: usize = 16 * 1024;
const SIP_PAUSE: Duration = Duration::from_millis(100);

impl Workload {
    /// Everything of a full run.
    pub(crate) fn full() -> Vec<Self> {
        let mut all = Vec::new();
        for direction in [Direction::Down, Direction::Up, Direction::Both] {
            all.extend([1, 8, 64].map(|conns| Self::Bulk { direction, conns }));
        }
        for size in [64, 1024, 16 * 1024] {
            all.extend([1, 32, 256].map(|conns| Self::Echo { size, conns }));
        }
        all.extend([1, 32].map(|conns| Self::Ask { conns }));
        all.extend([Self::Mixed, Self::Slow, Self::Idle { flows: 4000 }]);
        all.extend([1, 10, 100, 500].map(|count| Self::Tunnels { count }));
        all
    }

    /// What fits into three minutes.
    pub(crate) fn quick() -> Vec<Self> {
        let bulk = |direction, conns| Self::Bulk { direction, conns };
        vec![
            bulk(Direction::Down, 1),
            bulk(Direction::Down, 8),
            bulk(Direction::Up, 8),
            Self::Echo { size: 64, conns: 1 },
            Self::Echo { size: 64, conns: 32 },
            Self::Echo { size: 16 * 1024, conns: 32 },
            Self::Ask { conns: 1 },
            Self::Ask { conns: 32 },
            Self::Mixed,
            Self::Idle { flows: 1000 },
            Self::Tunnels { count: 100 },
        ]
    }

    /// What the floor is about.
    pub(crate) fn floor() -> Vec<Self> {
        vec![
            Self::Bulk { direction: Direction::Down, conns: 8 },
            Self::Bulk { direction: Direction::Up, conns: 8 },
            Self::Echo { size: 64, conns: 1 },
        ]
    }

    /// Whether `pattern` is this workload's name or a whole word (or more) at its beginning.
    pub(crate) fn is_meant_by(&self, pattern: &str) -> bool {
        let name = self.to_string();
        let behind = name.strip_prefix(pattern);
        behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('-'))
    }

    /// Why it is not asked of `system`, if so.
    pub(crate) fn unfit_for(&self, system: &System) -> Option<&'static str> {
        match self {
            Self::Tunnels { .. } if !system.has_tunnels() => Some("one tunnel per process"),
            Self::Idle { .. } if system.forks() => Some("one process per connection"),
            Self::Idle { .. } if system.hops() == 0 => Some("no process"),
            _ => None,
        }
    }

    /// Whether the system is started for this one measurement, so that its memory is told from
    /// nothing else.
    pub(crate) fn needs_fresh(&self) -> bool {
        matches!(self, Self::Idle { .. } | Self::Tunnels { .. })
    }

    /// Tunnels the system has to have.
    pub(crate) fn tunnels(&self) -> usize {
        match self {
            Self::Tunnels { count } => *count,
            _ => 1,
        }
    }

    /// The connections.
    pub(crate) fn groups(&self) -> Vec<Group> {
        match *self {
            Self::Bulk { direction, conns } => {
                let role = match direction {
                    Direction::Up => Role::Push,
                    Direction::Down => Role::Pull,
                    Direction::Both => Role::Both,
                };
                vec![Group { role, conns }]
            }
            Self::Echo { size, conns } => vec![Group { role: Role::Echo { size }, conns }],
            Self::Ask { conns } => vec![Group { role: Role::Ask, conns }],
            Self::Idle { flows } => vec![Group { role: Role::Hold, conns: flows }],
            Self::Mixed => vec![
                Group { role: Role::Echo { size: 64 }, conns: 1 },
                Group { role: Role::Pull, conns: MIXED_BULK_CONNS },
            ],
            Self::Slow => vec![
                Group { role: Role::Pull, conns: SLOW_CONNS },
                Group { role: Role::Sip { size: SIP_SIZE, pause: SIP_PAUSE }, conns: SLOW_CONNS },
            ],
            Self::Tunnels { .. } => {
                vec![Group { role: Role::Echo { size: 64 }, conns: TUNNEL_CONNS }]
            }
        }
    }

    /// The metrics shown in its table: name and heading. The first is the one that counts.
    pub(crate) fn columns(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bulk { .. } => &[
                ("gbit_s", "Gbit/s"),
                ("cpu_s_per_gb", "CPU s/GB"),
                ("total_cpu_s_per_gb", "with load"),
                ("switches_per_mb", "switches/MB"),
                ("peak_mib", "peak MiB"),
                ("load_cores", "load cores"),
            ],
            Self::Echo { .. } | Self::Ask { .. } => &[
                ("rate", "per s"),
                ("p50_us", "p50 us"),
                ("p99_us", "p99 us"),
                ("p999_us", "p99.9 us"),
                ("cpu_s_per_1000", "CPU s/1,000"),
                ("switches_per_op", "switches/op"),
                ("peak_mib", "peak MiB"),
                ("errors", "errors"),
            ],
            Self::Idle { .. } => &[
                ("kib_per_flow_side", "KiB/flow, worse side"),
                ("kib_per_flow_first", "gateway or relay"),
                ("kib_per_flow_second", "client"),
                ("fds_per_flow", "descriptors/flow"),
                ("pipes", "pipes"),
                ("ready_ms", "ready ms"),
            ],
            Self::Mixed => &[
                ("p99_us", "p99 us"),
                ("p50_us", "p50 us"),
                ("gbit_s", "bulk Gbit/s"),
                ("cpu_s_per_gb", "CPU s/GB"),
            ],
            Self::Slow => &[
                ("gbit_s", "fast Gbit/s"),
                ("slow_kib_s", "slow KiB/s"),
                ("cpu_s_per_gb", "CPU s/GB"),
                ("peak_mib", "peak MiB"),
            ],
            Self::Tunnels { .. } => &[
                ("rate", "echo per s"),
                ("p50_us", "p50 us"),
                ("ready_ms", "ready ms"),
                ("gateway_mib", "gateway MiB"),
                ("client_mib", "client MiB"),
            ],
        }
    }

    /// What was measured, by name. Usages are per side of the system.
    pub(crate) fn metrics(&self, seen: &Observed) -> BTreeMap<String, f64> {
        let Observed { outcome, own_cpu_s, machine_cpu_s, .. } = seen;
        let elapsed_s = outcome.elapsed.as_secs_f64();
        let used: Usage = (outcome.after.iter().zip(&outcome.before))
            .map(|(after, before)| *after - *before)
            .sum();
        let peak: Usage = outcome.after.iter().copied().sum();
        let pulled: u64 = outcome.groups.iter().map(|group| group.pulled_bytes).sum();
        let bytes = (pulled + outcome.pushed_bytes) as f64;
        let operations: u64 = outcome.groups.iter().map(|group| group.operations).sum();
        let switches = (used.switches_voluntary + used.switches_involuntary) as f64;

        let mut metrics = Metrics::default();
        let operations = operations as f64;
        metrics.set("load_cores", own_cpu_s / elapsed_s);
        let others_cpu_s = (machine_cpu_s - own_cpu_s - used.cpu_s).max(0.0);
        metrics.set("left_standing", seen.left as f64);
        metrics.set(OTHER_CORES, others_cpu_s / elapsed_s);
        if !outcome.after.is_empty() {
            metrics.set("cpu_s", used.cpu_s);
            metrics.set("relay_cores", used.cpu_s / elapsed_s);
            metrics.set("peak_mib", mib(peak.peak_bytes));
            metrics.set("threads", peak.threads as f64);
            metrics.set("switches_voluntary_s", used.switches_voluntary as f64 / elapsed_s);
            metrics.set("switches_involuntary_s", used.switches_involuntary as f64 / elapsed_s);
            metrics.set("cpu_s_per_gb", used.cpu_s * 1e9 / bytes);
            metrics.set("switches_per_mb", switches * 1e6 / bytes);
            metrics.set("cpu_s_per_1000", used.cpu_s * 1e3 / operations);
            metrics.set("switches_per_op", switches / operations);
        }
        metrics.set("total_cpu_s_per_gb", (used.cpu_s + own_cpu_s) * 1e9 / bytes);
        if bytes > 0.0 {
            metrics.set("gbit_s", bytes * 8.0 / 1e9 / elapsed_s);
        }
        for group in outcome.groups.iter().filter(|group| !group.latencies_ns.is_empty()) {
            for (name, share) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
                let value = percentile(&group.latencies_ns, share).unwrap_or(0);
                metrics.set(name, value as f64 / 1e3);
            }
        }
        if operations > 0.0 {
            metrics.set("rate", operations / elapsed_s);
            let errors: u64 = outcome.groups.iter().map(|group| group.errors).sum();
            metrics.set("errors", errors as f64);
        }
        self.special(seen, &mut metrics);
        metrics.0
    }

    fn special(&self, seen: &Observed, metrics: &mut Metrics) {
        let Observed { outcome, base, start_after, .. } = seen;
        match self {
            Self::Idle { flows } => {
                let flows = *flows as f64;
                let more: Vec<Usage> =
                    (outcome.after.iter().zip(base)).map(|(after, base)| *after - *base).collect();
                let kib = |usage: &Usage| usage.resident_bytes as f64 / 1024.0 / flows;
                let worse = more.iter().map(kib).fold(0.0, f64::max);
                metrics.set("kib_per_flow_side", worse);
                for (name, side) in ["kib_per_flow_first", "kib_per_flow_second"].iter().zip(&more)
                {
                    metrics.set(name, kib(side));
                }
                let total: Usage = more.iter().copied().sum();
                metrics.set("fds_per_flow", total.descriptors as f64 / flows);
                metrics.set("pipes", total.pipes as f64);
                metrics.set("ready_ms", outcome.ready_after.as_secs_f64() * 1e3);
            }
            Self::Tunnels { .. } => {
                metrics.set("ready_ms", start_after.as_secs_f64() * 1e3);
                for (name, side) in ["gateway_mib", "client_mib"].iter().zip(&outcome.after) {
                    metrics.set(name, mib(side.resident_bytes));
                }
            }
            Self::Slow => {
                let elapsed_s = outcome.elapsed.as_secs_f64();
                let fast = outcome.groups[0].pulled_bytes as f64;
                let slow = outcome.groups[1].pulled_bytes as f64;
                metrics.set("gbit_s", fast * 8.0 / 1e9 / elapsed_s);
                metrics.set("slow_kib_s", slow / 1024.0 / elapsed_s);
            }
            _ => {}
        }
    }
}

/// Everything seen in one measurement.
pub(crate) struct Observed {
    /// Usages per side at both ends of the window.
    pub(crate) outcome: Outcome<Vec<Usage>>,
    /// Usages per side before the first connection.
    pub(crate) base: Vec<Usage>,
    /// CPU time of the load generator in the window.
    pub(crate) own_cpu_s: f64,
    /// CPU time of the whole machine in the window.
    pub(crate) machine_cpu_s: f64,
    /// From the start of the programs until every tunnel carried a byte.
    pub(crate) start_after: Duration,
    /// Connections that the service still had long after the clients had closed them.
    pub(crate) left: u64,
}

#[derive(Default)]
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// What is divided by nothing is no number, and left out.
    fn set(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.0.insert(name.to_owned(), value);
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { direction, conns } => {
                let direction = match direction {
                    Direction::Up => "up",
                    Direction::Down => "down",
                    Direction::Both => "both",
                };
                write!(f, "bulk-{direction}-{conns}")
            }
            Self::Echo { size, conns } => write!(f, "echo-{size}-{conns}"),
            Self::Ask { conns } => write!(f, "short-{conns}"),
            Self::Idle { flows } => write!(f, "idle-{flows}"),
            Self::Mixed => f.write_str("mixed"),
            Self::Slow => f.write_str("slow"),
            Self::Tunnels { count } => write!(f, "tunnels-{count}"),
        }
    }
}

impl std::str::FromStr for Workload {
    type Err = String;

    /// Reads a name back, with any numbers.
    fn from_str(name: &str) -> Result<Self, String> {
        let words: Vec<&str> = name.split('-').collect();
        let number = |word: &str| word.parse::<usize>().ok().filter(|number| *number > 0);
        let found = match words[..] {
            ["bulk", direction, conns] => {
                let direction = match direction {
                    "up" => Some(Direction::Up),
                    "down" => Some(Direction::Down),
                    "both" => Some(Direction::Both),
                    _ => None,
                };
                direction
                    .zip(number(conns))
                    .map(|(direction, conns)| Self::Bulk { direction, conns })
            }
            ["echo", size, conns] => {
                number(size).zip(number(conns)).map(|(size, conns)| Self::Echo { size, conns })
            }
            ["short", conns] => number(conns).map(|conns| Self::Ask { conns }),
            ["idle", flows] => number(flows).map(|flows| Self::Idle { flows }),
            ["tunnels", count] => number(count).map(|count| Self::Tunnels { count }),
            ["mixed"] => Some(Self::Mixed),
            ["slow"] => Some(Self::Slow),
            _ => None,
        };
        found.ok_or_else(|| {
            format!(
                "{name:?} is no workload; there are bulk-{{down,up,both}}-CONNS, \
                 echo-SIZE-CONNS, short-CONNS, idle-FLOWS, mixed, slow, tunnels-COUNT, and their \
                 beginnings"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::client::Seen;

    /// Every workload's name is read back as that workload, and a beginning means whole words only.
    #[test]
    fn names_of_workloads() {
        for workload in Workload::full().into_iter().chain(Workload::quick()) {
            assert_eq!(workload.to_string().parse(), Ok(workload));
        }
        let workload = Workload::Echo { size: 64, conns: 32 };
        for pattern in ["echo", "echo-64", "echo-64-32"] {
            assert!(workload.is_meant_by(pattern), "{pattern}");
        }
        for pattern in ["ech", "echo-6", "echo-64-3", "bulk", "echo-64-32-1"] {
            assert!(!workload.is_meant_by(pattern), "{pattern}");
        }
        assert!("bulk-down-0".parse::<Workload>().is_err());
    }

    /// Rates come from the window as it was, CPU time from all sides together, and a gigabyte has
    /// 10^9 bytes.
    #[test]
    fn metrics_of_bulk() {
        let at = |cpu_s, peak_bytes| Usage { cpu_s, peak_bytes, ..Usage::default() };
        let outcome = Outcome {
            elapsed: Duration::from_secs(2),
            ready_after: Duration::ZERO,
            pushed_bytes: 1_000_000_000,
            groups: vec![Seen { pulled_bytes: 1_000_000_000, ..Seen::default() }],
            before: vec![at(1.0, 0), at(2.0, 0)],
            after: vec![at(1.5, 1 << 20), at(2.75, 1 << 21)],
        };
        let observed = Observed {
            outcome,
            base: Vec::new(),
            own_cpu_s: 3.0,
            machine_cpu_s: 4.75,
            start_after: Duration::ZERO,
            left: 0,
        };
        let workload = Workload::Bulk { direction: Direction::Both, conns: 8 };
        let metrics = workload.metrics(&observed);
        assert_eq!(metrics["gbit_s"], 8.0);
        assert_eq!(metrics["cpu_s_per_gb"], 0.625);
        assert_eq!(metrics["total_cpu_s_per_gb"], 2.125);
        assert_eq!(metrics["peak_mib"], 3.0);
        assert_eq!(metrics["load_cores"], 1.5);
        assert_eq!(metrics[OTHER_CORES], 0.25);
        assert!(!metrics.contains_key("rate"));
    }
}
