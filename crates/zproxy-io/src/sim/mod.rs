//! The simulated kernel: a third driver behind the seam, with a virtual clock and a seed.
//!
//! A [`World`] is a network of machines with processes. [`Sim`] drives sockets for the programs under
//! test; visitors and services use the plain calls of [`World`], which never block. Everything runs
//! in one thread, and whoever owns the world decides who runs next and when time passes, so the same
//! seed gives the same run.
//!
//! `kernel` the clock, processes, sockets and dialling · `conn` connections · `driver` operations in
//! flight · `marks` rare places · `weather` nuisances that harm nobody · `sabotage` deliberate faults of the relay.
//! What it must never do: read a clock, wait, or iterate in an order that is not the same every time.

mod conn;
mod driver;
mod kernel;
mod marks;
mod random;
mod sabotage;
mod weather;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Done, Doorbell, Driver, DriverLost, Ending, FarEnd, Fault, ListenOptions, Op, Sock, Stats,
    Token,
};

pub use conn::{Read, Write};
pub use marks::{keep_marks, mark, mark_step, take_marks};
pub use random::Random;
pub use sabotage::{Edit, Sabotage};
pub use weather::Weather;

use driver::DriverState;
use kernel::{Event, Kernel, Kind, Owner, Process, SockId};

thread_local! {
    /// The world of this thread: where `Sim::listen` opens sockets and dropped handles are closed.
    static CURRENT: RefCell<Weak<RefCell<Kernel>>> = const { RefCell::new(Weak::new()) };
}

fn current() -> Option<Rc<RefCell<Kernel>>> {
    CURRENT.try_with(|current| current.borrow().upgrade()).ok().flatten()
}

/// Random bytes of a seed, which is counted on.
pub fn random_bytes(seed: &mut u64, out: &mut [u8]) {
    *seed = seed.wrapping_add(1);
    Random::new(*seed).fill(out);
}

/// Names a process of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessName(usize);

/// Names a driver of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverName(usize);

/// A socket of a visitor or service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppSock(SockId);

/// Where a dial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// No answer yet.
    NotYet,
    /// Connected.
    Connected,
    /// It has failed.
    Failed(Fault),
}

/// A world. Clones are the same one.
#[derive(Clone)]
pub struct World {
    kernel: Rc<RefCell<Kernel>>,
}

impl World {
    /// An empty world, the one of this thread from now on.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let kernel = Rc::new(RefCell::new(Kernel::new(seed, weather)));
        CURRENT.with(|current| *current.borrow_mut() = Rc::downgrade(&kernel));
        Self { kernel }
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.kernel.borrow().now
    }

    /// Changes the nuisances from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.kernel.borrow_mut().weather = weather;
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self) -> Option<Duration> {
        self.kernel.borrow().events.peek().map(|std::cmp::Reverse((at, ..))| *at)
    }

    /// Lets time pass until `until`, event by event.
    ///
    /// # Panics
    /// When that is in the past.
    pub fn advance(&self, until: Duration) {
        let mut kernel = self.kernel.borrow_mut();
        assert!(until >= kernel.now, "time does not go back");
        kernel.now = until;
        kernel.run_events();
    }

    /// A number that tells runs apart: equal runs have equal traces.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.kernel.borrow().trace
    }

    /// Takes something that happened outside into the trace.
    pub fn note(&self, word: u64) {
        self.kernel.borrow_mut().note(word);
    }

    /// What happened, and how often.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.kernel.borrow().counts.clone()
    }

    // --- processes --------------------------------------------------------------------------------

    /// Starts a process on a machine.
    #[must_use]
    pub fn spawn(&self, host: IpAddr) -> ProcessName {
        let mut kernel = self.kernel.borrow_mut();
        kernel.processes.push(Process {
            host,
            is_alive: true,
            short: None,
            frozen_until: Duration::ZERO,
            socks: 0,
            sabotage: None,
        });
        ProcessName(kernel.processes.len() - 1)
    }

    /// The process runs from now on: what it opens is its.
    pub fn run_as(&self, process: ProcessName) {
        self.kernel.borrow_mut().running = process.0;
    }

    /// A driver for a process.
    #[must_use]
    pub fn driver(&self, process: ProcessName) -> Sim {
        let mut kernel = self.kernel.borrow_mut();
        kernel.drivers.push(DriverState::new(process.0));
        let driver = kernel.drivers.len() - 1;
        Sim { kernel: Rc::clone(&self.kernel), driver }
    }

    /// When a driver's `wait` will have something to give or is to end; none: nothing is in sight.
    #[must_use]
    pub fn wake_time(&self, driver: DriverName) -> Option<Duration> {
        self.kernel.borrow_mut().wake_time(driver.0)
    }

    /// The process is gone: what it left open is reset.
    pub fn bury(&self, process: ProcessName) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.process(process.0).is_alive = false;
        for id in 0..kernel.socks.len() {
            if kernel.socks[id].as_ref().is_some_and(|it| it.process == process.0) {
                kernel.close_sock(id, Ending::Reset);
            }
        }
    }

    /// The process is not scheduled until then.
    pub fn freeze(&self, process: ProcessName, until: Duration) {
        self.kernel.borrow_mut().process(process.0).frozen_until = until;
    }

    /// The process is out of something until then.
    pub fn starve(&self, process: ProcessName, until: Duration, of: Fault) {
        assert!(of.is_shortage(), "{of:?} is no shortage");
        self.kernel.borrow_mut().process(process.0).short = Some((until, of));
    }

    /// The process does something wrong from now on.
    pub fn sabotage(&self, process: ProcessName, sabotage: Sabotage) {
        self.kernel.borrow_mut().process(process.0).sabotage = Some(sabotage);
    }

    /// Sockets that the process has open.
    #[must_use]
    pub fn socks_of(&self, process: ProcessName) -> usize {
        self.kernel.borrow().processes[process.0].socks
    }

    /// Sockets that are open anywhere, and connections of which anything is left.
    #[must_use]
    pub fn left(&self) -> (usize, usize) {
        let kernel = self.kernel.borrow();
        (kernel.socks.iter().flatten().count(), kernel.conns.iter().flatten().count())
    }

    // --- the network ------------------------------------------------------------------------------

    /// Nothing gets from one machine to the other until then.
    pub fn cut(&self, from: IpAddr, to: IpAddr, until: Duration) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.cut(from, to, until);
        for id in 0..kernel.conns.len() {
            let Some(conn) = kernel.conns[id].as_ref() else { continue };
            let ips = [conn.ends[0].addr.ip(), conn.ends[1].addr.ip()];
            if ips == [from, to] || ips == [to, from] {
                kernel.watch_silence(id);
            }
        }
    }

    /// Connections to a port of a machine, by number, the oldest first.
    #[must_use]
    pub fn conns_to(&self, at: SocketAddr) -> Vec<usize> {
        let kernel = self.kernel.borrow();
        let conns = kernel.conns.iter().enumerate();
        let is_there =
            |conn: &conn::Conn| conn.ends[1].addr == at && conn.ends.iter().all(|end| !end.is_gone);
        conns.filter(|(_, it)| it.as_deref().is_some_and(is_there)).map(|(id, _)| id).collect()
    }

    /// The machine that dialled a connection.
    #[must_use]
    pub fn dialler_of(&self, conn: usize) -> Option<IpAddr> {
        let kernel = self.kernel.borrow();
        kernel.conns.get(conn)?.as_ref().map(|it| it.ends[0].addr.ip())
    }

    /// Something on the way kills a connection: both ends see a RST.
    pub fn kill_conn(&self, conn: usize) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.kill(conn);
    }

    /// Nothing gets to an end of a connection until then; side 0 dialled.
    pub fn darken_conn(&self, conn: usize, side: usize, until: Duration) {
        let mut kernel = self.kernel.borrow_mut();
        if let Some(it) = kernel.conns[conn].as_mut() {
            it.dark[side] = until;
            kernel.watch_silence(conn);
        }
    }

    // --- visitors and services --------------------------------------------------------------------

    /// Begins to connect.
    #[must_use]
    pub fn dial(&self, process: ProcessName, to: SocketAddr) -> AppSock {
        let mut kernel = self.kernel.borrow_mut();
        let id = kernel.insert(process.0, Owner::App, Kind::Fresh);
        kernel.dial(id, to);
        AppSock(id)
    }

    /// Where a dial stands.
    #[must_use]
    pub fn dialled(&self, sock: AppSock) -> Dialled {
        let mut kernel = self.kernel.borrow_mut();
        match kernel.sock(sock.0).kind {
            Kind::Failed(fault) => Dialled::Failed(fault),
            Kind::Stream { conn, side } => {
                let end = &kernel.conn(conn).ends[side];
                match end.fault {
                    Some(fault) if !end.is_connected => Dialled::Failed(fault),
                    _ if end.is_connected => Dialled::Connected,
                    _ => Dialled::NotYet,
                }
            }
            _ => Dialled::NotYet,
        }
    }

    /// Listens.
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(&self, process: ProcessName, at: SocketAddr) -> io::Result<AppSock> {
        let mut kernel = self.kernel.borrow_mut();
        let (id, _) = kernel.listen(process.0, Owner::App, at, false)?;
        Ok(AppSock(id))
    }

    /// Lets at most so many connections wait in a listener.
    pub fn set_backlog(&self, listener: AppSock, most: usize) {
        if let Kind::Listener(it) = &mut self.kernel.borrow_mut().sock(listener.0).kind {
            it.backlog_max = most;
        }
    }

    /// Accepts a connection if one waits.
    #[must_use]
    pub fn accept(&self, listener: AppSock) -> Option<AppSock> {
        self.kernel.borrow_mut().accept(listener.0, Owner::App).map(AppSock)
    }

    /// Reads what is there.
    #[must_use]
    pub fn read(&self, sock: AppSock, out: &mut [u8]) -> Read {
        let mut kernel = self.kernel.borrow_mut();
        let stream = kernel.stream(sock.0).expect("a connected socket");
        kernel.read(stream, out)
    }

    /// Writes what there is room for.
    #[must_use]
    pub fn write(&self, sock: AppSock, bytes: &[u8]) -> Write {
        let mut kernel = self.kernel.borrow_mut();
        let stream = kernel.stream(sock.0).expect("a connected socket");
        kernel.write(stream, bytes)
    }

    /// Ends the outbound direction.
    pub fn shut(&self, sock: AppSock) {
        let mut kernel = self.kernel.borrow_mut();
        let stream = kernel.stream(sock.0).expect("a connected socket");
        kernel.shut(stream);
    }

    /// Closes.
    pub fn close(&self, sock: AppSock, how: Ending) {
        self.kernel.borrow_mut().close_sock(sock.0, how);
    }

    /// A socket of a visitor or service that something happened to.
    #[must_use]
    pub fn app_news(&self) -> Option<AppSock> {
        self.kernel.borrow_mut().app_news.pop_front().map(AppSock)
    }

    /// Makes [`Self::app_news`] name the socket then.
    pub fn remind(&self, sock: AppSock, at: Duration) {
        self.kernel.borrow_mut().at(at, Event::Nudge { sock: sock.0 });
    }
}

/// The simulated driver.
pub struct Sim {
    kernel: Rc<RefCell<Kernel>>,
    driver: usize,
}

impl Sim {
    /// Its name in its world.
    #[must_use]
    pub fn name(&self) -> DriverName {
        DriverName(self.driver)
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sim").field(&self.driver).finish()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Borrowed while a panic unwinds: the world is lost anyway.
        if let Ok(mut kernel) = self.kernel.try_borrow_mut() {
            kernel.drop_driver(self.driver);
        }
    }
}

/// A simulated socket on its way from one driver to another. Dropped, it is reset.
#[derive(Debug)]
pub struct SimHandle(Option<SockId>);

impl Drop for SimHandle {
    fn drop(&mut self) {
        if let Some(id) = self.0.take()
            && let Some(kernel) = current()
            && let Ok(mut kernel) = kernel.try_borrow_mut()
        {
            kernel.close_sock(id, Ending::Reset);
        }
    }
}

impl Driver for Sim {
    type Handle = SimHandle;

    const NAME: &'static str = "sim";

    fn now(&self) -> Duration {
        self.kernel.borrow().now
    }

    fn doorbell(&self) -> Doorbell {
        Doorbell::of_flag(Arc::clone(&self.kernel.borrow().drivers[self.driver].bell))
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(SimHandle, SocketAddr)> {
        let kernel = current().expect("a world of this thread");
        let mut kernel = kernel.borrow_mut();
        let running = kernel.running;
        let (id, at) = kernel.listen(running, Owner::Nobody, at, options.reuse_port)?;
        Ok((SimHandle(Some(id)), at))
    }

    fn socket(&mut self, _to: &SocketAddr) -> Result<Sock, Fault> {
        let mut kernel = self.kernel.borrow_mut();
        let process = kernel.drivers[self.driver].process;
        if let Some(fault) = kernel.shortage(process) {
            kernel.count("socket_short");
            return Err(fault);
        }
        let id = kernel.insert(process, Owner::Nobody, Kind::Fresh);
        Ok(kernel.own(self.driver, id))
    }

    fn arrival_cpu(&self, sock: Sock) -> Option<usize> {
        let mut kernel = self.kernel.borrow_mut();
        let (conn, side) = kernel.stream(kernel.id(self.driver, sock)?)?;
        Some(kernel::arrival_cpu(kernel.conn(conn).ends[1 - side].addr))
    }

    fn prefer_arrivals(&mut self, listener: Sock, cpu: Option<usize>) {
        let mut kernel = self.kernel.borrow_mut();
        let id = kernel.id(self.driver, listener);
        if let Some(Kind::Listener(it)) = id.map(|id| &mut kernel.sock(id).kind) {
            it.prefers = cpu;
        }
    }

    fn adopt(&mut self, mut handle: SimHandle) -> Sock {
        let id = handle.0.take().expect("a handle has its socket");
        self.kernel.borrow_mut().own(self.driver, id)
    }

    fn release(&mut self, sock: Sock) -> SimHandle {
        SimHandle(Some(self.kernel.borrow_mut().disown(self.driver, sock)))
    }

    fn shutdown_write(&mut self, sock: Sock) {
        self.kernel.borrow_mut().shutdown_write(self.driver, sock);
    }

    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        let mut kernel = self.kernel.borrow_mut();
        let id = kernel.id(self.driver, sock)?;
        let stream = kernel.stream(id)?;
        Some(kernel.far_end(stream))
    }

    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        self.kernel.borrow_mut().take_now(self.driver, from, buf, max)
    }

    fn recall_accept(&mut self, listener: Sock) {
        self.kernel.borrow_mut().recall_accept(self.driver, listener);
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.kernel.borrow_mut().submit(self.driver, token, op);
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        self.kernel.borrow_mut().wait(self.driver, until, done);
        Ok(())
    }

    fn stats(&self) -> Stats {
        let kernel = self.kernel.borrow();
        let state = &kernel.drivers[self.driver];
        Stats {
            bufs_leased: state.bufs.leased.get(),
            bufs_returned: state.bufs.returned.get(),
            ..state.stats
        }
    }
}
