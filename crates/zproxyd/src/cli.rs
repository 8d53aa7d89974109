//! The command line, in two steps: as typed (flags over the file), then as meant ([`Settings`]).

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use zproxy_ops::config::File;
use zproxy_ops::cores::check_one;
use zproxy_ops::flags::{
    CoreFlags, FlowFlags, HeartbeatFlags, Layers, LogFlags, PrivilegeFlags, SteerFlags, TokenFlags,
};
use zproxy_ops::values::{BindAddr, Port, PortRange, Seconds};
use zproxy_ops::{Exit, Machine};
use zproxy_proto::limits::{BIND_DEADLINE, SESSION_GRACE};

use crate::config::Settings;

/// The program's name, in messages and in paths.
pub const PROGRAM: &str = "zproxyd";

/// The ctl port when none is named.
const CTL_PORT_DEFAULT: u16 = 8090;

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve until asked to stop.
    Serve(Box<Settings>),
    /// Print the kernel and limits report.
    Check(Box<Settings>),
}

/// Understands the arguments (the first is the program name) on this machine.
///
/// # Errors
/// The exit to take: bad usage, or a good end after `--help`, `--version` and `--check-config`.
pub fn parse(args: Vec<OsString>) -> Result<Command, Exit> {
    parse_on(args, &Machine::here())
}

/// As [`parse`], on a machine of the caller's choice.
///
/// # Errors
/// As [`parse`].
pub fn parse_on(args: Vec<OsString>, machine: &Machine) -> Result<Command, Exit> {
    let typed = Typed::try_parse_from(args)?;
    match typed.verb {
        Some(Verb::Check(flags)) => Ok(Command::Check(Box::new(resolve(flags, machine)?))),
        None => {
            let is_trial = typed.flags.check_config;
            let settings = resolve(typed.flags, machine)?;
            match is_trial {
                true => {
                    Err(Exit::fine(format!("the configuration is good; it means:\n{settings}")))
                }
                false => Ok(Command::Serve(Box::new(settings))),
            }
        }
    }
}

/// The gateway of ZProxy: public ports for services in private networks.
///
/// Clients (zproxy) register on the ctl port and dial proxy connections to the proxy port; each of
/// their tunnels gets a public port here.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 fine, 1 failed at run time, 2 bad usage or configuration.")]
struct Typed {
    #[command(flatten)]
    flags: Flags,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print what this kernel and its limits offer, with a verdict and an advice each
    Check(Flags),
}

#[derive(Args, Debug)]
struct Flags {
    #[command(flatten)]
    listen: ListenFlags,
    #[command(flatten)]
    core: CoreFlags,
    #[command(flatten)]
    steer: SteerFlags,
    #[command(flatten)]
    control: ControlFlags,
    #[command(flatten)]
    token: TokenFlags,
    #[command(flatten)]
    privilege: PrivilegeFlags,
    #[command(flatten)]
    flow: FlowFlags,
    #[command(flatten)]
    heartbeat: HeartbeatFlags,
    #[command(flatten)]
    wait: WaitFlags,
    #[command(flatten)]
    log: LogFlags,

    /// Read settings from a TOML file, or JSON when the name ends in .json; keys are the long flag
    /// names, and a flag overrides the file
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    config: Option<PathBuf>,

    /// Say what the flags and the file mean, and exit
    #[arg(long, help_heading = "Configuration")]
    check_config: bool,
}

/// Where the gateway listens.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Listening")]
struct ListenFlags {
    /// Port on which clients register; 0 = any [default: 8090]
    #[arg(long, value_name = "P", visible_alias = "ctl_port")]
    ctl_port: Option<Port>,

    /// Port to which clients dial proxy connections; 0 = any [default: ctl port + 1]
    #[arg(
        long,
        value_name = "P",
        visible_aliases = ["proxy_port", "zproxy_port"],
        alias = "zproxy-port"
    )]
    proxy_port: Option<Port>,

    // Not a doc comment, in which the brackets of the address would be a link.
    #[arg(
        long,
        value_name = "ADDR",
        help = "Address of both ports [default: [::], dual stack; 0.0.0.0 without IPv6]"
    )]
    bind: Option<BindAddr>,

    /// Address on which public ports listen [default: as --bind]
    #[arg(long, value_name = "ADDR")]
    public_bind: Option<BindAddr>,

    /// Ports that clients may ask for, and from which 0 is served [default: 1024-65535, any free
    /// one for 0]
    #[arg(long, value_name = "A-B")]
    public_ports: Option<PortRange>,
}

/// The control thread.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Threads and kernel")]
struct ControlFlags {
    /// Pin the control thread to this core [default: not pinned]
    #[arg(long, value_name = "N")]
    control_core: Option<CoreNumber>,
}

/// Waits that only a gateway has.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Time limits (seconds, fractions allowed)")]
struct WaitFlags {
    /// Keep the session and the ports of a client that is gone for so long [default: 60]
    #[arg(long, value_name = "S")]
    grace: Option<Seconds>,

    /// Reset a public connection that found no proxy connection for so long [default: 10]
    #[arg(long, value_name = "S")]
    bind_timeout: Option<Seconds>,
}

/// The number of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct CoreNumber(usize);

impl TryFrom<i64> for CoreNumber {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        usize::try_from(number).map(Self).map_err(|_| "write one core number, for example 0".into())
    }
}

impl std::str::FromStr for CoreNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "write one core number, for example 0".to_owned())
    }
}

fn resolve(flags: Flags, machine: &Machine) -> Result<Settings, Exit> {
    let mut file = flags.config.as_deref().map(File::load).transpose()?;
    let listen = Layers::new(flags.listen, file.as_mut())?;
    let core = Layers::new(flags.core, file.as_mut())?;
    let steer = Layers::new(flags.steer, file.as_mut())?;
    let control = Layers::new(flags.control, file.as_mut())?;
    let token = Layers::new(flags.token, file.as_mut())?;
    let privilege = Layers::new(flags.privilege, file.as_mut())?;
    let flow = Layers::new(flags.flow, file.as_mut())?;
    let heartbeat = Layers::new(flags.heartbeat, file.as_mut())?;
    let wait = Layers::new(flags.wait, file.as_mut())?;
    let log = Layers::new(flags.log, file.as_mut())?;
    file.map_or(Ok(()), File::finish)?;

    let (ctl_addr, proxy_addr) = resolve_ports(&listen, machine)?;
    let public_bind = listen.pick(|typed| &typed.public_bind);
    Ok(Settings {
        data: core.resolve(machine)?,
        steer: steer.pick(|typed| &typed.steer).unwrap_or_default(),
        control_core: resolve_control_core(&control, machine)?,
        ctl_addr,
        proxy_addr,
        public_bind: public_bind.map_or(ctl_addr.ip(), |BindAddr(ip)| ip),
        public_ports: listen.pick(|typed| &typed.public_ports),
        token: token.resolve(PROGRAM, machine)?,
        privileges: privilege.resolve(),
        log: log.resolve(machine)?,
        flow: flow.resolve()?,
        heartbeat: heartbeat.resolve()?,
        grace: wait.pick(|typed| &typed.grace).map_or(SESSION_GRACE, |s| s.0),
        bind_timeout: wait.positive("bind-timeout", |typed| &typed.bind_timeout, BIND_DEADLINE)?,
        config_file: flags.config,
    })
}

fn resolve_ports(
    listen: &Layers<ListenFlags>,
    machine: &Machine,
) -> Result<(SocketAddr, SocketAddr), Exit> {
    let every = match machine.has_ipv6 {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let ip = listen.pick(|typed| &typed.bind).map_or(every, |BindAddr(ip)| ip);
    let ctl = listen.pick(|typed| &typed.ctl_port).map_or(CTL_PORT_DEFAULT, |Port(port)| port);
    let proxy = match listen.pick(|typed| &typed.proxy_port) {
        Some(Port(port)) if port != 0 && port == ctl => {
            let what = format!("is the ctl port too ({port}); the two need a port each");
            return Err(listen.wrong("proxy-port", |typed| &typed.proxy_port, what));
        }
        Some(Port(port)) => port,
        // Beside "any port" there is no next one.
        None if ctl == 0 => 0,
        None => ctl.checked_add(1).ok_or_else(|| {
            let what = "is missing, because after ctl port 65535 comes none; name one";
            listen.wrong("proxy-port", |typed| &typed.proxy_port, what)
        })?,
    };
    Ok((SocketAddr::new(ip, ctl), SocketAddr::new(ip, proxy)))
}

fn resolve_control_core(
    control: &Layers<ControlFlags>,
    machine: &Machine,
) -> Result<Option<usize>, Exit> {
    let Some(CoreNumber(core)) = control.pick(|typed| &typed.control_core) else {
        return Ok(None);
    };
    check_one(core, &machine.cpus_allowed)
        .map_err(|what| control.wrong("control-core", |typed| &typed.control_core, what))?;
    Ok(Some(core))
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
