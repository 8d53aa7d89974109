//! `zproxy forward`: one hop. Listen here, connect there, relay.
//!
//! One worker per data core, each with its own `SO_REUSEPORT` listener for every route. Nothing is
//! shared on the data path.

mod worker;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};
use zproxy_io::{ListenOptions, Open};
use zproxy_ops::signals::{self, Wish};
use zproxy_ops::values::Steer;
use zproxy_ops::{Exit, boot};
use zproxy_relay::{Arrivals, Board, Mailbox, PathLimit, Sender};

use crate::config::{Forward, ForwardSettings};
use crate::flows::FlowLimits;
use crate::resolver::Resolver;
use worker::{Parts, Route, Tell, Worker};

/// How often progress is logged while draining.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Time for the workers to close everything when they must end at once.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What the main thread hears.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The operator asks what was counted.
    Stats,
    /// The operator asks to stop.
    Stop,
    /// So many flows are left on a worker that is draining.
    Left { worker: usize, flows: usize },
    /// A worker has ended.
    Ended { worker: usize, is_well: bool },
}

/// Forwards until it is asked to stop.
///
/// # Errors
/// When an address cannot be listened on, or a worker dies.
pub(crate) fn serve<D: Open + 'static>(settings: &ForwardSettings) -> Result<(), Exit> {
    let listens = settings.forwards.iter().map(|forward| listen::<D>(forward, settings));
    let listens = listens.collect::<Result<Vec<_>, _>>()?;
    settings.privileges.settle(false);
    let (tell, told) = mpsc::channel();
    let wishes = tell.clone();
    signals::watch(move |wish| {
        let _ = wishes.send(match wish {
            Wish::Stats => Event::Stats,
            Wish::Stop(_) => Event::Stop,
        });
    })
    .map_err(|error| Exit::failed(format!("cannot watch for signals: {error}")))?;
    let workers = start_workers::<D>(settings, &listens, &tell)?;
    drop(tell);
    for (route, (at, handles)) in listens.into_iter().enumerate() {
        for (worker, listener) in workers.iter().zip(handles) {
            worker.send(Tell::Listen { route, listener });
        }
        announce(at, &settings.forwards[route])?;
    }
    let left = vec![0; workers.len()];
    Watchman { running: workers.len(), workers, left, told }.run(settings.flow.drain_timeout)
}

type Listening<H> = (SocketAddr, Vec<H>);

/// Opens a listener per data core, if nobody else listens there.
fn listen<D: Open>(
    forward: &Forward,
    settings: &ForwardSettings,
) -> Result<Listening<D::Handle>, Exit> {
    let failed = |at: SocketAddr| {
        move |error: std::io::Error| Exit::failed(format!("cannot listen on {at}: {error}"))
    };
    let mut at = forward.listen;
    if at.port() != 0 {
        // With SO_REUSEPORT a listener of the same user would share its connections with us.
        D::listen(at, ListenOptions { reuse_port: false }).map_err(failed(at))?;
    }
    let mut handles = Vec::new();
    for _ in &settings.data.cores {
        let (handle, actual) =
            D::listen(at, ListenOptions { reuse_port: true }).map_err(failed(at))?;
        at = actual;
        handles.push(handle);
    }
    Ok((at, handles))
}

fn start_workers<D: Open + 'static>(
    settings: &ForwardSettings,
    listens: &[Listening<D::Handle>],
    tell: &mpsc::Sender<Event>,
) -> Result<Vec<Sender<Tell<D::Handle>>>, Exit> {
    let resolver = Resolver::start()
        .map_err(|error| Exit::failed(format!("cannot start the resolver: {error}")))?;
    let limits = FlowLimits {
        connect: settings.connect_timeout,
        idle: settings.flow.idle_timeout,
        half_close: settings.flow.half_close_timeout,
        path: PathLimit::new(settings.flow.dead_after),
    };
    let routes: Vec<Route> = listens
        .iter()
        .zip(&settings.forwards)
        .map(|((at, _), forward)| Route::new(*at, forward.to.clone()))
        .collect();
    let board = match settings.steer {
        Steer::Auto => Board::new(&settings.data.cores),
        Steer::Never => None,
    };
    let mut workers = Vec::new();
    for (number, &cpu) in settings.data.cores.iter().enumerate() {
        let (routes, resolver, tell) = (routes.clone(), resolver.clone(), tell.clone());
        let board = board.clone();
        let start = |driver: &D| {
            let mailbox = Mailbox::new(driver.doorbell());
            let sender = mailbox.sender();
            (mailbox, sender)
        };
        let run = move |driver: D, mailbox: Mailbox<Tell<D::Handle>>| {
            let _farewell = Farewell { worker: number, tell: tell.clone() };
            let arrivals = Arrivals::new(board, number);
            let parts = Parts { number, tell, resolver, routes, limits, arrivals };
            Worker::new(driver, mailbox, parts).run();
        };
        let name = format!("data-{number}");
        let (sender, _thread) = boot::spawn(name, settings.data.data_driver(cpu), start, run)?;
        workers.push(sender);
    }
    Ok(workers)
}

/// Reports the end of a worker, also when it panics.
struct Farewell {
    worker: usize,
    tell: mpsc::Sender<Event>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let is_well = !std::thread::panicking();
        let _ = self.tell.send(Event::Ended { worker: self.worker, is_well });
    }
}

fn announce(at: SocketAddr, forward: &Forward) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "forward ready listen={at} to={}", forward.to)
        .and_then(|()| out.flush())
        .map_err(|error| Exit::failed(format!("cannot write to stdout: {error}")))
}

/// The main thread after the start: hears signals and watches the workers.
struct Watchman<H> {
    workers: Vec<Sender<Tell<H>>>,
    /// Workers that have not ended.
    running: usize,
    /// Flows that are left, as far as the workers have said.
    left: Vec<usize>,
    told: mpsc::Receiver<Event>,
}

impl<H> Watchman<H> {
    fn run(mut self, drain_timeout: Duration) -> Result<(), Exit> {
        loop {
            match self.told.recv() {
                Ok(Event::Stats) => self.tell_all(|| Tell::Stats),
                Ok(Event::Stop) => break,
                other => return Err(died(&other)),
            }
        }
        info!("draining, for up to {} s", drain_timeout.as_secs_f64());
        self.tell_all(|| Tell::Drain);
        let until = Instant::now() + drain_timeout;
        if self.drain(until)? {
            info!("drained");
            return Ok(());
        }
        warn!("stopping with {} flows left", self.flows());
        self.tell_all(|| Tell::Stop);
        let until = Instant::now() + STOP_DEADLINE;
        while self.running > 0
            && let Ok(event) =
                self.told.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            self.note(event)?;
        }
        Ok(())
    }

    /// Waits for the last flow; false when it is not to be waited for any longer.
    fn drain(&mut self, until: Instant) -> Result<bool, Exit> {
        let mut next_line = Instant::now() + PROGRESS_INTERVAL;
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            if now >= next_line {
                next_line = now + PROGRESS_INTERVAL;
                info!("draining, {} flows left", self.flows());
            }
            match self.told.recv_timeout(next_line.min(until).saturating_duration_since(now)) {
                Ok(Event::Stop) => return Ok(false),
                Ok(event) => self.note(event)?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(true),
            }
            if self.running == 0 {
                return Ok(true);
            }
        }
    }

    fn note(&mut self, event: Event) -> Result<(), Exit> {
        match event {
            Event::Stats => self.tell_all(|| Tell::Stats),
            Event::Stop => {}
            Event::Left { worker, flows } => self.left[worker] = flows,
            Event::Ended { is_well: false, .. } => return Err(died(&Ok(event))),
            Event::Ended { worker, .. } => {
                self.left[worker] = 0;
                self.running -= 1;
            }
        }
        Ok(())
    }

    fn flows(&self) -> usize {
        self.left.iter().sum()
    }

    fn tell_all(&self, letter: impl Fn() -> Tell<H>) {
        self.workers.iter().for_each(|worker| worker.send(letter()));
    }
}

fn died(event: &Result<Event, mpsc::RecvError>) -> Exit {
    error!("a worker has ended unasked: {event:?}");
    Exit::failed("a worker thread died")
}
