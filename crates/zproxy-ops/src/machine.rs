//! What a program needs to know about the machine before it understands its own flags.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, TcpListener};
use std::path::PathBuf;

/// Facts from outside that resolve defaults. Passed in, so that tests can choose them.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The CPUs the process may run on, ascending.
    pub cpus_allowed: Vec<usize>,
    /// Whether IPv6 sockets can be bound here.
    pub has_ipv6: bool,
    /// Whether the process runs as root.
    pub is_root: bool,
    /// Whether `ZPROXY_TOKEN` is set. Its value is read late, by [`crate::token`] alone.
    pub has_env_token: bool,
    /// The variables in [`Self::VARIABLES`] that are set to something.
    pub variables: BTreeMap<&'static str, String>,
}

impl Machine {
    /// The environment variables (the token apart) that have a meaning.
    pub const VARIABLES: [&'static str; 4] =
        ["STATE_DIRECTORY", "XDG_STATE_HOME", "HOME", "ZPROXY_LOG"];

    /// This machine and process.
    #[must_use]
    pub fn here() -> Self {
        let variable = |name| Some((name, std::env::var(name).ok().filter(|v| !v.is_empty())?));
        Self {
            // A machine that does not tell has at least the CPU this runs on.
            cpus_allowed: zproxy_io::sys::allowed_cpus().unwrap_or_else(|_| vec![0]),
            has_ipv6: TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok(),
            is_root: zproxy_io::process::user() == 0,
            has_env_token: std::env::var_os(crate::token::VARIABLE).is_some(),
            variables: Self::VARIABLES.into_iter().filter_map(variable).collect(),
        }
    }

    /// An environment variable that is set to something.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A variable that holds a path.
    #[must_use]
    pub fn path_variable(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(PathBuf::from)
    }
}
