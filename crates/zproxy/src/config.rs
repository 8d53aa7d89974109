//! What the client was asked to do: the settings, with every default resolved.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use zproxy_ops::cores;
use zproxy_ops::flags::{
    CoreSettings, FlowSettings, HeartbeatSettings, TokenSettings, show_limit, show_log, show_relay,
    show_token, show_user,
};
use zproxy_ops::logs::LogSettings;
use zproxy_ops::privileges::Privileges;
use zproxy_ops::values::{HostPort, Steer};
use zproxy_proto::limits::NAME_LEN_MAX;

/// Everything the client needs to know before it starts. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The gateway's ctl port.
    pub server: HostPort,
    /// What is exposed; at least one, with different names.
    pub tunnels: Vec<TunnelSettings>,
    /// Data cores, backend and relay path.
    pub data: CoreSettings,
    /// The token and the state directory.
    pub token: TokenSettings,
    /// What the process gives up.
    pub privileges: Privileges,
    /// Where log lines go.
    pub log: LogSettings,
    /// Limits of time for flows.
    pub flow: FlowSettings,
    /// The heartbeat on the ctl_conn.
    pub heartbeat: HeartbeatSettings,
    /// A dial, to the gateway or to a LocalServer, may take so long.
    pub connect_timeout: Duration,
    /// The file that was read, if any.
    pub config_file: Option<PathBuf>,
}

/// One local service to expose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSettings {
    /// Its name, unlike that of every other tunnel of this client; printable, without blanks.
    pub name: String,
    /// The LocalServer.
    pub local: HostPort,
    /// The wanted public port; 0 is any.
    pub public_port: u16,
}

/// Everything `zproxy forward` needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardSettings {
    /// What is forwarded; at least one.
    pub forwards: Vec<Forward>,
    /// Data cores, backend and relay path.
    pub data: CoreSettings,
    /// Whether a data core takes the connections that arrive on its own CPU.
    pub steer: Steer,
    /// What the process gives up.
    pub privileges: Privileges,
    /// Where log lines go.
    pub log: LogSettings,
    /// Limits of time for flows.
    pub flow: FlowSettings,
    /// A dial may take so long.
    pub connect_timeout: Duration,
    /// The file that was read, if any.
    pub config_file: Option<PathBuf>,
}

/// One hop: listen here, connect there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where to listen; port 0 is any free one.
    pub listen: SocketAddr,
    /// Where to connect.
    pub to: HostPort,
}

/// A tunnel as typed: the name may still be missing.
#[derive(Clone, Debug)]
pub(crate) struct UnnamedTunnel {
    pub(crate) name: Option<String>,
    pub(crate) local: HostPort,
    pub(crate) public_port: u16,
}

/// Gives every tunnel without a name one that tells its LocalServer, and that nobody else has.
///
/// # Errors
/// The name that two tunnels were given.
pub(crate) fn name_tunnels(tunnels: Vec<UnnamedTunnel>) -> Result<Vec<TunnelSettings>, String> {
    let mut taken = HashSet::new();
    for name in tunnels.iter().filter_map(|tunnel| tunnel.name.as_ref()) {
        if !taken.insert(name.clone()) {
            return Err(name.clone());
        }
    }
    let named = tunnels.into_iter().map(|UnnamedTunnel { name, local, public_port }| {
        let name = name.unwrap_or_else(|| {
            let name = free_name(&local, &taken);
            taken.insert(name.clone());
            name
        });
        TunnelSettings { name, local, public_port }
    });
    Ok(named.collect())
}

/// `HOST-PORT`, with a number behind it where that is taken.
fn free_name(local: &HostPort, taken: &HashSet<String>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let host: String = local.host.chars().map(plain).collect();
    let host = host.trim_matches('-');
    // Room for the port and the number.
    let host = &host[..host.len().min(NAME_LEN_MAX - 16)];
    let name = if host.is_empty() {
        format!("tunnel-{}", local.port)
    } else {
        format!("{host}-{}", local.port)
    };
    if !taken.contains(&name) {
        return name;
    }
    let numbered = (2..).map(|number: u32| format!("{name}-{number}"));
    numbered.into_iter().find(|name| !taken.contains(name)).unwrap_or(name)
}

/// What `--check-config` prints: one `name = value` per line, in the words of the file.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server = {}", self.server)?;
        for TunnelSettings { name, local, public_port } in &self.tunnels {
            let public = if *public_port == 0 { "any".into() } else { public_port.to_string() };
            writeln!(f, "tunnel {name}: local = {local}, public-port = {public}")?;
        }
        writeln!(f, "token = {}", show_token(&self.token.token, "not named (needed to start)"))?;
        writeln!(f, "state-dir = {}", self.token.state_dir.display())?;
        writeln!(f, "heartbeat = {} s", self.heartbeat.interval.as_secs_f64())?;
        writeln!(f, "heartbeat-deadline = {} s", self.heartbeat.deadline.as_secs_f64())?;
        show_common(f, &self.data, &self.flow, self.connect_timeout, &self.privileges, &self.log)
    }
}

/// What `forward --check-config` prints.
impl fmt::Display for ForwardSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Forward { listen, to } in &self.forwards {
            writeln!(f, "forward: listen = {listen}, to = {to}")?;
        }
        writeln!(f, "steer = {}", self.steer)?;
        show_common(f, &self.data, &self.flow, self.connect_timeout, &self.privileges, &self.log)
    }
}

fn show_common(
    f: &mut fmt::Formatter<'_>,
    data: &CoreSettings,
    flow: &FlowSettings,
    connect_timeout: Duration,
    privileges: &Privileges,
    log: &LogSettings,
) -> fmt::Result {
    writeln!(f, "cores = {}", cores::show(&data.cores))?;
    writeln!(f, "backend = {}", data.backend)?;
    writeln!(f, "relay = {}", show_relay(data.relay))?;
    writeln!(f, "busy-poll = {} us", data.busy_poll.as_micros())?;
    writeln!(f, "connect-timeout = {} s", connect_timeout.as_secs_f64())?;
    writeln!(f, "drain-timeout = {} s", flow.drain_timeout.as_secs_f64())?;
    writeln!(f, "idle-timeout = {}", show_limit(flow.idle_timeout))?;
    writeln!(f, "half-close-timeout = {}", show_limit(flow.half_close_timeout))?;
    writeln!(f, "dead-after = {}", show_limit(flow.dead_after))?;
    writeln!(f, "user = {}", show_user(privileges.user.as_ref()))?;
    writeln!(f, "allow-core-dumps = {}", privileges.allows_core_dumps)?;
    write!(f, "log = {}", show_log(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unnamed(name: Option<&str>, local: &str) -> UnnamedTunnel {
        let name = name.map(str::to_owned);
        UnnamedTunnel { name, local: local.parse().unwrap(), public_port: 0 }
    }

    /// Names that are made up tell the LocalServer and never meet another one.
    #[test]
    fn missing_names_are_made_up() {
        let tunnels = vec![
            unnamed(None, "127.0.0.1:80"),
            unnamed(Some("127.0.0.1-80-2"), "10.0.0.1:1"),
            unnamed(None, "127.0.0.1:80"),
            unnamed(None, "[::1]:443"),
        ];
        let names: Vec<_> =
            name_tunnels(tunnels).unwrap().into_iter().map(|tunnel| tunnel.name).collect();
        assert_eq!(names, ["127.0.0.1-80", "127.0.0.1-80-2", "127.0.0.1-80-3", "1-443"]);
        let long = format!("{}:80", "x".repeat(250));
        let name = &name_tunnels(vec![unnamed(None, &long)]).unwrap()[0].name;
        assert!(name.len() <= NAME_LEN_MAX && name.ends_with("-80"), "{name}");
    }

    /// Two tunnels cannot be given one name.
    #[test]
    fn given_names_are_unique() {
        let tunnels = vec![unnamed(Some("web"), "a:1"), unnamed(Some("web"), "b:1")];
        assert_eq!(name_tunnels(tunnels), Err("web".to_owned()));
    }
}
