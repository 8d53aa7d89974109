//! What the gateway was asked to do: the settings, with every default resolved.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use zproxy_ops::cores;
use zproxy_ops::flags::{
    CoreSettings, FlowSettings, HeartbeatSettings, TokenSettings, show_limit, show_log, show_relay,
    show_token, show_user,
};
use zproxy_ops::logs::LogSettings;
use zproxy_ops::privileges::Privileges;
use zproxy_ops::values::{PortRange, Steer};

/// Everything the gateway needs to know before it starts. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Data cores, backend and relay path.
    pub data: CoreSettings,
    /// Whether a data core takes the public connections that arrive on its own CPU.
    pub steer: Steer,
    /// The CPU of the control thread; none: not pinned.
    pub control_core: Option<usize>,
    /// Where clients register; port 0 is any free one.
    pub ctl_addr: SocketAddr,
    /// Where clients dial proxy_conns; port 0 is any free one.
    pub proxy_addr: SocketAddr,
    /// The address on which public ports listen.
    pub public_bind: IpAddr,
    /// The ports that clients may ask for and from which 0 is served. None: every port from
    /// [`UNPRIVILEGED_PORT_MIN`] up may be asked for, and the kernel serves 0.
    pub public_ports: Option<PortRange>,
    /// The token and the state directory.
    pub token: TokenSettings,
    /// What the process gives up.
    pub privileges: Privileges,
    /// Where log lines go.
    pub log: LogSettings,
    /// Limits of time for flows.
    pub flow: FlowSettings,
    /// The heartbeat on ctl_conns.
    pub heartbeat: HeartbeatSettings,
    /// The session of a client that is gone is kept so long, with its ports.
    pub grace: Duration,
    /// A public connection waits so long for a proxy_conn.
    pub bind_timeout: Duration,
    /// The file that was read, if any.
    pub config_file: Option<PathBuf>,
}

/// Without `--public-ports`, clients may ask for ports from here up: no client should become the
/// gateway's ssh or web server unless its operator says so.
pub const UNPRIVILEGED_PORT_MIN: u16 = 1024;

impl Settings {
    /// Whether clients may ask for any port that needs a capability.
    #[must_use]
    pub fn allows_low_public_ports(&self) -> bool {
        self.public_ports.is_some_and(|range| range.first < UNPRIVILEGED_PORT_MIN)
    }

    /// Whether a client may ask for this public port; 0 (any) always.
    #[must_use]
    pub fn allows_public_port(&self, port: u16) -> bool {
        match self.public_ports {
            _ if port == 0 => true,
            Some(range) => range.contains(port),
            None => port >= UNPRIVILEGED_PORT_MIN,
        }
    }
}

/// What `--check-config` prints: one `name = value` per line, in the words of the file.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Duration| format!("{} s", time.as_secs_f64());
        let control_core = self.control_core.map_or("not pinned".to_owned(), |c| c.to_string());
        let public_ports = self.public_ports.map_or_else(
            || format!("{UNPRIVILEGED_PORT_MIN}-65535, any free one for 0"),
            |range| format!("{range}, also for 0"),
        );
        writeln!(f, "cores = {}", cores::show(&self.data.cores))?;
        writeln!(f, "control-core = {control_core}")?;
        writeln!(f, "backend = {}", self.data.backend)?;
        writeln!(f, "relay = {}", show_relay(self.data.relay))?;
        writeln!(f, "busy-poll = {} us", self.data.busy_poll.as_micros())?;
        writeln!(f, "steer = {}", self.steer)?;
        writeln!(f, "ctl = {}", self.ctl_addr)?;
        writeln!(f, "proxy = {}", self.proxy_addr)?;
        writeln!(f, "public-bind = {}", self.public_bind)?;
        writeln!(f, "public-ports = {public_ports}")?;
        writeln!(
            f,
            "token = {}",
            show_token(&self.token.token, "in the state directory, made if it is missing")
        )?;
        writeln!(f, "state-dir = {}", self.token.state_dir.display())?;
        writeln!(f, "user = {}", show_user(self.privileges.user.as_ref()))?;
        writeln!(f, "allow-core-dumps = {}", self.privileges.allows_core_dumps)?;
        writeln!(f, "log = {}", show_log(&self.log))?;
        writeln!(f, "drain-timeout = {}", seconds(self.flow.drain_timeout))?;
        writeln!(f, "idle-timeout = {}", show_limit(self.flow.idle_timeout))?;
        writeln!(f, "half-close-timeout = {}", show_limit(self.flow.half_close_timeout))?;
        writeln!(f, "dead-after = {}", show_limit(self.flow.dead_after))?;
        writeln!(f, "heartbeat = {}", seconds(self.heartbeat.interval))?;
        writeln!(f, "heartbeat-deadline = {}", seconds(self.heartbeat.deadline))?;
        writeln!(f, "grace = {}", seconds(self.grace))?;
        write!(f, "bind-timeout = {}", seconds(self.bind_timeout))
    }
}
