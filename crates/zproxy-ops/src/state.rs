//! The state directory: what must outlive the process (a token made here, a client's id).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Machine;

/// The directory when none is named: systemd's, else the system's for root, else the user's. None
/// when the environment tells too little.
#[must_use]
pub fn default_dir(program: &str, machine: &Machine) -> Option<PathBuf> {
    if let Some(dirs) = machine.variable("STATE_DIRECTORY") {
        // systemd separates several directories by colons; the first is the program's own.
        return dirs.split(':').next().map(PathBuf::from);
    }
    if machine.is_root {
        return Some(Path::new("/var/lib").join(program));
    }
    let home = || machine.path_variable("HOME").map(|home| home.join(".local/state"));
    machine.path_variable("XDG_STATE_HOME").or_else(home).map(|dir| dir.join(program))
}

/// Makes the directory (mode 0700) and its parents where they are missing.
///
/// # Errors
/// As `mkdir(2)`; also when something else has the name.
pub fn ensure_dir(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other,
    }
}

/// Replaces a file by one with mode 0600 and the given bytes, so that a crash leaves either the old
/// or the new one.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished_name(path)?;
    let written = write_private(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written.and_then(|()| sync_parent(path))
}

/// As [`write_atomically`], but leaves an existing file alone: of several processes that start at
/// once, one creates it and the others find it.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when the file exists; else as [`write_atomically`].
pub fn create_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished_name(path)?;
    let linked = write_private(&unfinished, bytes).and_then(|()| fs::hard_link(&unfinished, path));
    let _ = fs::remove_file(&unfinished);
    linked.and_then(|()| sync_parent(path))
}

/// Whether files can be made in a directory that exists; leaves none behind.
///
/// # Errors
/// Why not.
pub fn try_write(dir: &Path) -> io::Result<()> {
    let path = unfinished_name(&dir.join("check"))?;
    let written = write_private(&path, b"");
    let _ = fs::remove_file(&path);
    written
}

/// A name beside the file that no other process or thread uses.
fn unfinished_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(path.with_file_name(format!(".{name}.{:016x}", u64::from_ne_bytes(salt))))
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // The umask can take permissions away, but an odd one must not decide what a secret has.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn machine(is_root: bool, variables: &[(&'static str, &str)]) -> Machine {
        Machine {
            cpus_allowed: vec![0],
            has_ipv6: true,
            is_root,
            has_env_token: false,
            variables: variables
                .iter()
                .map(|&(k, v)| (k, v.to_owned()))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    /// systemd decides first, then root's place, then the user's.
    #[test]
    fn default_directories() {
        let dir = |machine: &Machine| default_dir("zproxyd", machine);
        let systemd = machine(true, &[("STATE_DIRECTORY", "/s/a:/s/b"), ("HOME", "/h")]);
        assert_eq!(dir(&systemd), Some("/s/a".into()));
        assert_eq!(dir(&machine(true, &[("HOME", "/h")])), Some("/var/lib/zproxyd".into()));
        let user = machine(false, &[("HOME", "/h")]);
        assert_eq!(dir(&user), Some("/h/.local/state/zproxyd".into()));
        let xdg = machine(false, &[("HOME", "/h"), ("XDG_STATE_HOME", "/x")]);
        assert_eq!(dir(&xdg), Some("/x/zproxyd".into()));
        assert_eq!(dir(&machine(false, &[])), None);
    }

    /// Files appear whole, private, and leave nothing else behind.
    #[test]
    fn files_are_whole_and_private() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a/b");
        ensure_dir(&dir).unwrap();
        ensure_dir(&dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&dir), 0o700);
        let path = dir.join("id");
        create_atomically(&path, b"one").unwrap();
        let again = create_atomically(&path, b"two").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomically(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(mode(&path), 0o600);
        try_write(&dir).unwrap();
        assert!(try_write(&path).is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    /// A file where the directory should be is an error, not a surprise later.
    #[test]
    fn a_file_is_no_directory() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("x");
        fs::write(&path, "").unwrap();
        assert!(ensure_dir(&path).is_err());
    }
}
