//! `cargo soak --minutes N [--backend uring|epoll]`: both programs under mixed load, churn, kills and
//! cuts, and every few seconds a look at everything that must not grow. This executable starts itself
//! again as gateway and as client.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use zproxy_tests::soak::{self, Settings};
use zproxy_tests::{Backend, World};

/// Mixed load with churn, kills and cuts on one backend; ends with 1 at the first broken law.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// How the programs ask the kernel: uring or epoll.
    #[arg(long, default_value = "uring", value_parser = backend)]
    backend: Backend,
}

fn backend(name: &str) -> Result<Backend, String> {
    let known = [Backend::Uring, Backend::Epoll];
    let found = known.into_iter().find(|backend| backend.name() == name);
    found.ok_or_else(|| "write uring or epoll".to_owned())
}

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|name| name.to_str()) {
        Some("zproxyd") => zproxyd::main(args.split_off(1)),
        Some("zproxy") => zproxy::main(args.split_off(1)),
        _ => soak(&Args::parse()),
    }
}

fn soak(args: &Args) -> ExitCode {
    let exe = std::env::current_exe().expect("this executable has a path");
    let settings = Settings::minutes(args.minutes);
    // A breach is a panic, so that whatever runs is stopped and shows what it has logged.
    let run = || {
        World::run(args.backend, &exe.to_string_lossy(), |world| soak::run(world, settings));
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => {
            eprintln!("soak on {}: a law is broken; the message is above", args.backend.name());
            ExitCode::FAILURE
        }
    }
}
