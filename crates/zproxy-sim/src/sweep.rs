//! Many seeds, on several threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Options, Report, run};

/// Seeds that found a fault once. Every sweep begins with them. (They mean what they meant for as long
/// as a plan is drawn as it was then; what they found has a scene of its own in `scenes`.)
pub const REGRESSIONS: &[u64] = &[65, 127, 265, 293, 1414, 1803, 1865, 8285, 22082];

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was wrong.
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, why } = self;
        write!(
            f,
            "seed {seed}: {why}\n  again, alone and with its log: cargo sim --seed {seed} --log"
        )
    }
}

/// What many runs had.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Runs that were good.
    pub runs: u64,
    /// Flows: clean, failed, aborted.
    pub flows: [usize; 3],
    /// Turns of all loops.
    pub turns: u64,
    /// Rare places, and how often runs came by.
    pub marks: BTreeMap<String, u64>,
    /// Runs that were not.
    pub failures: Vec<Failure>,
}

impl Sweep {
    fn add(&mut self, seed: u64, result: Result<Report, String>) {
        match result {
            Ok(report) => {
                self.runs += 1;
                self.turns += report.turns;
                self.flows.iter_mut().zip(report.flows).for_each(|(sum, more)| *sum += more);
                for (name, count) in report.marks {
                    *self.marks.entry(name).or_default() += count;
                }
            }
            Err(why) => self.failures.push(Failure { seed, why }),
        }
    }
}

/// Runs one seed; a panic of a program is a failure like others.
///
/// # Errors
/// What was wrong.
pub fn run_guarded(seed: u64, options: &Options) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, options))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", text.unwrap_or("without a word")))
    })
}

/// Runs the seeds on so many threads, at most `failures_max` failures long.
pub fn sweep(
    seeds: &[u64],
    threads: usize,
    failures_max: usize,
    options: &Options,
    heed: impl Fn(u64) + Sync,
) -> Sweep {
    let sums = Mutex::new(Sweep::default());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = run_guarded(seed, options);
            let mut sums = sums.lock().expect("no panic while it is held");
            sums.add(seed, result);
            if sums.failures.len() >= failures_max {
                next.store(seeds.len(), Ordering::Relaxed);
            }
            drop(sums);
            heed(seed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut sums = sums.into_inner().expect("no panic while it is held");
    sums.failures.sort_by_key(|failure| failure.seed);
    sums
}
