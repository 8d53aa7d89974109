//! What this process may do, and who may look into it: one function a system call, or two.

use std::ffi::{CStr, CString};
use std::io;

fn check(status: libc::c_int) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `prctl(2)` with one argument that is no pointer.
fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: every caller passes an option whose arguments are plain numbers.
    check(unsafe { libc::prctl(option, value, none, none, none) })
}

/// Neither this thread nor those that it starts later gain anything by executing a program
/// (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// As `prctl(2)`.
pub fn forbid_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Whether the process leaves a core dump and may be looked into by others of the same user
/// (`PR_SET_DUMPABLE`). Changing the user changes this too.
///
/// # Errors
/// As `prctl(2)`.
pub fn set_dumpable(is_dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, is_dumpable.into())
}

/// The user whose rights the process has.
#[must_use]
pub fn user() -> u32 {
    // SAFETY: no pointers, and it cannot fail.
    unsafe { libc::geteuid() }
}

/// An entry of the user database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub user: u32,
    /// The number of its own group.
    pub group: u32,
}

/// The most that one entry of a database may take.
const ENTRY_SIZE_MAX: usize = 1 << 20;

/// Asks a `get…_r` function, with ever more room until the entry fits.
fn look_up(mut ask: impl FnMut(&mut [u8]) -> libc::c_int) -> io::Result<()> {
    let mut room = vec![0u8; 1024];
    loop {
        match ask(&mut room) {
            0 => return Ok(()),
            libc::ERANGE if room.len() < ENTRY_SIZE_MAX => room.resize(2 * room.len(), 0),
            libc::EINTR => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn c_name(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// The user of that name, if there is one.
///
/// # Errors
/// When the database cannot be read.
pub fn find_user(name: &str) -> io::Result<Option<User>> {
    let name = c_name(name)?;
    let mut found = None;
    look_up(|room| {
        // SAFETY: all-zero bytes are a valid passwd: numbers and null pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut result: *mut libc::passwd = std::ptr::null_mut();
        let (out, len) = (room.as_mut_ptr().cast(), room.len());
        let (entry_at, result_at) = (&raw mut entry, &raw mut result);
        // SAFETY: the name ends with NUL, `room` is writable for `len` bytes, and both others are
        // writable. No pointer in the entry is followed.
        let errno = unsafe { libc::getpwnam_r(name.as_ptr(), entry_at, out, len, result_at) };
        found = (!result.is_null()).then_some(User { user: entry.pw_uid, group: entry.pw_gid });
        errno
    })?;
    Ok(found)
}

/// The number of the group of that name, if there is one.
///
/// # Errors
/// When the database cannot be read.
pub fn find_group(name: &str) -> io::Result<Option<u32>> {
    let name = c_name(name)?;
    let mut found = None;
    look_up(|room| {
        // SAFETY: all-zero bytes are a valid group: numbers and null pointers.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut result: *mut libc::group = std::ptr::null_mut();
        let (out, len) = (room.as_mut_ptr().cast(), room.len());
        let (entry_at, result_at) = (&raw mut entry, &raw mut result);
        // SAFETY: as for `getpwnam_r` above.
        let errno = unsafe { libc::getgrnam_r(name.as_ptr(), entry_at, out, len, result_at) };
        found = (!result.is_null()).then_some(entry.gr_gid);
        errno
    })?;
    Ok(found)
}

/// Makes the whole process one of another user and group, for good, without further groups. Of its
/// capabilities only the calling thread keeps `CAP_NET_BIND_SERVICE`; see [`drop_capabilities`].
///
/// # Errors
/// When the process may not. It may have changed in part by then, and should end.
pub fn become_user(to: User) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)?;
    // libc tells every other thread too.
    // SAFETY: `to.group` is readable for the one entry that is announced.
    check(unsafe { libc::setgroups(1, &raw const to.group) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresgid(to.group, to.group, to.group) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresuid(to.user, to.user, to.user) })?;
    prctl(libc::PR_SET_KEEPCAPS, 0)?;
    set_capabilities(CAP_NET_BIND_SERVICE & permitted_capabilities()?)
}

/// The calling thread, and those that it starts later, have no capability any more.
///
/// # Errors
/// As `capset(2)`.
pub fn drop_capabilities() -> io::Result<()> {
    set_capabilities(0)
}

/// May listen on ports below 1024.
const CAP_NET_BIND_SERVICE: u32 = 1 << 10;

/// `_LINUX_CAPABILITY_VERSION_3`, which has two words a set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    thread: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The first 32 of the capabilities that the calling thread may have.
fn permitted_capabilities() -> io::Result<u32> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, thread: 0 };
    let mut sets = [Capabilities::default(); 2];
    let (call, header_at, sets_at) = (libc::SYS_capget, &raw mut header, sets.as_mut_ptr());
    // SAFETY: both are laid out as the kernel's structures, and the version says that there are two
    // sets to be written.
    let status = unsafe { libc::syscall(call, header_at, sets_at) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(sets[0].permitted) }
}

/// Gives the calling thread exactly these of the first 32 capabilities.
fn set_capabilities(set: u32) -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, thread: 0 };
    let low = Capabilities { effective: set, permitted: set, inheritable: 0 };
    let sets = [low, Capabilities::default()];
    let (call, header_at, sets_at) = (libc::SYS_capset, &raw mut header, sets.as_ptr());
    // SAFETY: both are laid out as the kernel's structures, and the version says that there are two
    // sets to be read.
    let status = unsafe { libc::syscall(call, header_at, sets_at) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Overwrites the value of an environment variable where the kernel shows it
/// (`/proc/PID/environ`), with as many `x`. Does nothing, and tells so, unless the calling thread is
/// the only one: another might be reading it.
pub fn wipe_variable(name: &str) -> bool {
    let is_alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    let Ok(name) = c_name(name) else { return false };
    if !is_alone {
        return false;
    }
    // SAFETY: the name ends with NUL, and no other thread changes the environment: there is none.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return false;
    }
    // SAFETY: `getenv` gives a text that ends with NUL, and nobody else changes it.
    let len = unsafe { CStr::from_ptr(value) }.count_bytes();
    // SAFETY: the value is writable up to its NUL (environ(7)), and nobody else has a reference.
    unsafe { std::ptr::write_bytes(value, b'x', len) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// root is found by name, with its numbers, and nobody finds whom there is not.
    #[test]
    fn the_database_is_asked() {
        assert_eq!(find_user("root").unwrap(), Some(User { user: 0, group: 0 }));
        assert_eq!(find_group("root").unwrap(), Some(0));
        assert_eq!(find_user("no-such-user-here").unwrap(), None);
        assert_eq!(find_group("no-such-group-here").unwrap(), None);
        assert!(find_user("a\0b").is_err());
    }

    /// A thread without capabilities has none that could come back.
    #[test]
    fn dropped_capabilities_stay_dropped() {
        let dropped = std::thread::spawn(|| {
            drop_capabilities().unwrap();
            permitted_capabilities().unwrap()
        });
        assert_eq!(dropped.join().unwrap(), 0);
    }

    /// With other threads about, the environment is left alone.
    #[test]
    fn the_environment_is_left_alone_beside_other_threads() {
        let path = std::env::var("PATH");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || told.recv());
        assert!(!wipe_variable("PATH"));
        drop(tell);
        assert!(other.join().is_ok());
        assert_eq!(std::env::var("PATH"), path);
    }
}
