//! From settings to running threads.

use std::io::Write;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use tracing::{info, warn};
use zproxy_io::Open;
use zproxy_ops::token::{Token, TokenPlace};
use zproxy_ops::values::Steer;
use zproxy_ops::{Exit, boot, signals};
use zproxy_proto::control::Heartbeat;
use zproxy_proto::id::ServerId;
use zproxy_proto::registry::{PortPolicy, PortRange, Registry};
use zproxy_relay::{Arrivals, Board, Mailbox, Sender};

use crate::config::{Settings, UNPRIVILEGED_PORT_MIN};
use crate::control::{Control, Parts};
use crate::listeners;
use crate::mailbox::{Report, Tell};
use crate::random::Random;
use crate::worker::{Limits, Worker};

/// The ways to the data cores, and their threads.
type Workers<D> = (Vec<Sender<Tell<D>>>, Vec<JoinHandle<()>>);

/// Serves until asked to stop.
pub(crate) fn serve<D: Open + 'static>(settings: &Settings, found: Token) -> Result<(), Exit> {
    for warning in &found.warnings {
        warn!("{warning}");
    }
    let token = found.secret.shared()?;
    let (ctl_listener, ctl_at) = listeners::own::<D>(settings.ctl_addr, "ctl")?;
    let (proxy_listener, proxy_at) = listeners::own::<D>(settings.proxy_addr, "proxy")?;
    settings.privileges.settle(settings.allows_low_public_ports());

    if let Some(cpu) = settings.control_core
        && let Err(error) = zproxy_io::sys::pin_to_cpu(cpu)
    {
        warn!("control-core={cpu} not pinned: {error}");
    }
    let driver = D::open(&settings.data.control_driver(settings.control_core))
        .map_err(|error| Exit::failed(format!("control core: {error}")))?;
    let mailbox = Mailbox::new(driver.doorbell());
    let wishes = mailbox.sender();
    signals::watch(move |wish| wishes.send(Report::Asked(wish)))
        .map_err(|error| Exit::failed(format!("signals cannot be watched: {error}")))?;
    let (workers, threads) = start_workers::<D>(settings, &mailbox.sender())?;

    let control = Control::new(Parts {
        driver,
        mailbox,
        workers,
        ctl_listener,
        proxy_listener,
        proxy_port: proxy_at.port(),
        public_bind: settings.public_bind,
        registry: registry(settings, [ctl_at.port(), proxy_at.port()])?,
        token,
        server_id: ServerId::from_random(Random::Kernel.bytes()),
        heartbeat: Heartbeat {
            interval: settings.heartbeat.interval,
            deadline: settings.heartbeat.deadline,
        },
        drain_timeout: settings.flow.drain_timeout,
        grace: settings.grace,
        random: Random::Kernel,
    });
    announce::<D>(settings, ctl_at, proxy_at, &found.place);
    let result = control.run();
    for thread in threads {
        // A data core that panicked has said so itself.
        let _ = thread.join();
    }
    info!("ended");
    result.map_err(Exit::failed)
}

fn start_workers<D: Open + 'static>(
    settings: &Settings,
    reports: &Sender<Report>,
) -> Result<Workers<D>, Exit> {
    let limits = Limits::new(settings);
    let board = match settings.steer {
        Steer::Auto => Board::new(&settings.data.cores),
        Steer::Never => None,
    };
    let mut workers = Vec::new();
    let mut threads = Vec::new();
    for (core, &cpu) in (0u16..).zip(&settings.data.cores) {
        let reports = reports.clone();
        let start = |driver: &D| {
            let mailbox = Mailbox::<Tell<D>>::new(driver.doorbell());
            let sender = mailbox.sender();
            (mailbox, sender)
        };
        let board = board.clone();
        let run = move |driver: D, mailbox| {
            let arrivals = Arrivals::new(board, usize::from(core));
            Worker::new(core, driver, mailbox, reports, limits, arrivals).run();
        };
        let name = format!("core-{core}");
        let (sender, thread) = boot::spawn(name, settings.data.data_driver(cpu), start, run)?;
        workers.push(sender);
        threads.push(thread);
    }
    Ok((workers, threads))
}

/// The registry with the operator's rules about public ports.
pub(crate) fn registry(settings: &Settings, own_ports: [u16; 2]) -> Result<Registry, Exit> {
    let range = settings.public_ports.map(|range| PortRange::new(range.first, range.last));
    let range = range.transpose().map_err(|why| Exit::usage(format!("--public-ports: {why}")))?;
    let lowest = if range.is_some() { 1 } else { UNPRIVILEGED_PORT_MIN };
    let policy = PortPolicy { range, excluded: own_ports.to_vec(), lowest };
    Ok(Registry::new(policy).with_grace(settings.grace))
}

/// Tells scripts and people that the gateway is ready.
fn announce<D: Open + 'static>(
    settings: &Settings,
    ctl_at: SocketAddr,
    proxy_at: SocketAddr,
    place: &TokenPlace,
) {
    let cores: Vec<String> = settings.data.cores.iter().map(ToString::to_string).collect();
    let cores = cores.join(",");
    let line =
        format!("zproxyd ready ctl={ctl_at} proxy={proxy_at} backend={} cores={cores}", D::NAME);
    info!("{line}");
    let mut out = std::io::stdout().lock();
    // Nobody may be listening any more; the gateway serves all the same.
    let _ = writeln!(out, "{line}");
    if let TokenPlace::Made(path) = place {
        let _ = writeln!(
            out,
            "a token was made; copy {} to the client's machine and start there: zproxy --server \
             HOST:{} --local HOST:PORT --token-file {}",
            path.display(),
            ctl_at.port(),
            path.display()
        );
    }
    let _ = out.flush();
}
