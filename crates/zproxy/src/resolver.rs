//! Name resolution, off every loop: one thread that asks the system's resolver.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};

use zproxy_ops::values::HostPort;

/// What to do with the answer; runs on the resolver's thread, so it should only pass it on. An empty
/// list means that the name does not resolve.
pub(crate) type Reply = Box<dyn FnOnce(Addresses) + Send>;

/// The addresses of a name, in the order in which they are to be tried. Shared, so that a flow costs
/// no copy.
pub(crate) type Addresses = Arc<[SocketAddr]>;

/// The way to the resolver's thread.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    ask: mpsc::Sender<(HostPort, Reply)>,
}

impl Resolver {
    /// Starts the thread; it ends when the last clone is gone.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (ask, asked) = mpsc::channel::<(HostPort, Reply)>();
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            for (target, reply) in asked {
                reply(resolve(&target));
            }
        })?;
        Ok(Self { ask })
    }

    /// A resolver whose questions somebody else answers.
    #[cfg(feature = "sim")]
    pub(crate) fn by_hand() -> (Self, mpsc::Receiver<(HostPort, Reply)>) {
        let (ask, asked) = mpsc::channel();
        (Self { ask }, asked)
    }

    /// Asks for the addresses of a target.
    pub(crate) fn ask(&self, target: HostPort, reply: impl FnOnce(Addresses) + Send + 'static) {
        // The thread lives as long as `self`.
        let _ = self.ask.send((target, Box::new(reply)));
    }
}

/// The address of a target that needs no resolution.
pub(crate) fn literal(target: &HostPort) -> Option<SocketAddr> {
    let ip: IpAddr = target.host.parse().ok()?;
    Some(SocketAddr::new(ip, target.port))
}

fn resolve(target: &HostPort) -> Addresses {
    let found = (target.host.as_str(), target.port).to_socket_addrs();
    found.map(Iterator::collect).unwrap_or_default()
}
