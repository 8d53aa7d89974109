//! Connecting to a service: its addresses one after the other. The time limit is the owner's.

use std::net::SocketAddr;

use zproxy_io::{Driver, Ending, Fault, Op, Sock, Token};

use crate::resolver::Addresses;

/// A dial under way.
#[derive(Debug)]
pub(crate) struct Dial {
    addresses: Addresses,
    /// So many of them were dialled.
    tried: usize,
    /// The socket that is being connected …
    pub(crate) sock: Sock,
    /// … to this address.
    pub(crate) to: SocketAddr,
    speaks_first: bool,
}

/// Why a dial came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialFault {
    /// The name has no address.
    Unresolved,
    /// No answer within the time limit.
    TimedOut,
    /// The last address failed like this.
    Fault(Fault),
}

impl std::fmt::Display for DialFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unresolved => f.write_str("the name does not resolve"),
            Self::TimedOut => f.write_str("no answer within the connect timeout"),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

impl Dial {
    /// Dials the first address that a socket can be had for; `connect` is the token of the attempts.
    /// `speaks_first` tells whether there are bytes to send as soon as one succeeds.
    pub(crate) fn start<D: Driver>(
        driver: &mut D,
        addresses: Addresses,
        speaks_first: bool,
        connect: Token,
    ) -> Result<Self, DialFault> {
        let (mut tried, last) = (0, DialFault::Unresolved);
        let (sock, to) = attempt(driver, &addresses, &mut tried, speaks_first, connect, last)?;
        Ok(Self { addresses, tried, sock, to, speaks_first })
    }

    /// The addresses that have not been dialled.
    pub(crate) fn rest(&self) -> Addresses {
        self.addresses[self.tried..].into()
    }

    /// The present attempt has failed: closes its socket and dials the next address.
    pub(crate) fn next<D: Driver>(
        &mut self,
        driver: &mut D,
        fault: Fault,
        connect: Token,
        close: Token,
    ) -> Result<(), DialFault> {
        driver.submit(close, Op::Close { sock: self.sock, how: Ending::Reset });
        let (speaks_first, last) = (self.speaks_first, DialFault::Fault(fault));
        let (addresses, tried) = (&self.addresses, &mut self.tried);
        (self.sock, self.to) = attempt(driver, addresses, tried, speaks_first, connect, last)?;
        Ok(())
    }
}

fn attempt<D: Driver>(
    driver: &mut D,
    addresses: &[SocketAddr],
    tried: &mut usize,
    speaks_first: bool,
    connect: Token,
    mut last: DialFault,
) -> Result<(Sock, SocketAddr), DialFault> {
    while let Some(&to) = addresses.get(*tried) {
        *tried += 1;
        match driver.socket(&to) {
            Ok(sock) => {
                if speaks_first {
                    driver.speaks_first(sock);
                }
                driver.submit(connect, Op::Connect { sock, to });
                return Ok((sock, to));
            }
            Err(fault) => last = DialFault::Fault(fault),
        }
    }
    Err(last)
}
