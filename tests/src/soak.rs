//! Both programs under mixed load, churn, kills and cuts, and the laws of conservation.
//!
//! For the first part of the time the programs are killed as well; for the rest they live on, so that
//! what leaks slowly has time to show. Every few seconds the load pauses, and then nothing may be
//! left: every byte was judged by its flow and position, no descriptor, pipe, buffer, slot or thread is
//! held for a flow. While the load runs, the same are bounded by the number of visitors. A breach is a
//! panic.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::eventually;
use crate::ledger::Ledger;
use crate::load::Load;
use crate::local::LocalServer;
use crate::netns::{GATEWAY_OUTSIDE, Net};
use crate::pair::{Frames, Pair};
use crate::pattern::Rng;
use crate::site::{CTL_PORT, PUBLIC_PORT, Site};
use crate::stats::is_stats;
use crate::visits::{self, Visit};
use crate::wire::Road;
use crate::world::{World, own_ports};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Until everything that a kill or a cut has disturbed works again.
const BACK_DEADLINE: Duration = Duration::from_secs(90);
/// Until the visits that are under way have ended. Some stood still in a cut.
const PAUSE_DEADLINE: Duration = Duration::from_secs(120);
const REST_DEADLINE: Duration = Duration::from_secs(40);
const VISITORS: usize = 32;
const LEN_MAX: u64 = 4 << 20;
/// Of the time, with kills.
const KILLS_PERCENT: u32 = 60;
/// Of the time without kills, until memory should not grow any more.
const WARM_UP_PERCENT: usize = 30;
/// Looks behind the warm-up that a slope needs.
const SLOPE_LOOKS_MIN: usize = 6;
/// A program may grow by so much from the end of the warm-up to the end: noise of the allocator.
const GROWTH_BYTES_MAX: f64 = 3.0 * 1_048_576.0;

const GATEWAY_ARGS: [&str; 8] =
    ["--heartbeat", "0.5", "--heartbeat-deadline", "2", "--bind-timeout", "60", "--grace", "120"];
const CLIENT_ARGS: [&str; 6] =
    ["--heartbeat", "0.5", "--heartbeat-deadline", "2", "--connect-timeout", "2"];

/// How long to soak.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    time: Duration,
}

impl Settings {
    /// So many minutes.
    #[must_use]
    pub fn minutes(minutes: u64) -> Self {
        Self { time: Duration::from_secs(60 * minutes) }
    }

    /// So many seconds, for a test of the soak itself.
    #[must_use]
    pub fn seconds(seconds: u64) -> Self {
        Self { time: Duration::from_secs(seconds) }
    }
}

/// What is between client and gateway, and how it is cut.
enum Ground {
    /// Namespaces: packets are swallowed, links taken down.
    Net(Net),
    /// A small TCP proxy, where namespaces are not permitted.
    Road(Road),
}

/// What was done to the programs.
#[derive(Clone, Copy, Debug, Default)]
struct Deeds {
    gateway_kills: u64,
    client_kills: u64,
    ctl_cuts: u64,
    link_cuts: u64,
}

struct Soak {
    pair: Pair,
    local: LocalServer,
    ground: Ground,
    public: SocketAddr,
    frames: Frames,
    load: Load,
    rng: Rng,
    deeds: Deeds,
    looks: u64,
    /// Resident bytes of gateway and client at each look without kills.
    resident: Vec<[u64; 2]>,
    bar: ProgressBar,
}

/// Soaks, and says at the end what was done.
///
/// # Panics
/// When a law is broken.
pub fn run(world: &World, settings: Settings) {
    match Net::open() {
        Some(net) => net.public.clone().within(move || {
            let (gateway, client) = Site::plans(world, &net);
            let local = net.client.within(Visit::server);
            let client = client.args(CLIENT_ARGS).local(&local.name());
            let pair = Pair::start(world, gateway.args(GATEWAY_ARGS), client);
            let public = (GATEWAY_OUTSIDE, PUBLIC_PORT).into();
            Soak::new(pair, local, Ground::Net(net), public, settings).run(settings, world);
        }),
        None => {
            let first = *own_ports().start();
            let local = Visit::server();
            let gateway = world.gateway().ports(first, first + 1).args(GATEWAY_ARGS).start();
            let road = Road::to(&gateway);
            let client = world.client(&gateway).server(road.ctl.addr).public_port(first + 2);
            let client = client.args(CLIENT_ARGS).local(&local.name()).start();
            let public = client.public();
            let pair = Pair::of(world, gateway, client);
            Soak::new(pair, local, Ground::Road(road), public, settings).run(settings, world);
        }
    }
}

impl Soak {
    fn new(
        mut pair: Pair,
        local: LocalServer,
        ground: Ground,
        public: SocketAddr,
        settings: Settings,
    ) -> Self {
        let frames = pair.frames();
        let mut rng = Rng::seeded("soak");
        let load = Load::start(public, VISITORS, LEN_MAX, Rng::new(rng.next()));
        let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}");
        let bar = ProgressBar::new(settings.time.as_secs());
        bar.set_style(style.expect("a template"));
        let (deeds, looks, resident) = (Deeds::default(), 0, Vec::new());
        Self { pair, local, ground, public, frames, load, rng, deeds, looks, resident, bar }
    }

    fn run(mut self, settings: Settings, world: &World) {
        let begun = Instant::now();
        let kills_end = settings.time * KILLS_PERCENT / 100;
        while begun.elapsed() < settings.time {
            let has_kills = begun.elapsed() < kills_end;
            let until = Instant::now() + LOOK_INTERVAL;
            while Instant::now() < until {
                self.disturb(has_kills);
                // Time in peace, for visits to come to their end.
                let peace = Duration::from_millis(500 + self.rng.below(3_000));
                std::thread::sleep(peace);
                self.bar.set_position(begun.elapsed().as_secs().min(settings.time.as_secs()));
            }
            self.look(has_kills);
            self.tell(begun.elapsed());
        }
        self.judge_memory();
        self.pair.expect_pause(&self.load, PAUSE_DEADLINE);
        for program in [&mut *self.pair.client, &mut *self.pair.gateway] {
            program.terminate();
            assert_eq!(program.wait_exit(REST_DEADLINE), 0, "the exit code");
        }
        self.bar.finish_and_clear();
        println!("soak on {}: every law held", world.backend().name());
        println!("{}", self.summary(begun.elapsed()));
        println!("visits by kind: {:?}", self.load.by_kind());
    }

    fn disturb(&mut self, has_kills: bool) {
        let disturbance = self.load.disturb();
        match self.rng.below(if has_kills { 8 } else { 3 }) {
            0 => self.cut_ctl(),
            1 => self.cut_link(),
            // Nothing but churn.
            2 => {}
            3 => {
                self.pair.gateway.kill9_and_restart();
                self.deeds.gateway_kills += 1;
            }
            _ => {
                self.pair.client.kill9_and_restart();
                self.deeds.client_kills += 1;
            }
        }
        self.expect_service();
        drop(disturbance);
    }

    fn expect_service(&mut self) {
        let public = self.public;
        eventually("visitors are served again", BACK_DEADLINE, || match visits::probe(public) {
            Ok(()) => true,
            Err(fault) if fault.is_inexcusable() => panic!("a visit: {fault:?}"),
            Err(_) => false,
        });
    }

    /// The ctl_conn is lost until both programs have noticed.
    fn cut_ctl(&mut self) {
        self.deeds.ctl_cuts += 1;
        let is_back = |line: &str| line.contains(" resumed");
        let before = self.pair.client.err.matching(is_back).len();
        match &self.ground {
            Ground::Road(road) => road.ctl.cut(),
            Ground::Net(net) => {
                let is_loss = |line: &str| line.contains("the ctl_conn is lost");
                let losses = self.pair.client.err.matching(is_loss).len();
                let (to_gateway, to_client) =
                    (format!("tcp dport {CTL_PORT} drop"), format!("tcp sport {CTL_PORT} drop"));
                match self.rng.below(3) {
                    0 => net.gateway.filter(&to_gateway, ""),
                    1 => net.gateway.filter("", &to_client),
                    _ => net.gateway.filter(&to_gateway, &to_client),
                }
                let said = &self.pair.client.err;
                said.wait_for_count("the loss", losses + 1, BACK_DEADLINE, is_loss);
                net.gateway.unfilter();
            }
        }
        let said = &self.pair.client.err;
        said.wait_for_count("a resumption", before + 1, BACK_DEADLINE, is_back);
    }

    /// The link is down, sometimes for longer than the heartbeat's patience; or proxy_conns are reset.
    fn cut_link(&mut self) {
        self.deeds.link_cuts += 1;
        match &self.ground {
            Ground::Road(road) => road.proxy.cut(),
            Ground::Net(net) => {
                net.cut(true);
                // The length of the fault, not a wait for anything.
                std::thread::sleep(Duration::from_millis(200 + self.rng.below(4_000)));
                net.cut(false);
            }
        }
    }

    /// Checks the laws: those of a loaded program, then those of one at rest.
    fn look(&mut self, has_kills: bool) {
        self.looks += 1;
        let [gateway, client] = self.pair.ledgers();
        let open = self.load.open() + VISITORS;
        let mut breaches = gateway.breaches_under_load(self.frames.gateway, open);
        breaches.extend(client.breaches_under_load(self.frames.client, open));
        assert!(breaches.is_empty(), "under load: {breaches:#?} {gateway:#?} {client:#?}");

        self.pair.expect_pause(&self.load, PAUSE_DEADLINE);
        self.pair.expect_no_faults(&self.load, &self.local);
        let breaches = self.pair.breaches_at_rest(self.frames, REST_DEADLINE);
        assert!(breaches.is_empty(), "at rest: {}", breaches.join("\n"));
        self.pair.expect_same_conns(REST_DEADLINE);
        if !has_kills {
            self.resident.push(self.pair.ledgers().map(|ledger: Ledger| ledger.resident_bytes));
        }
        // Lines that will not be asked for again would fill this process's memory.
        for program in [&*self.pair.gateway, &*self.pair.client] {
            program.err.forget(|line| line.contains("flow ended") || is_stats(line));
        }
        self.load.resume();
    }

    /// Behind the warm-up, memory may not grow with time.
    fn judge_memory(&self) {
        let behind = &self.resident[self.resident.len() * WARM_UP_PERCENT / 100..];
        if behind.len() < SLOPE_LOOKS_MIN {
            println!("too short for a verdict on memory: {} looks", behind.len());
            return;
        }
        for (program, name) in ["gateway", "client"].into_iter().enumerate() {
            let line: Vec<f64> = behind.iter().map(|bytes| bytes[program] as f64).collect();
            let growth = slope(&line) * (line.len() - 1) as f64;
            assert!(growth <= GROWTH_BYTES_MAX, "the {name} grows: {growth} bytes in {line:?}");
        }
    }

    fn tell(&self, elapsed: Duration) {
        let summary = self.summary(elapsed);
        self.bar.set_message(summary.clone());
        if !std::io::stderr().is_terminal() {
            println!("{summary}");
        }
    }

    fn summary(&self, elapsed: Duration) -> String {
        let (counts, deeds) = (self.load.counts(), self.deeds);
        let mib = |bytes: u64| bytes >> 20;
        let resident: Vec<[u64; 2]> = self.resident.iter().map(|both| both.map(mib)).collect();
        let memory = match (resident.first(), resident.last()) {
            (Some(first), Some(last)) => format!(
                "rss MiB gateway {} to {}, client {} to {}",
                first[0], last[0], first[1], last[1]
            ),
            _ => "rss not looked at yet".to_owned(),
        };
        format!(
            "{} s: {} flows, {:.1} GB, {} broken by {} gateway kills, {} client kills, {} ctl cuts, \
             {} link cuts; {} looks; {memory}",
            elapsed.as_secs(),
            counts.flows,
            counts.bytes as f64 / 1e9,
            counts.broken,
            deeds.gateway_kills,
            deeds.client_kills,
            deeds.ctl_cuts,
            deeds.link_cuts,
            self.looks
        )
    }
}

/// The slope per step of the straight line that fits best.
fn slope(line: &[f64]) -> f64 {
    let count = line.len() as f64;
    let (mean_x, mean_y) = ((count - 1.0) / 2.0, line.iter().sum::<f64>() / count);
    let (mut over, mut under) = (0.0, 0.0);
    for (place, value) in line.iter().enumerate() {
        let x = place as f64 - mean_x;
        over += x * (value - mean_y);
        under += x * x;
    }
    over / under
}

#[cfg(test)]
mod tests {
    use super::slope;

    /// A flat line has no slope, a rising one its own, and noise around a line changes little.
    #[test]
    fn slopes_are_told() {
        assert!(slope(&[5.0; 8]).abs() < 1e-9);
        assert!((slope(&[1.0, 3.0, 5.0, 7.0]) - 2.0).abs() < 1e-9);
        assert!(slope(&[5.0, 5.1, 4.9, 5.0, 5.1, 4.9]).abs() < 0.1);
    }
}
