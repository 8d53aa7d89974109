//! The gateway daemon. `main` is the whole program; the binary only calls it.
//!
//! Floors inside: [`cli`] and [`config`] understand what the operator wants, `serve` starts the
//! threads, `control` is the control core, `worker` a data core, `mailbox` what they tell each other.

#![forbid(unsafe_code)]

/// Marks a rare place, so that a simulation can tell that it came by. Nothing in a release build.
macro_rules! mark {
    ($name:literal) => {
        #[cfg(all(feature = "sim", debug_assertions))]
        zproxy_io::sim::mark($name);
    };
}

pub mod check;
pub mod cli;
pub mod config;
mod control;
mod listeners;
mod mailbox;
mod random;
mod serve;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sim;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use zproxy_io::{Epoll, Uring};
use zproxy_ops::boot::{self, Chosen};
use zproxy_ops::{Code, Exit, token};

use cli::Command;
use config::Settings;

const PROGRAM: &str = "zproxyd";

/// Runs the program with the given arguments (the first is the program name).
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let result = match cli::parse(args) {
        Ok(Command::Serve(settings)) => run(&settings),
        Ok(Command::Check(settings)) => return check::run(&settings),
        Err(exit) => Err(exit),
    };
    match result {
        Ok(()) => Code::Fine.into(),
        Err(exit) => exit.print(PROGRAM),
    }
}

/// What a map holds, in an order that is the same in every run with the same events.
fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items
}

fn run(settings: &Settings) -> Result<(), Exit> {
    settings.privileges.prepare()?;
    let found = token::load_or_create(&settings.token.token, &settings.token.state_dir)?;
    // Dropped last, so that the last lines are written.
    let _guard = settings.privileges.enter(&settings.log, PROGRAM)?;
    boot::prepare_process();
    // The data cores and the control thread.
    let threads = settings.data.cores.len() + 1;
    match boot::choose(settings.data.backend, settings.data.relay, threads)? {
        Chosen::Uring => serve::serve::<Uring>(settings, found),
        Chosen::Epoll => serve::serve::<Epoll>(settings, found),
    }
}
