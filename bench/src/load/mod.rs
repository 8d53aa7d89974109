//! The load: a LocalServer that plays every part, and clients that drive it through whatever is
//! measured.

pub(crate) mod bulk;
pub(crate) mod client;
pub(crate) mod crew;
mod driver;
mod poller;
pub(crate) mod server;
pub(crate) mod wire;

use std::io;

use socket2::Socket;

/// Makes a socket of the load cheap, so that the machine is left to what is measured: no delay for
/// small messages, and no congestion control that paces by timers, which loopback has no use for.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    rustix::net::sockopt::set_tcp_congestion(socket, "reno")?;
    Ok(())
}
