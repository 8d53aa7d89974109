//! The sweep: gateway, clients, visitors and services on the simulated kernel, seed by seed.

use zproxy_sim::{Options, REGRESSIONS, Sweep, missing_marks, run_guarded, sweep};

/// Seeds of every test run.
const SEEDS: u64 = 320;
/// The rarest places are a matter of luck: so many seeds more at the most, until each has been come by.
const MORE: u64 = 2_560;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whatever goes wrong: no byte is lost, repeated or foreign, FIN and RST arrive as they left, nothing
/// is left behind, and when the troubles are over everything works again. And the sweep comes by every
/// place that it has to.
#[test]
fn every_seed_is_good() {
    let mut seeds = REGRESSIONS.to_vec();
    seeds.extend(0..SEEDS);
    let mut sums = good(&seeds);
    let mut next = SEEDS;
    while !missing_marks(&sums.marks).is_empty() && next < SEEDS + MORE {
        seeds.clear();
        seeds.extend(next..next + SEEDS / 2);
        next += SEEDS / 2;
        sums.marks.extend(good(&seeds).marks);
    }
    let missing = missing_marks(&sums.marks);
    assert!(
        missing.is_empty(),
        "{next} seeds never came by {missing:?}; they had {:#?}",
        sums.marks
    );
}

fn good(seeds: &[u64]) -> Sweep {
    let sums = sweep(seeds, threads(), 5, &Options::default(), |_| {});
    let failures: Vec<String> = sums.failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(sums.runs, seeds.len() as u64);
    sums
}

/// The same seed gives the same run, to the last event.
#[test]
fn a_seed_is_a_run() {
    for seed in [1, 2, 3, 5, 6, 7, 19, 65] {
        let runs = [(); 2].map(|()| run_guarded(seed, &Options::default()).expect("a good run"));
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
    let other = run_guarded(4, &Options::default()).expect("a good run");
    let one = run_guarded(8, &Options::default()).expect("a good run");
    assert_ne!(one.trace, other.trace);
}
