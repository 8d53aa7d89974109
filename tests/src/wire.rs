//! A piece of network that a test can cut, freeze and block: a small TCP proxy between the client
//! and the gateway.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;

use zproxy_proto::wire::{Kind, encode_preface};

use crate::programs::Gateway;
use crate::world::own_loopback;

/// What a lane begins with: preface, kind 3.
const LANE: [u8; 8] = encode_preface(Kind::Lane);

/// How soon a thread that waits for bytes sees that its connection was cut.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// One port of a [`Road`].
#[derive(Debug)]
pub struct Wire {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    accepted: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    refusing: bool,
    stopped: bool,
    /// Connections with a smaller serial are cut, or frozen.
    cut_below: u64,
    frozen_below: u64,
    next_serial: u64,
    /// Connections that have said that they are lanes, and not been cut.
    lanes: Vec<u64>,
    cut_lanes: Vec<u64>,
    /// The serial of its connection for every thread that still holds one.
    carrying: Vec<u64>,
}

impl Wire {
    /// A wire from `listen` to `target`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(listen: SocketAddr, target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            state: Mutex::default(),
            changed: Condvar::new(),
            accepted: AtomicUsize::new(0),
        });
        let acceptor = Arc::clone(&shared);
        std::thread::spawn(move || {
            for conn in listener.incoming().flatten() {
                if acceptor.lock().stopped {
                    return;
                }
                acceptor.accept(conn);
            }
        });
        Ok(Self { addr, shared })
    }

    /// Aborts every connection that runs through this wire now; new ones may come.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        let cut_below = state.next_serial;
        state.cut_below = cut_below;
        self.shared.changed.notify_all();
        while state.carrying.iter().any(|serial| *serial < cut_below) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Aborts every lane that runs through this wire now, of which there must be one, and nothing
    /// else.
    pub fn cut_lanes(&self) {
        let mut state = self.shared.lock();
        let lanes = std::mem::take(&mut state.lanes);
        assert!(!lanes.is_empty(), "no lane runs through this wire");
        state.cut_lanes.extend(&lanes);
        self.shared.changed.notify_all();
        while state.carrying.iter().any(|serial| lanes.contains(serial)) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lanes that run through this wire now.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.shared.lock().lanes.len()
    }

    /// The network swallows what the present connections send, without a word; new ones work.
    pub fn freeze(&self) {
        let mut state = self.shared.lock();
        state.frozen_below = state.next_serial;
    }

    /// From now on new connections are aborted at once, or work again.
    pub fn refuse(&self, refusing: bool) {
        self.shared.lock().refusing = refusing;
    }

    /// Connections accepted so far, those refused not counted.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Acquire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stopped = true;
            state.cut_below = u64::MAX;
            self.shared.changed.notify_all();
        }
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, near: TcpStream) {
        // Listed at once, so that a cut from here on meets it.
        let serial = {
            let mut state = self.lock();
            if state.refusing {
                drop(state);
                abort(&near);
                return;
            }
            let serial = state.next_serial;
            state.next_serial += 1;
            state.carrying.extend([serial, serial]);
            serial
        };
        let Ok(far) = TcpStream::connect(self.target) else {
            abort(&near);
            let mut state = self.lock();
            state.carrying.retain(|held| *held != serial);
            self.changed.notify_all();
            return;
        };
        self.accepted.fetch_add(1, Ordering::AcqRel);
        let broken = Arc::new(AtomicBool::new(false));
        let (near, far) = (Arc::new(near), Arc::new(far));
        for (from, to) in [(Arc::clone(&near), Arc::clone(&far)), (far, near)] {
            let (shared, broken) = (Arc::clone(self), Arc::clone(&broken));
            std::thread::spawn(move || {
                if shared.carry(serial, &broken, &from, &to) == Ended::Aborted {
                    broken.store(true, Ordering::Release);
                    abort(&from);
                    abort(&to);
                }
                // The sockets close when the second of the two threads lets go.
                drop((from, to));
                let mut state = shared.lock();
                let own = state.carrying.iter().position(|held| *held == serial);
                state.carrying.swap_remove(own.expect("every thread is listed"));
                state.lanes.retain(|held| *held != serial);
                shared.changed.notify_all();
            });
        }
    }

    /// Carries one direction to its end.
    fn carry(
        &self,
        serial: u64,
        broken: &AtomicBool,
        mut from: &TcpStream,
        to: &TcpStream,
    ) -> Ended {
        for side in [from, to] {
            let _ = side.set_nodelay(true);
            let _ = side.set_read_timeout(Some(LOOK_INTERVAL));
            let _ = side.set_write_timeout(Some(LOOK_INTERVAL));
        }
        let mut buf = vec![0; 65_536];
        let mut is_first = true;
        loop {
            let n = match from.read(&mut buf) {
                Ok(0) if self.may_pass(serial, broken) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return Ended::Finished;
                }
                Ok(n) => n,
                Err(why) if is_timeout(&why) => 0,
                Err(_) => return Ended::Aborted,
            };
            if is_first && buf[..n].starts_with(&LANE) {
                self.lock().lanes.push(serial);
            }
            is_first &= n == 0;
            if !self.may_pass(serial, broken) || !self.deliver(serial, broken, to, &buf[..n]) {
                return Ended::Aborted;
            }
        }
    }

    fn deliver(
        &self,
        serial: u64,
        broken: &AtomicBool,
        mut to: &TcpStream,
        mut bytes: &[u8],
    ) -> bool {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(why) if is_timeout(&why) && self.may_pass(serial, broken) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Waits while the connection is frozen; false when it is cut or broken.
    fn may_pass(&self, serial: u64, broken: &AtomicBool) -> bool {
        let mut state = self.lock();
        while serial < state.frozen_below && serial >= state.cut_below {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let is_cut = serial < state.cut_below || state.cut_lanes.contains(&serial);
        !is_cut && !broken.load(Ordering::Acquire)
    }
}

/// How one direction of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Finished,
    Aborted,
}

fn is_timeout(why: &std::io::Error) -> bool {
    matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Lingering for no time turns the closing of a socket into a RST.
fn abort(conn: &TcpStream) {
    let _ = SockRef::from(conn).set_linger(Some(Duration::ZERO));
}

/// A whole network between a client and a gateway: the gateway's two ports under an address of
/// its own. The client dials the proxy port at the address where it found the ctl port, so both
/// kinds of connection run through it.
#[derive(Debug)]
pub struct Road {
    /// What ctl_conns run through.
    pub ctl: Wire,
    /// What proxy_conns run through.
    pub proxy: Wire,
}

impl Road {
    /// A road to that gateway.
    ///
    /// # Panics
    /// When no loopback address has both ports free.
    #[must_use]
    pub fn to(gateway: &Gateway) -> Self {
        for _ in 0..50 {
            let ip: IpAddr = own_loopback();
            let ctl = Wire::start((ip, gateway.ctl.port()).into(), gateway.ctl);
            let proxy = Wire::start((ip, gateway.proxy.port()).into(), gateway.proxy);
            if let (Ok(ctl), Ok(proxy)) = (ctl, proxy) {
                return Self { ctl, proxy };
            }
        }
        panic!("no loopback address has both ports of the gateway free");
    }

    /// Nothing passes any more, and nobody says so; new connections work.
    pub fn freeze(&self) {
        self.ctl.freeze();
        self.proxy.freeze();
    }
}
