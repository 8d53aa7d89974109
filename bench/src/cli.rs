//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::load::bulk::Style;
use crate::load::crew::Placement;
use crate::systems::System;

/// Compares ZProxy with other relays on this machine, over loopback.
///
/// Without flags the whole comparison runs, in under 15 minutes on two cores. What is not installed
/// is skipped by name.
#[derive(Debug, Parser)]
#[command(name = "zproxy-bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Typed {
    #[command(flatten)]
    pub(crate) run: RunFlags,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make tables or plots of the results of an earlier run
    Report(ReportFlags),
}

/// What to run, and how.
#[derive(Args, Debug)]
pub(crate) struct RunFlags {
    /// A smaller comparison, in under three minutes
    #[arg(long, conflicts_with = "floor")]
    pub(crate) quick: bool,

    /// Only what the floor is about: bulk with 8 connections and the smallest echo, on both
    /// backends and rathole, with the ratios
    #[arg(long)]
    pub(crate) floor: bool,

    /// Workloads by name or beginning, such as bulk,echo-64-1,tunnels-50
    #[arg(long, value_name = "WORKLOAD,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Systems by name, such as zproxy-uring,zproxy-epoll-splice,forward-uring@0,rathole
    #[arg(long, value_name = "A,B,…", value_parser = parse_systems)]
    pub(crate) systems: Option<Systems>,

    /// Rounds per workload [default: 3, quick: 1, floor: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: Option<u16>,

    /// Seconds that are measured, per round [default: 0.7, quick: 0.5, floor: 2]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    pub(crate) window: Option<f64>,

    /// Seconds of warm-up before [default: 0.2]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    pub(crate) warm_up: Option<f64>,

    /// Start the programs anew for every measurement: what chance decides at a start, such as which
    /// cores talk to each other, is then drawn again in each round
    #[arg(long)]
    pub(crate) restart: bool,

    /// How the load generator touches bulk bytes; light leaves more of the machine to the relay
    #[arg(long, value_enum, default_value_t = Style::Plain)]
    pub(crate) load: Style,

    /// Where the threads of the load generator that handle small messages run: spread over its CPUs
    /// and kept there, as a network card spreads visitors, or floating
    #[arg(long, value_enum, default_value_t)]
    pub(crate) load_placement: Placement,

    /// Threads of the load generator per kind of client, and of the service, all floating [default:
    /// for small messages one per CPU if they are spread; otherwise half as many as CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) load_threads: Option<u16>,

    /// CPUs for the programs under test, such as 0-7
    #[arg(long, value_name = "LIST", requires = "load_cpus")]
    pub(crate) relay_cpus: Option<String>,

    /// CPUs for the load generator, such as 8-31
    #[arg(long, value_name = "LIST", requires = "relay_cpus")]
    pub(crate) load_cpus: Option<String>,

    /// Folder with zproxyd and zproxy [default: they are built]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,

    /// Folder with zproxyd and zproxy of another build, for the systems baseline-…
    #[arg(long, value_name = "DIR")]
    pub(crate) baseline_dir: Option<PathBuf>,

    /// Folder searched for peers before PATH and ~/.cargo/bin; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(crate) peer_dir: Vec<PathBuf>,

    /// An argument for zproxyd and zproxy; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) zproxy_arg: Vec<String>,

    /// Store the results here
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What to make of results.
#[derive(Args, Debug)]
pub(crate) struct ReportFlags {
    /// The results
    #[arg(long, value_name = "FILE")]
    pub(crate) json: PathBuf,

    /// Print tables in Markdown
    #[arg(long)]
    pub(crate) markdown: bool,

    /// Print what was promised next to what was measured
    #[arg(long)]
    pub(crate) targets: bool,

    /// Write plots (SVG) into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

/// The systems to compare, each once, in order.
#[derive(Clone, Debug)]
pub(crate) struct Systems(pub(crate) Vec<System>);

/// A comma stands between systems, and within a list of cores: a word that begins with a digit
/// belongs to the system before it.
fn parse_systems(text: &str) -> Result<Systems, String> {
    let mut names: Vec<String> = Vec::new();
    for word in text.split(',') {
        match names.last_mut() {
            Some(last) if last.contains('@') && word.starts_with(|c: char| c.is_ascii_digit()) => {
                last.push(',');
                last.push_str(word);
            }
            _ => names.push(word.to_owned()),
        }
    }
    let mut systems: Vec<System> = Vec::new();
    for name in names {
        let system = name.parse()?;
        if !systems.contains(&system) {
            systems.push(system);
        }
    }
    Ok(Systems(systems))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    match (0.0..=600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("from 0 to 600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commas within a list of cores do not end the system's name.
    #[test]
    fn lists_of_systems() {
        let systems = parse_systems("zproxy-uring@0,2-3,rathole,rathole,direct").expect("systems");
        let names: Vec<String> = systems.0.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["zproxy-uring@0,2-3", "rathole", "direct"]);
        assert!(parse_systems("rathole,frp").is_err_and(|why| why.contains("frp")));
    }

    /// The command line is consistent in itself.
    #[test]
    fn flags_are_sound() {
        use clap::CommandFactory;
        Typed::command().debug_assert();
    }
}
