//! A gateway and its only client, and the laws that their accounts obey.

use std::time::{Duration, Instant};

use crate::clock::{eventually, eventually_some};
use crate::ledger::{Frame, Ledger, Role};
use crate::load::Load;
use crate::local::LocalServer;
use crate::programs::{Client, ClientPlan, Gateway, GatewayPlan, field};
use crate::stats::is_stats;
use crate::visits::inexcusable;
use crate::world::World;

/// Until two programs without visitors are at rest: their pools may still be growing.
const REST_DEADLINE: Duration = Duration::from_secs(40);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Both programs.
#[derive(Debug)]
pub struct Pair {
    /// The gateway.
    pub gateway: Gateway,
    /// The client.
    pub client: Client,
    cores: usize,
}

/// A program's part that never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The gateway's.
    pub gateway: Frame,
    /// The client's.
    pub client: Frame,
}

impl Pair {
    /// Starts both.
    #[must_use]
    pub fn start(world: &World, gateway: GatewayPlan, client: ClientPlan) -> Self {
        Self::of(world, gateway.start(), client.start())
    }

    /// Takes two that run already.
    #[must_use]
    pub fn of(world: &World, gateway: Gateway, client: Client) -> Self {
        Self { gateway, client, cores: world.cores_count() }
    }

    /// Looks at both programs.
    pub fn ledgers(&mut self) -> [Ledger; 2] {
        [
            Ledger::of(&mut self.gateway, Role::Gateway, self.cores),
            Ledger::of(&mut self.client, Role::Client, self.cores),
        ]
    }

    /// What both programs hold beside their flows, when no visitor is there and the pools have come to
    /// rest.
    ///
    /// # Panics
    /// When they do not.
    pub fn frames(&mut self) -> Frames {
        let mut last = None;
        eventually_some("both programs are at rest", REST_DEADLINE, || {
            let [gateway, client] = self.ledgers();
            let frames = Frames { gateway: gateway.frame(), client: client.frame() };
            // A look takes a while, in which a pool may grow: only what is seen twice is true.
            let is_same = last.replace(frames) == Some(frames);
            let is_rest = gateway.breaches_at_rest(frames.gateway).is_empty()
                && client.breaches_at_rest(frames.client).is_empty();
            (is_same && is_rest).then_some(frames)
        })
    }

    /// Waits until both programs are at rest and every law of one program holds; gives the broken laws
    /// if that does not come.
    pub fn breaches_at_rest(&mut self, frames: Frames, within: Duration) -> Vec<String> {
        let until = Instant::now() + within;
        loop {
            let [gateway, client] = self.ledgers();
            let mut breaches = gateway.breaches_at_rest(frames.gateway);
            breaches.extend(client.breaches_at_rest(frames.client));
            if breaches.is_empty() {
                return breaches;
            }
            if Instant::now() >= until {
                breaches.push(format!("{gateway:#?} {client:#?} {frames:#?}"));
                return breaches;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until both programs are at rest and every law of one program holds.
    ///
    /// # Panics
    /// When a law stays broken.
    pub fn expect_rest_apart(&mut self, frames: Frames) {
        let breaches = self.breaches_at_rest(frames, REST_DEADLINE);
        assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    }

    /// Waits until both programs have the same proxy_conns.
    ///
    /// # Panics
    /// When they do not in time.
    pub fn expect_same_conns(&mut self, within: Duration) {
        eventually("both programs have the same proxy_conns", within, || {
            let [gateway, client] = self.ledgers();
            gateway.conns() == client.conns()
        });
    }

    /// Waits until both programs are at rest and every law holds.
    ///
    /// # Panics
    /// When a law stays broken.
    pub fn expect_rest(&mut self, frames: Frames) {
        self.expect_rest_apart(frames);
        self.expect_same_conns(REST_DEADLINE);
    }

    /// Lets nobody begin a visit any more, and waits for those under way.
    ///
    /// # Panics
    /// When they do not end in time, with what is known about them.
    pub fn expect_pause(&mut self, load: &Load, within: Duration) {
        if load.pause(within) {
            return;
        }
        let visits = load.under_way();
        let ledgers = self.ledgers();
        let told = self.told_of(&visits);
        panic!("visits do not end: {visits:#?}, programs: {told:#?} {ledgers:#?}");
    }

    /// Checks what visitors and the LocalServer have to complain of.
    ///
    /// # Panics
    /// When there is anything, with what both programs have logged about it.
    pub fn expect_no_faults(&self, load: &Load, local: &LocalServer) {
        let (outside, inside) = (load.faults(), inexcusable(local));
        let is_well = outside.is_empty() && inside.is_empty();
        let told = if is_well { Vec::new() } else { self.told_of(&outside) };
        assert!(is_well, "visitors: {outside:#?}, LocalServer: {inside:#?}, programs: {told:#?}");
    }

    /// What both programs have logged about the flows of visits that went wrong, and about themselves.
    fn told_of(&self, faults: &[String]) -> Vec<String> {
        let visitors: Vec<&str> =
            faults.iter().filter_map(|fault| field(fault, "public")).collect();
        let is_wanted = |line: &str| {
            let is_visitor = field(line, "public").is_some_and(|from| visitors.contains(&from));
            is_visitor || !(line.contains("flow ended") || is_stats(line))
        };
        let mut told = self.gateway.err.matching(is_wanted);
        let flows: Vec<String> = told
            .iter()
            .filter(|line| line.contains("flow ended"))
            .filter_map(|line| Some(field(line, "flow")?.to_owned()))
            .collect();
        told.extend(self.client.err.matching(|line| {
            let is_flow = field(line, "flow").is_some_and(|flow| flows.iter().any(|id| id == flow));
            is_flow || !(line.contains("flow ended") || is_stats(line))
        }));
        told
    }
}
