//! Programs under test as children that never outlive the bench.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

use crate::cpus;
use crate::processes;

/// The first argument by which this program becomes another one.
pub(crate) const RUN_AS_CHILD: &str = "__run";

/// How long a program may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(20);

/// Becomes the program that `args` names, behind the CPUs it may use (or `all`).
///
/// In between, the kernel is asked to end it together with the bench, however that ends.
pub(crate) fn run_as_child(args: &[OsString]) -> Result<std::convert::Infallible, String> {
    let [cpus, program, args @ ..] = args else { return Err("a program is missing".to_owned()) };
    if let Some(list) = cpus.to_str().filter(|list| *list != "all") {
        cpus::pin(list)?;
    }
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|why| why.to_string())?;
    let why = Command::new(program).args(args).exec();
    Err(format!("{}: {why}", program.to_string_lossy()))
}

/// What to start.
pub(super) struct Start {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(&'static str, String)>,
    pub(super) cpus: Option<String>,
}

impl Start {
    pub(super) fn new(program: PathBuf, cpus: Option<&String>) -> Self {
        Self { program, args: Vec::new(), env: Vec::new(), cpus: cpus.cloned() }
    }

    pub(super) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(super) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(super) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Starts it with its output in a file of `folder`.
    pub(super) fn spawn(self, folder: &Folder) -> Result<Child, String> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |why: std::io::Error| format!("{name} could not be started: {why}");
        let number = fs::read_dir(folder.path()).map_or(0, Iterator::count);
        let output = folder.path().join(format!("{name}-{number}.log"));
        let file = File::create(&output).map_err(failed)?;
        let process = Command::new(std::env::current_exe().map_err(failed)?)
            .arg(RUN_AS_CHILD)
            .arg(self.cpus.as_deref().unwrap_or("all"))
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // A Ctrl-C at the terminal is for the bench.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Child { name, process, output, folder: folder.clone() })
    }
}

/// A folder for configuration and output, shared by the children that use it.
#[derive(Clone)]
pub(super) struct Folder(std::sync::Arc<TempDir>);

impl Folder {
    pub(super) fn new() -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("zproxy-bench-").tempdir();
        Ok(Self(std::sync::Arc::new(folder.map_err(|why| format!("no folder: {why}"))?)))
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    /// Writes a file and hands out its path.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let path = self.path().join(name);
        fs::write(&path, text).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(path)
    }
}

/// A running program.
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    output: PathBuf,
    #[allow(dead_code, reason = "kept so that the folder lives as long as the program")]
    folder: Folder,
}

impl Child {
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has said so far.
    pub(super) fn said(&self) -> String {
        fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Why it is of no more use, if it has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.process.try_wait() {
            Ok(Some(status)) => {
                let said = self.said();
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                Some(format!("{} ended ({status}): {}", self.name, last.unwrap_or("no word")))
            }
            _ => None,
        }
    }

    /// Waits until `parse` finds what it looks for in the program's output.
    pub(super) fn wait_for<T>(&mut self, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + READY_DEADLINE;
        loop {
            if let Some(found) = parse(&self.said()) {
                return Ok(found);
            }
            if let Some(why) = self.ended() {
                return Err(why);
            }
            if Instant::now() >= until {
                return Err(format!("{} was not ready in time", self.name));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The whole tree, because a killed master leaves its workers behind.
        for pid in processes::tree(&[self.pid()]) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.process.wait();
    }
}

/// Ports that are free at the moment, all different.
pub(super) fn free_ports(count: usize) -> Result<Vec<u16>, String> {
    let listeners: Result<Vec<_>, _> =
        (0..count).map(|_| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))).collect();
    let ports: Result<Vec<u16>, _> =
        listeners.and_then(|all| all.iter().map(|one| Ok(one.local_addr()?.port())).collect());
    ports.map_err(|why| format!("no free port: {why}"))
}
