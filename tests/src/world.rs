//! The surroundings of one test: backend, directory, token, addresses.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::program::Program;
use crate::programs::{ClientPlan, Forward, Gateway, GatewayPlan};

/// The variable that says that a machine without io_uring is fine.
const NO_URING: &str = "ZPROXY_TESTS_NO_URING";
/// The variable that names the path of every byte: `auto`, `splice` or `copy`.
const RELAY: &str = "ZPROXY_TESTS_RELAY";

/// Which kernel interface the programs under test use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    Uring,
    /// Readiness.
    Epoll,
}

impl Backend {
    /// Its name on the command line and in ready lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Which path the bytes take in the programs under test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relay {
    /// What suits each direction at each moment.
    #[default]
    Auto,
    /// Through pipes.
    Splice,
    /// Through buffers.
    Copy,
}

impl Relay {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Splice, Self::Copy];

    /// Its name on the command line and in config files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Copy => "copy",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|relay| relay.name() == name)
    }

    /// The one that `ZPROXY_TESTS_RELAY` names; `auto`, as in the programs, without that variable.
    fn wanted() -> Self {
        let Some(name) = std::env::var_os(RELAY) else { return Self::default() };
        let found = name.to_str().and_then(Self::named);
        found.unwrap_or_else(|| panic!("{RELAY} is {name:?}: write auto, splice or copy"))
    }
}

/// The surroundings of one test.
#[derive(Debug)]
pub struct World {
    backend: Backend,
    relay: Relay,
    exe: PathBuf,
    dir: TempDir,
    token: String,
    serial: AtomicU32,
}

impl World {
    /// Runs one scenario on one backend.
    ///
    /// # Panics
    /// When the machine cannot run the backend, unless `ZPROXY_TESTS_NO_URING` allows that; when
    /// `ZPROXY_TESTS_RELAY` names no path.
    pub fn run(backend: Backend, exe: &str, scenario: impl FnOnce(&Self)) {
        let relay = Relay::wanted();
        if backend == Backend::Uring && std::env::var_os(NO_URING).is_some() {
            eprintln!("skipped: {NO_URING} is set");
            return;
        }
        raise_descriptor_limit();
        let world = Self {
            backend,
            relay,
            exe: PathBuf::from(exe),
            dir: tempfile::tempdir().expect("a temporary directory"),
            token: "an-e2e-token-that-is-long-enough-0123456789".to_owned(),
            serial: AtomicU32::new(0),
        };
        scenario(&world);
    }

    /// The backend under test.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The path that bytes take unless a plan names another.
    #[must_use]
    pub fn relay(&self) -> Relay {
        self.relay
    }

    /// The test's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The token that gateways and clients of this world share.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The multi-call executable.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// A number that is new each time.
    pub fn next(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes a file into the test's directory and gives its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, text).expect("writing a file of the test");
        path
    }

    /// The data cores for a program: at most two, those this process may use.
    #[must_use]
    pub fn cores(&self) -> String {
        let cores: Vec<String> =
            crate::proc::cores().iter().take(2).map(ToString::to_string).collect();
        cores.join(",")
    }

    /// The number of data cores in [`World::cores`].
    #[must_use]
    pub fn cores_count(&self) -> usize {
        self.cores().split(',').count()
    }

    /// A gateway on loopback with any free ports, not started yet.
    #[must_use]
    pub fn gateway(&self) -> GatewayPlan {
        GatewayPlan::new(self)
    }

    /// A client of that gateway, not started yet.
    #[must_use]
    pub fn client(&self, gateway: &Gateway) -> ClientPlan {
        ClientPlan::new(self, gateway.ctl)
    }

    /// `zproxy forward` to that target, started.
    #[must_use]
    pub fn forward(&self, to: &str) -> Forward {
        Forward::start(self, to)
    }

    /// Any of the two programs with these arguments and nothing else, for the cases that fail early.
    #[must_use]
    pub fn bare(&self, program: &str, args: &[&str]) -> Program {
        let mut all = vec![program.into()];
        all.extend(args.iter().map(Into::into));
        Program::start(program, &self.exe, &all, &[("ZPROXY_TOKEN", &self.token)], None)
    }

    /// Runs [`World::bare`] to its end; gives the exit code, stdout and stderr.
    #[must_use]
    pub fn run_to_end(&self, program: &str, args: &[&str]) -> (i32, String, String) {
        let mut program = self.bare(program, args);
        let code = program.wait_exit(Duration::from_secs(20));
        (code, program.out.text(), program.err.text())
    }
}

/// A loopback address that no other test of this machine uses, likely.
#[must_use]
pub fn own_loopback() -> IpAddr {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let place = std::process::id().wrapping_mul(61).wrapping_add(serial);
    let [_, _, high, low] = place.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 + (high >> 2), low, 1 + (high & 3)))
}

/// Ten ports in a row that nobody used a moment ago, away from those that the kernel gives to
/// outgoing connections, for tests whose programs must find the same port again after a restart.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn own_ports() -> RangeInclusive<u16> {
    ten_ports(20_000, 1_000)
}

/// As [`own_ports`], of those for which a program needs a capability.
///
/// # Panics
/// When there are none, or the test may not listen there either.
#[must_use]
pub fn own_low_ports() -> RangeInclusive<u16> {
    ten_ports(600, 40)
}

/// Ten ports in a row behind `first`, of so many tens.
fn ten_ports(first: u16, tens: u32) -> RangeInclusive<u16> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    for _ in 0..200 {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(37).wrapping_add(serial) % tens;
        let first = first + u16::try_from(place).expect("small") * 10;
        let mut range = first..=first + 9;
        if range.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first..=first + 9;
        }
    }
    panic!("no ten free ports in a row");
}

/// Held by tests that load the machine so much that two at once would starve each other.
pub fn heavy_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed while it held the turn has told its story already.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tests with thousands of connections hold both ends of each.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("raising the soft limit to the hard one");
}
