//! Opening the listening sockets: ctl, proxy, and one per data core for every tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use zproxy_io::{Driver, ListenOptions};
use zproxy_ops::Exit;

/// The port of a program that has just died can stay busy for a moment: the kernel frees a ring, and
/// the sockets that it holds, late.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
const BUSY_RETRY: Duration = Duration::from_millis(50);

/// Opens the ctl or proxy listener.
///
/// # Errors
/// An [`Exit`] that names the address.
pub(crate) fn own<D: Driver>(at: SocketAddr, what: &str) -> Result<(D::Handle, SocketAddr), Exit> {
    let give_up = Instant::now() + BUSY_PATIENCE;
    loop {
        match listen::<D>(at, false) {
            Err(error) if is_busy(&error) && Instant::now() < give_up => {
                std::thread::sleep(BUSY_RETRY);
            }
            result => return result.map_err(|error| refuse(at, what, &error)),
        }
    }
}

fn refuse(at: SocketAddr, what: &str, error: &io::Error) -> Exit {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program listens there; stop it or choose another --{what}-port")
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address; see --bind".to_owned()
        }
        _ => "see --bind and the port".to_owned(),
    };
    Exit::failed(format!("cannot listen on {at} ({what}): {error}; {hint}"))
}

/// Opens the listeners of a public port, one per data core; port 0 lets the kernel pick. `is_ours`
/// says that listeners of this gateway, about to be closed, may be there still.
///
/// # Errors
/// As `bind(2)`: above all [`io::ErrorKind::AddrInUse`].
pub(crate) fn public<D: Driver>(
    ip: IpAddr,
    port: u16,
    cores: usize,
    is_ours: bool,
) -> io::Result<(Vec<D::Handle>, SocketAddr)> {
    if port != 0 && !is_ours {
        // With SO_REUSEPORT alone, another program of the same user could listen there unnoticed.
        listen::<D>(SocketAddr::new(ip, port), false)?;
    }
    let (first, at) = listen::<D>(SocketAddr::new(ip, port), true)?;
    let mut handles = vec![first];
    while handles.len() < cores {
        handles.push(D::listen(at, ListenOptions { reuse_port: true })?.0);
    }
    Ok((handles, at))
}

/// Listens; where the machine has no IPv6, on every IPv4 address instead of every address.
fn listen<D: Driver>(at: SocketAddr, reuse_port: bool) -> io::Result<(D::Handle, SocketAddr)> {
    let options = ListenOptions { reuse_port };
    match D::listen(at, options) {
        Err(error) if has_no_ipv6(&error) && at.ip().is_unspecified() && at.is_ipv6() => {
            D::listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()), options)
        }
        result => result,
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn has_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT (97): no IPv6 in the kernel. EADDRNOTAVAIL: IPv6 disabled by sysctl.
    error.raw_os_error() == Some(97) || error.kind() == io::ErrorKind::AddrNotAvailable
}
