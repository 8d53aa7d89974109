//! The gateway and the clients as actors: one turn at a time.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use zproxy::config::TunnelSettings;
use zproxy_io::sim::{DriverName, ProcessName, Sabotage, Sim, World};
use zproxy_ops::values::HostPort;

/// The secret that gateway and clients share.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub(crate) const CTL_PORT: u16 = 8090;
pub(crate) const PROXY_PORT: u16 = 8091;

pub(crate) fn gateway_ip() -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 1).into()
}

pub(crate) fn client_ip(client: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, u8::try_from(client).expect("few clients")).into()
}

/// Where visitors reach a tunnel.
pub(crate) fn public_at(tunnel: usize) -> SocketAddr {
    SocketAddr::new(gateway_ip(), 20_000 + u16::try_from(tunnel).expect("few tunnels"))
}

/// Where the service of a tunnel listens.
pub(crate) fn service_at(tunnel: usize) -> SocketAddr {
    let ip = Ipv4Addr::new(10, 0, 2, 1);
    SocketAddr::new(ip.into(), 80 + u16::try_from(tunnel).expect("few tunnels"))
}

/// What a program is in this world.
pub(crate) struct Program<P> {
    pub(crate) process: ProcessName,
    pub(crate) program: P,
}

/// Settings of both programs.
pub(crate) struct Settings {
    pub(crate) gateway: zproxyd::config::Settings,
    pub(crate) clients: Vec<zproxy::config::Settings>,
}

/// Limits of time that runs differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) grace: Duration,
    pub(crate) drain: Duration,
    pub(crate) half_close: Option<Duration>,
    pub(crate) dead_after: Duration,
}

pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
pub(crate) const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

impl Settings {
    /// `owners[tunnel]` is the client that has the tunnel.
    pub(crate) fn new(times: Times, owners: &[usize], is_named: bool) -> Self {
        let args = |text: &str| text.split(' ').map(Into::into).collect();
        let parsed = zproxyd::cli::parse(args("zproxyd --bind 10.0.0.1 --ctl-port 8090"));
        let Ok(zproxyd::cli::Command::Serve(mut gateway)) = parsed else {
            unreachable!("plain settings")
        };
        gateway.flow.drain_timeout = times.drain;
        gateway.flow.half_close_timeout = times.half_close;
        gateway.flow.dead_after = Some(times.dead_after);
        gateway.heartbeat.interval = HEARTBEAT;
        gateway.heartbeat.deadline = HEARTBEAT_DEADLINE;
        gateway.grace = times.grace;
        let parsed =
            zproxy::cli::parse(args("zproxy --server 10.0.0.1:8090 --local 10.0.2.1:80 --name t"));
        let Ok(zproxy::cli::Command::Serve(mut client)) = parsed else {
            unreachable!("plain settings")
        };
        client.flow.drain_timeout = times.drain;
        client.flow.half_close_timeout = times.half_close;
        client.flow.dead_after = Some(times.dead_after);
        client.heartbeat = gateway.heartbeat;
        client.connect_timeout = CONNECT_TIMEOUT;
        if is_named {
            client.server = HostPort { host: "gateway.sim".into(), port: CTL_PORT };
        }
        let count = owners.iter().max().map_or(0, |last| last + 1);
        let clients = (0..count).map(|number| {
            let own = owners.iter().enumerate().filter(|(_, owner)| **owner == number);
            let tunnels = own.map(|(tunnel, _)| {
                let at = service_at(tunnel);
                let host = if is_named { "service.sim".into() } else { at.ip().to_string() };
                let local = HostPort { host, port: at.port() };
                let public_port = public_at(tunnel).port();
                TunnelSettings { name: format!("t{tunnel}"), local, public_port }
            });
            zproxy::config::Settings { tunnels: tunnels.collect(), ..(*client).clone() }
        });
        Self { clients: clients.collect(), gateway: *gateway }
    }
}

/// The gateway.
pub(crate) struct Gateway {
    pub(crate) control: Option<(DriverName, zproxyd::sim::ControlCore<Sim>)>,
    pub(crate) cores: Vec<Option<(DriverName, zproxyd::sim::DataCore<Sim>)>>,
    pub(crate) stops: zproxyd::sim::Stops,
}

/// A client.
pub(crate) struct Client<'a> {
    pub(crate) control: Option<(DriverName, zproxy::sim::ControlThread<'a, Sim>)>,
    pub(crate) cores: Vec<Option<(DriverName, zproxy::sim::DataCore<Sim>)>>,
    pub(crate) stops: zproxy::sim::Stops,
    pub(crate) questions: zproxy::sim::Questions,
    /// The tunnels that are ready.
    pub(crate) ready: Rc<RefCell<BTreeSet<String>>>,
}

pub(crate) fn start_gateway(
    world: &World,
    settings: &zproxyd::config::Settings,
    cores: usize,
    seed: u64,
    sabotage: Option<Sabotage>,
) -> Result<Program<Gateway>, String> {
    let process = world.spawn(gateway_ip());
    world.run_as(process);
    if let Some(sabotage) = sabotage {
        world.sabotage(process, sabotage);
    }
    let control = world.driver(process);
    let drivers: Vec<Sim> = (0..cores).map(|_| world.driver(process)).collect();
    let name = control.name();
    let names: Vec<DriverName> = drivers.iter().map(Sim::name).collect();
    let made = zproxyd::sim::gateway(settings, TOKEN, seed, control, drivers)?;
    let cores = names.into_iter().zip(made.cores).map(Some).collect();
    let program = Gateway { control: Some((name, made.control)), cores, stops: made.stops };
    Ok(Program { process, program })
}

pub(crate) fn start_client<'a>(
    world: &World,
    settings: &'a zproxy::config::Settings,
    number: usize,
    cores: usize,
    seed: u64,
    sabotage: Option<Sabotage>,
) -> Result<Program<Client<'a>>, String> {
    let process = world.spawn(client_ip(number));
    world.run_as(process);
    if let Some(sabotage) = sabotage {
        world.sabotage(process, sabotage);
    }
    let control = world.driver(process);
    let drivers: Vec<Sim> = (0..cores).map(|_| world.driver(process)).collect();
    let name = control.name();
    let names: Vec<DriverName> = drivers.iter().map(Sim::name).collect();
    let ready = Rc::new(RefCell::new(BTreeSet::new()));
    let heard = Rc::clone(&ready);
    let herald = Box::new(move |line: &str| {
        if let Some(tunnel) = line.strip_prefix("tunnel ").and_then(|rest| rest.split(' ').next()) {
            heard.borrow_mut().insert(tunnel.to_owned());
        }
    });
    let id = [u8::try_from(number + 1).expect("few clients"); 16];
    let made = zproxy::sim::client(settings, TOKEN, id, seed, control, drivers, herald)?;
    let cores = names.into_iter().zip(made.cores).map(Some).collect();
    let program = Client {
        control: Some((name, made.control)),
        cores,
        stops: made.stops,
        questions: made.questions,
        ready,
    };
    Ok(Program { process, program })
}

/// A loop of a program, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Control,
    Core(usize),
}

impl Gateway {
    /// The loops that have not ended.
    pub(crate) fn loops(&self) -> impl Iterator<Item = (Place, DriverName)> {
        let control = self.control.iter().map(|(driver, _)| (Place::Control, *driver));
        let cores = self.cores.iter().enumerate();
        control.chain(
            cores.filter_map(|(core, it)| {
                it.as_ref().map(|(driver, _)| (Place::Core(core), *driver))
            }),
        )
    }

    pub(crate) fn turn(&mut self, place: Place) -> Result<(), String> {
        match place {
            Place::Control => {
                let (_, it) = self.control.as_mut().expect("it runs");
                if !it.turn()? {
                    self.control.take().expect("it ran").1.finish()?;
                }
            }
            Place::Core(core) => {
                let (_, it) = self.cores[core].as_mut().expect("it runs");
                if !it.turn()? {
                    self.cores[core].take().expect("it ran").1.finish();
                }
            }
        }
        Ok(())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.loops().next().is_none()
    }
}

impl Client<'_> {
    /// The loops that have not ended.
    pub(crate) fn loops(&self) -> impl Iterator<Item = (Place, DriverName)> {
        let control = self.control.iter().map(|(driver, _)| (Place::Control, *driver));
        let cores = self.cores.iter().enumerate();
        control.chain(
            cores.filter_map(|(core, it)| {
                it.as_ref().map(|(driver, _)| (Place::Core(core), *driver))
            }),
        )
    }

    pub(crate) fn turn(&mut self, place: Place) -> Result<(), String> {
        match place {
            Place::Control => {
                let (_, it) = self.control.as_mut().expect("it runs");
                if !it.turn()? {
                    self.control = None;
                }
            }
            Place::Core(core) => {
                let (_, it) = self.cores[core].as_mut().expect("it runs");
                if !it.turn()? {
                    self.cores[core].take().expect("it ran").1.finish();
                }
            }
        }
        Ok(())
    }
}
