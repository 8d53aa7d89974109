//! `cargo sim`: many seeds, or one again.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::filter::LevelFilter;
use zproxy_sim::{Options, REGRESSIONS, missing_marks, run_guarded, sweep};

/// Runs gateway, clients, visitors and services on a simulated kernel, with faults.
#[derive(Debug, Parser)]
#[command(name = "cargo sim")]
struct Flags {
    /// So many seeds
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    seeds: u64,

    /// The first one
    #[arg(long, value_name = "S", default_value_t = 0)]
    from: u64,

    /// Only this one, and print what it came by
    #[arg(long, value_name = "X", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,

    /// With --seed: print the programs' log
    #[arg(long, requires = "seed")]
    log: bool,

    /// Threads [default: one per CPU]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Print how often each mark was hit
    #[arg(long)]
    marks: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match flags.seed {
        Some(seed) => one(seed, flags.log),
        None => many(&flags),
    }
}

fn one(seed: u64, is_logged: bool) -> ExitCode {
    if is_logged {
        let log = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
        log.without_time().with_ansi(false).with_writer(std::io::stderr).init();
    }
    match run_guarded(seed, &Options::default()) {
        Ok(report) => {
            for (name, count) in &report.marks {
                println!("{count:8} {name}");
            }
            let [clean, failed, aborted] = report.flows;
            println!(
                "seed {seed}: good; flows clean={clean} failed={failed} aborted={aborted} \
                 turns={} virtual={:?} trace={:016x}",
                report.turns, report.time, report.trace
            );
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("seed {seed}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn many(flags: &Flags) -> ExitCode {
    let mut seeds = REGRESSIONS.to_vec();
    seeds.extend(flags.from..flags.from.saturating_add(flags.seeds));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let bar = ProgressBar::new(seeds.len() as u64);
    let style = ProgressStyle::with_template(
        "{elapsed_precise} [{bar:30}] {pos}/{len} seeds, {per_sec}, {eta} left",
    );
    bar.set_style(style.expect("a good template").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    let began = Instant::now();
    let threads = flags.threads.unwrap_or(cpus);
    let sums = sweep(&seeds, threads, 10, &Options::default(), |_| bar.inc(1));
    bar.finish_and_clear();
    for failure in &sums.failures {
        println!("{failure}");
    }
    if flags.marks {
        for (name, count) in &sums.marks {
            println!("{count:8} {name}");
        }
    }
    let missing = missing_marks(&sums.marks);
    if cfg!(debug_assertions) && !missing.is_empty() {
        println!("never came by: {}", missing.join(", "));
    }
    let [clean, failed, aborted] = sums.flows;
    println!(
        "{} of {} seeds good in {:.1} s; flows clean={clean} failed={failed} aborted={aborted} \
         turns={}",
        sums.runs,
        sums.runs + sums.failures.len() as u64,
        began.elapsed().as_secs_f64(),
        sums.turns
    );
    if sums.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
