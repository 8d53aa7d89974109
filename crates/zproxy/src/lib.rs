//! The program that runs beside the service: it exposes local services through a gateway, or
//! forwards ports in one hop.
//!
//! * [`cli`], [`config`]: what the operator typed and what it means.
//! * `forward`: listen here, connect there.
//! * `resolver`, `targets`, `dial`: from a name to a connection.
//! * `accept`, `flows`: what is the same for every flow.
#![forbid(unsafe_code)]

mod accept;
pub mod cli;
pub mod config;
mod dial;
mod flows;
mod forward;
mod resolver;
mod targets;

use std::ffi::OsString;
use std::process::ExitCode;

use zproxy_io::{Epoll, Uring};
use zproxy_ops::boot::{self, Chosen};
use zproxy_ops::{Exit, logs};

use cli::{Command, PROGRAM};
use config::ForwardSettings;

/// Runs the program with the given arguments (the first is the program name).
pub fn main(args: Vec<OsString>) -> ExitCode {
    run(args).map_or_else(|exit| exit.print(PROGRAM), |()| ExitCode::SUCCESS)
}

fn run(args: Vec<OsString>) -> Result<(), Exit> {
    match cli::parse(args)? {
        Command::Serve(_) => Err(Exit::failed("not here yet")),
        Command::Forward(settings) => forward(&settings),
    }
}

fn forward(settings: &ForwardSettings) -> Result<(), Exit> {
    let _log = logs::start(&settings.log, PROGRAM)?;
    boot::prepare_process();
    match boot::choose(settings.data.backend, settings.data.relay)? {
        Chosen::Uring => forward::serve::<Uring>(settings),
        Chosen::Epoll => forward::serve::<Epoll>(settings),
    }
}
