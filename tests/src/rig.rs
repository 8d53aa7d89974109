//! The whole path in one piece: gateway, client, and a LocalServer in the test's own hands, so that
//! a test holds both ends of every flow.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::clock::eventually;
use crate::local::Listener;
use crate::net::connect;
use crate::proc;
use crate::programs::{Client, Forward, Gateway};
use crate::wire::Road;
use crate::world::{Relay, World, own_ports};

/// Both ends of a flow.
#[derive(Debug)]
pub struct Flow {
    /// The outside end.
    pub public: TcpStream,
    /// The inside end.
    pub local: TcpStream,
}

/// The programs a path runs through.
#[derive(Debug)]
pub enum Path {
    /// A gateway and a client.
    Tunnel(Box<Gateway>, Box<Client>),
    /// `zproxy forward`.
    Forward(Forward),
    /// Nothing at all, to test the scenes themselves.
    Direct,
}

/// What a path holds when nothing runs through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Per program: descriptors, threads, ports listened on.
    programs: Vec<(proc::Descriptors, usize, Vec<u16>)>,
}

/// A path and the LocalServer at its end.
#[derive(Debug)]
pub struct Rig {
    /// The programs.
    pub path: Path,
    /// The LocalServer.
    pub local: Listener,
    /// Where the public comes in.
    pub public: SocketAddr,
}

/// Idle proxy_conns that a pool may keep more than it had at rest, and pipes likewise.
const KEPT_MAX: usize = 160;

impl Rig {
    /// A gateway and a client with one tunnel.
    #[must_use]
    pub fn tunnel(world: &World) -> Self {
        Self::tunnel_with(world, &[], &[])
    }

    /// As [`Rig::tunnel`] with more arguments for either program.
    #[must_use]
    pub fn tunnel_with(world: &World, gateway_args: &[&str], client_args: &[&str]) -> Self {
        let local = Listener::start();
        let gateway = world.gateway().args(gateway_args.iter().copied()).start();
        let plan = world.client(&gateway).local(&local.addr.to_string());
        let client = plan.args(client_args.iter().copied()).start();
        let public = client.public();
        Self { path: Path::Tunnel(Box::new(gateway), Box::new(client)), local, public }
    }

    /// As [`Rig::tunnel`], with both programs on this path.
    #[must_use]
    pub fn tunnel_on(world: &World, relay: Relay) -> Self {
        let local = Listener::start();
        let gateway = world.gateway().relay(relay).start();
        let plan = world.client(&gateway).relay(relay);
        let client = plan.local(&local.addr.to_string()).start();
        let public = client.public();
        Self { path: Path::Tunnel(Box::new(gateway), Box::new(client)), local, public }
    }

    /// As [`Rig::tunnel_with`], with a road between the two programs.
    #[must_use]
    pub fn tunnel_by_road(
        world: &World,
        gateway_args: &[&str],
        client_args: &[&str],
    ) -> (Self, Road) {
        let local = Listener::start();
        let gateway = world.gateway().args(gateway_args.iter().copied()).start();
        let road = Road::to(&gateway);
        let plan = world.client(&gateway).server(road.ctl.addr).local(&local.addr.to_string());
        let client = plan.args(client_args.iter().copied()).start();
        let public = client.public();
        (Self { path: Path::Tunnel(Box::new(gateway), Box::new(client)), local, public }, road)
    }

    /// As [`Rig::tunnel_with`], on ports that both programs find again after a restart.
    #[must_use]
    pub fn tunnel_on_own_ports(world: &World, gateway_args: &[&str], client_args: &[&str]) -> Self {
        let local = Listener::start();
        let first = *own_ports().start();
        let plan = world.gateway().ports(first, first + 1);
        let gateway = plan.args(gateway_args.iter().copied()).start();
        let plan = world.client(&gateway).local(&local.addr.to_string());
        let plan = plan.public_port(first + 2);
        let client = plan.args(client_args.iter().copied()).start();
        let public = client.public();
        Self { path: Path::Tunnel(Box::new(gateway), Box::new(client)), local, public }
    }

    /// `zproxy forward`.
    #[must_use]
    pub fn forward(world: &World) -> Self {
        let local = Listener::start();
        let forward = world.forward(&local.addr.to_string());
        let public = forward.listen;
        Self { path: Path::Forward(forward), local, public }
    }

    /// The public straight at the LocalServer.
    #[must_use]
    pub fn direct() -> Self {
        let local = Listener::start();
        let public = local.addr;
        Self { path: Path::Direct, local, public }
    }

    /// The gateway.
    ///
    /// # Panics
    /// When the path has none.
    pub fn gateway(&mut self) -> &mut Gateway {
        match &mut self.path {
            Path::Tunnel(gateway, _) => gateway,
            Path::Forward(_) | Path::Direct => panic!("this path has no gateway"),
        }
    }

    /// The client.
    ///
    /// # Panics
    /// When the path has none.
    pub fn client(&mut self) -> &mut Client {
        match &mut self.path {
            Path::Tunnel(_, client) => client,
            Path::Forward(_) | Path::Direct => panic!("this path has no client"),
        }
    }

    /// A new flow, with both ends in hand.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let public = connect(self.public);
        Flow { public, local: self.local.accept() }
    }

    /// The process ids along the path, from outside to inside.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        match &self.path {
            Path::Tunnel(gateway, client) => vec![gateway.pid(), client.pid()],
            Path::Forward(forward) => vec![forward.pid()],
            Path::Direct => Vec::new(),
        }
    }

    /// What the programs hold now, which should be when nothing runs through them.
    #[must_use]
    pub fn rest(&self) -> Rest {
        let of = |pid| (proc::descriptors(pid), proc::threads(pid), proc::listeners(pid));
        Rest { programs: self.pids().into_iter().map(of).collect() }
    }

    /// Waits until the programs hold no more than at rest: the same threads and listeners, and
    /// descriptors up to what a pool may keep.
    ///
    /// # Panics
    /// When they do not come to rest.
    pub fn expect_rest(&self, rest: &Rest) {
        let fits = |now: &Rest| {
            now.programs.len() == rest.programs.len()
                && now.programs.iter().zip(&rest.programs).all(|(now, then)| {
                    now.0.sockets <= then.0.sockets + KEPT_MAX
                        && now.0.pipes <= then.0.pipes + KEPT_MAX
                        && now.0.others <= then.0.others + 4
                        && now.1 <= then.1
                        && now.2 == then.2
                })
        };
        let mut now = self.rest();
        let what = "the programs come to rest";
        let waited = std::panic::AssertUnwindSafe(|| {
            eventually(what, Duration::from_secs(20), || {
                now = self.rest();
                fits(&now)
            });
        });
        if std::panic::catch_unwind(waited).is_err() {
            panic!("{what}: at rest {rest:?}, now {:?}", self.rest());
        }
    }
}
