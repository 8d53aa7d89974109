//! Out of descriptors, and every descriptor given back. Each case has a process for itself.

use std::fs;

use zproxy_io::{Driver, Ending, Fault, Op, Outcome, RelayMode};

use crate::support::{End, EpollKit, Kit, Pump, World, far};

conformance_alone!(
    accepting_stops_and_resumes,
    sockets_are_refused_and_granted_again,
    pumps_go_on_without_pipes,
    every_descriptor_comes_back,
);

/// Makes descriptors few, before the driver is made: a ring looks at the limit when an operation is
/// submitted, not when it runs.
fn make_descriptors_few() {
    let (_, hard) = zproxy_io::sys::descriptor_limit();
    let limit = libc::rlimit { rlim_cur: 256, rlim_max: hard };
    // SAFETY: `limit` is readable.
    let status = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(status, 0, "setrlimit failed");
}

/// Runs `work` while no descriptor can be opened.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> T {
    let mut hoard = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        hoard.push(file);
    }
    let result = work();
    drop(hoard);
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
/// it yields the connections that were waiting. The shortage may be there before the accept or
/// come while it waits.
fn accepting_stops_and_resumes<K: Kit>() {
    const CONNS: usize = 8;
    make_descriptors_few();
    for accept_first in [true, false] {
        let mut world = World::new::<K>(RelayMode::Auto);
        let (listener, addr) = world.listen();
        let early = accept_first.then(|| world.submit(Op::Accept { listener }));
        if let Some(token) = early {
            world.assert_waits(token);
        }
        // The far ends have their descriptors before the limit falls.
        let mut fars = World::new::<EpollKit>(RelayMode::Auto);
        let socks: Vec<_> = (0..CONNS).map(|_| fars.socket(&addr)).collect();
        without_descriptors(|| {
            for sock in socks {
                let outcome = fars.run(Op::Connect { sock, to: addr });
                assert!(matches!(outcome, Outcome::Connected), "{outcome:?}");
            }
            let token = early.unwrap_or_else(|| world.submit(Op::Accept { listener }));
            let outcome = world.outcome(token);
            let stopped = matches!(outcome, Outcome::Failed(Fault::NoDescriptors));
            assert!(stopped, "{outcome:?}");
            assert!(!world.is_flying(token));
        });
        let again = world.submit(Op::Accept { listener });
        for _ in 0..CONNS {
            let outcome = world.outcome(again);
            assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
        }
        world.assert_waits(again);
        world.finish();
        fars.finish();
    }
}

/// A socket that cannot be opened says why, and the driver is unharmed.
fn sockets_are_refused_and_granted_again<K: Kit>() {
    make_descriptors_few();
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
    make_descriptors_few();
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
