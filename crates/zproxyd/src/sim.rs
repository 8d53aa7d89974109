//! The gateway without threads: its control core and its data cores, one turn at a time, on drivers
//! of the caller's choice. For the simulator; nothing here is part of the program.

use std::net::SocketAddr;

use zproxy_io::{Driver, ListenOptions, Stats};
use zproxy_ops::signals::{Stop, Wish};
use zproxy_proto::auth::Token;
use zproxy_proto::control::Heartbeat;
use zproxy_proto::id::ServerId;
use zproxy_relay::{Arrivals, Board, Mailbox, Sender};

use crate::config::Settings;
use crate::control::{Control, Parts};
use crate::mailbox::Report;
use crate::random::Random;
use crate::serve;
pub use crate::worker::Census;
use crate::worker::{Limits, Worker};

/// A gateway.
pub struct Gateway<D: Driver> {
    /// The control core.
    pub control: ControlCore<D>,
    /// The data cores.
    pub cores: Vec<DataCore<D>>,
    /// Asks it to stop.
    pub stops: Stops,
    /// Where clients dial it.
    pub ctl_at: SocketAddr,
}

/// The control core.
pub struct ControlCore<D: Driver>(Control<D>);

/// A data core.
pub struct DataCore<D: Driver>(Worker<D>);

/// Asks a gateway to stop.
pub struct Stops(Sender<Report>);

impl Stops {
    /// As SIGTERM does.
    pub fn drain(&self) {
        self.0.send(Report::Asked(Wish::Stop(Stop::Drain)));
    }
}

/// Makes a gateway; its random numbers are those of the seed.
///
/// # Errors
/// What the program would say at its start.
pub fn gateway<D: Driver>(
    settings: &Settings,
    token: &str,
    seed: u64,
    control: D,
    cores: Vec<D>,
) -> Result<Gateway<D>, String> {
    let listen = |at: SocketAddr| {
        D::listen(at, ListenOptions::default()).map_err(|error| format!("listen on {at}: {error}"))
    };
    let (ctl_listener, ctl_at) = listen(settings.ctl_addr)?;
    let (proxy_listener, proxy_at) = listen(settings.proxy_addr)?;
    let mailbox = Mailbox::new(control.doorbell());
    let stops = Stops(mailbox.sender());
    let (mut workers, mut made) = (Vec::new(), Vec::new());
    let board = Board::new(&(0..cores.len()).collect::<Vec<_>>());
    for (core, driver) in (0u16..).zip(cores) {
        let letters = Mailbox::new(driver.doorbell());
        workers.push(letters.sender());
        let limits = Limits::new(settings);
        made.push(DataCore(Worker::new(
            core,
            driver,
            letters,
            mailbox.sender(),
            limits,
            Arrivals::new(board.clone(), usize::from(core)),
        )));
    }
    let mut random = Random::Seed(seed);
    let registry = serve::registry(settings, [ctl_at.port(), proxy_at.port()]);
    let control = Control::new(Parts {
        driver: control,
        mailbox,
        workers,
        ctl_listener,
        proxy_listener,
        proxy_port: proxy_at.port(),
        public_bind: settings.public_bind,
        registry: registry.map_err(|exit| exit.message)?,
        token: Token::parse(token).map_err(|error| error.to_string())?,
        server_id: ServerId::from_random(random.bytes()),
        heartbeat: Heartbeat {
            interval: settings.heartbeat.interval,
            deadline: settings.heartbeat.deadline,
        },
        drain_timeout: settings.flow.drain_timeout,
        grace: settings.grace,
        random,
    });
    Ok(Gateway { control: ControlCore(control), cores: made, stops, ctl_at })
}

impl<D: Driver> ControlCore<D> {
    /// One turn; false when it was the last.
    ///
    /// # Errors
    /// The driver is lost.
    pub fn turn(&mut self) -> Result<bool, String> {
        self.0.turn().map_err(|lost| lost.to_string())
    }

    /// After the last turn.
    ///
    /// # Errors
    /// What made the gateway fail.
    pub fn finish(self) -> Result<(), String> {
        self.0.finish(None)
    }

    /// Doors, connections behind them, sessions, and sessions that have a ctl_conn.
    #[must_use]
    pub fn census(&self) -> [usize; 4] {
        self.0.census()
    }

    /// The driver's counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}

impl<D: Driver> DataCore<D> {
    /// One turn; false when it was the last.
    ///
    /// # Errors
    /// The driver is lost.
    pub fn turn(&mut self) -> Result<bool, String> {
        self.0.turn().map_err(|lost| lost.to_string())
    }

    /// After the last turn.
    pub fn finish(self) {
        self.0.finish(None);
    }

    /// What it holds.
    #[must_use]
    pub fn census(&self) -> Census {
        self.0.census()
    }
}
