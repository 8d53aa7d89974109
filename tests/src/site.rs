//! Gateway, client and LocalServer in a [`Net`] of their own.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::clock::eventually;
use crate::local::LocalServer;
use crate::netns::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, Net};
use crate::pair::{Frames, Pair};
use crate::programs::{ClientPlan, GatewayPlan};
use crate::visits::{Visit, inexcusable, probe};
use crate::world::World;

/// Ports of the gateway. Nobody else is in its network, so they need not be looked for.
pub const CTL_PORT: u16 = 8_090;
/// See [`CTL_PORT`].
pub const PROXY_PORT: u16 = 8_091;
/// See [`CTL_PORT`].
pub const PUBLIC_PORT: u16 = 20_080;

/// The programs at work. Its methods are for the network of the public.
#[derive(Debug)]
pub struct Site {
    /// The programs.
    pub pair: Pair,
    /// The LocalServer of [`Visit`]s.
    pub local: LocalServer,
    /// Where visitors come in.
    pub public: SocketAddr,
    /// The network. The last to go.
    pub net: Net,
}

impl Site {
    /// Runs a scenario in a network of its own, on a thread that belongs to the public; does nothing
    /// where there are no networks.
    pub fn run(scenario: impl FnOnce(Net) + Send) {
        if let Some(net) = Net::open() {
            let public = net.public.clone();
            public.within(move || scenario(net));
        }
    }

    /// The plans of both programs, for changes before [`Site::start`].
    #[must_use]
    pub fn plans(world: &World, net: &Net) -> (GatewayPlan, ClientPlan) {
        let gateway = GatewayPlan::new(world)
            .bind([0, 0, 0, 0].into())
            .ports(CTL_PORT, PROXY_PORT)
            .launcher(net.gateway.launcher());
        let client = ClientPlan::new(world, (GATEWAY_INSIDE, CTL_PORT).into())
            .public_port(PUBLIC_PORT)
            .launcher(net.client.launcher());
        (gateway, client)
    }

    /// Starts both programs with the LocalServer of visits.
    #[must_use]
    pub fn start(world: &World, net: Net, gateway: GatewayPlan, client: ClientPlan) -> Self {
        let local = net.client.within(Visit::server);
        let pair = Pair::start(world, gateway, client.local(&local.name()));
        let public = (GATEWAY_OUTSIDE, PUBLIC_PORT).into();
        let site = Self { pair, local, public, net };
        probe(site.public).expect("a first visit");
        site
    }

    /// Waits until a visit comes to its end.
    ///
    /// # Panics
    /// When none does in time, or one finds what nothing excuses.
    pub fn expect_service(&self, within: Duration) {
        eventually("a visit comes to its end", within, || match probe(self.public) {
            Ok(()) => true,
            Err(fault) if fault.is_inexcusable() => panic!("{fault:?}"),
            Err(_) => false,
        });
    }

    /// As [`Pair::expect_rest`]; and the LocalServer has nothing to complain of.
    ///
    /// # Panics
    /// When a law is broken.
    pub fn expect_calm(&mut self, frames: Frames) {
        self.expect_rest(frames);
        let local = &self.local;
        eventually("the local sides end", Duration::from_secs(10), || local.open() == 0);
        let faults = inexcusable(local);
        assert!(faults.is_empty(), "{faults:#?}");
    }
}

impl Deref for Site {
    type Target = Pair;

    fn deref(&self) -> &Pair {
        &self.pair
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.pair
    }
}
