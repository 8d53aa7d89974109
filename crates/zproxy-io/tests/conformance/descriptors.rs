//! Out of descriptors, and every descriptor given back. Each case has a process for itself.

use std::fs;
use std::net::TcpStream;

use zproxy_io::{Driver, Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{End, Kit, Pump, World, far};

conformance_alone!(
    accepting_stops_and_resumes,
    sockets_are_refused_and_granted_again,
    pumps_go_on_without_pipes,
    every_descriptor_comes_back,
);

/// Lets descriptors below `limit` be opened, and no others.
fn limit_descriptors(limit: u64) {
    let (_, hard) = zproxy_io::sys::descriptor_limit();
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: hard };
    // SAFETY: `limit` is readable.
    let status = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(status, 0, "setrlimit failed");
}

/// Runs `work` while no descriptor can be opened.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> T {
    let (before, _) = zproxy_io::sys::descriptor_limit();
    limit_descriptors(3);
    let result = work();
    limit_descriptors(before);
    result
}

/// What the descriptors of this process are, but for the directory that is being read.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc is there");
    let link = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let links = entries.flatten().filter_map(link).map(|path| path.display().to_string());
    links.filter(|link| !link.contains("/fd")).collect()
}

/// Without a free descriptor accepting ends with the reason; submitted again when there are some,
/// it yields the connections that were waiting.
fn accepting_stops_and_resumes<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (listener, addr) = world.listen();
    let first = world.submit(Op::Accept { listener });
    world.assert_waits(first);
    without_fars(&mut world, listener, addr, first);
    world.finish();
}

fn without_fars<D: Driver>(
    world: &mut World<D>,
    listener: zproxy_io::Sock,
    addr: std::net::SocketAddr,
    first: zproxy_io::Token,
) {
    // Far ends are opened before the limit falls; the driver has not run since.
    let dial = |_| far::prepare(TcpStream::connect(addr).expect("the listener listens"));
    let fars: Vec<_> = (0..8).map(dial).collect();
    let mut accepted = 0;
    without_descriptors(|| {
        loop {
            match world.outcome(first) {
                // A driver may have taken one before the limit fell.
                Outcome::Accepted { .. } => accepted += 1,
                Outcome::Failed(fault) => return assert_eq!(fault, Fault::NoDescriptors),
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(!world.is_flying(first));
    assert!(accepted < fars.len(), "no descriptor was missing");
    let second = world.submit(Op::Accept { listener });
    while accepted < fars.len() {
        let outcome = world.outcome(second);
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
        accepted += 1;
    }
    world.assert_waits(second);
}

/// A socket that cannot be opened says why, and the driver is unharmed.
fn sockets_are_refused_and_granted_again<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let anywhere = "127.0.0.1:9".parse().expect("an address");
    let refused = without_descriptors(|| world.driver.socket(&anywhere));
    assert_eq!(refused, Err(Fault::NoDescriptors));
    world.socket(&anywhere);
    world.finish();
}

/// When no pipe can be opened, the bytes go through buffers, and none is lost.
fn pumps_go_on_without_pipes<K: Kit>() {
    const TOTAL: u64 = 8 << 20;
    for relay in [RelayMode::Splice, RelayMode::Auto] {
        let mut world = World::new::<K>(relay);
        let (from, source) = world.pair();
        let (to, sink) = world.pair();
        let mut pump = Pump::start(&mut world, from, to);
        let (reading, writing) = without_descriptors(|| {
            let reading = far::spawn_reader(sink, 7, 100_000);
            let writing = far::spawn_writer(source, 7, TOTAL, 100_000);
            assert_eq!(pump.run(&mut world), End::Eof);
            (reading, writing)
        });
        writing.join().expect("everything was taken");
        assert_eq!(reading.join().expect("the bytes are right"), TOTAL);
        let stats = world.driver.stats();
        assert_eq!(stats.bytes_copied, TOTAL, "{stats:?}");
        world.finish();
    }
}

/// However a connection is closed and whatever is in flight on it, its descriptors come back; the
/// driver gives back its own when it is dropped.
fn every_descriptor_comes_back<K: Kit>() {
    // What a first use opens for good is opened now.
    World::new::<K>(RelayMode::Splice).finish();
    let before = descriptors();
    let mut world = World::new::<K>(RelayMode::Splice);
    let (_near, _far) = world.pair();
    let sockets = || descriptors().iter().filter(|link| link.starts_with("socket:")).count();
    let open = sockets();
    for round in 0..100 {
        let (from, source) = world.pair();
        let (to, sink) = world.pair();
        std::io::Write::write_all(&mut &source, &[1; 10_000]).expect("open");
        match round % 4 {
            0 => drop(world.fill(from)),
            1 => {
                world.submit(Op::Watch { sock: from });
                world.submit(Op::Fill { from: to });
            }
            2 => {
                let lease = world.fill(from);
                world.submit(Op::Drain { lease, to, refill: Some(from) });
            }
            _ => drop((source, sink)),
        }
        let how = if round % 2 == 0 { Ending::Clean } else { Ending::Reset };
        drop(world.close(from, how));
        drop(world.close(to, how));
    }
    while world.next_home().is_some() {}
    assert_eq!(sockets(), open, "sockets are left over: {:?}", descriptors());
    drop((_near, _far));
    world.finish();
    let after = descriptors();
    assert_eq!(after.len(), before.len(), "before: {before:?}\nafter: {after:?}");
}
