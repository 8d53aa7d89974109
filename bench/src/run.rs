//! The comparison: for each workload, round after round, every system in turn.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::load::client::{Group, Method, Role, measure};
use crate::load::server::Server;
use crate::processes::{self, Depth, Usage};
use crate::report::table;
use crate::results::Results;
use crate::systems::{Running, System, Tools};
use crate::workload::{Observed, Workload};

/// From the start of a system's programs until each of its tunnels has carried a byte.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long the leftovers of a measurement may take to go away.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections that warm a fresh system up before its memory is looked at.
const WARM_CONNS: usize = 64;

/// A system that failed so often in a row is not tried again.
const FAILURES_MAX: usize = 3;

/// Everything a run needs.
pub(crate) struct Runner {
    pub(crate) server: Server,
    pub(crate) tools: Tools,
    pub(crate) systems: Vec<System>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) rounds: usize,
    /// Every measurement has programs of its own.
    pub(crate) restart: bool,
    pub(crate) method: Method,
    pub(crate) json: Option<PathBuf>,
}

/// A system that is up between measurements.
struct Up {
    running: Running,
    start_after: Duration,
}

/// What changes while it runs.
struct Progress {
    up: HashMap<String, Up>,
    failures: HashMap<String, usize>,
    generation: u8,
    bar: ProgressBar,
}

impl Runner {
    /// What it will take, about.
    pub(crate) fn estimate(&self) -> Duration {
        let per_round = self.method.window + self.method.warm_up + Duration::from_millis(150);
        let mut total = Duration::ZERO;
        for workload in &self.workloads {
            let systems = self.systems.iter().filter(|one| workload.unfit_for(one).is_none());
            let more = match workload.needs_fresh() {
                true => 1500,
                false if self.restart => 500,
                false => 0,
            };
            let each = per_round + Duration::from_millis(more);
            let rounds = self.rounds_of(workload) * systems.count();
            total += each * u32::try_from(rounds).unwrap_or(u32::MAX);
        }
        total
    }

    /// Memory and start-up vary little, and cost a start each.
    fn rounds_of(&self, workload: &Workload) -> usize {
        if workload.needs_fresh() { 1 } else { self.rounds }
    }

    /// Runs everything; what did not work is in the results.
    pub(crate) fn run(&self, results: &mut Results) -> Result<(), String> {
        let steps: usize = (self.workloads.iter())
            .map(|workload| self.rounds_of(workload) * self.systems.len())
            .sum();
        let bar = ProgressBar::new(steps as u64);
        let style = ProgressStyle::with_template(
            "{elapsed_precise} [{bar:30}] {pos}/{len}, {eta} left: {msg}",
        );
        bar.set_style(style.map_err(|why| why.to_string())?.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        let mut progress =
            Progress { up: HashMap::new(), failures: HashMap::new(), generation: 0, bar };
        for workload in &self.workloads {
            for round in 0..self.rounds_of(workload) {
                // A different first one in each round, so that nobody always follows the same.
                for place in 0..self.systems.len() {
                    let system = &self.systems[(place + round) % self.systems.len()];
                    self.step(workload, system, round, &mut progress, results);
                    progress.bar.inc(1);
                }
            }
            let text = table::of_workload(results, workload);
            progress.bar.suspend(|| println!("{text}"));
            if let Some(path) = &self.json {
                results.save(path)?;
            }
        }
        progress.bar.finish_and_clear();
        Ok(())
    }

    fn step(
        &self,
        workload: &Workload,
        system: &System,
        round: usize,
        progress: &mut Progress,
        results: &mut Results,
    ) {
        let name = system.to_string();
        let failures = progress.failures.get(&name).copied().unwrap_or(0);
        if workload.unfit_for(system).is_some() {
            return;
        }
        if failures >= FAILURES_MAX {
            let why = format!("not tried any more after {failures} failures in a row");
            results.add(&workload.to_string(), &name, Err(why));
            return;
        }
        progress.bar.set_message(format!("{workload}, round {}, {name}", round + 1));
        let measured = self.measure(workload, system, &name, progress);
        match &measured {
            Ok(_) => {
                progress.failures.remove(&name);
            }
            Err(why) => {
                *progress.failures.entry(name.clone()).or_default() += 1;
                progress.bar.suspend(|| eprintln!("{workload}: {name}: {why}"));
                // It starts anew with the next measurement.
                progress.up.remove(&name);
            }
        }
        results.add(&workload.to_string(), &name, measured);
    }

    fn measure(
        &self,
        workload: &Workload,
        system: &System,
        name: &str,
        progress: &mut Progress,
    ) -> Result<std::collections::BTreeMap<String, f64>, String> {
        let mut fresh = None;
        if self.restart {
            progress.up.remove(name);
        }
        if workload.needs_fresh() {
            // One that is up would only disturb.
            progress.up.remove(name);
            fresh = Some(self.start(system, workload.tunnels(), progress)?);
        } else if !progress.up.contains_key(name) {
            let up = self.start(system, 1, progress)?;
            progress.up.insert(name.to_owned(), up);
        }
        progress.generation = progress.generation.wrapping_add(1);
        let generation = progress.generation;
        let up = match &mut fresh {
            Some(up) => up,
            None => progress.up.get_mut(name).ok_or_else(|| "it is not up".to_owned())?,
        };
        let observed = self.observe(workload, up, generation)?;
        if let Some(why) = up.running.ended() {
            return Err(why);
        }
        if observed.left > 0 {
            let left = observed.left;
            let text = format!("{workload}: {name}: {left} connections stand after their end");
            progress.bar.suspend(|| eprintln!("{text}"));
            // What was measured is good; the next one shall not suffer from it.
            progress.up.remove(name);
        }
        Ok(workload.metrics(&observed))
    }

    fn observe(&self, workload: &Workload, up: &Up, generation: u8) -> Result<Observed, String> {
        let depth = match workload {
            Workload::Idle { .. } => Depth::Descriptors,
            _ => Depth::Quick,
        };
        let groups = workload.groups();
        let targets = spread_out(&up.running.public, &groups);
        if workload.needs_fresh() {
            let warm = [Group { role: Role::Hold, conns: WARM_CONNS }];
            let method = Method {
                warm_up: Duration::ZERO,
                window: Duration::from_millis(50),
                ..self.method.clone()
            };
            measure(&self.server, &targets, &warm, generation, &method, || ())?;
            self.server.tally.settle(generation, SETTLE_DEADLINE);
        }
        processes::reset_peaks(&up.running.roots());
        let base = usages(&up.running, depth);
        let mut cpu_s = Vec::new();
        let outcome = measure(&self.server, &targets, &groups, generation, &self.method, || {
            let own = processes::cpu_s(std::process::id());
            cpu_s.push((own, processes::machine_cpu_s()));
            usages(&up.running, depth)
        });
        let left = self.server.tally.settle(generation, SETTLE_DEADLINE);
        let outcome = outcome?;
        let (first, last) = (cpu_s.first().copied(), cpu_s.last().copied());
        let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
        Ok(Observed {
            outcome,
            base,
            own_cpu_s: last.0 - first.0,
            machine_cpu_s: last.1 - first.1,
            start_after: up.start_after,
            left,
        })
    }

    /// Starts it and waits until each tunnel has carried a byte there and back.
    fn start(
        &self,
        system: &System,
        tunnels: usize,
        progress: &mut Progress,
    ) -> Result<Up, String> {
        let begun = Instant::now();
        let running = system.start(&vec![self.server.addr; tunnels], &self.tools)?;
        let mut up = Up { running, start_after: Duration::ZERO };
        let groups = [Group { role: Role::Hold, conns: tunnels }];
        let method = Method {
            warm_up: Duration::ZERO,
            window: Duration::ZERO,
            ready_deadline: Duration::from_secs(5),
            crew: self.method.crew.clone(),
            style: self.method.style,
        };
        loop {
            progress.generation = progress.generation.wrapping_add(1);
            let generation = progress.generation;
            let public = &up.running.public;
            let tried = measure(&self.server, public, &groups, generation, &method, || ());
            match tried {
                Ok(outcome) => {
                    up.start_after = begun.elapsed();
                    drop(outcome);
                    self.server.tally.settle(generation, SETTLE_DEADLINE);
                    return Ok(up);
                }
                Err(why) if begun.elapsed() > START_DEADLINE => {
                    return Err(format!("it never carried a byte: {why}"));
                }
                Err(_) => {
                    if let Some(why) = up.running.ended() {
                        return Err(why);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

fn usages(running: &Running, depth: Depth) -> Vec<Usage> {
    running.sides.iter().map(|side| processes::usage(&side.roots(), depth)).collect()
}

/// As many of the public addresses as there are connections, evenly taken.
fn spread_out(public: &[SocketAddr], groups: &[Group]) -> Vec<SocketAddr> {
    let conns: usize = groups.iter().map(|group| group.conns).sum();
    let wanted = conns.clamp(1, public.len());
    (0..wanted).map(|number| public[number * public.len() / wanted]).collect()
}
