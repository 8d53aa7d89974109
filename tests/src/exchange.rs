//! Both ways at once: each side sends its own pattern in random pieces and checks the other's.
//!
//! The public side opens with a header that names the flow and both lengths, so a LocalServer of
//! the exchange kind needs to know nothing in advance, and bytes of one flow that come out of
//! another are seen as wrong.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::local::LocalServer;
use crate::net::{receive_pattern, try_connect};
use crate::pattern::{Direction, Pattern, Rng};

/// What one exchange moves.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Names the flow; the patterns depend on it.
    pub flow: u64,
    /// Bytes from the public to the local side, without the header.
    pub up: u64,
    /// Bytes from the local to the public side.
    pub down: u64,
}

const HEADER_SIZE: usize = 24;

impl Exchange {
    fn header(self) -> [u8; HEADER_SIZE] {
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(&self.flow.to_be_bytes());
        header[8..16].copy_from_slice(&self.up.to_be_bytes());
        header[16..].copy_from_slice(&self.down.to_be_bytes());
        header
    }

    fn parse(header: [u8; HEADER_SIZE]) -> Self {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_be_bytes(bytes)
        };
        Self { flow: number(0), up: number(8), down: number(16) }
    }

    /// The LocalServer of exchanges.
    #[must_use]
    pub fn server() -> LocalServer {
        LocalServer::start(|mut conn| {
            let mut header = [0; HEADER_SIZE];
            conn.read_exact(&mut header)?;
            let what = Self::parse(header);
            let sends = Stream { flow: what.flow, direction: Direction::Down, len: what.down };
            let takes = Stream { flow: what.flow, direction: Direction::Up, len: what.up };
            both_ways(conn, sends, takes)
        })
    }
}

/// Runs one exchange through a public address. Ends when both FINs were seen.
///
/// # Errors
/// Those of the sockets; `InvalidData` for a wrong or surplus byte, `UnexpectedEof` for a FIN in
/// place of bytes.
pub fn exchange(public: SocketAddr, what: Exchange) -> std::io::Result<()> {
    let conn = try_connect(public)?;
    (&conn).write_all(&what.header())?;
    let sends = Stream { flow: what.flow, direction: Direction::Up, len: what.up };
    let takes = Stream { flow: what.flow, direction: Direction::Down, len: what.down };
    both_ways(&conn, sends, takes)
}

#[derive(Clone, Copy)]
struct Stream {
    flow: u64,
    direction: Direction,
    len: u64,
}

fn both_ways(conn: &TcpStream, sends: Stream, takes: Stream) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send_chunked(conn, sends));
        let taken = take_all(conn, takes);
        if taken.is_err() {
            // Whatever went wrong: the sender must not wait for a peer that is not served any more.
            let _ = conn.shutdown(Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| Error::other("the sender panicked"))?;
        match (&taken, &sent) {
            // The kernel tells of a reset once. When the sender was told, the receiver sees an end.
            (Err(end), Err(reset))
                if end.kind() == ErrorKind::UnexpectedEof
                    && reset.kind() == ErrorKind::ConnectionReset =>
            {
                sent
            }
            _ => taken.and(sent),
        }
    })
}

fn send_chunked(mut conn: &TcpStream, what: Stream) -> std::io::Result<()> {
    let pattern = Pattern::new(what.flow, what.direction);
    let mut rng = Rng::new(what.flow ^ what.len.rotate_left(32) ^ what.direction as u64);
    let mut position = 0;
    while position < what.len {
        let left = usize::try_from(what.len - position).unwrap_or(usize::MAX);
        let chunk = pattern.at(position, rng.chunk().min(left));
        conn.write_all(chunk)?;
        position += chunk.len() as u64;
    }
    conn.shutdown(Shutdown::Write)
}

fn take_all(mut conn: &TcpStream, what: Stream) -> std::io::Result<()> {
    receive_pattern(conn, Pattern::new(what.flow, what.direction), 0, what.len)?;
    match conn.read(&mut [0; 16])? {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::InvalidData, format!("{n} surplus bytes"))),
    }
}
