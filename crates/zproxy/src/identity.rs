//! Who this client is, from run to run.
//!
//! The gateway knows a client by its id and takes a second one with the same id for the same. So
//! several processes that share a state directory must have different ids: each locks the file of
//! the first id that nobody else has locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zproxy_ops::state;
use zproxy_proto::id::ClientId;

use crate::random::Random;

/// Processes that may share a state directory. The next one has an id for its own life only.
const SHARERS_MAX: usize = 256;

/// An id, and the lock that keeps others from having it.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: ClientId,
    /// What the operator should know about it.
    pub(crate) warning: Option<String>,
    _lock: Option<File>,
}

impl Identity {
    /// The first id in the directory that is free; made where there is none. Without a writable
    /// directory, a fresh one, and one line that says what that means.
    pub(crate) fn load(dir: &Path) -> Self {
        match find(dir) {
            Ok(identity) => identity,
            Err(error) => {
                let warning = format!(
                    "the client's id cannot be kept in {}: {error}; after a restart this client \
                     may get other public ports (--state-dir)",
                    dir.display()
                );
                Self { warning: Some(warning), ..Self::fresh(&mut Random::Kernel) }
            }
        }
    }

    /// A given one.
    #[cfg(feature = "sim")]
    pub(crate) fn of(id: ClientId) -> Self {
        Self { id, warning: None, _lock: None }
    }

    /// An id for the life of this process.
    pub(crate) fn fresh(random: &mut Random) -> Self {
        Self { id: ClientId::from_random(random.bytes()), warning: None, _lock: None }
    }
}

fn find(dir: &Path) -> io::Result<Identity> {
    state::ensure_dir(dir)?;
    for number in 1..=SHARERS_MAX {
        let name = if number == 1 { "client-id".to_owned() } else { format!("client-id-{number}") };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(dir.join(name))?;
        match file.try_lock() {
            Ok(()) => {
                let id = read_or_write(&file)?;
                return Ok(Identity { id, warning: None, _lock: Some(file) });
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{SHARERS_MAX} other clients use it")))
}

/// The id in a file that is locked. One that was cut short by a crash is replaced.
fn read_or_write(mut file: &File) -> io::Result<ClientId> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let id = ClientId::from_random(Random::Kernel.bytes());
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client finds its id again, two at a time have different ones, and both find theirs again.
    #[test]
    fn ids_are_kept_and_not_shared() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("state");
        let first = Identity::load(&dir);
        let second = Identity::load(&dir);
        assert_ne!(first.id, second.id);
        let ids = (first.id, second.id);
        drop((first, second));
        let first = Identity::load(&dir);
        let second = Identity::load(&dir);
        assert_eq!((first.id, second.id), ids);
    }

    /// A file without an id gets one.
    #[test]
    fn a_broken_file_is_mended() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("client-id"), "1234").unwrap();
        let id = Identity::load(top.path()).id;
        assert_eq!(Identity::load(top.path()).id, id);
    }

    /// Without a directory there is an id all the same.
    #[test]
    fn no_directory_is_no_obstacle() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let dir = file.path().join("state");
        let first = Identity::load(&dir);
        assert_ne!(first.id, Identity::load(&dir).id);
        assert!(first.warning.is_some_and(|text| text.contains("--state-dir")));
    }
}
