//! LocalServers: the inside ends of flows, either in the test's own hands or served by threads.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use socket2::SockRef;

use crate::net::{bounded, reset};

/// Stack of a serving thread: a test may have hundreds.
const STACK_SIZE: usize = 256 * 1_024;

/// A LocalServer whose connections the test takes into its own hands.
#[derive(Debug)]
pub struct Listener {
    /// Where it listens.
    pub addr: SocketAddr,
    conns: Receiver<TcpStream>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    /// Listens on any port of loopback.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port for the LocalServer");
        let addr = listener.local_addr().expect("its address");
        let (sender, conns) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for conn in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) || sender.send(bounded(conn)).is_err() {
                    return;
                }
            }
        });
        Self { addr, conns, stop }
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes within 30 s.
    #[must_use]
    pub fn accept(&self) -> TcpStream {
        self.accept_within(Duration::from_secs(30)).expect("a connection to the LocalServer")
    }

    /// The next connection, if one comes in time.
    #[must_use]
    pub fn accept_within(&self, within: Duration) -> Option<TcpStream> {
        self.conns.recv_timeout(within).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.addr);
    }
}

/// A LocalServer that serves every connection on a thread of its own.
#[derive(Debug)]
pub struct LocalServer {
    /// Where it listens.
    pub addr: SocketAddr,
    listening: Arc<TcpListener>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicUsize,
    open: AtomicUsize,
    conns: Mutex<Vec<Weak<TcpStream>>>,
    faults: Mutex<Vec<String>>,
}

impl LocalServer {
    /// Serves with `serve`; what it returns as an error is kept for [`LocalServer::faults`].
    ///
    /// # Panics
    /// When there is no port or no thread to be had.
    #[must_use]
    pub fn start(
        serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port for the LocalServer");
        let addr = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let listening = Arc::new(listener);
        let (acceptor, serve) = (Arc::clone(&shared), Arc::new(serve));
        let listener = Arc::clone(&listening);
        std::thread::spawn(move || {
            loop {
                let accepted = listener.accept();
                if acceptor.stop.load(Ordering::Acquire) {
                    return;
                }
                let Ok((conn, _)) = accepted else { continue };
                let conn = Arc::new(bounded(conn));
                acceptor.admit(&conn);
                let (shared, serve) = (Arc::clone(&acceptor), Arc::clone(&serve));
                let served = std::thread::Builder::new().stack_size(STACK_SIZE).spawn(move || {
                    let ended = serve(&conn);
                    shared.release(ended);
                });
                served.expect("a thread for the connection");
            }
        });
        Self { addr, listening, shared }
    }

    /// Sends everything back, and a FIN after the peer's.
    #[must_use]
    pub fn echo() -> Self {
        Self::start(|conn| {
            let (mut from, mut to) = (conn, conn);
            let mut buf = vec![0; 65_536];
            loop {
                match from.read(&mut buf) {
                    Ok(0) => return conn.shutdown(Shutdown::Write),
                    Ok(n) => to.write_all(&buf[..n])?,
                    Err(why) if why.kind() == ErrorKind::Interrupted => {}
                    Err(why) => return Err(why),
                }
            }
        })
    }

    /// Reads one byte, then aborts the connection.
    #[must_use]
    pub fn resetting() -> Self {
        Self::start(|mut conn| {
            let mut byte = [0];
            conn.read_exact(&mut byte)?;
            reset(conn.try_clone()?);
            Ok(())
        })
    }

    /// The address as the client's `--local`.
    #[must_use]
    pub fn name(&self) -> String {
        self.addr.to_string()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// Connections being served now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Errors of served connections so far.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn admit(&self, conn: &Arc<TcpStream>) {
        self.accepted.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_add(1, Ordering::AcqRel);
        let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        conns.retain(|conn| conn.strong_count() > 0);
        conns.push(Arc::downgrade(conn));
    }

    fn release(&self, ended: std::io::Result<()>) {
        if let Err(why) = ended {
            let text = format!("{:?}: {why}", why.kind());
            self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the accepting thread, from whichever network.
        let _ = SockRef::from(&*self.listening).shutdown(Shutdown::Both);
        let conns = self.shared.conns.lock().unwrap_or_else(PoisonError::into_inner);
        for conn in conns.iter().filter_map(Weak::upgrade) {
            let _ = conn.shutdown(Shutdown::Both);
        }
    }
}
