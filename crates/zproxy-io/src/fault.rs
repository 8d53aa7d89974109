//! Errors of operations, mapped from errno once, here.

use std::io;

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The peer reset the connection, or it is gone (`ECONNRESET`, `EPIPE`, `ECONNABORTED`,
    /// `ENOTCONN`).
    Reset,
    /// Nothing listens there (`ECONNREFUSED`).
    Refused,
    /// No way to the host or network (`EHOSTUNREACH`, `ENETUNREACH`, …).
    Unreachable,
    /// The kernel gave up waiting for the peer (`ETIMEDOUT`).
    TimedOut,
    /// Out of file descriptors, of the process or of the system (`EMFILE`, `ENFILE`).
    NoDescriptors,
    /// Out of kernel memory or buffers (`ENOMEM`, `ENOBUFS`).
    NoMemory,
    /// Out of local ports (`EADDRNOTAVAIL`) or the address is taken (`EADDRINUSE`).
    NoAddress,
    /// The socket was closed while the operation was in flight.
    Cancelled,
    /// Anything else, by errno.
    Other(i32),
}

impl Fault {
    /// Maps a positive errno.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN => Self::Reset,
            libc::ECONNREFUSED => Self::Refused,
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::EACCES
            | libc::EPERM
            | libc::EAFNOSUPPORT => Self::Unreachable,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::EMFILE | libc::ENFILE => Self::NoDescriptors,
            libc::ENOMEM | libc::ENOBUFS => Self::NoMemory,
            libc::EADDRNOTAVAIL | libc::EADDRINUSE => Self::NoAddress,
            libc::ECANCELED => Self::Cancelled,
            other => Self::Other(other),
        }
    }

    /// Maps an I/O error of a system call.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::Other(0), Self::from_errno)
    }

    /// Whether the cause is a limit of this process or machine, so that pausing may help.
    #[must_use]
    pub fn is_shortage(self) -> bool {
        matches!(self, Self::NoDescriptors | Self::NoMemory)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reset => f.write_str("connection reset"),
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::TimedOut => f.write_str("timed out"),
            Self::NoDescriptors => f.write_str("out of file descriptors"),
            Self::NoMemory => f.write_str("out of kernel memory"),
            Self::NoAddress => f.write_str("no local address or port free"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Other(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}

impl std::error::Error for Fault {}
