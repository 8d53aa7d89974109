//! Socket helpers: everything bounded in time, and FIN told from RST.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::pattern::Pattern;

/// How long any single read or write of a test may take.
pub const IO_DEADLINE: Duration = Duration::from_secs(30);

/// Gives a socket the deadlines that every socket of a test has.
///
/// # Panics
/// When the socket is closed.
#[must_use]
pub fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(IO_DEADLINE)).expect("a read deadline");
    stream.set_write_timeout(Some(IO_DEADLINE)).expect("a write deadline");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// Connects, with deadlines.
///
/// # Panics
/// When nobody answers.
#[must_use]
pub fn connect(addr: SocketAddr) -> TcpStream {
    bounded(try_connect(addr).unwrap_or_else(|why| panic!("connecting to {addr}: {why}")))
}

/// Connects, with deadlines, or says why not.
///
/// # Errors
/// Those of the kernel.
pub fn try_connect(addr: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&addr, Duration::from_secs(10)).map(bounded)
}

/// Connects from an address of this machine, with deadlines, or says why not.
///
/// # Errors
/// Those of the kernel.
pub fn try_connect_from(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
    Ok(bounded(socket.into()))
}

/// Closes with a RST instead of a FIN, whatever is still unread or unsent.
///
/// # Panics
/// When the socket refuses the option.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

/// Sends a FIN.
///
/// # Panics
/// When the socket is not connected any more.
pub fn finish(stream: &TcpStream) {
    stream.shutdown(Shutdown::Write).expect("a FIN");
}

/// Small socket buffers, so that backpressure begins after few bytes.
///
/// # Panics
/// When the socket refuses the option.
pub fn small_buffers(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(16 * 1024).expect("SO_RCVBUF");
    SockRef::from(stream).set_send_buffer_size(16 * 1024).expect("SO_SNDBUF");
}

/// Reads what is left and expects the stream to end with a FIN.
///
/// # Panics
/// When it ends otherwise, or not at all.
pub fn expect_fin(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    if let Err(why) = stream.read_to_end(&mut rest) {
        panic!("a FIN was expected, after {} bytes came: {why}", rest.len());
    }
}

/// Reads what is left and expects the stream to end with a RST.
///
/// # Panics
/// When it ends otherwise, or not at all.
pub fn expect_reset(stream: &TcpStream) {
    expect_reset_within(stream, IO_DEADLINE);
}

/// As [`expect_reset`], with a deadline of its own. Gives the time it took.
///
/// # Panics
/// When the stream ends otherwise, or not in time.
pub fn expect_reset_within(mut stream: &TcpStream, within: Duration) -> Duration {
    let begun = Instant::now();
    stream.set_read_timeout(Some(within)).expect("a read deadline");
    let mut buf = vec![0; 65_536];
    let mut came = 0;
    loop {
        match stream.read(&mut buf) {
            Ok(0) => panic!("a RST was expected, a FIN came after {came} bytes"),
            Ok(n) => came += n,
            Err(why) if why.kind() == ErrorKind::ConnectionReset => return begun.elapsed(),
            Err(why) => panic!("a RST was expected, after {came} bytes came: {why}"),
        }
        assert!(begun.elapsed() < within, "no RST within {within:?}, but {came} bytes");
    }
}

/// Connects, and expects the connection to be reset: a RST may be so fast that connecting itself
/// reports it. Gives the time it took.
///
/// # Panics
/// When there is no RST in time.
pub fn expect_visit_reset(addr: SocketAddr, within: Duration) -> Duration {
    let begun = Instant::now();
    match try_connect(addr) {
        Ok(conn) => {
            expect_reset_within(&conn, within);
        }
        Err(why) if why.kind() == ErrorKind::ConnectionReset => {}
        Err(why) => panic!("a visit and a RST were expected: {why}"),
    }
    begun.elapsed()
}

/// Expects the peer to end the connection, by FIN or RST, and gives the time that took.
///
/// # Panics
/// When the connection lives longer than `within`.
pub fn expect_closed_within(mut stream: &TcpStream, within: Duration) -> Duration {
    let begun = Instant::now();
    stream.set_read_timeout(Some(within)).expect("a read deadline");
    let mut buf = [0; 4_096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return begun.elapsed(),
            Ok(_) => {}
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("still open after {within:?}");
            }
            Err(_) => return begun.elapsed(),
        }
        assert!(begun.elapsed() < within, "still open, and talking, after {within:?}");
    }
}

/// True when the peer has ended the connection. Does not wait; what the peer said is thrown away.
#[must_use]
pub fn is_closed(mut stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let mut said = [0; 4_096];
    let ended = loop {
        match stream.read(&mut said) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(why) => break why.kind() != ErrorKind::WouldBlock,
        }
    };
    let _ = stream.set_nonblocking(false);
    ended
}

/// Writes `len` bytes of a pattern from its beginning.
///
/// # Errors
/// Those of the socket.
pub fn send_pattern(mut to: &TcpStream, pattern: Pattern, len: u64) -> std::io::Result<()> {
    let mut position = 0;
    while position < len {
        let piece =
            pattern.at(position, usize::try_from((len - position).min(262_144)).unwrap_or(0));
        to.write_all(piece)?;
        position += piece.len() as u64;
    }
    Ok(())
}

/// Reads and checks bytes of a pattern from `from` up to `to`; the stream may go on behind them.
///
/// # Errors
/// Those of the socket; `UnexpectedEof` when it ends early and `InvalidData` at a wrong byte.
pub fn receive_pattern(
    mut stream: &TcpStream,
    pattern: Pattern,
    from: u64,
    to: u64,
) -> std::io::Result<()> {
    let mut buf = vec![0; 262_144];
    let mut position = from;
    while position < to {
        let room = usize::try_from((to - position).min(buf.len() as u64)).unwrap_or(buf.len());
        let n = match stream.read(&mut buf[..room]) {
            Ok(0) => {
                let why = format!("a FIN at byte {position} of {to}");
                return Err(std::io::Error::new(ErrorKind::UnexpectedEof, why));
            }
            Ok(n) => n,
            Err(why) if why.kind() == ErrorKind::Interrupted => continue,
            Err(why) => return Err(why),
        };
        if let Err(wrong) = pattern.check(position, &buf[..n]) {
            let why = format!("byte {wrong} of {to} is wrong");
            return Err(std::io::Error::new(ErrorKind::InvalidData, why));
        }
        position += n as u64;
    }
    Ok(())
}

/// Writes a pattern until the peer's side is full, and gives the count of bytes that went.
///
/// # Panics
/// When the connection breaks.
#[must_use]
pub fn fill_up(mut stream: &TcpStream, pattern: Pattern) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a write deadline");
    let mut position = 0;
    loop {
        match stream.write(pattern.at(position, 65_536)) {
            Ok(n) => position += n as u64,
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(why) => panic!("filling up, after {position} bytes: {why}"),
        }
    }
    stream.set_write_timeout(Some(IO_DEADLINE)).expect("a write deadline");
    position
}

/// Sends one byte and waits for its echo.
///
/// # Errors
/// Those of the socket.
pub fn echo_once(mut stream: &TcpStream, byte: u8) -> std::io::Result<()> {
    stream.write_all(&[byte])?;
    let mut back = [0];
    stream.read_exact(&mut back)?;
    if back == [byte] { Ok(()) } else { Err(std::io::Error::from(ErrorKind::InvalidData)) }
}

/// A port of that address that nobody used a moment ago.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port(addr: IpAddr) -> u16 {
    let listener = TcpListener::bind((addr, 0)).expect("a free port");
    listener.local_addr().expect("its number").port()
}
