//! The program that runs beside the service: it exposes local services through a gateway, or
//! forwards ports in one hop.
//!
//! * [`cli`], [`config`]: what the operator typed and what it means.
//! * `control`: the ctl_conn, the tunnels, and the orders to the data cores.
//! * `worker`: a data core with its proxy_conns and local conns.
//! * `mailbox`: what the two tell each other.
//! * `identity`: who this client is, from run to run.
//! * `forward`: listen here, connect there, without a gateway.
//! * `resolver`, `targets`, `dial`: from a name to a connection.
//! * `accept`, `flows`, `deadlines`: what the life of every flow needs.
#![forbid(unsafe_code)]

/// Marks a rare place, so that a simulation can tell that it came by. Nothing in a release build.
macro_rules! mark {
    ($name:literal) => {
        #[cfg(all(feature = "sim", debug_assertions))]
        zproxy_io::sim::mark($name);
    };
}

mod accept;
pub mod cli;
pub mod config;
mod control;
mod deadlines;
mod dial;
mod flows;
mod forward;
mod identity;
mod mailbox;
mod random;
mod resolver;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod sim;
mod targets;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use zproxy_io::{Epoll, Uring};
use zproxy_ops::boot::{self, Chosen};
use zproxy_ops::{Exit, token};

use cli::{Command, PROGRAM};
use config::{ForwardSettings, Settings};
use identity::Identity;

/// Runs the program with the given arguments (the first is the program name).
pub fn main(args: Vec<OsString>) -> ExitCode {
    run(args).map_or_else(|exit| exit.print(PROGRAM), |()| ExitCode::SUCCESS)
}

fn run(args: Vec<OsString>) -> Result<(), Exit> {
    match cli::parse(args)? {
        Command::Serve(settings) => serve(&settings),
        Command::Forward(settings) => forward(&settings),
    }
}

fn serve(settings: &Settings) -> Result<(), Exit> {
    settings.privileges.prepare()?;
    let token = token::load(&settings.token.token)?;
    let identity = Identity::load(&settings.token.state_dir);
    let _log = settings.privileges.enter(&settings.log, PROGRAM)?;
    settings.privileges.settle(false);
    boot::prepare_process();
    // The data cores and the control thread.
    let threads = settings.data.cores.len() + 1;
    match boot::choose(settings.data.backend, settings.data.relay, threads)? {
        Chosen::Uring => control::serve::<Uring>(settings, &token, identity),
        Chosen::Epoll => control::serve::<Epoll>(settings, &token, identity),
    }
}

fn forward(settings: &ForwardSettings) -> Result<(), Exit> {
    settings.privileges.prepare()?;
    let _log = settings.privileges.enter(&settings.log, PROGRAM)?;
    boot::prepare_process();
    // The data cores and the control thread.
    let threads = settings.data.cores.len() + 1;
    match boot::choose(settings.data.backend, settings.data.relay, threads)? {
        Chosen::Uring => forward::serve::<Uring>(settings),
        Chosen::Epoll => forward::serve::<Epoll>(settings),
    }
}
