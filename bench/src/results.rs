//! What a run found, as it is stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::load::crew::Placement;
use crate::stats::Spread;
use crate::workload::OTHER_CORES;

/// Changes whenever a reader of older files would misunderstand.
const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) schema: u32,
    /// Seconds since 1970, UTC.
    pub(crate) started_s: u64,
    pub(crate) machine: Machine,
    pub(crate) method: MethodNote,
    pub(crate) systems: Vec<SystemNote>,
    pub(crate) entries: Vec<Entry>,
}

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
}

/// How it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MethodNote {
    pub(crate) rounds: usize,
    pub(crate) warm_up_s: f64,
    pub(crate) window_s: f64,
    /// Threads of the load generator, if somebody chose how many.
    pub(crate) load_threads: Option<u16>,
    /// Where they ran. Results from before there was a choice float.
    #[serde(default = "floating")]
    pub(crate) load_placement: String,
    pub(crate) load_style: String,
    pub(crate) relay_cpus: Option<String>,
    pub(crate) load_cpus: Option<String>,
    /// Extra arguments to zproxyd and zproxy.
    pub(crate) zproxy_args: Vec<String>,
}

fn floating() -> String {
    Placement::Float.name().to_owned()
}

/// A system of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SystemNote {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    /// Why it was left out altogether.
    pub(crate) skipped: Option<String>,
}

/// One system under one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) workload: String,
    pub(crate) system: String,
    /// Per round, metrics by name.
    pub(crate) rounds: Vec<BTreeMap<String, f64>>,
    /// Rounds that did not give a result, and why.
    pub(crate) failures: Vec<String>,
}

impl Results {
    pub(crate) fn new(method: MethodNote, systems: Vec<SystemNote>) -> Self {
        let started_s = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let machine = Machine::here();
        Self { schema: SCHEMA, started_s, machine, method, systems, entries: Vec::new() }
    }

    /// Adds one round.
    pub(crate) fn add(
        &mut self,
        workload: &str,
        system: &str,
        round: Result<BTreeMap<String, f64>, String>,
    ) {
        let is_same = |entry: &Entry| entry.workload == workload && entry.system == system;
        let at = self.entries.iter().position(is_same).unwrap_or_else(|| {
            self.entries.push(Entry {
                workload: workload.to_owned(),
                system: system.to_owned(),
                ..Entry::default()
            });
            self.entries.len() - 1
        });
        match round {
            Ok(metrics) => self.entries[at].rounds.push(metrics),
            Err(why) => self.entries[at].failures.push(why),
        }
    }

    /// One system under one workload, if it was tried.
    pub(crate) fn entry(&self, workload: &str, system: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.workload == workload && entry.system == system)
    }

    /// A metric over all rounds.
    pub(crate) fn spread(&self, workload: &str, system: &str, metric: &str) -> Option<Spread> {
        self.entry(workload, system)?.spread(metric)
    }

    /// One metric divided by another, round by round. The rounds of all systems are neighbours in time, so a
    /// machine that drifts changes less of it than of two medians. None when a round failed.
    pub(crate) fn paired(
        &self,
        (workload, system, metric): (&str, &str, &str),
        (other_workload, other_system, other_metric): (&str, &str, &str),
    ) -> Option<Spread> {
        let ours = self.entry(workload, system)?;
        let theirs = self.entry(other_workload, other_system)?;
        let is_whole = ours.failures.is_empty() && theirs.failures.is_empty();
        if !is_whole || ours.rounds.len() != theirs.rounds.len() {
            return None;
        }
        let pairs = ours.rounds.iter().zip(&theirs.rounds);
        Spread::of(
            pairs.filter_map(|(our, their)| Some(our.get(metric)? / their.get(other_metric)?)),
        )
    }

    /// How many cores were busy with other things than this comparison, over all rounds.
    pub(crate) fn other_cores(&self) -> Option<Spread> {
        let rounds = self.entries.iter().flat_map(|entry| &entry.rounds);
        Spread::of(rounds.filter_map(|round| round.get(OTHER_CORES).copied()))
    }

    /// Systems that ran, in the order they were asked for.
    pub(crate) fn systems_run(&self) -> impl Iterator<Item = &str> {
        let ran = |name: &str| self.entries.iter().any(|entry| entry.system == name);
        self.systems.iter().map(|system| system.name.as_str()).filter(move |name| ran(name))
    }

    pub(crate) fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|why| why.to_string())?;
        fs::write(path, text + "\n").map_err(|why| format!("{}: {why}", path.display()))
    }

    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|why| format!("{name}: {why}"))?;
        let results: Self = serde_json::from_str(&text).map_err(|why| format!("{name}: {why}"))?;
        match results.schema {
            SCHEMA => Ok(results),
            other => Err(format!("{name}: schema {other}; this program reads {SCHEMA}")),
        }
    }
}

impl Entry {
    /// A metric over all rounds.
    pub(crate) fn spread(&self, metric: &str) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| round.get(metric).copied()))
    }
}

impl Machine {
    fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse::<f64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: (memory_kib.unwrap_or(0.0) / 1024.0 / 1024.0 * 10.0).round() / 10.0,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Results for tests of what is made of them.
    pub(crate) fn sample() -> Results {
        let method = MethodNote {
            rounds: 3,
            warm_up_s: 0.2,
            window_s: 0.8,
            load_threads: None,
            load_placement: "spread".to_owned(),
            load_style: "plain".to_owned(),
            relay_cpus: None,
            load_cpus: None,
            zproxy_args: Vec::new(),
        };
        let note = |name: &str, skipped: Option<&str>| SystemNote {
            name: name.to_owned(),
            version: Some("1.2".to_owned()),
            skipped: skipped.map(str::to_owned),
        };
        let systems = vec![
            note("zproxy-uring", None),
            note("rathole", None),
            note("bore", Some("not installed")),
        ];
        let mut results = Results::new(method, systems);
        let measured =
            [("zproxy-uring", 0.5, [15.0, 17.0, 16.0]), ("rathole", 1.0, [8.0, 7.0, 9.0])];
        for (system, cpu, gbit) in measured {
            for value in gbit {
                let round = [("gbit_s", value), ("cpu_s_per_gb", cpu), ("peak_mib", 9.5)];
                let round = round.map(|(name, value)| (name.to_owned(), value));
                for workload in ["bulk-down-1", "bulk-down-8"] {
                    results.add(workload, system, Ok(round.clone().into()));
                }
            }
        }
        results.add("bulk-down-64", "rathole", Err("it broke".to_owned()));
        results
    }

    /// What is stored is read back the same, and a file of another schema is refused.
    #[test]
    fn json_round_trip() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let mut results = sample();
        results.save(&path).expect("saved");
        assert_eq!(Results::load(&path).expect("loaded"), results);
        results.schema = 99;
        results.save(&path).expect("saved");
        assert!(Results::load(&path).expect_err("refused").contains("schema 99"));
    }

    /// Rounds of the same system and workload end up in one entry; a failure is kept beside them.
    #[test]
    fn rounds_gather() {
        let results = sample();
        let spread = results.spread("bulk-down-8", "rathole", "gbit_s").expect("measured");
        assert_eq!((spread.median, spread.min, spread.max), (8.0, 7.0, 9.0));
        let failed = results.entry("bulk-down-64", "rathole").expect("tried");
        assert_eq!(failed.failures, ["it broke"]);
        assert_eq!(failed.spread("gbit_s"), None);
        let of = |workload, system| (workload, system, "gbit_s");
        let (ours, theirs) = (of("bulk-down-8", "zproxy-uring"), of("bulk-down-8", "rathole"));
        let paired = results.paired(ours, theirs).expect("as many rounds");
        assert_eq!((paired.min, paired.median, paired.max), (16.0 / 9.0, 15.0 / 8.0, 17.0 / 7.0));
        assert_eq!(results.paired(ours, of("bulk-down-64", "rathole")), None);
        assert_eq!(results.systems_run().collect::<Vec<_>>(), ["zproxy-uring", "rathole"]);
    }
}
