//! A gate that counts: what flows cost of the allocator. Both programs run in one thread here, turn by
//! turn, on the drivers that they have in earnest, between real sockets. Lines of the log, which nobody
//! asks for here, are not counted: each costs one allocation, on its way to the log's thread.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure};
use zproxy_io::{
    Done, Doorbell, Driver, DriverConfig, DriverLost, Epoll, FarEnd, Fault, ListenOptions, Op,
    Open, Sock, Stats, Token, Uring,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Tables and spare buffers grow in the first flows …
const FIRST: u64 = 200;
/// … and what the next ones cost is counted.
const COUNTED: u64 = 1_000;
/// A list may have its longest moment late: none to seven were measured.
const GROWTH_MAX: u64 = 50;
/// After so long without a result, the test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A driver that never waits: its thread has others to serve.
struct Prompt<D>(D);

impl<D: Driver> Driver for Prompt<D> {
    type Handle = D::Handle;

    const NAME: &'static str = D::NAME;

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn doorbell(&self) -> Doorbell {
        self.0.doorbell()
    }

    fn listen(at: SocketAddr, options: ListenOptions) -> std::io::Result<(D::Handle, SocketAddr)> {
        D::listen(at, options)
    }

    fn socket(&mut self, to: &SocketAddr) -> Result<Sock, Fault> {
        self.0.socket(to)
    }

    fn speaks_first(&mut self, sock: Sock) {
        self.0.speaks_first(sock);
    }

    fn keep_alive(&mut self, sock: Sock) {
        self.0.keep_alive(sock);
    }

    fn renew(&mut self, sock: Sock) {
        self.0.renew(sock);
    }

    fn arrival_cpu(&self, sock: Sock) -> Option<usize> {
        self.0.arrival_cpu(sock)
    }

    fn prefer_arrivals(&mut self, listener: Sock, cpu: Option<usize>) {
        self.0.prefer_arrivals(listener, cpu);
    }

    fn adopt(&mut self, handle: D::Handle) -> Sock {
        self.0.adopt(handle)
    }

    fn release(&mut self, sock: Sock) -> D::Handle {
        self.0.release(sock)
    }

    fn shutdown_write(&mut self, sock: Sock) {
        self.0.shutdown_write(sock);
    }

    fn far_end(&self, sock: Sock) -> Option<FarEnd> {
        self.0.far_end(sock)
    }

    fn take_now(&mut self, from: Sock, buf: &mut Vec<u8>, max: usize) -> usize {
        self.0.take_now(from, buf, max)
    }

    fn recall_accept(&mut self, listener: Sock) {
        self.0.recall_accept(listener);
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.0.submit(token, op);
    }

    fn wait(&mut self, _: Option<Duration>, done: &mut Vec<Done>) -> Result<(), DriverLost> {
        self.0.wait(Some(Duration::ZERO), done)
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }
}

fn open<D: Open>() -> Result<Prompt<D>, String> {
    D::open(&DriverConfig::default()).map(Prompt).map_err(|error| error.to_string())
}

/// Gateway and client, one data core each, and a service.
struct Programs<'a, D: Open> {
    gateway: zproxyd::sim::Gateway<Prompt<D>>,
    client: zproxy::sim::Client<'a, Prompt<D>>,
    service: TcpListener,
    /// Allocations in the data cores: the gateway's and the client's.
    counts: [u64; 2],
}

impl<D: Open> Programs<'_, D> {
    /// A turn of everybody.
    fn turn(&mut self) {
        assert!(self.gateway.control.turn().expect("it runs"));
        assert!(self.client.control.turn().expect("it runs"));
        for core in &mut self.gateway.cores {
            self.counts[0] += counted(|| assert!(core.turn().expect("it runs")));
        }
        for core in &mut self.client.cores {
            self.counts[1] += counted(|| assert!(core.turn().expect("it runs")));
        }
    }

    /// Turns until there is a result.
    fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < give_up, "nothing came of it in {PATIENCE:?}");
        }
    }

    /// A visitor's request, the service's answer, and both ends.
    fn flow(&mut self, public: SocketAddr, size: usize) {
        let mut visitor = TcpStream::connect(public).expect("the gateway listens");
        visitor.set_nonblocking(true).expect("a socket");
        visitor.write_all(&vec![7; size]).expect("a request");
        let mut local = self.until(|it| accept(&it.service));
        let mut buf = vec![0; size];
        let mut left = size;
        while left > 0 {
            left -= self.until(|_| read(&mut local, &mut buf[..left]));
        }
        local.write_all(&buf).expect("an answer");
        drop(local);
        let mut left = size;
        while left > 0 {
            left -= self.until(|_| read(&mut visitor, &mut buf[..left]));
        }
        assert_eq!(self.until(|_| read(&mut visitor, &mut buf)), 0, "an end");
    }
}

fn counted(run: impl FnOnce()) -> u64 {
    let AllocationInfo { count_total, .. } = measure(run);
    count_total
}

fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept() {
        Ok((conn, _)) => {
            conn.set_nonblocking(true).expect("a socket");
            Some(conn)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn read(conn: &mut TcpStream, buf: &mut [u8]) -> Option<usize> {
    match conn.read(buf) {
        Ok(count) => Some(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn count_flows<D: Open>() {
    zproxy_io::sim::keep_marks(false);
    let drivers = || -> Result<[Prompt<D>; 4], String> { Ok([open()?, open()?, open()?, open()?]) };
    let [control, core, client_control, client_core] = match drivers() {
        Ok(drivers) => drivers,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    service.set_nonblocking(true).expect("a socket");
    let service_at = service.local_addr().expect("its address");

    let args = |text: &str| text.split(' ').map(Into::into).collect();
    let line = "zproxyd --bind 127.0.0.1 --ctl-port 0 --proxy-port 0";
    let Ok(zproxyd::cli::Command::Serve(settings)) = zproxyd::cli::parse(args(line)) else {
        unreachable!("plain settings")
    };
    let gateway =
        zproxyd::sim::gateway(&settings, TOKEN, 1, control, vec![core]).expect("it starts");
    let ctl = gateway.ctl_at;
    let line = format!("zproxy --server {ctl} --local {service_at} --name web");
    let Ok(zproxy::cli::Command::Serve(settings)) = zproxy::cli::parse(args(&line)) else {
        unreachable!("plain settings")
    };
    let ready = Rc::new(RefCell::new(None));
    let heard = Rc::clone(&ready);
    let herald = Box::new(move |line: &str| {
        if let Some((_, at)) = line.split_once("public=") {
            *heard.borrow_mut() = at.split(' ').next().and_then(|at| at.parse().ok());
        }
    });
    let cores = vec![client_core];
    let client = zproxy::sim::client(&settings, TOKEN, [1; 16], 2, client_control, cores, herald);
    let client = client.expect("it starts");
    let mut programs = Programs { gateway, client, service, counts: [0; 2] };
    let public: SocketAddr = programs.until(|_| *ready.borrow());

    for _ in 0..FIRST {
        programs.flow(public, 100);
    }
    programs.counts = [0; 2];
    for _ in 0..COUNTED {
        programs.flow(public, 100);
    }
    let counts = programs.counts;
    println!("{}: {counts:?} allocations in {COUNTED} flows", D::NAME);
    assert!(
        counts.iter().all(|count| *count <= GROWTH_MAX),
        "{counts:?} is more than {GROWTH_MAX}"
    );
}

/// A short flow allocates nothing, in the gateway and in the client.
#[test]
fn short_flows_uring() {
    count_flows::<Uring>();
}

/// As above, on the reference.
#[test]
fn short_flows_epoll() {
    count_flows::<Epoll>();
}
