//! The control thread of the client: the ctl_conn, the tunnels, and the orders to the data cores.
//!
//! Bytes of flows never come here. When the ctl_conn is lost, flows go on without it, and this
//! thread dials until it has another one.

mod events;
mod link;
mod orders;
mod tunnels;

use std::time::Duration;

use tracing::{info, warn};
use zproxy_io::{Done, Driver, Ending, Op, Open, Outcome, Sock, Token};
use zproxy_ops::signals::Wish;
use zproxy_ops::{Exit, boot, signals, token};
use zproxy_proto::auth::{self, Ticket};
use zproxy_proto::backoff::Backoff;
use zproxy_proto::limits::LETTERS_MAX;
use zproxy_proto::wire;
use zproxy_relay::{Key, Mailbox, Name, Sender, Slots};

use crate::config::Settings;
use crate::identity::Identity;
use crate::mailbox::{Report, Tell};
use crate::random::Random;
use crate::resolver::Resolver;
use crate::worker::{Plan, Worker};
use link::Link;
use orders::Lanes;
use tunnels::Tunnels;

const CONNECT: u8 = 0;
const RECV: u8 = 1;
const SEND: u8 = 2;
/// Closing is only counted: what it belonged to has been forgotten by then.
const CLOSE: u8 = 3;

/// How often progress is logged while draining.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Time for the data cores to close everything, and for the last frames to leave.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// Without a ctl_conn, what was sent last has so much time to reach the gateway.
const UNTOLD_TIME: Duration = Duration::from_secs(1);

/// A data core, seen from here.
#[derive(Debug)]
pub(crate) struct Core {
    sender: Sender<Tell>,
    /// Collected until the end of the turn.
    letters: Vec<Tell>,
    /// Letters that it had not taken when proxy_conns were ordered last.
    waiting: usize,
    /// For the next proxy_conn.
    serial: u32,
    /// Flows and proxy_conns that are left, once it has said so while draining.
    left: Option<(usize, usize)>,
    is_running: bool,
}

impl Core {
    pub(crate) fn new(sender: Sender<Tell>) -> Self {
        let letters = Vec::new();
        Self { sender, letters, waiting: 0, serial: 0, left: None, is_running: true }
    }

    /// Whether it has as many letters to take as it may have.
    fn is_full(&self) -> bool {
        self.waiting + self.letters.len() >= LETTERS_MAX
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Flows may finish until then.
    Draining {
        until: Duration,
        next_line: Duration,
    },
    /// The data cores close everything.
    Stopping {
        until: Duration,
    },
    /// The last frames are leaving.
    Leaving {
        until: Duration,
    },
}

/// What the control thread is made with.
pub(crate) struct Parts<'a, D: Driver> {
    pub(crate) settings: &'a Settings,
    pub(crate) driver: D,
    pub(crate) mailbox: Mailbox<Report>,
    pub(crate) resolver: Resolver,
    pub(crate) token: auth::Token,
    pub(crate) identity: Identity,
    pub(crate) name: wire::Name,
    pub(crate) cores: Vec<Core>,
    pub(crate) random: Random,
    pub(crate) herald: Herald,
}

/// The control thread.
pub(crate) struct Control<'a, D: Driver> {
    settings: &'a Settings,
    driver: D,
    mailbox: Mailbox<Report>,
    resolver: Resolver,
    token: auth::Token,
    identity: Identity,
    /// What people call this client.
    name: wire::Name,
    cores: Vec<Core>,
    lanes: Lanes,
    tunnels: Tunnels,
    link: Link,
    backoff: Backoff,
    /// Of the session, once there is one.
    ticket: Option<Ticket>,
    /// The last question to the resolver.
    question: u64,
    /// Names the operations of one connection.
    attempts: Slots<()>,
    /// Closes that have not come home.
    closing: usize,
    phase: Phase,
    random: Random,
    /// Hears the lines that are for scripts and people.
    herald: Herald,
    /// Empty between turns.
    done: Vec<Done>,
}

/// Where ready lines go.
pub(crate) type Herald = Box<dyn FnMut(&str)>;

/// Exposes the services until it is asked to stop.
///
/// # Errors
/// When the gateway refuses this client, or something that the program needs fails.
pub(crate) fn serve<D: Open + 'static>(
    settings: &Settings,
    token: &token::Token,
    identity: Identity,
) -> Result<(), Exit> {
    for warning in token.warnings.iter().chain(&identity.warning) {
        warn!("{warning}");
    }
    let token = token.secret.shared()?;
    let driver = D::open(&settings.data.control_driver(None))
        .map_err(|error| Exit::failed(format!("the control thread: {error}")))?;
    let mailbox = Mailbox::new(driver.doorbell());
    let resolver = Resolver::start()
        .map_err(|error| Exit::failed(format!("cannot start the resolver: {error}")))?;
    let wishes = mailbox.sender();
    let on_wish = move |wish| {
        wishes.send(match wish {
            Wish::Stats => Report::Stats,
            Wish::Stop(_) => Report::Stop,
        });
    };
    signals::watch(on_wish)
        .map_err(|error| Exit::failed(format!("cannot watch for signals: {error}")))?;
    let cores = start_cores::<D>(settings, &mailbox, &resolver)?;
    info!(
        "client={} backend={} cores={} gateway={}",
        identity.id,
        D::NAME,
        zproxy_ops::cores::show(&settings.data.cores),
        settings.server
    );
    let control = Control::new(Parts {
        settings,
        driver,
        mailbox,
        resolver,
        token,
        identity,
        name: host_name(),
        cores,
        random: Random::Kernel,
        herald: Box::new(events::announce),
    });
    control.run()
}

fn host_name() -> wire::Name {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    wire::Name::lossy(&name)
}

fn start_cores<D: Open + 'static>(
    settings: &Settings,
    mailbox: &Mailbox<Report>,
    resolver: &Resolver,
) -> Result<Vec<Core>, Exit> {
    let mut cores = Vec::new();
    for (core, &cpu) in settings.data.cores.iter().enumerate() {
        let plan = Plan::new(core, settings, resolver);
        let control = mailbox.sender();
        let start = |driver: &D| {
            let mailbox = Mailbox::new(driver.doorbell());
            let sender = mailbox.sender();
            (mailbox, sender)
        };
        let run = move |driver: D, mailbox: Mailbox<Tell>| {
            let _farewell = Farewell { core, control: control.clone() };
            Worker::new(plan, driver, mailbox, control).run();
        };
        let name = format!("data-{core}");
        let (sender, _thread) = boot::spawn(name, settings.data.data_driver(cpu), start, run)?;
        cores.push(Core::new(sender));
    }
    Ok(cores)
}

/// Reports the end of a data core, also when it panics.
struct Farewell {
    core: usize,
    control: Sender<Report>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let is_well = !std::thread::panicking();
        self.control.send(Report::Ended { core: self.core, is_well });
    }
}

impl<'a, D: Driver> Control<'a, D> {
    pub(crate) fn new(parts: Parts<'a, D>) -> Self {
        let now = parts.driver.now();
        Self {
            settings: parts.settings,
            driver: parts.driver,
            mailbox: parts.mailbox,
            resolver: parts.resolver,
            token: parts.token,
            identity: parts.identity,
            name: parts.name,
            cores: parts.cores,
            lanes: Lanes::default(),
            tunnels: Tunnels::new(&parts.settings.tunnels),
            link: Link::Resting(now),
            backoff: Backoff::new(),
            ticket: None,
            question: 0,
            attempts: Slots::default(),
            closing: 0,
            phase: Phase::Serving,
            random: parts.random,
            herald: parts.herald,
            done: Vec::new(),
        }
    }

    fn run(mut self) -> Result<(), Exit> {
        while self.turn()? {}
        Ok(())
    }

    /// One turn of the loop: waits, does what there is to do, tells the data cores. False when it
    /// was the last.
    pub(crate) fn turn(&mut self) -> Result<bool, Exit> {
        let until = self.next_deadline();
        self.driver
            .wait(until, &mut self.done)
            .map_err(|lost| Exit::failed(format!("the control thread: {lost}")))?;
        let mut done = std::mem::take(&mut self.done);
        for done in done.drain(..) {
            self.on_done(done)?;
        }
        self.done = done;
        self.on_time()?;
        // Before anything is said to the gateway: what it answers to a goodbye with comes after the
        // letter to stop.
        self.post();
        self.pump()?;
        if self.is_over() {
            return Ok(false);
        }
        self.post();
        Ok(true)
    }

    fn post(&mut self) {
        for core in &mut self.cores {
            core.sender.send_all(&mut core.letters);
        }
    }

    fn on_done(&mut self, done: Done) -> Result<(), Exit> {
        if done.token == Token::DOORBELL {
            return self.read_mail();
        }
        let Name { kind, key } = Name::of(done.token);
        match kind {
            CLOSE => self.closing -= 1,
            // What an earlier attempt left behind.
            _ if self.attempts.get(key).is_none() => {}
            CONNECT => self.on_connected(key, &done.outcome),
            RECV => self.on_received(done.outcome),
            SEND => self.on_sent(&done.outcome),
            other => unreachable!("operations of kind {other} are not submitted here"),
        }
        Ok(())
    }

    #[cfg(feature = "sim")]
    pub(crate) fn closing(&self) -> usize {
        self.closing
    }

    #[cfg(feature = "sim")]
    pub(crate) fn stats(&self) -> zproxy_io::Stats {
        self.driver.stats()
    }

    fn submit(&mut self, kind: u8, key: Key, op: Op) {
        self.driver.submit(Name { kind, key }.token(), op);
    }

    fn close(&mut self, key: Key, sock: Sock, how: Ending) {
        self.attempts.remove(key);
        self.closing += 1;
        self.submit(CLOSE, key, Op::Close { sock, how });
    }

    fn tell_all(&mut self, letter: impl Fn() -> Tell) {
        for core in &mut self.cores {
            core.letters.push(letter());
        }
    }

    // --- what the others say --------------------------------------------------------------------

    fn read_mail(&mut self) -> Result<(), Exit> {
        let mut letters = Vec::new();
        self.mailbox.take(&mut letters);
        for letter in letters {
            match letter {
                Report::LaneLost { core, gateway_core } => self.on_lane_lost(core, gateway_core),
                Report::Left { core, flows, conns } => self.cores[core].left = Some((flows, conns)),
                Report::Ended { core, is_well } => {
                    self.cores[core].is_running = false;
                    let is_asked = !matches!(self.phase, Phase::Serving | Phase::Draining { .. });
                    if !is_well || !is_asked {
                        return Err(Exit::failed("a data core's thread died"));
                    }
                }
                Report::Resolved { question, addresses } => self.on_resolved(question, addresses),
                Report::Stats => {
                    info!("control stats {}", self.driver.stats());
                    self.tell_all(|| Tell::Stats);
                }
                Report::Stop => self.on_stop(),
            }
        }
        Ok(())
    }

    // --- stopping -------------------------------------------------------------------------------

    fn on_stop(&mut self) {
        let now = self.driver.now();
        match self.phase {
            Phase::Serving => {
                let limit = self.settings.flow.drain_timeout;
                info!("draining, for up to {} s", limit.as_secs_f64());
                self.phase =
                    Phase::Draining { until: now + limit, next_line: now + PROGRESS_INTERVAL };
                self.tell_all(|| Tell::Drain);
                self.say_goodbye(limit);
            }
            Phase::Draining { .. } => self.stop_cores(now),
            Phase::Stopping { .. } | Phase::Leaving { .. } => {}
        }
    }

    fn stop_cores(&mut self, now: Duration) {
        match self.left() {
            Some((0, _)) => info!("drained"),
            left => warn!("stopping with {} flows left", left.unwrap_or_default().0),
        }
        self.phase = Phase::Stopping { until: now + STOP_DEADLINE };
        self.tell_all(|| Tell::Stop);
    }

    /// Flows and proxy_conns that are left, once every data core has said how many.
    fn left(&self) -> Option<(usize, usize)> {
        self.cores.iter().try_fold((0, 0), |(flows, conns), core| {
            let (more_flows, more_conns) = core.left?;
            Some((flows + more_flows, conns + more_conns))
        })
    }

    fn advance_stop(&mut self, now: Duration) {
        match self.phase {
            Phase::Serving => {}
            Phase::Draining { until, next_line } => {
                let left = self.left();
                // The gateway closes a proxy_conn when it has taken everything from it. One that has
                // not heard of our goodbye does not, and is not waited for.
                let is_told = self.is_welcomed();
                let until = match left {
                    Some((0, _)) if !is_told => until.min(now + UNTOLD_TIME),
                    _ => until,
                };
                let is_drained = left == Some((0, 0));
                if is_drained || now >= until {
                    self.stop_cores(now);
                    return;
                }
                let is_due = now >= next_line;
                if is_due {
                    info!("draining, {} flows left", left.unwrap_or_default().0);
                }
                let next_line = if is_due { now + PROGRESS_INTERVAL } else { next_line };
                self.phase = Phase::Draining { until, next_line };
            }
            Phase::Stopping { until } => {
                if now >= until || self.cores.iter().all(|core| !core.is_running) {
                    self.phase = Phase::Leaving { until };
                    self.leave();
                }
            }
            Phase::Leaving { .. } => self.leave(),
        }
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Leaving { until } => {
                let is_left = matches!(self.link, Link::Off) && self.closing == 0;
                is_left || self.driver.now() >= until
            }
            _ => false,
        }
    }

    // --- time -----------------------------------------------------------------------------------

    fn next_deadline(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Draining { until, next_line } => Some(until.min(next_line)),
            Phase::Stopping { until } | Phase::Leaving { until } => Some(until),
        };
        let retry = self.tunnels.next_retry().filter(|_| self.is_welcomed());
        let lanes = self.lanes.next_retry().filter(|_| self.is_welcomed());
        [self.link.deadline(), phase, retry, lanes].into_iter().flatten().min()
    }

    fn on_time(&mut self) -> Result<(), Exit> {
        let now = self.driver.now();
        self.advance_stop(now);
        self.advance_link(now);
        if self.is_welcomed() {
            for open in self.tunnels.ask_due(now) {
                self.link.with_session(|session| session.open_tunnel(open));
            }
            self.retry_lanes(now);
        }
        Ok(())
    }
}

/// Why nothing more will be received.
fn lost_by(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(fault) => fault.to_string(),
        Outcome::Received { count: 0, .. } => "the gateway has closed it".to_owned(),
        other => unreachable!("the connection is well: {other:?}"),
    }
}
