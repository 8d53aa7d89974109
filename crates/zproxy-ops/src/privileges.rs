//! What the process gives up: core dumps, new privileges, and with `--user` the user and the
//! capabilities that it was started with.
//!
//! The order matters, and [`Privileges::prepare`] and [`Privileges::enter`] keep to it. The token,
//! and the state directory, are opened as the one who started the program. Then it becomes the other
//! user, before it has any thread, so that all of them, and every ring, have the new one's rights;
//! and before it opens a log file, because a directory of another user's is no place to write to as
//! root. From then on it has one capability at most, to listen on ports below 1024, and from
//! [`Privileges::settle`] on none, unless it may have to listen on such ports later.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;
use std::str::FromStr;

use zproxy_io::process::{self, User};

use crate::logs::{self, LogGuard, LogSettings};
use crate::{Exit, token};

/// `NAME[:GROUP]`, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName {
    user: String,
    group: Option<String>,
}

impl FromStr for UserName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let is_name = |name: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@\\$".contains(c);
            !name.is_empty() && name.chars().all(is_plain)
        };
        if !is_name(user) || !group.is_none_or(is_name) {
            return Err("write a user, or USER:GROUP, by name or number".to_owned());
        }
        Ok(Self { user: user.to_owned(), group: group.map(ToOwned::to_owned) })
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => f.write_str(&self.user),
        }
    }
}

crate::values::text_value!(UserName);

/// What the operator wants the process to give up, and to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Whom it becomes; none: it stays who it is.
    pub user: Option<UserName>,
    /// Whether it may leave core dumps and be looked into.
    pub allows_core_dumps: bool,
}

impl Privileges {
    /// The first thing of all: from here on the process leaves no core dump, and gains nothing by
    /// executing a program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prepare(&self) -> Result<(), Exit> {
        // Refused only by kernels before 3.5 and by filters, and then there is nothing to be gained.
        let _ = process::forbid_new_privileges();
        // Rings that are made without privileges count as locked memory.
        zproxy_io::sys::raise_locked_memory_limit();
        self.limit_dumps()
    }

    fn limit_dumps(&self) -> Result<(), Exit> {
        process::set_dumpable(self.allows_core_dumps)
            .map_err(|error| Exit::failed(format!("core dumps cannot be turned off: {error}")))
    }

    /// When the secrets are read: becomes the other user, and starts the log. No thread may run yet.
    ///
    /// # Errors
    /// When there is no such user, or this one may not become it, or logs cannot be written.
    pub fn enter(&self, log: &LogSettings, program: &str) -> Result<LogGuard, Exit> {
        // Only the token's copy in the environment; what was read of it is wiped by its owners.
        process::wipe_variable(token::VARIABLE);
        let Some(name) = &self.user else { return logs::start(log, program) };
        let to = find(name)?;
        if process::user() == to.user {
            return logs::start(log, program);
        }
        if let Some(dir) = &log.dir {
            offer_dir(dir, to);
        }
        process::become_user(to).map_err(|error| {
            let hint = "only root can (or CAP_SETUID and CAP_SETGID)";
            Exit::failed(format!("--user: cannot become {name}: {error}; {hint}"))
        })?;
        // The change has set it to what the system has for such programs.
        self.limit_dumps()?;
        // The thread that writes lines inherits the capabilities of the one that starts it.
        let start = || {
            drop_capabilities();
            logs::start(log, program)
        };
        std::thread::scope(|scope| scope.spawn(start).join())
            .map_err(|_| Exit::failed("the log could not be started"))?
    }

    /// When the program's own listeners are open, and before it starts its threads: it keeps what it
    /// needs to listen on ports below 1024 only if it may have to.
    pub fn settle(&self, binds_low_ports: bool) {
        if self.user.is_some() && !binds_low_ports {
            drop_capabilities();
        }
    }
}

fn drop_capabilities() {
    // A thread may always have fewer; a filter that forbids even that leaves none to be used either.
    let _ = process::drop_capabilities();
}

fn find(name: &UserName) -> Result<User, Exit> {
    let unreadable = |error: io::Error| {
        Exit::failed(format!("--user: the users of this machine cannot be listed: {error}"))
    };
    let known = process::find_user(&name.user).map_err(unreadable)?;
    let number = || name.user.parse().ok().map(|number| User { user: number, group: number });
    let Some(user) = known.or_else(number) else {
        return Err(Exit::usage(format!("--user: there is no user {}", name.user)));
    };
    let Some(group) = &name.group else { return Ok(user) };
    let known = process::find_group(group).map_err(unreadable)?;
    let Some(group) = known.or_else(|| group.parse().ok()) else {
        return Err(Exit::usage(format!("--user: there is no group {group}")));
    };
    Ok(User { group, ..user })
}

/// Makes a missing directory for logs and gives it to the user. One that is there is left alone: if
/// the user cannot write it, opening the log says so.
fn offer_dir(dir: &Path, to: User) {
    if dir.as_os_str() != logs::STDOUT && DirBuilder::new().mode(0o750).create(dir).is_ok() {
        let _ = chown(dir, Some(to.user), Some(to.group));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and numbers with and without a group are understood and shown as they were written.
    #[test]
    fn user_names() {
        for text in ["zproxy", "zproxy:net", "1000", "1000:1000", "a.b-c_d@e"] {
            assert_eq!(text.parse::<UserName>().unwrap().to_string(), text);
        }
        for text in ["", ":", "a:", ":b", "a b", "a:b:c", "/x"] {
            assert!(text.parse::<UserName>().is_err(), "{text}");
        }
    }

    /// Whom there is not is named.
    #[test]
    fn unknown_names_are_told() {
        let told = |text: &str| find(&text.parse().unwrap()).unwrap_err().message;
        assert!(told("no-such-user-here").contains("no user no-such-user-here"));
        assert!(told("root:no-such-group-here").contains("no group no-such-group-here"));
        assert_eq!(find(&"root".parse().unwrap()).unwrap(), User { user: 0, group: 0 });
        assert_eq!(find(&"77777:88".parse().unwrap()).unwrap(), User { user: 77_777, group: 88 });
    }
}
