//! The simulated driver as a driver under test, in a world of its own in which the weather is fair. Its
//! far ends are simulated too. Time passes while the driver waits, and while a far end does something:
//! as on the loopback, what that does has arrived when it is done.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::time::Duration;

use zproxy_io::sim::{self, AppSock, Dialled, ProcessName, Sim, Weather, World};
use zproxy_io::{
    Done, Doorbell, Driver, DriverLost, Ending, FarEnd, Fault, ListenOptions, Op, RelayMode, Sock,
    Stats, Token,
};

use super::far::{Far, Meets};
use super::kit::Kit;
use super::world::PATIENCE;

/// Until what a far end has done is known everywhere.
const ARRIVAL: Duration = Duration::from_millis(1);
/// Room for everything that a case writes before it reads.
const BUFFER: usize = 1 << 20;

pub(crate) struct SimKit;

impl Kit for SimKit {
    type Driver = Simulated;

    fn obstacle() -> Option<String> {
        None
    }

    fn driver(_relay: RelayMode) -> Simulated {
        let buffers = (BUFFER, BUFFER);
        let weather = Weather { send_buffer: buffers, receive_buffer: buffers, ..Weather::fair() };
        let world = World::new(1, weather);
        let near = world.spawn(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let far = world.spawn(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
        world.run_as(near);
        Simulated { sim: world.driver(near), world, far }
    }
}

/// The driver, and time.
pub(crate) struct Simulated {
    sim: Sim,
    world: World,
    /// The process of the far ends.
    far: ProcessName,
}

impl Driver for Simulated {
    type Handle = sim::SimHandle;

    const NAME: &'static str = Sim::NAME;

    fn now(&self) -> Duration {
        self.sim.now()
    }

    fn doorbell(&self) -> Doorbell {
        self.sim.doorbell()
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> io::Result<(Self::Handle, SocketAddr)> {
        Sim::listen(at, options)
    }

    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault> {
        self.sim.socket(to)
    }

    fn adopt(&mut self, handle: Self::Handle) -> Sock {
        self.sim.adopt(handle)
    }

    fn release(&mut self, sock: Sock) -> Self::Handle {
        self.sim.release(sock)
    }

    fn shutdown_write(&mut self, sock: Sock) {
        self.sim.shutdown_write(sock);
    }

    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        self.sim.far_end(sock)
    }

    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        self.sim.take_now(from, buf, max)
    }

    fn recall_accept(&mut self, listener: Sock) {
        self.sim.recall_accept(listener);
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.sim.submit(token, op);
    }

    fn wait(&mut self, until: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        loop {
            let before = done.len();
            self.sim.wait(until, done)?;
            let now = self.world.now();
            if done.len() > before || until.is_some_and(|until| until <= now) {
                return Ok(());
            }
            let wake = self.world.wake_time(self.sim.name());
            let next = [wake, self.world.next_event(), until].into_iter().flatten().min();
            let next = next.expect("a wait without an end is for something");
            // A driver that is awake at once is asked again a moment later.
            self.world.advance(next.max(now + Duration::from_micros(1)));
        }
    }

    fn stats(&self) -> Stats {
        self.sim.stats()
    }
}

impl Meets for Simulated {
    type Far = SimulatedFar;

    fn meet(&self, at: SocketAddr) -> SimulatedFar {
        let far = SimulatedFar { sock: self.world.dial(self.far, at), world: self.world.clone() };
        far.until("a listener answers", || {
            (far.world.dialled(far.sock) == Dialled::Connected).then_some(())
        });
        far
    }
}

/// A far end.
pub(crate) struct SimulatedFar {
    world: World,
    sock: AppSock,
}

impl SimulatedFar {
    fn pass(&self) {
        self.world.advance(self.world.now() + ARRIVAL);
    }

    /// Lets time pass until `look` finds something. The driver does nothing meanwhile.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let give_up = self.world.now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(self.world.now() < give_up, "not within {PATIENCE:?}: {what}");
            self.pass();
        }
    }
}

impl Read for SimulatedFar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let this = &*self;
        this.until("something to read", || match this.world.read(this.sock, buf) {
            sim::Read::Some(count) => Some(Ok(count)),
            sim::Read::Eof => Some(Ok(0)),
            sim::Read::Failed(fault) => Some(Err(failed(fault))),
            sim::Read::Empty => None,
        })
    }
}

impl Write for SimulatedFar {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let this = &*self;
        let result = this.until("room to write", || match this.world.write(this.sock, buf) {
            sim::Write::Some(count) => Some(Ok(count)),
            sim::Write::Failed(fault) => Some(Err(failed(fault))),
            sim::Write::Full => None,
        });
        self.pass();
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(fault: Fault) -> Error {
    match fault {
        Fault::Reset => ErrorKind::ConnectionReset.into(),
        fault => Error::other(fault.to_string()),
    }
}

impl Far for SimulatedFar {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        assert_eq!(how, Shutdown::Write, "the other direction is nobody's business");
        self.world.shut(self.sock);
        self.pass();
        Ok(())
    }

    fn reset(self) {
        self.world.close(self.sock, Ending::Reset);
        self.pass();
    }

    /// It is narrow enough.
    fn narrow(&self) {}
}

impl Drop for SimulatedFar {
    fn drop(&mut self) {
        self.world.close(self.sock, Ending::Clean);
    }
}
