//! What is compared: every system knows how to start itself on loopback and which processes it is.

mod child;
mod peers;
mod zproxy;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use child::Child;
pub(crate) use child::{RUN_AS_CHILD, run_as_child};

/// A system of the comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Zproxy(Variant),
    Forward(Variant),
    Rathole,
    Bore,
    Ssh,
    Haproxy,
    Nginx,
    Socat,
    /// No relay at all.
    Direct,
}

/// A way to run the programs of this workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) build: Build,
    pub(crate) backend: Backend,
    pub(crate) path: Path,
    pub(crate) is_busy: bool,
    /// `--cores LIST`.
    pub(crate) cores: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    Current,
    /// Programs of another build, to see what a change did.
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Uring,
    Epoll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Auto,
    Splice,
    Copy,
}

impl System {
    /// How many relays a byte passes.
    pub(crate) fn hops(&self) -> usize {
        match self {
            Self::Zproxy(_) | Self::Rathole | Self::Bore | Self::Ssh => 2,
            Self::Forward(_) | Self::Haproxy | Self::Nginx | Self::Socat => 1,
            Self::Direct => 0,
        }
    }

    /// Whether one pair of programs serves many tunnels.
    pub(crate) fn has_tunnels(&self) -> bool {
        matches!(self, Self::Zproxy(_) | Self::Rathole | Self::Ssh)
    }

    /// Whether it takes a process per connection, so that thousands of them measure the machine.
    pub(crate) fn forks(&self) -> bool {
        *self == Self::Socat
    }

    /// What it would say its version is.
    pub(crate) fn version(&self, tools: &Tools) -> Result<String, String> {
        match self {
            Self::Zproxy(variant) | Self::Forward(variant) => zproxy::version(variant, tools),
            Self::Direct => Ok("loopback".to_owned()),
            peer => peers::version(peer, tools),
        }
    }

    /// Starts it, with one public address per address in `locals`.
    pub(crate) fn start(&self, locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
        match self {
            Self::Zproxy(variant) => zproxy::start_tunnel(variant, locals, tools),
            Self::Forward(variant) => zproxy::start_forward(variant, locals, tools),
            Self::Rathole => peers::start_rathole(locals, tools),
            Self::Bore => peers::start_bore(locals, tools),
            Self::Ssh => peers::start_ssh(locals, tools),
            Self::Haproxy => peers::start_haproxy(locals, tools),
            Self::Nginx => peers::start_nginx(locals, tools),
            Self::Socat => peers::start_socat(locals, tools),
            Self::Direct => Ok(Running { public: locals.to_vec(), sides: Vec::new() }),
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zproxy(variant) => variant.show("zproxy", f),
            Self::Forward(variant) => variant.show("forward", f),
            Self::Rathole => f.write_str("rathole"),
            Self::Bore => f.write_str("bore"),
            Self::Ssh => f.write_str("ssh"),
            Self::Haproxy => f.write_str("haproxy"),
            Self::Nginx => f.write_str("nginx"),
            Self::Socat => f.write_str("socat"),
            Self::Direct => f.write_str("direct"),
        }
    }
}

impl Variant {
    fn show(&self, program: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.build == Build::Baseline {
            f.write_str("baseline-")?;
        }
        let backend = match self.backend {
            Backend::Uring => "uring",
            Backend::Epoll => "epoll",
        };
        write!(f, "{program}-{backend}")?;
        match self.path {
            Path::Auto => {}
            Path::Splice => f.write_str("-splice")?,
            Path::Copy => f.write_str("-copy")?,
        }
        if self.is_busy {
            f.write_str("-busy")?;
        }
        match &self.cores {
            Some(cores) => write!(f, "@{cores}"),
            None => Ok(()),
        }
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let plain = [
            Self::Rathole,
            Self::Bore,
            Self::Ssh,
            Self::Haproxy,
            Self::Nginx,
            Self::Socat,
            Self::Direct,
        ];
        if let Some(system) = plain.into_iter().find(|system| system.to_string() == name) {
            return Ok(system);
        }
        variant_of(name).ok_or_else(|| {
            format!(
                "{name:?} is no system; there are zproxy-uring, zproxy-epoll, forward-uring, \
                 forward-epoll (each with -splice or -copy, then -busy, then @CORES behind, and \
                 baseline- before), rathole, bore, ssh, haproxy, nginx, socat and direct"
            )
        })
    }
}

fn variant_of(name: &str) -> Option<System> {
    let (name, cores) = match name.split_once('@') {
        Some((name, cores)) => (name, Some(cores.to_owned())),
        None => (name, None),
    };
    let mut words = name.split('-').peekable();
    let build = match words.next_if_eq(&"baseline") {
        Some(_) => Build::Baseline,
        None => Build::Current,
    };
    let program = words.next()?;
    let backend = match words.next()? {
        "uring" => Backend::Uring,
        "epoll" => Backend::Epoll,
        _ => return None,
    };
    let path = match words.next_if(|word| matches!(*word, "splice" | "copy")) {
        Some("splice") => Path::Splice,
        Some(_) => Path::Copy,
        None => Path::Auto,
    };
    let is_busy = words.next_if_eq(&"busy").is_some();
    let variant = Variant { build, backend, path, is_busy, cores };
    match (program, words.next()) {
        ("zproxy", None) => Some(System::Zproxy(variant)),
        ("forward", None) => Some(System::Forward(variant)),
        _ => None,
    }
}

/// Where the programs are, and how they are run.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// Folder with zproxyd and zproxy.
    pub(crate) zproxy_dir: PathBuf,
    /// Folder with the programs of another build.
    pub(crate) baseline_dir: Option<PathBuf>,
    /// Searched for peers, in this order.
    pub(crate) peer_dirs: Vec<PathBuf>,
    /// CPUs on which relays may run.
    pub(crate) relay_cpus: Option<String>,
    /// How many those are.
    pub(crate) relay_cpu_count: usize,
    /// Extra arguments to zproxyd and zproxy.
    pub(crate) zproxy_args: Vec<String>,
}

impl Tools {
    /// The program of that name, if a peer's folder has it.
    fn find(&self, name: &str) -> Result<PathBuf, String> {
        let places = self.peer_dirs.iter().map(|dir| dir.join(name));
        places.into_iter().find(|path| path.is_file()).ok_or_else(|| "not installed".to_owned())
    }
}

/// The processes of one end: of a tunnel the gateway, then the client; of one hop the relay.
pub(crate) struct Side {
    children: Vec<Child>,
}

impl Side {
    fn new(children: Vec<Child>) -> Self {
        Self { children }
    }

    /// The roots of its process trees.
    pub(crate) fn roots(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }
}

/// A started system; dropping it ends all its processes.
pub(crate) struct Running {
    /// Where its public ports are.
    pub(crate) public: Vec<SocketAddr>,
    pub(crate) sides: Vec<Side>,
}

impl Running {
    /// The roots of all its process trees.
    pub(crate) fn roots(&self) -> Vec<u32> {
        self.sides.iter().flat_map(Side::roots).collect()
    }

    /// Why it is of no more use, if one of its processes has ended.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let children = self.sides.iter_mut().flat_map(|side| &mut side.children);
        children.into_iter().find_map(Child::ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system's name is read as the system that is shown by that name.
    #[test]
    fn names_of_systems() {
        for name in [
            "zproxy-uring",
            "zproxy-epoll-splice",
            "baseline-zproxy-uring-copy-busy@0-1",
            "forward-epoll@0,1",
            "forward-uring-busy",
            "rathole",
            "direct",
        ] {
            assert_eq!(name.parse::<System>().map(|system| system.to_string()), Ok(name.into()));
        }
        for name in ["zproxy", "zproxy-uring-fast", "forward", "nginx-splice", ""] {
            assert!(name.parse::<System>().is_err(), "{name}");
        }
    }
}
