//! The groups of flags that both programs have, as typed and as meant.
//!
//! A group is read twice, from the command line and from the file, with the same types; [`Layers`]
//! puts the one over the other.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zproxy_io::{DriverConfig, RelayMode};
use zproxy_proto::limits;

use crate::config::{ConfigError, File};
use crate::cores::{self, CoreList};
use crate::logs::{self, Level, LogFormat, LogSettings};
use crate::privileges::{Privileges, UserName};
use crate::token::TokenSource;
use crate::values::{Backend, Micros, Relay, Seconds, Steer, ThreadCount};
use crate::{Exit, Machine, state, token};

/// One group of settings from the command line and from the file.
#[derive(Clone, Debug)]
pub struct Layers<T> {
    /// As typed on the command line.
    pub flags: T,
    /// As written in the file; all unset without one.
    pub file: T,
    file_name: Option<String>,
}

impl<T: Default + DeserializeOwned> Layers<T> {
    /// Puts the flags over what the file has for this group.
    ///
    /// # Errors
    /// When a value in the file is wrong.
    pub fn new(flags: T, file: Option<&mut File>) -> Result<Self, ConfigError> {
        Ok(match file {
            Some(file) => {
                let file_name = Some(file.name().to_owned());
                Self { flags, file: file.take()?, file_name }
            }
            None => Self { flags, file: T::default(), file_name: None },
        })
    }
}

impl<T> Layers<T> {
    /// The value of one setting: the flag's, else the file's.
    pub fn pick<V: Clone>(&self, field: impl Fn(&T) -> &Option<V>) -> Option<V> {
        field(&self.flags).clone().or_else(|| field(&self.file).clone())
    }

    /// A complaint about one setting that names the flag, or the key and its file.
    pub fn wrong<V>(
        &self,
        key: &str,
        field: impl Fn(&T) -> &Option<V>,
        what: impl std::fmt::Display,
    ) -> Exit {
        match &self.file_name {
            Some(file) if field(&self.flags).is_none() && field(&self.file).is_some() => {
                Exit::usage(format!("{file}: key `{key}`: {what}"))
            }
            _ => Exit::usage(format!("--{key}: {what}")),
        }
    }

    /// A span of time that must not be zero.
    ///
    /// # Errors
    /// When it is.
    pub fn positive(
        &self,
        key: &str,
        field: impl Fn(&T) -> &Option<Seconds>,
        default: Duration,
    ) -> Result<Duration, Exit> {
        match self.pick(&field) {
            None => Ok(default),
            Some(Seconds(time)) if time.is_zero() => {
                Err(self.wrong(key, field, "must be more than 0 seconds"))
            }
            Some(Seconds(time)) => Ok(time),
        }
    }
}

/// Threads and the way to the kernel.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Threads and kernel")]
pub struct CoreFlags {
    /// Data cores, one pinned thread each (0-3,6) [default: all the process may use]
    #[arg(long, value_name = "LIST", conflicts_with = "work_thread_nums")]
    pub cores: Option<CoreList>,

    /// N data cores, the first N that may be used; 0 or less counts as 1
    #[arg(
        long,
        value_name = "N",
        visible_alias = "work_thread_nums",
        allow_negative_numbers = true
    )]
    pub work_thread_nums: Option<ThreadCount>,

    /// How the kernel is asked: auto, uring or epoll [default: auto]
    #[arg(long, value_name = "WAY")]
    pub backend: Option<Backend>,

    /// Which path bytes take: auto, splice or copy [default: auto]
    #[arg(long, value_name = "PATH")]
    pub relay: Option<Relay>,

    /// Microseconds that a data core watches for work before it sleeps, for cores with nothing else
    /// to do; it steps back when others want the core [default: 0]
    #[arg(long, value_name = "USEC")]
    pub busy_poll: Option<Micros>,
}

/// Which data core serves a connection that comes in.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Threads and kernel")]
pub struct SteerFlags {
    /// Whether a data core takes the connections that arrive on its own CPU: auto (where they come
    /// spread over the CPUs) or never [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub steer: Option<Steer>,
}

/// [`CoreFlags`] as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreSettings {
    /// The CPU of each data core; one CPU may appear several times.
    pub cores: Vec<usize>,
    /// How the kernel is asked.
    pub backend: Backend,
    /// Which path bytes take.
    pub relay: RelayMode,
    /// A data core watches so long before it sleeps; zero: it does not.
    pub busy_poll: Duration,
}

impl CoreSettings {
    /// What the driver of the data core on this CPU is made with.
    #[must_use]
    pub fn data_driver(&self, cpu: usize) -> DriverConfig {
        DriverConfig { cpu: Some(cpu), relay: self.relay, busy_poll: self.busy_poll }
    }

    /// What the driver of a control thread is made with. It never watches, and the path that bytes of
    /// flows take is none of its business: it reads what peers say, as they come and in one go.
    #[must_use]
    pub fn control_driver(&self, cpu: Option<usize>) -> DriverConfig {
        DriverConfig { cpu, ..DriverConfig::default() }
    }
}

impl Layers<CoreFlags> {
    /// As meant on this machine.
    ///
    /// # Errors
    /// When a core does not exist or may not be used.
    pub fn resolve(&self, machine: &Machine) -> Result<CoreSettings, Exit> {
        Ok(CoreSettings {
            cores: self.cores(&machine.cpus_allowed)?,
            backend: self.pick(|typed| &typed.backend).unwrap_or_default(),
            relay: self.pick(|typed| &typed.relay).unwrap_or_default().0,
            busy_poll: self.pick(|typed| &typed.busy_poll).unwrap_or_default().0,
        })
    }

    fn cores(&self, allowed: &[usize]) -> Result<Vec<usize>, Exit> {
        // The two keys say the same thing, so either flag overrides either key.
        let is_typed = self.flags.cores.is_some() || self.flags.work_thread_nums.is_some();
        let typed = if is_typed { &self.flags } else { &self.file };
        match (&typed.cores, &typed.work_thread_nums) {
            (Some(_), Some(_)) => {
                let what = "cannot be combined with `work-thread-nums`; keep one of them";
                Err(self.wrong("cores", |typed| &typed.cores, what))
            }
            (Some(list), None) => {
                list.check(allowed).map_err(|what| self.wrong("cores", |typed| &typed.cores, what))
            }
            (None, Some(count)) => cores::first_of(count.0, allowed).map_err(|what| {
                self.wrong("work-thread-nums", |typed| &typed.work_thread_nums, what)
            }),
            (None, None) => Ok(allowed.to_vec()),
        }
    }
}

/// Where log lines go.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(
    next_help_heading = "Logs (to stderr unless --log-dir is given; ready lines go to stdout)"
)]
pub struct LogFlags {
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Write daily files in this directory, the last 30 of which are kept; - for stdout [default:
    /// stderr]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// error, warn, info, debug, trace or off [env: ZPROXY_LOG] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<Level>,
}

impl Layers<LogFlags> {
    /// As meant. The environment stands between the flag and the file.
    ///
    /// # Errors
    /// When `ZPROXY_LOG` is no level.
    pub fn resolve(&self, machine: &Machine) -> Result<LogSettings, Exit> {
        let level = match (self.flags.log_level, machine.variable("ZPROXY_LOG")) {
            (Some(level), _) => level,
            (None, Some(text)) => {
                text.parse().map_err(|what| Exit::usage(format!("ZPROXY_LOG: {what}")))?
            }
            (None, None) => self.file.log_level.unwrap_or_default(),
        };
        Ok(LogSettings {
            format: self.pick(|typed| &typed.log_format).unwrap_or_default(),
            dir: self.pick(|typed| &typed.log_dir),
            level,
        })
    }
}

/// Limits of time for flows.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Time limits (seconds, fractions allowed)")]
pub struct FlowFlags {
    /// How long flows may finish after SIGTERM or SIGINT [default: 30]
    #[arg(long, value_name = "S")]
    pub drain_timeout: Option<Seconds>,

    /// Close a flow in which nothing moves for so long; 0 = never [default: 0]
    #[arg(long, value_name = "S")]
    pub idle_timeout: Option<Seconds>,

    /// Close a half-closed flow in which nothing moves for so long; 0 = never [default: 3600]
    #[arg(long, value_name = "S")]
    pub half_close_timeout: Option<Seconds>,

    /// Reset a flow of which an end owes an acknowledgement for so long; 0 = leave it to TCP
    /// [default: 120]
    #[arg(long, value_name = "S")]
    pub dead_after: Option<Seconds>,
}

/// [`FlowFlags`] as meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSettings {
    /// How long flows may finish when the program is asked to stop; may be zero.
    pub drain_timeout: Duration,
    /// A flow in which nothing moves for so long is closed; none: never.
    pub idle_timeout: Option<Duration>,
    /// A half-closed flow in which nothing moves for so long is closed; none: never.
    pub half_close_timeout: Option<Duration>,
    /// A flow of which an end owes an acknowledgement for so long is reset; none: TCP decides.
    pub dead_after: Option<Duration>,
}

impl Layers<FlowFlags> {
    /// As meant.
    ///
    /// # Errors
    /// When a living end could be taken for dead.
    pub fn resolve(&self) -> Result<FlowSettings, Exit> {
        let half_close_default = Seconds(HALF_CLOSE_TIMEOUT);
        let (drain, idle, half_close) = (
            self.pick(|typed| &typed.drain_timeout),
            self.pick(|typed| &typed.idle_timeout),
            self.pick(|typed| &typed.half_close_timeout),
        );
        let dead_after =
            self.pick(|typed| &typed.dead_after).unwrap_or(Seconds(limits::DEAD_AFTER)).or_off();
        if dead_after.is_some_and(|limit| limit < limits::DEAD_AFTER_MIN) {
            let what = format!("must be 0 or at least {} s", limits::DEAD_AFTER_MIN.as_secs());
            return Err(self.wrong("dead-after", |typed| &typed.dead_after, what));
        }
        Ok(FlowSettings {
            drain_timeout: drain.map_or(limits::DRAIN_TIMEOUT, |Seconds(time)| time),
            idle_timeout: idle.and_then(Seconds::or_off),
            half_close_timeout: half_close.unwrap_or(half_close_default).or_off(),
            dead_after,
        })
    }
}

/// Without `--half-close-timeout`: an hour, as long as a patient download may say nothing.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The heartbeat on the ctl_conn.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Time limits (seconds, fractions allowed)")]
pub struct HeartbeatFlags {
    /// Send a ping so often [default: 10]
    #[arg(long, value_name = "S")]
    pub heartbeat: Option<Seconds>,

    /// Give a silent peer up after so long [default: 30, or 3 times --heartbeat if that is more]
    #[arg(long, value_name = "S")]
    pub heartbeat_deadline: Option<Seconds>,
}

/// [`HeartbeatFlags`] as meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatSettings {
    /// A ping is sent so often.
    pub interval: Duration,
    /// A peer that is silent for so long is lost; longer than the interval.
    pub deadline: Duration,
}

impl Layers<HeartbeatFlags> {
    /// As meant.
    ///
    /// # Errors
    /// When the deadline leaves no room for one heartbeat.
    pub fn resolve(&self) -> Result<HeartbeatSettings, Exit> {
        let interval =
            self.positive("heartbeat", |typed| &typed.heartbeat, limits::HEARTBEAT_INTERVAL)?;
        self.check_span("heartbeat", |typed| &typed.heartbeat, interval)?;
        let default = limits::HEARTBEAT_DEADLINE.max(interval * 3).min(limits::HEARTBEAT_MAX);
        let deadline =
            self.pick(|typed| &typed.heartbeat_deadline).map_or(default, |Seconds(time)| time);
        self.check_span("heartbeat-deadline", |typed| &typed.heartbeat_deadline, deadline)?;
        if deadline <= interval {
            let what = format!(
                "must be longer than the heartbeat ({} s); three times as long is usual",
                interval.as_secs_f64()
            );
            return Err(self.wrong("heartbeat-deadline", |typed| &typed.heartbeat_deadline, what));
        }
        Ok(HeartbeatSettings { interval, deadline })
    }

    fn check_span(
        &self,
        key: &str,
        field: impl Fn(&HeartbeatFlags) -> &Option<Seconds>,
        time: Duration,
    ) -> Result<(), Exit> {
        if (limits::HEARTBEAT_MIN..=limits::HEARTBEAT_MAX).contains(&time) {
            return Ok(());
        }
        let (min, max) = (limits::HEARTBEAT_MIN.as_secs_f64(), limits::HEARTBEAT_MAX.as_secs());
        Err(self.wrong(key, field, format!("must be from {min} to {max} seconds")))
    }
}

/// The secret and where state is kept.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Token and state")]
pub struct TokenFlags {
    /// File with the shared token [env: ZPROXY_TOKEN holds the token itself]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Directory for what must outlive the process [default: $STATE_DIRECTORY, else /var/lib/… for
    /// root, else ~/.local/state/…]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// [`TokenFlags`] as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// Where the token comes from.
    pub token: TokenSource,
    /// The state directory; it may not exist yet.
    pub state_dir: PathBuf,
}

impl Layers<TokenFlags> {
    /// As meant for this program. The environment stands between the flag and the file.
    ///
    /// # Errors
    /// When no state directory can be named.
    pub fn resolve(&self, program: &str, machine: &Machine) -> Result<TokenSettings, Exit> {
        let token = match (&self.flags.token_file, machine.has_env_token, &self.file.token_file) {
            (Some(path), _, _) => TokenSource::File(path.clone()),
            (None, true, _) => TokenSource::Variable,
            (None, false, Some(path)) => TokenSource::File(path.clone()),
            (None, false, None) => TokenSource::Unnamed,
        };
        let state_dir = match self.pick(|typed| &typed.state_dir) {
            Some(dir) => dir,
            None => state::default_dir(program, machine).ok_or_else(|| {
                let what = "is needed, because neither STATE_DIRECTORY nor HOME is set";
                self.wrong("state-dir", |typed| &typed.state_dir, what)
            })?,
        };
        Ok(TokenSettings { token, state_dir })
    }
}

/// What the process gives up.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(next_help_heading = "Privileges")]
pub struct PrivilegeFlags {
    /// Become this user when the token is read; only root can [default: stay]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<UserName>,

    /// Leave core dumps and let debuggers in, secrets included [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub allow_core_dumps: Option<bool>,
}

impl Layers<PrivilegeFlags> {
    /// As meant.
    #[must_use]
    pub fn resolve(&self) -> Privileges {
        Privileges {
            user: self.pick(|typed| &typed.user),
            allows_core_dumps: self.pick(|typed| &typed.allow_core_dumps).unwrap_or_default(),
        }
    }
}

/// Whom the process becomes.
#[must_use]
pub fn show_user(user: Option<&UserName>) -> String {
    user.map_or_else(|| "who starts it".to_owned(), ToString::to_string)
}

/// A relay path in the words of the flag.
#[must_use]
pub fn show_relay(mode: RelayMode) -> String {
    Relay(mode).to_string()
}

/// A limit of time that may be off.
#[must_use]
pub fn show_limit(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "off".to_owned(), |time| format!("{} s", time.as_secs_f64()))
}

/// Where log lines go, in one line.
#[must_use]
pub fn show_log(log: &LogSettings) -> String {
    let place = match &log.dir {
        None => "stderr".into(),
        Some(dir) if dir.as_os_str() == logs::STDOUT => "stdout".into(),
        Some(dir) => dir.to_string_lossy(),
    };
    format!("{} as {} to {place}", log.level.0, log.format)
}

/// Where the token is, never the token; `unnamed` is said when nobody named one.
#[must_use]
pub fn show_token(source: &TokenSource, unnamed: &str) -> String {
    match source {
        TokenSource::File(path) => format!("in the file {}", path.display()),
        TokenSource::Variable => format!("in the variable {}", token::VARIABLE),
        TokenSource::Unnamed => unnamed.to_owned(),
    }
}
