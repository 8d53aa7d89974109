//! The gateway and the client as children of the demonstration.
//!
//! A child never outlives its parent: it holds the reading end of a pipe whose only writing end is
//! the parent's, and takes the end of that pipe for a request to stop.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

/// The two programs the demonstration starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Zproxyd,
    Zproxy,
}

impl Program {
    /// The program that a child is asked to be by its first argument, if it is a child.
    pub(crate) fn named(name: &OsStr) -> Option<Self> {
        match name.to_str()? {
            "demo-child-zproxyd" => Some(Self::Zproxyd),
            "demo-child-zproxy" => Some(Self::Zproxy),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Zproxyd => "zproxyd",
            Self::Zproxy => "zproxy",
        }
    }
}

/// Why a child is of no use.
#[derive(Debug)]
pub(crate) enum ChildError {
    Start(&'static str, std::io::Error),
    Ended(&'static str),
    Silent(&'static str, Duration),
    Strange(&'static str, String),
}

impl std::fmt::Display for ChildError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start(name, why) => write!(out, "{name} could not be started: {why}"),
            Self::Ended(name) => write!(out, "{name} ended before it was ready"),
            Self::Silent(name, waited) => {
                write!(out, "{name} was not ready after {} s", waited.as_secs())
            }
            Self::Strange(name, line) => write!(out, "{name} said something unexpected: {line}"),
        }
    }
}

/// Runs one of the two programs inside a child; `args` begin with the program's name.
pub(crate) fn run(program: Program, mut args: Vec<OsString>) -> ExitCode {
    args[0] = program.name().into();
    std::thread::spawn(|| {
        let mut ignored = [0; 64];
        while matches!(std::io::stdin().read(&mut ignored), Ok(n) if n > 0) {}
        // The parent is done, or gone. A first signal drains, a second one ends the draining: the
        // demonstration has no flow worth waiting for.
        for _ in 0..2 {
            let _ = signal_hook::low_level::raise(SIGTERM);
        }
    });
    match program {
        Program::Zproxyd => zproxyd::main(args),
        Program::Zproxy => zproxy::main(args),
    }
}

/// A running child; dropping it stops it.
pub(crate) struct Child {
    name: &'static str,
    process: std::process::Child,
    lifeline: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Child {
    /// Starts this executable again as `program`.
    pub(crate) fn start(
        program: Program,
        args: Vec<OsString>,
        token: &str,
    ) -> Result<Self, ChildError> {
        let name = program.name();
        let failed = |why| ChildError::Start(name, why);
        let mut process = Command::new(std::env::current_exe().map_err(failed)?)
            .arg(format!("demo-child-{name}"))
            .args(args)
            .env("ZPROXY_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C reaches the whole foreground group; only the parent shall act on it, so that
            // the children stop in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let lifeline = process.stdin.take();
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = process.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // The reader goes on when nobody listens, so that the child never blocks.
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self { name, process, lifeline, lines })
    }

    /// Waits for the line that begins with `prefix` and hands out the value of `field` in it.
    pub(crate) fn ready_field(
        &mut self,
        prefix: &str,
        field: &str,
        within: Duration,
    ) -> Result<String, ChildError> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with(prefix) => {
                    let value = line.split(' ').find_map(|word| word.strip_prefix(field));
                    return match value {
                        Some(value) => Ok(value.to_owned()),
                        None => Err(ChildError::Strange(self.name, line)),
                    };
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(ChildError::Silent(self.name, within));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(ChildError::Ended(self.name)),
            }
        }
    }

    /// The child's name, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<&'static str> {
        matches!(self.process.try_wait(), Ok(Some(_))).then_some(self.name)
    }

    /// Asks the child to stop, waits, and kills it when it does not.
    pub(crate) fn stop(&mut self, within: Duration) {
        self.lifeline = None;
        let until = Instant::now() + within;
        while self.ended().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.ended().is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(2));
    }
}
