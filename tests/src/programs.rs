//! The gateway and the client with the settings of a test, and what they say when they are ready.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::program::Program;
use crate::world::{Relay, World};

/// How long a program may take until it is ready, on a machine under load.
pub const READY_DEADLINE: Duration = Duration::from_secs(20);

/// The value of `key=` in a line of words; quotes around it are not part of it.
#[must_use]
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let value = line.split([' ', ',']).find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.map(|value| value.trim_matches('"'))
}

fn addr_field(line: &str, key: &str) -> SocketAddr {
    let value = field(line, key).unwrap_or_else(|| panic!("no {key}= in: {line}"));
    value.parse().unwrap_or_else(|why| panic!("{key}={value} is no address ({why}) in: {line}"))
}

/// Without root, nobody may look into `/proc/PID/fd` of a process that leaves no core dumps, not even
/// its own user; so these tests allow them.
fn open_to_looks() -> Option<OsString> {
    (!rustix::process::geteuid().is_root()).then(|| "--allow-core-dumps".into())
}

/// How a program will ask the kernel: what gateways, clients and forwards are told alike.
#[derive(Clone, Debug)]
struct Engine {
    backend: &'static str,
    cores: String,
    relay: Relay,
}

impl Engine {
    fn new(world: &World) -> Self {
        Self { backend: world.backend().name(), cores: world.cores(), relay: world.relay() }
    }

    fn args(&self) -> [&str; 6] {
        ["--backend", self.backend, "--cores", &self.cores, "--relay", self.relay.name()]
    }
}

/// How a gateway will be started.
#[derive(Clone, Debug)]
pub struct GatewayPlan {
    exe: PathBuf,
    engine: Engine,
    env: Option<(&'static str, String)>,
    state_dir: PathBuf,
    bind: IpAddr,
    ctl_port: u16,
    proxy_port: u16,
    args: Vec<OsString>,
    descriptors_max: Option<u32>,
    launcher: Vec<OsString>,
}

/// An executable and its arguments, behind the words of a launcher if there is one.
fn launched(launcher: &[OsString], exe: &Path, args: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
    let Some((first, rest)) = launcher.split_first() else { return (exe.to_owned(), args) };
    let mut words = rest.to_vec();
    words.push(exe.as_os_str().to_owned());
    words.extend(args);
    (first.into(), words)
}

impl GatewayPlan {
    pub(crate) fn new(world: &World) -> Self {
        Self {
            exe: world.exe().to_owned(),
            engine: Engine::new(world),
            env: Some(("ZPROXY_TOKEN", world.token().to_owned())),
            state_dir: world.dir().join(format!("zproxyd-{}", world.next())),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ctl_port: 0,
            proxy_port: 0,
            args: Vec::new(),
            descriptors_max: None,
            launcher: Vec::new(),
        }
    }

    /// More arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Another backend than the world's.
    #[must_use]
    pub fn backend(mut self, backend: &'static str) -> Self {
        self.engine.backend = backend;
        self
    }

    /// This path for the bytes, whatever the world's.
    #[must_use]
    pub fn relay(mut self, relay: Relay) -> Self {
        self.engine.relay = relay;
        self
    }

    /// One data core, for limits that each data core has of its own.
    #[must_use]
    pub fn one_core(mut self) -> Self {
        let cores = &mut self.engine.cores;
        cores.truncate(cores.find(',').unwrap_or(cores.len()));
        self
    }

    /// No token in the environment.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.env = None;
        self
    }

    /// The most descriptors the process may have.
    #[must_use]
    pub fn descriptors_max(mut self, max: u32) -> Self {
        self.descriptors_max = Some(max);
        self
    }

    /// Another address for all listeners.
    #[must_use]
    pub fn bind(mut self, bind: IpAddr) -> Self {
        self.bind = bind;
        self
    }

    /// Words before the executable, such as those that run it elsewhere.
    #[must_use]
    pub fn launcher(mut self, launcher: Vec<OsString>) -> Self {
        self.launcher = launcher;
        self
    }

    /// Fixed ports instead of any.
    #[must_use]
    pub fn ports(mut self, ctl_port: u16, proxy_port: u16) -> Self {
        self.ctl_port = ctl_port;
        self.proxy_port = proxy_port;
        self
    }

    /// Where the gateway keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Starts the process and does not wait.
    #[must_use]
    pub fn spawn(&self) -> Program {
        self.spawn_under(&[])
    }

    /// As [`GatewayPlan::spawn`], with words before the program's name.
    #[must_use]
    pub fn spawn_under(&self, prefix: &[&str]) -> Program {
        let (ctl, proxy) = (self.ctl_port.to_string(), self.proxy_port.to_string());
        let bind = self.bind.to_string();
        let mut args: Vec<OsString> = prefix.iter().map(Into::into).collect();
        args.extend(["zproxyd", "--bind", &bind, "--ctl-port", &ctl].map(Into::into));
        args.extend(["--proxy-port", &proxy].map(Into::into));
        args.extend(self.engine.args().map(Into::into));
        args.push("--state-dir".into());
        args.push(self.state_dir.clone().into_os_string());
        args.extend(open_to_looks());
        args.extend(self.args.iter().cloned());
        let env: Vec<(&str, &str)> =
            self.env.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let (exe, args) = launched(&self.launcher, &self.exe, args);
        Program::start("zproxyd", &exe, &args, &env, self.descriptors_max)
    }

    /// Starts the gateway and waits until it is ready.
    #[must_use]
    pub fn start(self) -> Gateway {
        self.start_under(&[])
    }

    /// As [`GatewayPlan::start`], with words before the program's name.
    #[must_use]
    pub fn start_under(self, prefix: &[&str]) -> Gateway {
        let program = self.spawn_under(prefix);
        Gateway::ready(program, self)
    }
}

/// A gateway that is ready.
#[derive(Debug)]
pub struct Gateway {
    program: Program,
    plan: GatewayPlan,
    /// Where it listens for ctl_conns.
    pub ctl: SocketAddr,
    /// Where it listens for proxy_conns.
    pub proxy: SocketAddr,
    /// The line it printed when it was ready.
    pub ready_line: String,
}

impl Gateway {
    fn ready(program: Program, plan: GatewayPlan) -> Self {
        let line = program
            .out
            .wait_for("zproxyd ready", READY_DEADLINE, |line| line.starts_with("zproxyd ready "));
        let (ctl, proxy) = (addr_field(&line, "ctl"), addr_field(&line, "proxy"));
        Self { program, plan, ctl, proxy, ready_line: line }
    }

    /// Kills the gateway and starts it again on the same ports with the same state.
    pub fn kill9_and_restart(&mut self) {
        self.program.kill9();
        self.start_again();
    }

    /// Starts the gateway, which has ended, again on the same ports with the same state.
    ///
    /// # Panics
    /// When it does not come up. Another test may hold the port for a moment as the number of an
    /// outgoing connection, so a failed start is tried again.
    pub fn start_again(&mut self) {
        let plan = self.plan.clone().ports(self.ctl.port(), self.proxy.port());
        let until = Instant::now() + READY_DEADLINE;
        loop {
            let mut program = plan.spawn();
            let ready = crate::clock::eventually_some("ready or ended", READY_DEADLINE, || {
                let ready = !program.out.is_empty();
                (ready || program.try_exit().is_some()).then_some(ready)
            });
            if ready {
                *self = Self::ready(program, plan);
                return;
            }
            assert!(Instant::now() < until, "no restart: {}", program.err.text());
        }
    }
}

impl Deref for Gateway {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Gateway {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// The lines that a gateway has logged about ended flows.
#[must_use]
pub fn flow_ends(gateway: &Gateway) -> Vec<String> {
    gateway.err.matching(is_flow_end)
}

/// True for the line that a gateway logs when a flow ends.
#[must_use]
pub fn is_flow_end(line: &str) -> bool {
    field(line, "flow").is_some() && field(line, "end").is_some()
}

/// One tunnel as the client announced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub name: String,
    /// Where the public reaches it.
    pub public: SocketAddr,
    /// What it leads to, as it was configured.
    pub local: String,
}

impl Tunnel {
    /// Reads `tunnel NAME ready public=ADDR:PORT local=HOST:PORT`.
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.strip_prefix("tunnel ")?.split_once(" ready ")?;
        let local = field(rest, "local")?.to_owned();
        Some(Self { name: name.to_owned(), public: addr_field(rest, "public"), local })
    }
}

/// How a client will be started.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    exe: PathBuf,
    engine: Engine,
    token: Option<String>,
    state_dir: PathBuf,
    server: String,
    tunnels: usize,
    args: Vec<OsString>,
    launcher: Vec<OsString>,
    prefix: Vec<OsString>,
}

impl ClientPlan {
    pub(crate) fn new(world: &World, server: SocketAddr) -> Self {
        Self {
            exe: world.exe().to_owned(),
            engine: Engine::new(world),
            token: Some(world.token().to_owned()),
            state_dir: world.dir().join(format!("zproxy-{}", world.next())),
            server: server.to_string(),
            tunnels: 1,
            args: Vec::new(),
            launcher: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Where the client finds the gateway.
    #[must_use]
    pub fn server(mut self, server: SocketAddr) -> Self {
        self.server = server.to_string();
        self
    }

    /// Under which name and port the client finds the gateway.
    #[must_use]
    pub fn server_name(mut self, server: &str) -> Self {
        server.clone_into(&mut self.server);
        self
    }

    /// Words before the executable, such as those that run it elsewhere.
    #[must_use]
    pub fn launcher(mut self, launcher: Vec<OsString>) -> Self {
        self.launcher = launcher;
        self
    }

    /// The one service to expose, under the name `main`.
    #[must_use]
    pub fn local(self, local: &str) -> Self {
        self.args(["--local", local, "--name", "main"])
    }

    /// The public port to ask for.
    #[must_use]
    pub fn public_port(self, port: u16) -> Self {
        self.args(["--public-port", &port.to_string()])
    }

    /// A config file with that many tunnels that will open.
    #[must_use]
    pub fn config(mut self, path: &Path, tunnels: usize) -> Self {
        self.tunnels = tunnels;
        self.args.extend(["--config".into(), path.as_os_str().to_owned()]);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Another token in the environment, or none.
    #[must_use]
    pub fn token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(ToOwned::to_owned);
        self
    }

    /// Another backend than the world's.
    #[must_use]
    pub fn backend(mut self, backend: &'static str) -> Self {
        self.engine.backend = backend;
        self
    }

    /// This path for the bytes, whatever the world's.
    #[must_use]
    pub fn relay(mut self, relay: Relay) -> Self {
        self.engine.relay = relay;
        self
    }

    /// Words before the program's name.
    #[must_use]
    pub fn under(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(Into::into).collect();
        self
    }

    /// Where the client keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Starts the process and does not wait.
    #[must_use]
    pub fn spawn(&self) -> Program {
        let mut args = self.prefix.clone();
        args.extend(["zproxy", "--server", &self.server].map(Into::into));
        args.extend(self.engine.args().map(Into::into));
        args.push("--state-dir".into());
        args.push(self.state_dir.clone().into_os_string());
        args.extend(open_to_looks());
        args.extend(self.args.iter().cloned());
        let env: Vec<(&str, &str)> =
            self.token.iter().map(|token| ("ZPROXY_TOKEN", token.as_str())).collect();
        let (exe, args) = launched(&self.launcher, &self.exe, args);
        Program::start("zproxy", &exe, &args, &env, None)
    }

    /// Starts the client and waits until its tunnels are ready.
    #[must_use]
    pub fn start(self) -> Client {
        let program = self.spawn();
        Client::ready(program, self)
    }
}

/// A client whose tunnels are ready.
#[derive(Debug)]
pub struct Client {
    program: Program,
    plan: ClientPlan,
    /// Its tunnels in the order in which they became ready.
    pub tunnels: Vec<Tunnel>,
}

impl Client {
    fn ready(program: Program, plan: ClientPlan) -> Self {
        let lines =
            program.out.wait_for_count("tunnel … ready", plan.tunnels, READY_DEADLINE, |line| {
                Tunnel::parse(line).is_some()
            });
        let tunnels = lines.iter().filter_map(|line| Tunnel::parse(line)).collect();
        Self { program, plan, tunnels }
    }

    /// The public address of the first tunnel.
    #[must_use]
    pub fn public(&self) -> SocketAddr {
        self.tunnels[0].public
    }

    /// The tunnel of that name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn tunnel(&self, name: &str) -> &Tunnel {
        let found = self.tunnels.iter().find(|tunnel| tunnel.name == name);
        found.unwrap_or_else(|| panic!("no tunnel {name} in {:?}", self.tunnels))
    }

    /// Kills the client and starts it again with the same state; gives the time until its tunnels
    /// were ready.
    pub fn kill9_and_restart(&mut self) -> Duration {
        self.program.kill9();
        let begun = Instant::now();
        *self = self.plan.clone().start();
        begun.elapsed()
    }
}

impl Deref for Client {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// `zproxy forward`, ready.
#[derive(Debug)]
pub struct Forward {
    program: Program,
    /// Where it listens.
    pub listen: SocketAddr,
}

impl Forward {
    pub(crate) fn start(world: &World, to: &str) -> Self {
        let engine = Engine::new(world);
        let args = ["forward", "--listen", "127.0.0.1:0", "--to", to];
        let args = [&args[..], &engine.args()].concat();
        let program = world.bare("zproxy", &args);
        let line = program
            .out
            .wait_for("forward ready", READY_DEADLINE, |line| line.starts_with("forward ready "));
        assert_eq!(field(&line, "to"), Some(to), "{line}");
        Self { program, listen: addr_field(&line, "listen") }
    }
}

impl Deref for Forward {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Forward {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}
