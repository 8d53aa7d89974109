//! The sweep notices deliberate faults of the relay: an oracle that has never said no proves nothing.

use zproxy_sim::{MUTANTS, Options, sweep};

/// A fault is noticed within so many seeds.
const SEEDS: u64 = 60;

/// Each mutant fails the sweep, which without it is good.
#[test]
fn every_mutant_is_caught() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let mut survivors = Vec::new();
    for mutant in MUTANTS {
        let options = Options { sabotage: Some((mutant.victim, mutant.saboteur)) };
        let sums = sweep(&seeds, threads, 1, &options, |_| {});
        match sums.failures.first() {
            Some(failure) => println!("{}: {}", mutant.name, failure.why),
            None => survivors.push(mutant.name),
        }
    }
    assert!(survivors.is_empty(), "nobody noticed that {survivors:?}");
}
