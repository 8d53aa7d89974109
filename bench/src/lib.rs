//! Load generator and comparer: what ZProxy and other relays do on this machine, over loopback.
//!
//! * `load`: the service behind every relay and the clients before it.
//! * `systems`: how each relay is started, and which processes it is.
//! * `processes`: what the kernel says these used.
//! * `workload`: what is asked, and what is made of the answer.
//! * `run`: the interleaved rounds.
//! * `results`, `report`: what is stored, and shown.
#![forbid(unsafe_code)]

mod cli;
mod cpus;
mod load;
mod processes;
mod report;
mod results;
mod run;
mod stats;
mod systems;
mod workload;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use cli::{ReportFlags, RunFlags, Typed, Verb};
use load::client::Method;
use load::crew::Crew;
use load::server::Server;
use report::{markdown, plot, table, targets};
use results::{MethodNote, Results, SystemNote};
use run::Runner;
use systems::{System, Tools};
use workload::Workload;

/// From the first connect of a measurement until all connections have carried a byte.
const READY_DEADLINE: Duration = Duration::from_secs(15);

/// Cores that may be busy with other things before a run is called noisy.
const OTHER_CORES_MAX: f64 = 0.15;

/// Runs the program with the given arguments (the first is the program name).
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    if args.get(1).is_some_and(|arg| arg == systems::RUN_AS_CHILD) {
        return match systems::run_as_child(&args[2..]) {
            Ok(never) => match never {},
            Err(why) => fail(&why),
        };
    }
    let typed = match Typed::try_parse_from(args) {
        Ok(typed) => typed,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    let done = match typed.verb {
        Some(Verb::Report(flags)) => report(&flags).map(|()| true),
        None => compare(&typed.run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("zproxy-bench: {why}");
    ExitCode::FAILURE
}

fn report(flags: &ReportFlags) -> Result<(), String> {
    let results = Results::load(&flags.json)?;
    if flags.markdown {
        print!("{}", markdown::all(&results));
    }
    if flags.targets {
        print!("{}{}", targets::show_floor(&results), targets::show_all(&results));
    }
    if let Some(folder) = &flags.plots {
        let count = plot::write_all(&results, folder)?;
        eprintln!("{count} plots in {}", folder.display());
    }
    if !flags.markdown && !flags.targets && flags.plots.is_none() {
        print!("{}", table::all(&results));
    }
    Ok(())
}

/// Whether everything that is installed did run.
fn compare(flags: &RunFlags) -> Result<bool, String> {
    raise_descriptor_limit();
    let workloads = chosen_workloads(flags)?;
    let wanted = chosen_systems(flags)?;
    let zproxy_dir = zproxy_dir(flags, &wanted)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = |list: &Option<String>| match list {
        Some(list) => cpus::parse(list).map(|cpus| cpus.len()),
        None => Ok(cores),
    };
    let tools = Tools {
        zproxy_dir,
        baseline_dir: flags.baseline_dir.clone(),
        peer_dirs: peer_dirs(flags),
        relay_cpus: flags.relay_cpus.clone(),
        relay_cpu_count: count(&flags.relay_cpus)?,
        zproxy_args: flags.zproxy_arg.clone(),
    };
    let (systems, notes) = present(wanted, &tools);
    if systems.is_empty() {
        return Err("none of the systems is there".to_owned());
    }
    if let Some(list) = &flags.load_cpus {
        cpus::pin(list)?;
    }
    let cpus = cpus::all().map_err(|why| format!("CPUs of this process: {why}"))?;
    let crew = Crew::new(cpus, flags.load_threads.map(usize::from), flags.load_placement);
    let (rounds, window_s) = match () {
        () if flags.quick => (1, 0.5),
        () if flags.floor => (5, 2.0),
        () => (3, 0.7),
    };
    let rounds = flags.rounds.map_or(rounds, usize::from);
    let window_s = flags.window.unwrap_or(window_s);
    let warm_up_s = flags.warm_up.unwrap_or(0.2);
    let note = MethodNote {
        rounds,
        warm_up_s,
        window_s,
        load_threads: flags.load_threads,
        load_placement: flags.load_placement.name().to_owned(),
        load_style: flags.load.name().to_owned(),
        relay_cpus: flags.relay_cpus.clone(),
        load_cpus: flags.load_cpus.clone(),
        zproxy_args: flags.zproxy_arg.clone(),
    };
    let runner = Runner {
        server: Server::start(&crew, flags.load).map_err(|why| format!("service: {why}"))?,
        tools,
        systems,
        workloads,
        rounds,
        restart: flags.restart,
        method: Method {
            warm_up: Duration::from_secs_f64(warm_up_s),
            window: Duration::from_secs_f64(window_s),
            ready_deadline: READY_DEADLINE,
            crew,
            style: flags.load,
        },
        json: flags.json.clone(),
    };
    let mut results = Results::new(note, notes);
    let estimate = runner.estimate().as_secs();
    println!("about {} min {} s\n", estimate / 60, estimate % 60);
    runner.run(&mut results)?;
    print!("{}", targets::show_floor(&results));
    if !flags.floor {
        print!("\n{}", targets::show_all(&results));
    }
    if let Some(warning) = noise(&results) {
        println!("{warning}");
    }
    Ok(tell_failures(&results))
}

/// What to say when the machine was not ours alone.
fn noise(results: &Results) -> Option<String> {
    let others = results.other_cores()?;
    (others.median > OTHER_CORES_MAX).then(|| {
        format!(
            "other programs used {} cores (median; at most {}): compare ratios with care, and \
             believe no absolute number",
            stats::digits(others.median),
            stats::digits(others.max)
        )
    })
}

/// Prints what did not run; whether there was nothing to print.
fn tell_failures(results: &Results) -> bool {
    let failed = results.entries.iter().filter(|entry| !entry.failures.is_empty());
    let mut is_good = true;
    for entry in failed {
        is_good = false;
        let (last, times) = (entry.failures.last(), entry.failures.len());
        println!(
            "did not run: {} on {} ({times} times): {}",
            entry.workload,
            entry.system,
            last.map_or("", String::as_str)
        );
    }
    is_good
}

fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Children inherit it. Where it fails, the workloads with thousands of connections say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn chosen_workloads(flags: &RunFlags) -> Result<Vec<Workload>, String> {
    let all = match () {
        () if flags.quick => Workload::quick(),
        () if flags.floor => Workload::floor(),
        () => Workload::full(),
    };
    if flags.only.is_empty() {
        return Ok(all);
    }
    let mut chosen: Vec<Workload> = Vec::new();
    for pattern in &flags.only {
        let mut meant: Vec<Workload> =
            all.iter().copied().filter(|workload| workload.is_meant_by(pattern)).collect();
        if meant.is_empty() {
            // Beside the usual ones, any that can be named.
            let full = Workload::full().into_iter();
            meant = full.filter(|workload| workload.is_meant_by(pattern)).collect();
        }
        if meant.is_empty() {
            meant = vec![pattern.parse()?];
        }
        for workload in meant {
            if !chosen.contains(&workload) {
                chosen.push(workload);
            }
        }
    }
    Ok(chosen)
}

fn chosen_systems(flags: &RunFlags) -> Result<Vec<System>, String> {
    if let Some(systems) = &flags.systems {
        return Ok(systems.0.clone());
    }
    let names: &[&str] = match flags.floor {
        true => &["zproxy-uring", "zproxy-epoll", "rathole"],
        false => &[
            "zproxy-uring",
            "zproxy-epoll",
            "rathole",
            "bore",
            "ssh",
            "forward-uring",
            "forward-epoll",
            "haproxy",
            "nginx",
            "socat",
            "direct",
        ],
    };
    names.iter().map(|name| name.parse()).collect()
}

/// Those that are there, and a note about all.
fn present(wanted: Vec<System>, tools: &Tools) -> (Vec<System>, Vec<SystemNote>) {
    let mut notes = Vec::new();
    let mut systems = Vec::new();
    for system in wanted {
        let name = system.to_string();
        match system.version(tools) {
            Ok(version) => {
                notes.push(SystemNote { name, version: Some(version), skipped: None });
                systems.push(system);
            }
            Err(why) => {
                println!("skipped: {name} ({why})");
                notes.push(SystemNote { name, version: None, skipped: Some(why) });
            }
        }
    }
    (systems, notes)
}

fn peer_dirs(flags: &RunFlags) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut dirs = flags.peer_dir.clone();
    dirs.extend(std::env::split_paths(&path));
    dirs.extend(home.map(|home| home.join(".cargo/bin")));
    // Daemons live where the path of a user often does not lead.
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs
}

/// Where zproxyd and zproxy are; built first when Cargo runs this program, so that what is measured
/// is exactly what `cargo build --release` makes of this tree.
fn zproxy_dir(flags: &RunFlags, systems: &[System]) -> Result<PathBuf, String> {
    if let Some(dir) = &flags.bin_dir {
        return Ok(dir.clone());
    }
    let own = std::env::current_exe().map_err(|why| why.to_string())?;
    let own_dir = own.parent().ok_or("this program lies nowhere")?.to_owned();
    let is_needed =
        systems.iter().any(|system| matches!(system, System::Zproxy(_) | System::Forward(_)));
    let cargo = std::env::var_os("CARGO");
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    if let (true, Some(cargo), Some(manifest)) = (is_needed, cargo, manifest) {
        eprintln!("building zproxyd and zproxy (release)");
        let mut build = Command::new(cargo);
        build
            .args(["build", "--release", "--locked", "--quiet"])
            .args(["--package", "zproxyd", "--package", "zproxy", "--bins"])
            .current_dir(&manifest);
        if let Some(target_dir) = own_dir.parent() {
            build.arg("--target-dir").arg(target_dir);
        }
        let built = build.status().map_err(|why| format!("cargo: {why}"))?;
        if !built.success() {
            return Err("zproxyd and zproxy could not be built".to_owned());
        }
    }
    Ok(own_dir)
}
