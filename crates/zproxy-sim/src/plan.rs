//! What a seed means: the weather, the programs, who visits when, and what goes wrong.

use std::time::Duration;

use zproxy_io::Fault;
use zproxy_io::sim::{Random, Weather};
use zproxy_proto::limits::{DEAD_AFTER, WAITING_PUBLICS_MAX};

use crate::programs::Times;
use crate::script::Script;

/// One run of so many has a flood instead of other troubles: it takes many times as long.
const FLOOD_EVERY: u64 = 160;
const FLOOD_AT: u64 = 79;
/// One run of 16 has a limit for half-closed flows, and another one a short limit for owed
/// acknowledgements.
const HALF_CLOSED: u64 = 3;
const DARK: u64 = 7;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The ctl_conn of a client is reset on the way.
    CutCtl { client: usize },
    /// Nothing gets to one end (0: the client, 1: the gateway) of a ctl_conn, or to neither (2).
    DarkenCtl { client: usize, side: usize, time: Duration },
    /// A proxy_conn or lane is reset on the way.
    CutProxyConn { client: usize },
    /// Nothing gets to one end (0: the client, 1: the gateway) of a proxy_conn or lane.
    DarkenProxyConn { client: usize, side: usize, time: Duration },
    /// Nothing gets from the gateway to a client (0), or back (1), or either way (2).
    Partition { client: usize, way: usize, time: Duration },
    /// A client, or the gateway, is out of something.
    Starve { who: Option<usize>, time: Duration, of: Fault },
    /// A client, or the gateway, is not scheduled.
    Freeze { who: Option<usize>, time: Duration },
    /// All clocks jump: the machines were suspended.
    Jump { time: Duration },
    /// A client, or the gateway, dies, and is started again after a while.
    Kill { who: Option<usize>, time: Duration },
    /// A client, or the gateway, is asked to stop, and is started again after a while.
    Stop { who: Option<usize>, time: Duration },
    /// A service is down.
    ServiceDown { tunnel: usize, time: Duration },
    /// A service does not accept.
    ServiceStuck { tunnel: usize, time: Duration },
    /// Names do not resolve.
    NoNames { time: Duration },
    /// Very many visitors come at once.
    Crowd { tunnel: usize, visitors: usize },
}

impl Trouble {
    /// How long it lasts.
    pub(crate) fn time(self) -> Duration {
        match self {
            Self::CutCtl { .. } | Self::CutProxyConn { .. } | Self::Crowd { .. } => Duration::ZERO,
            Self::DarkenCtl { time, .. }
            | Self::DarkenProxyConn { time, .. }
            | Self::Partition { time, .. }
            | Self::Starve { time, .. }
            | Self::Freeze { time, .. }
            | Self::Jump { time }
            | Self::Kill { time, .. }
            | Self::Stop { time, .. }
            | Self::ServiceDown { time, .. }
            | Self::ServiceStuck { time, .. }
            | Self::NoNames { time } => time,
        }
    }
}

/// A visit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) at: Duration,
    pub(crate) tunnel: usize,
    pub(crate) script: Script,
}

/// See the module. Times count from the moment when everything is up.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) weather: Weather,
    pub(crate) times: Times,
    pub(crate) gateway_cores: usize,
    pub(crate) client_cores: usize,
    /// Which client has a tunnel.
    pub(crate) owners: Vec<usize>,
    /// The gateway and the services are found by name.
    pub(crate) is_named: bool,
    pub(crate) visits: Vec<Visit>,
    pub(crate) troubles: Vec<(Duration, Trouble)>,
}

fn millis(random: &mut Random, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.between(least, most))
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0005_CE7E);
        let random = &mut random;
        let weather =
            if seed.is_multiple_of(16) { Weather::fair() } else { Weather::drawn(random) };
        let clients = if random.chance(300) { 2 } else { 1 };
        let tunnels = clients + usize::from(random.chance(300));
        let owners = (0..tunnels).map(|tunnel| tunnel % clients).collect();
        let length = millis(random, 2_000, 20_000);
        let most = Self::bytes_max(&weather);
        let count = random.between(10, 45);
        let mut visits: Vec<Visit> = (0..count)
            .map(|_| Visit {
                at: millis(random, 0, length.as_millis() as u64),
                tunnel: random.place(tunnels),
                script: Script::drawn(random, most),
            })
            .collect();
        visits.sort_by_key(|visit| visit.at);
        let mut plan = Self {
            weather,
            times: Times {
                grace: Duration::from_secs(if random.chance(500) { 20 } else { 60 }),
                drain: Duration::from_secs(5),
                half_close: None,
                dead_after: DEAD_AFTER,
            },
            gateway_cores: 1 + usize::from(random.chance(400)),
            client_cores: 1 + usize::from(random.chance(400)),
            owners,
            is_named: random.chance(300),
            visits,
            troubles: Vec::new(),
        };
        match seed % 16 {
            _ if seed % FLOOD_EVERY == FLOOD_AT => {
                plan.owners = vec![0; 3];
                plan.gateway_cores = 1;
                plan.troubles = plan.flood(0, millis(random, 0, length.as_millis() as u64));
            }
            HALF_CLOSED => plan.draw_half_closed(random, length),
            DARK => {
                plan.draw_troubles(random, seed, length, clients);
                plan.draw_darkness(random, length, clients);
            }
            _ => plan.draw_troubles(random, seed, length, clients),
        }
        plan
    }

    /// No trouble, but half-closed flows in which nothing moves: for half of the limit at most, or for
    /// much longer than it.
    fn draw_half_closed(&mut self, random: &mut Random, length: Duration) {
        let limit = millis(random, 10_000, 20_000);
        self.times.half_close = Some(limit);
        for _ in 0..random.between(2, 8) {
            let is_over = random.chance(500);
            let rest = if is_over { limit + millis(random, 10_000, 15_000) } else { limit / 2 };
            let at = millis(random, 0, length.as_millis() as u64);
            let tunnel = random.place(self.owners.len());
            self.visits.push(Visit { at, tunnel, script: Script::half_closed(rest) });
        }
    }

    /// For longer than who is behind it is waited for, a path is dark on which something is under way.
    fn draw_darkness(&mut self, random: &mut Random, length: Duration, clients: usize) {
        self.times.dead_after = millis(random, 3_000, 8_000);
        let (client, time) = (random.place(clients), millis(random, 15_000, 40_000));
        let at = millis(random, 300, length.as_millis() as u64);
        let trouble = if random.chance(500) {
            Trouble::Partition { client, way: random.place(3), time }
        } else {
            Trouble::DarkenProxyConn { client, side: random.place(2), time }
        };
        self.troubles.push((at, trouble));
        self.troubles.sort_by_key(|(at, _)| *at);
        let mut script = Script::plain(60_000, 60_000);
        for pace in [&mut script.visitor, &mut script.service] {
            (pace.write, pace.write_pause) = (2_000, Duration::from_millis(30));
        }
        for tunnel in (0..self.owners.len()).cycle().take(6) {
            let at = at.saturating_sub(millis(random, 50, 300));
            self.visits.push(Visit { at, tunnel, script });
        }
    }

    /// Byte by byte nobody gets far in a short time.
    fn bytes_max(weather: &Weather) -> u64 {
        match (weather.short, weather.tiny) {
            (400.., 100..) => 3_000,
            (100.., 100..) => 20_000,
            _ => 150_000,
        }
    }

    fn draw_troubles(&mut self, random: &mut Random, seed: u64, length: Duration, clients: usize) {
        // Every fourth run has no trouble but the weather: nothing is excused there.
        let count = if seed.is_multiple_of(4) { 0 } else { random.between(1, 5) };
        for _ in 0..count {
            let at = millis(random, 0, length.as_millis() as u64);
            let trouble = self.draw_trouble(random, clients);
            self.troubles.push((at, trouble));
        }
        self.troubles.sort_by_key(|(at, _)| *at);
    }

    /// More visitors at once than may wait for proxy_conns of one client: they come to all its tunnels
    /// while the gateway is not scheduled, and it accepts what the kernel has queued in one turn.
    pub(crate) fn flood(&self, client: usize, at: Duration) -> Vec<(Duration, Trouble)> {
        let freeze = Trouble::Freeze { who: None, time: Duration::from_secs(3) };
        let tunnels = self.owners.iter().enumerate().filter(|(_, owner)| **owner == client);
        let tunnels: Vec<usize> = tunnels.map(|(tunnel, _)| tunnel).collect();
        // A queue of the kernel holds 4,096.
        let visitors = (WAITING_PUBLICS_MAX + 1_000) / tunnels.len();
        let soon = at + Duration::from_millis(100);
        let crowd = |tunnel| (soon, Trouble::Crowd { tunnel, visitors });
        std::iter::once((at, freeze)).chain(tunnels.into_iter().map(crowd)).collect()
    }

    fn draw_trouble(&self, random: &mut Random, clients: usize) -> Trouble {
        let client = random.place(clients);
        let tunnel = random.place(self.owners.len());
        let who = random.chance(600).then_some(client);
        let blink = millis(random, 10, 3_000);
        match random.below(30) {
            0..=5 => Trouble::CutCtl { client },
            6..=8 => {
                let time = millis(random, 100, 12_000);
                Trouble::DarkenCtl { client, side: random.place(3), time }
            }
            9 | 10 | 28 => Trouble::CutProxyConn { client },
            29 => {
                let time = millis(random, 100, 12_000);
                Trouble::DarkenProxyConn { client, side: random.place(2), time }
            }
            11..=13 => {
                let time = millis(random, 50, 9_000);
                Trouble::Partition { client, way: random.place(3), time }
            }
            14 | 15 => {
                let of = if random.chance(700) { Fault::NoDescriptors } else { Fault::NoMemory };
                Trouble::Starve { who, time: blink, of }
            }
            16 | 17 => Trouble::Freeze { who, time: millis(random, 10, 8_000) },
            18 => Trouble::Jump { time: millis(random, 100, 15_000) },
            19 | 20 => {
                let is_long = random.chance(300);
                let time = if is_long { self.times.grace + 5 * blink } else { blink };
                Trouble::Kill { who, time }
            }
            21 | 22 => Trouble::Stop { who, time: blink },
            23 => Trouble::ServiceDown { tunnel, time: blink },
            24 => Trouble::ServiceStuck { tunnel, time: 2 * blink },
            25 if self.is_named => Trouble::NoNames { time: blink },
            26 if random.chance(250) => Trouble::Crowd { tunnel, visitors: 2_200 },
            _ => Trouble::Crowd { tunnel, visitors: 60 },
        }
    }
}
