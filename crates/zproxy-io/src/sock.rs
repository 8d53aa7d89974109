//! TCP sockets as ZProxy wants them.
//!
//! Every relayed socket has SO_LINGER with zero seconds while it lives: should the process die, the
//! kernel resets the connection, and a transfer that was cut short never looks complete. A clean
//! close takes the option away first.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::{ListenOptions, sys};

/// Connections that may wait in a listener; the kernel lowers it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// A connection without traffic is probed after this many seconds …
const KEEPALIVE_IDLE: i32 = 30;
/// … every so many seconds …
const KEEPALIVE_INTERVAL: i32 = 10;
/// … and given up after so many unanswered probes.
const KEEPALIVE_PROBES: i32 = 4;

/// Opens a listening socket. See [`crate::Driver::listen`].
///
/// # Errors
/// As `socket(2)`, `bind(2)` and `listen(2)`.
pub fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> {
    let sock = sys::socket(&at)?;
    let fd = sock.as_raw_fd();
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if options.reuse_port {
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if at.is_ipv6() {
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    }
    prepare(fd)?;
    sys::bind(fd, &at)?;
    sys::listen(fd, BACKLOG)?;
    let at = sys::sock_name(fd)?;
    Ok((sock, at))
}

/// Opens a socket that will be connected to an address of the family of `to`.
pub(crate) fn open(to: &SocketAddr) -> io::Result<OwnedFd> {
    let sock = sys::socket(to)?;
    prepare(sock.as_raw_fd())?;
    Ok(sock)
}

/// Options that accepted sockets inherit from their listener (Linux copies them).
fn prepare(fd: RawFd) -> io::Result<()> {
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES)?;
    sys::set_linger(fd, Some(0))
}

/// Closes with FIN, after everything in the send buffer.
pub(crate) fn close_clean(sock: OwnedFd) {
    // A failure means that the connection is gone already.
    let _ = sys::set_linger(sock.as_raw_fd(), None);
    drop(sock);
}

/// Closes with RST, at once.
pub(crate) fn close_reset(sock: OwnedFd) {
    sys::disconnect(sock.as_raw_fd());
    drop(sock);
}
