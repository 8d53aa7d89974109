//! The command line, in two steps: as typed (flags over the file), then as meant ([`Settings`] or
//! [`ForwardSettings`]).

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use zproxy_ops::config::{ConfigError, File};
use zproxy_ops::flags::{
    CoreFlags, FlowFlags, HeartbeatFlags, Layers, LogFlags, PrivilegeFlags, SteerFlags, TokenFlags,
};
use zproxy_ops::values::{HostPort, ListenAddr, Port, Seconds};
use zproxy_ops::{Exit, Machine};
use zproxy_proto::limits::{CONNECT_TIMEOUT, NAME_LEN_MAX, TUNNELS_PER_CLIENT_MAX};

use crate::config::{Forward, ForwardSettings, Settings, UnnamedTunnel, name_tunnels};

/// The program's name, in messages and in paths.
pub const PROGRAM: &str = "zproxy";

/// Forwards in one process; each has a listener per data core.
const FORWARDS_MAX: usize = 256;

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Expose local services through a gateway until asked to stop.
    Serve(Box<Settings>),
    /// Forward ports until asked to stop.
    Forward(Box<ForwardSettings>),
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
    let Typed { flags, verb } = Typed::try_parse_from(args)?;
    match verb {
        None => {
            let is_trial = flags.config.check_config;
            let settings = resolve(flags, machine)?;
            if is_trial {
                Err(trial_passed(&settings))
            } else {
                Ok(Command::Serve(settings.into()))
            }
        }
        Some(Verb::Forward(flags)) => {
            let is_trial = flags.config.check_config;
            let settings = resolve_forward(flags, machine)?;
            if is_trial {
                Err(trial_passed(&settings))
            } else {
                Ok(Command::Forward(settings.into()))
            }
        }
    }
}

fn trial_passed(settings: &impl std::fmt::Display) -> Exit {
    Exit::fine(format!("the configuration is good; it means:\n{settings}"))
}

/// The client of ZProxy: exposes services of a private network through a gateway (zproxyd).
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Example:\n  zproxy --server gateway.example.com:8090 --local 127.0.0.1:8080 \
    --token-file token\n\nExit codes: 0 fine, 1 failed at run time, 2 bad usage or configuration, \
    3 refused by the gateway."
)]
struct Typed {
    #[command(flatten)]
    flags: ServeFlags,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Listen here, connect there: the same relay with one hop and without a gateway
    Forward(ForwardFlags),
}

#[derive(Args, Debug)]
struct ServeFlags {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    tunnel: TunnelFlags,
    #[command(flatten)]
    token: TokenFlags,
    #[command(flatten)]
    core: CoreFlags,
    #[command(flatten)]
    dial: DialFlags,
    #[command(flatten)]
    flow: FlowFlags,
    #[command(flatten)]
    heartbeat: HeartbeatFlags,
    #[command(flatten)]
    privilege: PrivilegeFlags,
    #[command(flatten)]
    log: LogFlags,
    #[command(flatten)]
    config: ConfigFlags,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Several forwards: repeat --listen and --to in pairs, or write [[forward]] \
    entries with listen and to in a file."
)]
struct ForwardFlags {
    /// Listen here; repeat together with --to
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Forward")]
    listen: Vec<ListenAddr>,

    /// Connect there; repeat together with --listen
    #[arg(long, value_name = "HOST:PORT", help_heading = "Forward")]
    to: Vec<HostPort>,

    #[command(flatten)]
    core: CoreFlags,
    #[command(flatten)]
    steer: SteerFlags,
    #[command(flatten)]
    dial: DialFlags,
    #[command(flatten)]
    flow: FlowFlags,
    #[command(flatten)]
    privilege: PrivilegeFlags,
    #[command(flatten)]
    log: LogFlags,
    #[command(flatten)]
    config: ConfigFlags,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Configuration")]
struct ConfigFlags {
    /// Read settings from a TOML file, or JSON when the name ends in .json; keys are the long flag
    /// names, lists are [[tunnel]] and [[forward]], and a flag overrides the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Say what the flags and the file mean, and exit
    #[arg(long)]
    check_config: bool,
}

/// The gateway.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Tunnel")]
struct ServerFlags {
    /// The gateway's ctl port
    #[arg(
        long,
        value_name = "HOST:PORT",
        visible_aliases = ["zproxy_server", "cproxy_server"],
        aliases = ["zproxy-server", "cproxy-server"]
    )]
    server: Option<HostPort>,
}

/// One tunnel: on the command line, at the top of a file, or a `[[tunnel]]` entry.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Tunnel")]
struct TunnelFlags {
    /// The service to expose
    #[arg(long, value_name = "HOST:PORT", visible_alias = "local_server", alias = "local-server")]
    local: Option<HostPort>,

    /// The public port on the gateway; 0 = any [default: 0]
    #[arg(long, value_name = "P", visible_alias = "public_port")]
    public_port: Option<Port>,

    /// The tunnel's name [default: made from --local]
    #[arg(long, value_name = "NAME")]
    name: Option<TunnelName>,
}

/// A `[[forward]]` entry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct ForwardEntry {
    listen: Option<ListenAddr>,
    to: Option<HostPort>,
}

/// Dialling.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Time limits (seconds, fractions allowed)")]
struct DialFlags {
    /// Give a dial up after so long [default: 5]
    #[arg(long, value_name = "S")]
    connect_timeout: Option<Seconds>,
}

/// The name of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct TunnelName(String);

impl FromStr for TunnelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if text.is_empty() || text.len() > NAME_LEN_MAX || !text.chars().all(plain) {
            return Err(format!(
                "a name has 1 to {NAME_LEN_MAX} letters, digits, dots, hyphens and underscores"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for TunnelName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What both commands read from a file. Each may have the other's settings in it.
struct Common {
    core: Layers<CoreFlags>,
    dial: Layers<DialFlags>,
    flow: Layers<FlowFlags>,
    privilege: Layers<PrivilegeFlags>,
    log: Layers<LogFlags>,
}

impl Common {
    fn connect_timeout(&self) -> Result<Duration, Exit> {
        self.dial.positive("connect-timeout", |typed| &typed.connect_timeout, CONNECT_TIMEOUT)
    }
}

/// A `[[tunnel]]` or `[[forward]]` entry with the table it came from, for errors.
type Entries<T> = Vec<(T, ConfigError)>;

fn take_entries<T: serde::de::DeserializeOwned>(
    file: &mut File,
    key: &'static str,
) -> Result<Entries<T>, ConfigError> {
    let read = |mut table: File| {
        let entry = table.take()?;
        let missing = table.error(Some(""), String::new());
        table.finish()?;
        Ok((entry, missing))
    };
    file.take_tables(key)?.into_iter().map(read).collect()
}

/// The error for an entry without a key that it needs.
fn missing(mut at: ConfigError, key: &str, example: &str) -> ConfigError {
    at.key = Some(format!("{}{key}", at.key.unwrap_or_default()));
    at.what = format!("is missing; write for example {key} = \"{example}\"");
    at
}

fn resolve(flags: ServeFlags, machine: &Machine) -> Result<Settings, Exit> {
    let mut file = flags.config.config.as_deref().map(File::load).transpose()?;
    let server = Layers::new(flags.server, file.as_mut())?;
    let tunnel = Layers::new(flags.tunnel, file.as_mut())?;
    let token = Layers::new(flags.token, file.as_mut())?;
    let heartbeat = Layers::new(flags.heartbeat, file.as_mut())?;
    let common = Common {
        core: Layers::new(flags.core, file.as_mut())?,
        dial: Layers::new(flags.dial, file.as_mut())?,
        flow: Layers::new(flags.flow, file.as_mut())?,
        privilege: Layers::new(flags.privilege, file.as_mut())?,
        log: Layers::new(flags.log, file.as_mut())?,
    };
    let mut entries = Vec::new();
    let mut has_forwards = false;
    if let Some(file) = &mut file {
        file.take::<SteerFlags>()?;
        entries = take_entries(file, "tunnel")?;
        has_forwards = !take_entries::<ForwardEntry>(file, "forward")?.is_empty();
    }
    file.map_or(Ok(()), File::finish)?;

    let tunnels = resolve_tunnels(&tunnel, entries, has_forwards)?;
    let server = server.pick(|typed| &typed.server).ok_or_else(|| {
        let what = "is missing; name the gateway, for example --server gateway.example.com:8090";
        server.wrong("server", |typed| &typed.server, what)
    })?;
    Ok(Settings {
        server,
        tunnels,
        data: common.core.resolve(machine)?,
        token: token.resolve(PROGRAM, machine)?,
        privileges: common.privilege.resolve(),
        log: common.log.resolve(machine)?,
        flow: common.flow.resolve()?,
        heartbeat: heartbeat.resolve()?,
        connect_timeout: common.connect_timeout()?,
        config_file: flags.config.config,
    })
}

/// `--local` alone is the whole list; without it the file's tunnels are, and flags may change the
/// only one.
fn resolve_tunnels(
    top: &Layers<TunnelFlags>,
    entries: Entries<TunnelFlags>,
    has_forwards: bool,
) -> Result<Vec<crate::config::TunnelSettings>, Exit> {
    let mut tunnels = Vec::new();
    if top.flags.local.is_none() {
        for (entry, at) in entries {
            let local = entry.local.ok_or_else(|| missing(at, "local", "127.0.0.1:8080"))?;
            tunnels.push(unnamed(local, entry.public_port, entry.name));
        }
    }
    let only = TunnelFlags {
        local: top.pick(|typed| &typed.local),
        public_port: top.pick(|typed| &typed.public_port),
        name: top.pick(|typed| &typed.name),
    };
    match (only.local, tunnels.as_mut_slice()) {
        (Some(local), _) => tunnels.insert(0, unnamed(local, only.public_port, only.name)),
        (None, []) => {
            let hint = if has_forwards {
                "; for the [[forward]] entries of the file run `zproxy forward --config FILE`"
            } else {
                ""
            };
            return Err(Exit::usage(format!(
                "--local is missing; name the service to expose, for example --local \
                 127.0.0.1:8080 (or write [[tunnel]] entries in a --config file){hint}\n\nUsage: \
                 zproxy --server HOST:PORT --local HOST:PORT [OPTIONS]"
            )));
        }
        (None, [tunnel]) => {
            tunnel.public_port = only.public_port.map_or(tunnel.public_port, |Port(port)| port);
            tunnel.name = only.name.map(|TunnelName(name)| name).or(tunnel.name.take());
        }
        (None, _) => {
            let what = "needs --local, because the file has several tunnels";
            if only.public_port.is_some() {
                return Err(top.wrong("public-port", |typed| &typed.public_port, what));
            }
            if only.name.is_some() {
                return Err(top.wrong("name", |typed| &typed.name, what));
            }
        }
    }
    if tunnels.len() > TUNNELS_PER_CLIENT_MAX {
        let count = tunnels.len();
        return Err(Exit::usage(format!(
            "{count} tunnels are too many; a client may have {TUNNELS_PER_CLIENT_MAX}"
        )));
    }
    name_tunnels(tunnels).map_err(|name| {
        Exit::usage(format!("two tunnels have the name \"{name}\"; give each its own"))
    })
}

fn unnamed(local: HostPort, port: Option<Port>, name: Option<TunnelName>) -> UnnamedTunnel {
    let public_port = port.map_or(0, |Port(port)| port);
    UnnamedTunnel { name: name.map(|TunnelName(name)| name), local, public_port }
}

fn resolve_forward(flags: ForwardFlags, machine: &Machine) -> Result<ForwardSettings, Exit> {
    let mut file = flags.config.config.as_deref().map(File::load).transpose()?;
    let common = Common {
        core: Layers::new(flags.core, file.as_mut())?,
        dial: Layers::new(flags.dial, file.as_mut())?,
        flow: Layers::new(flags.flow, file.as_mut())?,
        privilege: Layers::new(flags.privilege, file.as_mut())?,
        log: Layers::new(flags.log, file.as_mut())?,
    };
    let steer = Layers::new(flags.steer, file.as_mut())?;
    let mut pairs = Vec::new();
    if let Some(file) = &mut file {
        // The rest of the file may be about tunnels; its values are checked all the same.
        file.take::<ServerFlags>()?;
        file.take::<TunnelFlags>()?;
        file.take::<TokenFlags>()?;
        file.take::<HeartbeatFlags>()?;
        take_entries::<TunnelFlags>(file, "tunnel")?;
        for (entry, at) in take_entries::<ForwardEntry>(file, "forward")? {
            match (entry.listen, entry.to) {
                (Some(listen), Some(to)) => pairs.push((listen, to)),
                (None, _) => return Err(missing(at, "listen", "0.0.0.0:2222").into()),
                (_, None) => return Err(missing(at, "to", "10.0.0.5:22").into()),
            }
        }
    }
    file.map_or(Ok(()), File::finish)?;
    let typed = pair_up(flags.listen, flags.to)?;
    Ok(ForwardSettings {
        forwards: resolve_forwards(if typed.is_empty() { pairs } else { typed }, machine)?,
        data: common.core.resolve(machine)?,
        steer: steer.pick(|typed| &typed.steer).unwrap_or_default(),
        privileges: common.privilege.resolve(),
        log: common.log.resolve(machine)?,
        flow: common.flow.resolve()?,
        connect_timeout: common.connect_timeout()?,
        config_file: flags.config.config,
    })
}

fn pair_up(
    listen: Vec<ListenAddr>,
    to: Vec<HostPort>,
) -> Result<Vec<(ListenAddr, HostPort)>, Exit> {
    let (listens, tos) = (listen.len(), to.len());
    if listens == tos {
        return Ok(listen.into_iter().zip(to).collect());
    }
    let (short, example) = if listens < tos {
        ("--listen", "--listen 0.0.0.0:2222")
    } else {
        ("--to", "--to 10.0.0.5:22")
    };
    Err(Exit::usage(format!(
        "{short} is missing: there are {listens} --listen and {tos} --to, and they go in pairs; \
         add for example {example}"
    )))
}

fn resolve_forwards(
    pairs: Vec<(ListenAddr, HostPort)>,
    machine: &Machine,
) -> Result<Vec<Forward>, Exit> {
    if pairs.is_empty() {
        return Err(Exit::usage(
            "--listen and --to are missing, for example zproxy forward --listen 0.0.0.0:2222 --to \
             10.0.0.5:22 (or write [[forward]] entries in a --config file)",
        ));
    }
    if pairs.len() > FORWARDS_MAX {
        let count = pairs.len();
        return Err(Exit::usage(format!(
            "{count} forwards are too many; the most is {FORWARDS_MAX}"
        )));
    }
    let every = match machine.has_ipv6 {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let mut forwards: Vec<Forward> = Vec::new();
    for (listen, to) in pairs {
        let listen = listen.resolve(every);
        if listen.port() != 0 && forwards.iter().any(|other| other.listen == listen) {
            return Err(Exit::usage(format!("--listen: {listen} is named twice")));
        }
        forwards.push(Forward { listen, to });
    }
    Ok(forwards)
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
