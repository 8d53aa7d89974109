//! One command that shows ZProxy at work: it starts a gateway, a small web service and a client on
//! this machine, and prints the address under which the service is then reachable.
//!
//! The gateway and the client run as children of this program (the same executable, started again
//! with the name of the program as its first argument), exactly as they would run alone. A child
//! watches its standard input: when the demonstration ends, for whatever reason, that pipe closes
//! and the child stops by itself.
#![forbid(unsafe_code)]

mod child;
mod web;

use std::ffi::OsString;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use child::{Child, ChildError};
use clap::{Parser, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a child may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// How long a child may take to stop after its standard input closed; then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(6);

/// How the two programs ask the kernel to move bytes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backend {
    /// The ring where the kernel allows it, else epoll.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Readiness by epoll.
    Epoll,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Shows ZProxy on this machine: a gateway, a service behind it, and a public address.
#[derive(Parser, Debug)]
#[command(name = "cargo demo", version)]
struct Flags {
    /// Expose this service instead of the built-in web page.
    #[arg(long, value_name = "HOST:PORT")]
    local: Option<String>,
    /// The public port; 0 means any free one.
    #[arg(long, value_name = "P", default_value_t = 0)]
    public_port: u16,
    /// Which kernel interface moves the bytes.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
}

/// Runs the demonstration with the given arguments (the first is the program name), or one of its
/// two children when the second argument is the name of that program.
pub fn main(mut args: Vec<OsString>) -> ExitCode {
    let program = args.get(1).and_then(|name| child::Program::named(name));
    if let Some(program) = program {
        args.remove(0);
        return child::run(program, args);
    }
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(usage) => {
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    match demonstrate(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("demo: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why the demonstration could not go on.
#[derive(Debug)]
enum DemoError {
    Child(ChildError),
    Io(&'static str, std::io::Error),
    ChildEnded(&'static str),
}

impl std::fmt::Display for DemoError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Child(why) => why.fmt(out),
            Self::Io(what, why) => write!(out, "{what}: {why}"),
            Self::ChildEnded(name) => write!(out, "{name} ended by itself; its messages are above"),
        }
    }
}

impl From<ChildError> for DemoError {
    fn from(why: ChildError) -> Self {
        Self::Child(why)
    }
}

fn demonstrate(flags: &Flags) -> Result<(), DemoError> {
    // Registered before the first child exists, so that no Ctrl-C can leave one behind.
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|why| DemoError::Io("watching signals", why))?;
    let state = tempfile::tempdir().map_err(|why| DemoError::Io("a state directory", why))?;
    let token = random_token()?;

    let (local, built_in) = match &flags.local {
        Some(local) => (local.clone(), false),
        None => (start_web_service()?.to_string(), true),
    };
    let mut gateway = start_gateway(flags, state.path(), &token)?;
    let server = gateway.ready_field("zproxyd ready ", "ctl=", READY_DEADLINE)?;
    let mut client = start_client(flags, state.path(), &token, &server, &local)?;
    let public = client.ready_field("tunnel demo ready ", "public=", READY_DEADLINE)?;

    print_invitation(&server, &local, &public, built_in)
        .map_err(|why| DemoError::Io("writing to stdout", why))?;

    let ended = wait_for_end(&mut signals, &mut [&mut gateway, &mut client]);
    // The client goes first: the gateway then has nothing left to drain.
    client.stop(STOP_DEADLINE);
    gateway.stop(STOP_DEADLINE);
    match ended {
        Ended::Asked => {
            println!("demo stopped");
            Ok(())
        }
        Ended::Child(name) => Err(DemoError::ChildEnded(name)),
    }
}

enum Ended {
    Asked,
    Child(&'static str),
}

fn wait_for_end(signals: &mut Signals, children: &mut [&mut Child]) -> Ended {
    loop {
        if signals.pending().next().is_some() {
            return Ended::Asked;
        }
        if let Some(child) = children.iter_mut().find_map(|child| child.ended()) {
            return Ended::Child(child);
        }
        // A person waits for this loop, not a machine: ten looks a second are plenty.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A token of its own for every demonstration, handed to the children in their environment only.
fn random_token() -> Result<String, DemoError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|why| DemoError::Io("making a token", std::io::Error::other(why.to_string())))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn start_web_service() -> Result<SocketAddr, DemoError> {
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .map_err(|why| DemoError::Io("a port for the web service", why))?;
    let addr = listener.local_addr().map_err(|why| DemoError::Io("the web service", why))?;
    web::serve(listener);
    Ok(addr)
}

fn start_gateway(flags: &Flags, state: &std::path::Path, token: &str) -> Result<Child, DemoError> {
    let mut args: Vec<OsString> =
        ["--bind", "127.0.0.1", "--ctl-port", "0", "--proxy-port", "0"].map(OsString::from).into();
    args.extend(["--backend", flags.backend.name(), "--drain-timeout", "2"].map(OsString::from));
    args.extend(["--state-dir".into(), state.join("zproxyd").into_os_string()]);
    Ok(Child::start(child::Program::Zproxyd, args, token)?)
}

fn start_client(
    flags: &Flags,
    state: &std::path::Path,
    token: &str,
    server: &str,
    local: &str,
) -> Result<Child, DemoError> {
    let port = flags.public_port.to_string();
    let mut args: Vec<OsString> =
        ["--server", server, "--local", local, "--name", "demo", "--public-port", &port]
            .map(OsString::from)
            .into();
    args.extend(["--backend", flags.backend.name()].map(OsString::from));
    args.extend(["--state-dir".into(), state.join("zproxy").into_os_string()]);
    Ok(Child::start(child::Program::Zproxy, args, token)?)
}

fn print_invitation(
    server: &str,
    local: &str,
    public: &str,
    built_in: bool,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out)?;
    writeln!(out, "  gateway  {server}")?;
    writeln!(out, "  service  {local}{}", if built_in { "  (built in)" } else { "" })?;
    writeln!(out)?;
    writeln!(out, "  public   http://{public}/")?;
    writeln!(out, "  try      curl http://{public}/hello")?;
    writeln!(out)?;
    writeln!(out, "  Ctrl-C stops all of it.")?;
    out.flush()
}
