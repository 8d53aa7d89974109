//! The far ends of connections, and what only libc can do to them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zproxy_io::{Driver, Epoll, Uring};

use super::bytes::{Random, check, pattern};
use super::world::PATIENCE;

/// A far end, of whichever kind.
pub(crate) trait Far: Read + Write {
    /// Ends a direction.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;

    /// Closes with RST.
    fn reset(self);

    /// Makes the receive buffer small, so that a sink is full early.
    fn narrow(&self);
}

/// A driver that far ends can connect to.
pub(crate) trait Meets: Driver {
    type Far: Far;

    /// A far end that has connected to a listener of this driver.
    fn meet(&self, at: SocketAddr) -> Self::Far;
}

impl Far for TcpStream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        Self::shutdown(self, how)
    }

    fn reset(self) {
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        set_option(self.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &now);
    }

    /// It still holds several segments of the loopback: below that the kernel sends only when its timers
    /// say so.
    fn narrow(&self) {
        set_option(self.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &(256_i32 << 10));
    }
}

impl Meets for Epoll {
    type Far = TcpStream;

    fn meet(&self, at: SocketAddr) -> TcpStream {
        connect(at)
    }
}

impl Meets for Uring {
    type Far = TcpStream;

    fn meet(&self, at: SocketAddr) -> TcpStream {
        connect(at)
    }
}

/// A far end that has connected to a listener.
pub(crate) fn connect(at: SocketAddr) -> TcpStream {
    prepare(TcpStream::connect(at).expect("the listener listens"))
}

/// A far end with deadlines.
pub(crate) fn prepare(far: TcpStream) -> TcpStream {
    far.set_read_timeout(Some(PATIENCE)).expect("a time limit can be set");
    far.set_write_timeout(Some(PATIENCE)).expect("a time limit can be set");
    far.set_nodelay(true).expect("no delay can be set");
    far
}

fn set_option<T>(fd: i32, level: i32, name: i32, value: &T) {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` is readable for `len` bytes and the kernel keeps no pointer.
    let status = unsafe { libc::setsockopt(fd, level, name, value, len) };
    assert_eq!(status, 0, "setsockopt failed");
}

/// Closes with RST.
pub(crate) fn reset(far: impl Far) {
    far.reset();
}

/// What to do with a far end: send these bytes, wait for so long, reset.
pub(crate) type Doom = (TcpStream, Vec<u8>, Duration);

/// A thread that carries out what it is sent, at once and without sleeping, until nobody can send it
/// more.
pub(crate) fn spawn_resetter() -> (Sender<Doom>, JoinHandle<()>) {
    let (post, orders) = mpsc::channel::<Doom>();
    let resetting = std::thread::spawn(move || {
        loop {
            match orders.try_recv() {
                Ok((mut far, bytes, pause)) => {
                    far.write_all(&bytes).expect("open");
                    let begun = Instant::now();
                    while begun.elapsed() < pause {
                        std::hint::spin_loop();
                    }
                    reset(far);
                }
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    });
    (post, resetting)
}

/// Makes the receive buffer small, so that a sink is full early.
pub(crate) fn narrow(far: &impl Far) {
    far.narrow();
}

/// Segments that have come to this end of a connection (`tcpi_segs_in`, Linux 4.2).
pub(crate) fn packets_received(far: &TcpStream) -> u32 {
    // SAFETY: all zeroes is a tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let place = (&raw mut info).cast();
    // SAFETY: the kernel writes at most `length` bytes to the place.
    let result = unsafe {
        libc::getsockopt(far.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length)
    };
    assert_eq!(result, 0, "tcp(7)");
    info.tcpi_segs_in
}

/// Sends one byte of urgent data.
pub(crate) fn send_urgent(far: &TcpStream, byte: u8) {
    let bytes = [byte];
    let flags = libc::MSG_OOB | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for one byte and the kernel keeps no pointer.
    let count = unsafe { libc::send(far.as_raw_fd(), bytes.as_ptr().cast(), 1, flags) };
    assert_eq!(count, 1, "one byte fits");
}

/// Lets only one connection wait in a listener; further ones are not answered.
pub(crate) fn shrink_backlog(listener: &TcpListener) {
    // SAFETY: no pointers.
    let status = unsafe { libc::listen(listener.as_raw_fd(), 0) };
    assert_eq!(status, 0, "listen failed");
}

/// Writes `total` bytes of stream `seed` in random pieces, then FIN.
pub(crate) fn spawn_writer(
    mut far: TcpStream,
    seed: u64,
    total: u64,
    piece_max: usize,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut random = Random::new(seed);
        let mut piece = vec![0; piece_max];
        let mut sent = 0;
        while sent < total {
            let left = usize::try_from(total - sent).unwrap_or(usize::MAX);
            let count = random.upto(piece_max).min(left);
            pattern(seed, sent, &mut piece[..count]);
            far.write_all(&piece[..count]).expect("the near end takes bytes");
            sent += count as u64;
        }
        far.shutdown(Shutdown::Write).expect("the connection is open");
    })
}

/// Reads stream `seed` to its end in random pieces; gives the number of bytes.
pub(crate) fn spawn_reader(mut far: TcpStream, seed: u64, piece_max: usize) -> JoinHandle<u64> {
    std::thread::spawn(move || read_to_end(&mut far, seed, 0, piece_max))
}

/// Reads stream `seed`, of which `offset` bytes were read before, to its end; gives where it ends.
pub(crate) fn read_to_end(far: &mut impl Read, seed: u64, offset: u64, piece_max: usize) -> u64 {
    let mut random = Random::new(!seed);
    let mut piece = vec![0; piece_max];
    let mut at = offset;
    loop {
        let room = random.upto(piece_max);
        let count = far.read(&mut piece[..room]).expect("bytes or an end arrive");
        if count == 0 {
            return at;
        }
        check(seed, at, &piece[..count]);
        at += count as u64;
    }
}

/// Reads exactly `count` bytes of stream `seed` from `offset` on.
pub(crate) fn read_exactly(far: &mut impl Read, seed: u64, offset: u64, count: usize) {
    let mut bytes = vec![0; count];
    far.read_exact(&mut bytes).expect("the bytes arrive");
    check(seed, offset, &bytes);
}
