//! System calls, one thin function each: errno becomes [`io::Error`], descriptors become owned.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(status: libc::c_int) -> io::Result<libc::c_int> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

fn check_count(count: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: every caller passes a descriptor fresh from the kernel that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Monotonic time since boot, the clock of every driver.
#[must_use]
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How often the kernel has taken the CPU from the calling thread so far.
pub(crate) fn preemptions() -> i64 {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable, and RUSAGE_THREAD always exists (Linux 2.6.26).
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    check(fd).map(own)
}

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own)
}

/// Registers `fd` under `key`.
pub(crate) fn epoll_add(epoll: RawFd, fd: RawFd, mask: u32, key: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: mask, u64: key };
    // SAFETY: `event` is readable and the kernel keeps no pointer after return.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
}

/// Unregisters `fd`, if it is registered.
pub(crate) fn epoll_remove(epoll: RawFd, fd: RawFd) {
    // SAFETY: a null event is allowed for EPOLL_CTL_DEL. Failure means that it was not registered.
    unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
}

/// Waits for events, at most `millis` long (-1: for ever).
pub(crate) fn epoll_wait(
    epoll: RawFd,
    events: &mut [libc::epoll_event],
    millis: libc::c_int,
) -> io::Result<usize> {
    let capacity = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `events` is writable for `capacity` entries and the kernel keeps no pointer.
    let count = check(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), capacity, millis) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// As [`epoll_wait`], to the nanosecond (Linux 5.11). Called by number: glibc has it since 2.35.
pub(crate) fn epoll_pwait2(
    epoll: RawFd,
    events: &mut [libc::epoll_event],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let sigmask: *const libc::sigset_t = std::ptr::null();
    let capacity = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
    let events = events.as_mut_ptr();
    let call = libc::SYS_epoll_pwait2;
    // SAFETY: `events` is writable for `capacity` entries, `timeout` is null or readable, a null
    // signal mask (of size 0) is allowed, and the kernel keeps no pointer after return.
    let count = unsafe { libc::syscall(call, epoll, events, capacity, timeout, sigmask, 0usize) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn read(fd: RawFd, out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `out` is writable for its length and the kernel keeps no pointer after return.
    check_count(unsafe { libc::read(fd, out.as_mut_ptr().cast(), out.len()) })
}

pub(crate) fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its length and the kernel keeps no pointer after return.
    check_count(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

pub(crate) fn recv(fd: RawFd, out: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: `out` is writable for its length and the kernel keeps no pointer after return.
    check_count(unsafe { libc::recv(fd, out.as_mut_ptr().cast(), out.len(), flags) })
}

/// Whether bytes wait to be received (`SIOCINQ`, tcp(7)), urgent ones included if they are in line.
pub(crate) fn has_unread(fd: RawFd) -> bool {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    result == 0 && count > 0
}

/// Whether the stream has ended and every byte of it was taken. An error that the connection has is told
/// here and never again.
pub(crate) fn is_at_end(fd: RawFd) -> io::Result<bool> {
    match recv(fd, &mut [0], libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Ok(count) => Ok(count == 0),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, 0)
}

/// As [`send`], of bytes behind which something follows at once: the last, short packet waits for it.
pub(crate) fn send_more(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(fd, bytes, libc::MSG_MORE)
}

fn send_with(fd: RawFd, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for its length and the kernel keeps no pointer after return.
    check_count(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// `IORING_RECVSEND_POLL_FIRST` (Linux 5.19): a receive waits for news before it tries.
pub(crate) const RECV_POLL_FIRST: u16 = 1;

/// What the ring would say of a call: a count, or the errno, negative.
pub(crate) fn result_of(call: io::Result<usize>) -> i32 {
    match call {
        Ok(count) => i32::try_from(count).expect("no call moves 2 GiB"),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// Non-blocking `splice(2)`; 0 bytes is the end of the stream.
///
/// SPLICE_F_MORE is never set: it corks the socket even with TCP_NODELAY.
pub(crate) fn splice(from: RawFd, to: RawFd, count: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: null offsets are allowed for sockets and pipes.
    check_count(unsafe { libc::splice(from, none, to, none, count, flags) })
}

/// A non-blocking pipe: (read end, write end).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` points to two writable ints and the kernel keeps no pointer after return.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    Ok((own(fds[0]), own(fds[1])))
}

pub(crate) fn set_pipe_size(pipe: RawFd, size: usize) -> io::Result<usize> {
    let size = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
    // SAFETY: no pointers.
    let got = check(unsafe { libc::fcntl(pipe, libc::F_SETPIPE_SZ, size) })?;
    Ok(usize::try_from(got).unwrap_or(0))
}

pub(crate) fn pipe_size(pipe: RawFd) -> io::Result<usize> {
    // SAFETY: no pointers.
    let got = check(unsafe { libc::fcntl(pipe, libc::F_GETPIPE_SZ) })?;
    Ok(usize::try_from(got).unwrap_or(0))
}

pub(crate) fn socket(to: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    check(unsafe { libc::socket(family, kind, 0) }).map(own)
}

pub(crate) fn bind(fd: RawFd, at: &SocketAddr) -> io::Result<()> {
    let addr = Address::from(*at);
    // SAFETY: `addr` is a valid socket address of the length it states.
    check(unsafe { libc::bind(fd, addr.as_ptr(), addr.len()) }).map(drop)
}

pub(crate) fn listen(fd: RawFd, backlog: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd, backlog) }).map(drop)
}

pub(crate) fn connect(fd: RawFd, to: &Address) -> io::Result<()> {
    // SAFETY: `to` is a valid socket address of the length it states.
    check(unsafe { libc::connect(fd, to.as_ptr(), to.len()) }).map(drop)
}

/// Aborts a TCP connection at once: RST leaves, every waiter wakes (connect(2), AF_UNSPEC).
pub(crate) fn disconnect(fd: RawFd) {
    let addr = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `addr` is readable for `len` bytes. Failure means that it was not connected.
    unsafe { libc::connect(fd, &raw const addr, len) };
}

/// Accepts one connection as a non-blocking socket.
pub(crate) fn accept(fd: RawFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let mut addr = Address::empty();
    let mut len = Address::CAPACITY;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `addr` is writable for `len` bytes and the kernel keeps no pointer after return.
    let fd = check(unsafe { libc::accept4(fd, addr.as_mut_ptr(), &raw mut len, flags) })?;
    Ok((own(fd), addr.to_std()))
}

/// The address of the peer, unless it has gone.
pub(crate) fn peer_name(fd: RawFd) -> Option<SocketAddr> {
    let mut addr = Address::empty();
    let mut len = Address::CAPACITY;
    // SAFETY: `addr` is writable for `len` bytes and the kernel keeps no pointer after return.
    check(unsafe { libc::getpeername(fd, addr.as_mut_ptr(), &raw mut len) }).ok()?;
    addr.to_std()
}

pub(crate) fn sock_name(fd: RawFd) -> io::Result<SocketAddr> {
    let mut addr = Address::empty();
    let mut len = Address::CAPACITY;
    // SAFETY: `addr` is writable for `len` bytes and the kernel keeps no pointer after return.
    check(unsafe { libc::getsockname(fd, addr.as_mut_ptr(), &raw mut len) })?;
    addr.to_std().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

pub(crate) fn shutdown_write(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) }).map(drop)
}

/// Sets an integer socket option.
pub(crate) fn set_option(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_option_struct(fd, level, name, &value)
}

/// `SO_LINGER`: `Some(0)` makes a close, also the one at the death of the process, send RST.
pub(crate) fn set_linger(fd: RawFd, seconds: Option<libc::c_int>) -> io::Result<()> {
    let value = libc::linger {
        l_onoff: libc::c_int::from(seconds.is_some()),
        l_linger: seconds.unwrap_or(0),
    };
    set_option_struct(fd, libc::SOL_SOCKET, libc::SO_LINGER, &value)
}

/// The name of a congestion control, with zeros behind it (`TCP_CA_NAME_MAX`).
pub(crate) type CongestionControl = [u8; 16];

/// The one that every kernel has (RFC 6582).
pub(crate) const RENO: CongestionControl = *b"reno\0\0\0\0\0\0\0\0\0\0\0\0";

/// `TCP_CONGESTION`.
pub(crate) fn set_congestion_control(fd: RawFd, name: &CongestionControl) -> io::Result<()> {
    set_option_struct(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, name)
}

/// Reads `TCP_CONGESTION`.
pub(crate) fn congestion_control(fd: RawFd) -> io::Result<CongestionControl> {
    let mut name = [0; 16];
    let mut len = size_of_val(&name) as libc::socklen_t;
    let out = name.as_mut_ptr().cast();
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION);
    // SAFETY: `name` is writable for `len` bytes and the kernel keeps no pointer after return.
    check(unsafe { libc::getsockopt(fd, level, option, out, &raw mut len) })?;
    Ok(name)
}

fn set_option_struct<T>(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` is readable for `len` bytes and the kernel keeps no pointer after return.
    check(unsafe { libc::setsockopt(fd, level, name, value, len) }).map(drop)
}

/// Reads an integer socket option.
pub(crate) fn option(fd: RawFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    let out = (&raw mut value).cast();
    // SAFETY: `value` is writable for `len` bytes and the kernel keeps no pointer after return.
    check(unsafe { libc::getsockopt(fd, level, name, out, &raw mut len) })?;
    Ok(value)
}

/// Whether a TCP connection is entirely over (state TCP_CLOSE, the first byte of `struct tcp_info`).
pub(crate) fn is_tcp_closed(fd: RawFd) -> bool {
    const TCP_CLOSE: u8 = 7;
    tcp_info(fd).is_some_and(|[state]| state == TCP_CLOSE)
}

/// What `TCP_INFO` says of the far end. Observed on Linux 6.18, at the sender:
///
/// | | `unacked` | `retransmits` | `probes` | `last_data_sent` | `last_ack_recv` |
/// |---|---|---|---|---|---|
/// | path dead, data sent | > 0 | grows | 0 | since the last try | since it died |
/// | window closed, peer alive | 0 | 0 | 0 | long ago | since the last probe, up to 120 s |
/// | window closed, path dead | 0 | 0 | 1, 2, … | long ago | since it died |
/// | peer alive, out of memory | > 0 | 0 | 0 | since the last try, up to 120 s | the same |
/// | nothing to say, peer alive | 0 | 0 | 0 | long ago | long ago |
///
/// So silence says nothing: a slow reader is silent for as long as nobody asks it anything. Neither
/// does `backoff`, which grows with probes that are answered. What tells is that something was sent
/// after the last answer; only of a FIN on its own the kernel does not note when it was sent. A live
/// peer may leave a try unanswered that comes within 500 ms of another (`tcp_invalid_ratelimit`), as the
/// first few do: it then owes for about a second.
pub(crate) fn far_end(fd: RawFd) -> Option<crate::FarEnd> {
    // Places in `struct tcp_info`.
    const STATE: usize = 0;
    const RETRANSMITS: usize = 2;
    const PROBES: usize = 3;
    const UNACKED: usize = 24;
    const LAST_DATA_SENT: usize = 44;
    const LAST_ACK_RECV: usize = 56;
    const SIZE: usize = 60;
    /// `TCP_FIN_WAIT1`, `TCP_LAST_ACK`, `TCP_CLOSING`: a FIN was sent and is not acknowledged.
    const FIN_SENT: [u8; 3] = [4, 9, 11];
    let info: [u8; SIZE] = tcp_info(fd)?;
    let word = |at| tcp_info_word(&info, at);
    let is_fin_lost = info[RETRANSMITS] > 0 && FIN_SENT.contains(&info[STATE]);
    let is_unanswered = word(LAST_DATA_SENT) < word(LAST_ACK_RECV) || is_fin_lost;
    Some(crate::FarEnd {
        owes: info[PROBES] > 0 || (word(UNACKED) > 0 && is_unanswered),
        silence: Duration::from_millis(u64::from(word(LAST_ACK_RECV))),
    })
}

/// Segments that a connection sends in a round trip time, as a congestion control that paces has
/// settled. None when the kernel does not say (Linux before 3.15).
pub(crate) fn pace(fd: RawFd) -> Option<u64> {
    const SND_MSS: usize = 16;
    const RTT_USEC: usize = 68;
    const PACING_RATE: usize = 104;
    const SIZE: usize = 112;
    let info: [u8; SIZE] = tcp_info(fd)?;
    let rate = info[PACING_RATE..SIZE].try_into().expect("eight bytes");
    let bytes = u64::from_ne_bytes(rate).saturating_mul(tcp_info_word(&info, RTT_USEC).into());
    bytes.checked_div(1_000_000 * u64::from(tcp_info_word(&info, SND_MSS)))
}

/// The beginning of `struct tcp_info`, whose places never change; none when the kernel has less of it.
fn tcp_info<const SIZE: usize>(fd: RawFd) -> Option<[u8; SIZE]> {
    let mut info = [0u8; SIZE];
    let mut len = SIZE as libc::socklen_t;
    let out = info.as_mut_ptr().cast();
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: `info` is writable for `len` bytes and the kernel writes no more than that.
    let status = unsafe { libc::getsockopt(fd, level, name, out, &raw mut len) };
    (status == 0 && len as usize == SIZE).then_some(info)
}

fn tcp_info_word(info: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes within the structure"))
}

/// A socket address in the kernel's form.
#[derive(Debug)]
pub(crate) struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Address {
    const CAPACITY: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

    fn empty() -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_storage (family AF_UNSPEC).
        Self { storage: unsafe { std::mem::zeroed() }, len: Self::CAPACITY }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    fn to_std(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds a sockaddr_in.
                let addr = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(addr.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that the storage holds a sockaddr_in6.
                let addr = unsafe { &*(&raw const self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
                let port = u16::from_be(addr.sin6_port);
                // A v4 peer of a dual-stack listener is shown as what it is.
                Some(match ip.to_ipv4_mapped() {
                    Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, port)),
                    None => SocketAddr::V6(SocketAddrV6::new(
                        ip,
                        port,
                        addr.sin6_flowinfo,
                        addr.sin6_scope_id,
                    )),
                })
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        let mut out = Self::empty();
        match addr {
            SocketAddr::V4(v4) => {
                // SAFETY: all-zero bytes are a valid sockaddr_in.
                let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                raw.sin_family = libc::AF_INET as libc::sa_family_t;
                raw.sin_port = v4.port().to_be();
                raw.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                // SAFETY: sockaddr_storage is large and aligned enough for every address family.
                unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in>().write(raw) };
                out.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                // SAFETY: all-zero bytes are a valid sockaddr_in6.
                let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
                raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.sin6_port = v6.port().to_be();
                raw.sin6_flowinfo = v6.flowinfo();
                raw.sin6_scope_id = v6.scope_id();
                raw.sin6_addr.s6_addr = v6.ip().octets();
                // SAFETY: sockaddr_storage is large and aligned enough for every address family.
                unsafe { (&raw mut out.storage).cast::<libc::sockaddr_in6>().write(raw) };
                out.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        out
    }
}

/// The CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// When the kernel refuses (`sched_getaffinity(2)`).
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable for its size.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    let cpus = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: every index is below CPU_SETSIZE.
    Ok(cpus.filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// A set with one CPU in it.
pub(crate) fn cpu_set(cpu: usize) -> libc::cpu_set_t {
    assert!(cpu < libc::CPU_SETSIZE as usize, "CPU number out of range");
    // SAFETY: all-zero bytes are a valid, empty cpu_set_t.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the index was checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// When the CPU does not exist or may not be used (`sched_setaffinity(2)`).
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let set = cpu_set(cpu);
    // SAFETY: `set` is readable for its size.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })
        .map(drop)
}

/// The soft and hard limit of open descriptors.
#[must_use]
pub fn descriptor_limit() -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Raises the soft limit of open descriptors to the hard one and returns the new soft limit.
pub fn raise_descriptor_limit() -> u64 {
    let (soft, hard) = descriptor_limit();
    if soft < hard {
        let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: `limit` is readable. A refusal leaves the old limit in place.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
    descriptor_limit().0
}

/// Raises the limit of locked memory as far as it goes: rings may count against it.
pub fn raise_locked_memory_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    for wanted in [libc::RLIM_INFINITY, limit.rlim_max] {
        let most = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        // SAFETY: `most` is readable. A refusal leaves the old limit in place.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const most) } == 0 {
            return;
        }
    }
}

/// Ignores SIGPIPE in the whole process: a `splice(2)` to a dead socket would raise it.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition and no handler of ours is replaced.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
