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
    keep_alive(fd)?;
    // What it accepts has that from the first packet on. Once BBR has begun on a connection, the kernel
    // goes on pacing it by timers, also when it is given another congestion control (Linux 6.18).
    ease(fd, &at);
    sys::bind(fd, &at)?;
    sys::listen(fd, BACKLOG)?;
    let at = sys::sock_name(fd)?;
    Ok((sock, at))
}

/// Opens a socket that will be connected to an address of the family of `to`.
pub(crate) fn open(to: &SocketAddr) -> io::Result<OwnedFd> {
    let sock = sys::socket(to)?;
    prepare(sock.as_raw_fd())?;
    ease(sock.as_raw_fd(), to);
    Ok(sock)
}

/// Connects as far as that needs no waiting; false: it is under way, until the socket becomes writable.
/// On loopback a connect that cannot wait is over when it returns and does not know it yet: the answer
/// comes while the call still has the socket locked. Asking once more is cheaper than a poll.
pub(crate) fn connect(fd: RawFd, to: &SocketAddr) -> io::Result<bool> {
    let address = (*to).into();
    for _ in 0..if is_loopback(to) { 2 } else { 1 } {
        match sys::connect(fd, &address) {
            Ok(()) => return Ok(true),
            // An interrupted connect goes on by itself, as one in progress does.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINPROGRESS | libc::EALREADY | libc::EINTR) => {}
                _ => return Err(error),
            },
        }
    }
    Ok(false)
}

/// Makes an accepted socket ready. What it has of its listener is all that most need.
pub(crate) fn accepted(fd: RawFd, peer: Option<&SocketAddr>, of_listener: Pacing) {
    if let Some(peer) = peer
        && of_listener != Pacing::Reno
    {
        ease(fd, peer);
    }
}

/// The congestion control of a socket, as far as it makes a difference here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pacing {
    /// Nobody has asked the kernel yet.
    #[default]
    Unknown,
    Reno,
    /// Any version of it.
    Bbr,
    Other,
}

impl Pacing {
    /// Of this socket. The kernel is asked once.
    pub(crate) fn of(&mut self, fd: RawFd) -> Self {
        if *self == Self::Unknown {
            *self = match sys::congestion_control(fd) {
                Ok(sys::RENO) => Self::Reno,
                Ok(name) if name.starts_with(b"bbr") => Self::Bbr,
                _ => Self::Other,
            };
        }
        *self
    }
}

/// The last ACK of the handshake waits for the first bytes, or for the kernel's delayed-ACK timer.
/// (tcp(7), TCP_QUICKACK; the kernel is back to quick ACKs as soon as the handshake is over.)
pub(crate) fn speaks_first(fd: RawFd) {
    // A hint: without it there is one packet more.
    let _ = sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0);
}

/// Between two sockets of one machine there is no bottleneck to probe for, and a sender that paces
/// itself by timers (BBR, where it is the system's choice) takes far more CPU for fewer bytes. So
/// loopback has the cheapest congestion control, which every kernel has; whatever leaves the machine
/// keeps the system's.
fn ease(fd: RawFd, peer: &SocketAddr) {
    if is_loopback(peer) {
        // Without it there is only less speed.
        let _ = sys::set_congestion_control(fd, &sys::RENO);
    }
}

/// With fewer segments than that in a round trip time, what BBR calls a round is longer than that: as long
/// as they take to leave (`bbr_cwnd_min_target`).
const SLOW_PACE: u64 = 4;

/// See [`crate::Driver::renew`]. BBR takes heavy loss for a policer, and then sends no faster than what came
/// through for 48 rounds more (tcp_bbr.c, Linux 4.9 to 6.18): for two minutes and more, where two
/// packets leave at 1 KB/s. A new connection would begin at the beginning, and so does this one then.
pub(crate) fn renew(fd: RawFd, pacing: &mut Pacing) {
    if pacing.of(fd) == Pacing::Bbr
        && sys::pace(fd).is_some_and(|pace| pace < SLOW_PACE)
        && let Ok(system) = sys::congestion_control(fd)
    {
        // BBR begins anew when it takes over. Should that fail, the other one is not bad either.
        let _ = sys::set_congestion_control(fd, &sys::RENO);
        let _ = sys::set_congestion_control(fd, &system);
    }
}

/// Where the last packet of a connection was handled. See [`crate::Driver::arrival_cpu`].
pub(crate) fn arrival_cpu(fd: RawFd) -> Option<usize> {
    let cpu = sys::option(fd, libc::SOL_SOCKET, libc::SO_INCOMING_CPU).ok()?;
    usize::try_from(cpu).ok()
}

/// See [`crate::Driver::prefer_arrivals`].
pub(crate) fn prefer_arrivals(listener: RawFd, cpu: Option<usize>) {
    // Negative: none.
    let cpu = cpu.map_or(-1, |cpu| i32::try_from(cpu).unwrap_or(-1));
    // It is known since Linux 4.4. Without it connections are spread, as they are without a preference.
    let _ = sys::set_option(listener, libc::SOL_SOCKET, libc::SO_INCOMING_CPU, cpu);
}

fn is_loopback(addr: &SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

/// Options that accepted sockets inherit from their listener (Linux copies them).
fn prepare(fd: RawFd) -> io::Result<()> {
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    sys::set_linger(fd, Some(0))
}

/// See [`crate::Driver::keep_alive`]. Inherited too.
pub(crate) fn keep_alive(fd: RawFd) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL)?;
    sys::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES)
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    /// Loopback connections, dialled and accepted, have the cheap congestion control, and others the
    /// system's.
    #[test]
    fn congestion_control_by_address() {
        let system = sys::congestion_control(sys::socket(&at(1)).unwrap().as_raw_fd()).unwrap();
        let near = open(&at(1)).unwrap();
        assert_eq!(sys::congestion_control(near.as_raw_fd()).unwrap(), sys::RENO);
        let away = open(&SocketAddr::from(([192, 0, 2, 1], 1))).unwrap();
        assert_eq!(sys::congestion_control(away.as_raw_fd()).unwrap(), system);
        let of = |fd: &OwnedFd| sys::congestion_control(fd.as_raw_fd()).unwrap();
        // A listener that whoever is away can reach leaves it to the connection.
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        for (bound_to, inherited) in [(at(0), sys::RENO), (everywhere, system)] {
            let (listener, addr) = listen(bound_to, ListenOptions::default()).unwrap();
            assert_eq!(of(&listener), inherited);
            let far = TcpStream::connect(at(addr.port())).unwrap();
            let (conn, peer) = loop {
                match sys::accept(listener.as_raw_fd()) {
                    Ok(accepted) => break accepted,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            };
            assert_eq!(peer, Some(far.local_addr().unwrap()));
            accepted(conn.as_raw_fd(), None, Pacing::Unknown);
            assert_eq!(of(&conn), inherited);
            let of_listener = Pacing::default().of(listener.as_raw_fd());
            accepted(conn.as_raw_fd(), peer.as_ref(), of_listener);
            assert_eq!(of(&conn), sys::RENO);
        }
    }

    /// A connection is asked after when that was wanted, and every accepted one from the start.
    #[test]
    fn keep_alive_is_asked_for_or_inherited() {
        let is_kept = |fd: RawFd| sys::option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE).unwrap();
        let idle = |fd: RawFd| sys::option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE).unwrap();
        let dialled = open(&at(1)).unwrap();
        assert_eq!(is_kept(dialled.as_raw_fd()), 0);
        keep_alive(dialled.as_raw_fd()).unwrap();
        let (listener, _) = listen(at(0), ListenOptions::default()).unwrap();
        for fd in [dialled.as_raw_fd(), listener.as_raw_fd()] {
            assert_eq!((is_kept(fd), idle(fd)), (1, KEEPALIVE_IDLE));
        }
    }

    /// The kernel has taken the hint.
    #[test]
    fn the_last_packet_of_a_handshake_waits() {
        let sock = open(&at(1)).unwrap();
        let quick = || sys::option(sock.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK);
        assert_eq!(quick().unwrap(), 1);
        speaks_first(sock.as_raw_fd());
        assert_eq!(quick().unwrap(), 0);
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }
}
