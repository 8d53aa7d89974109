//! The client without threads: its control thread and its data cores, one turn at a time, on drivers
//! of the caller's choice. For the simulator; nothing here is part of the program.

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;

use zproxy_io::{Driver, Stats};
use zproxy_ops::values::HostPort;
use zproxy_proto::auth::Token;
use zproxy_proto::id::ClientId;
use zproxy_proto::wire::Name;
use zproxy_relay::{Mailbox, Sender};

use crate::config::Settings;
use crate::control::{Control, Core, Herald, Parts};
use crate::identity::Identity;
use crate::mailbox::Report;
use crate::random::Random;
use crate::resolver::{Reply, Resolver};
pub use crate::worker::Census;
use crate::worker::{Plan, Worker};

/// A client.
pub struct Client<'a, D: Driver> {
    /// The control thread.
    pub control: ControlThread<'a, D>,
    /// The data cores.
    pub cores: Vec<DataCore<D>>,
    /// Asks it to stop.
    pub stops: Stops,
    /// Questions to the resolver.
    pub questions: Questions,
}

/// The control thread.
pub struct ControlThread<'a, D: Driver>(Control<'a, D>);

/// A data core.
pub struct DataCore<D: Driver> {
    core: usize,
    worker: Worker<D>,
    control: Sender<Report>,
}

/// Asks a client to stop.
pub struct Stops(Sender<Report>);

/// Questions to the resolver.
pub struct Questions(Receiver<(HostPort, Reply)>);

/// A question to the resolver.
pub struct Question {
    /// The name.
    pub host: String,
    /// The port.
    pub port: u16,
    reply: Reply,
}

impl Stops {
    /// As SIGTERM does.
    pub fn stop(&self) {
        self.0.send(Report::Stop);
    }
}

impl Questions {
    /// One that was asked.
    #[must_use]
    pub fn next(&self) -> Option<Question> {
        let (target, reply) = self.0.try_recv().ok()?;
        Some(Question { host: target.host, port: target.port, reply })
    }
}

impl Question {
    /// Answers it; without an address the name does not resolve.
    pub fn answer(self, addresses: Vec<SocketAddr>) {
        (self.reply)(addresses.into());
    }
}

/// Makes a client; its random numbers are those of the seed.
///
/// # Errors
/// The token is none.
pub fn client<'a, D: Driver>(
    settings: &'a Settings,
    token: &str,
    id: [u8; 16],
    seed: u64,
    control: D,
    cores: Vec<D>,
    herald: Herald,
) -> Result<Client<'a, D>, String> {
    let (resolver, asked) = Resolver::by_hand();
    let mailbox = Mailbox::new(control.doorbell());
    let stops = Stops(mailbox.sender());
    let (mut known, mut made) = (Vec::new(), Vec::new());
    for (core, driver) in cores.into_iter().enumerate() {
        let letters = Mailbox::new(driver.doorbell());
        known.push(Core::new(letters.sender()));
        let plan = Plan::new(core, settings, &resolver);
        let control = mailbox.sender();
        let worker = Worker::new(plan, driver, letters, control.clone());
        made.push(DataCore { core, worker, control });
    }
    let control = Control::new(Parts {
        settings,
        driver: control,
        mailbox,
        resolver,
        token: Token::parse(token).map_err(|error| error.to_string())?,
        identity: Identity::of(ClientId::from_random(id)),
        name: Name::lossy("sim"),
        cores: known,
        random: Random::Seed(seed),
        herald,
    });
    let questions = Questions(asked);
    Ok(Client { control: ControlThread(control), cores: made, stops, questions })
}

impl<D: Driver> ControlThread<'_, D> {
    /// One turn; false when it was the last.
    ///
    /// # Errors
    /// What the program would end with.
    pub fn turn(&mut self) -> Result<bool, String> {
        self.0.turn().map_err(|exit| exit.message)
    }

    /// Whether the gateway has let it in.
    #[must_use]
    pub fn is_welcomed(&self) -> bool {
        self.0.is_welcomed()
    }

    /// Closes that have not come home.
    #[must_use]
    pub fn closing(&self) -> usize {
        self.0.closing()
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
        self.worker.turn().map_err(|lost| lost.to_string())
    }

    /// After the last turn.
    pub fn finish(self) {
        drop(self.worker);
        self.control.send(Report::Ended { core: self.core, is_well: true });
    }

    /// What it holds.
    #[must_use]
    pub fn census(&self) -> Census {
        self.worker.census()
    }
}
