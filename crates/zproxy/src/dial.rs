//! Connecting to a service: its addresses one after the other. The time limit is the owner's.

use std::net::SocketAddr;

use zproxy_io::{Driver, Ending, Fault, Op, Sock, Token};

/// A dial under way.
#[derive(Debug)]
pub(crate) struct Dial {
    rest: std::vec::IntoIter<SocketAddr>,
    /// The socket that is being connected …
    pub(crate) sock: Sock,
    /// … to this address.
    pub(crate) to: SocketAddr,
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
    pub(crate) fn start<D: Driver>(
        driver: &mut D,
        addresses: Vec<SocketAddr>,
        connect: Token,
    ) -> Result<Self, DialFault> {
        let mut rest = addresses.into_iter();
        let (sock, to) = attempt(driver, &mut rest, connect, DialFault::Unresolved)?;
        Ok(Self { rest, sock, to })
    }

    /// The addresses that have not been dialled.
    pub(crate) fn rest(&self) -> Vec<SocketAddr> {
        self.rest.as_slice().to_vec()
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
        (self.sock, self.to) = attempt(driver, &mut self.rest, connect, DialFault::Fault(fault))?;
        Ok(())
    }
}

fn attempt<D: Driver>(
    driver: &mut D,
    rest: &mut std::vec::IntoIter<SocketAddr>,
    connect: Token,
    mut last: DialFault,
) -> Result<(Sock, SocketAddr), DialFault> {
    for to in rest {
        match driver.socket(&to) {
            Ok(sock) => {
                driver.submit(connect, Op::Connect { sock, to });
                return Ok((sock, to));
            }
            Err(fault) => last = DialFault::Fault(fault),
        }
    }
    Err(last)
}
