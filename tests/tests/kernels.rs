//! Kernels less kind than ours: without a ring, without privileges, with little of everything. The
//! programs serve, and say once what they miss.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;
use zproxy_tests::net::{connect, echo_once, finish, receive_pattern, try_connect};
use zproxy_tests::program::Program;
use zproxy_tests::programs::field;
use zproxy_tests::rig::Path as Way;
use zproxy_tests::stats::Stats;
use zproxy_tests::world::heavy_turn;
use zproxy_tests::{
    Backend, Direction, Listener, LocalServer, Pattern, Relay, Rig, World, both_backends,
    eventually, scenes,
};

const SOON: Duration = Duration::from_secs(10);

/// Runs a scenario in which the programs choose their backend.
fn once(scenario: impl FnOnce(&World)) {
    World::run(Backend::Epoll, env!("CARGO_BIN_EXE_zproxy-under-test"), scenario);
}

/// With `auto` both programs serve on epoll and say once why; with `uring` they end with code 1 and
/// the same reason.
fn expect_epoll(world: &World, hardship: &[&str], reason: &str) {
    let local = LocalServer::echo();
    let gateway = world.gateway().backend("auto").start_under(hardship);
    assert_eq!(field(&gateway.ready_line, "backend"), Some("epoll"));
    let client = world.client(&gateway).backend("auto").under(hardship);
    let client = client.local(&local.name()).start();
    for byte in 0..10 {
        echo_once(&connect(client.public()), byte).expect("an echo");
    }
    for program in [&*gateway, &*client] {
        let why = |line: &str| line.contains("io_uring");
        program.err.wait_for("why there is no ring", SOON, why);
        let said = program.err.matching(why);
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(said[0].contains("epoll") && said[0].contains(reason), "{}", said[0]);
    }
    let gateway_plan = world.gateway().backend("uring");
    let client_plan = world.client(&gateway).backend("uring").under(hardship).local("127.0.0.1:9");
    for mut program in [gateway_plan.spawn_under(hardship), client_plan.spawn()] {
        assert_eq!(program.wait_exit(SOON), 1, "{}", program.err.text());
        let said = program.err.text();
        assert!(said.contains("--backend uring") && said.contains(reason), "{said}");
    }
}

/// Forbidden by a filter that says EPERM.
#[test]
fn io_uring_is_filtered() {
    once(|world| expect_epoll(world, &["without-io-uring"], "seccomp filter"));
}

/// Forbidden by a filter that says ENOSYS, as some container engines do.
#[test]
fn io_uring_is_hidden() {
    once(|world| expect_epoll(world, &["as-if-io-uring-were-unknown"], "seccomp"));
}

/// A mount namespace in which `/proc` says that the sysctl forbids the ring; a filter does what the
/// sysctl would do.
fn with_sysctl(world: &World, value: &str, words: &[&str]) -> Program {
    let file = world.file("io_uring_disabled", value);
    let script = "mount --bind \"$0\" /proc/sys/kernel/io_uring_disabled && exec \"$@\"";
    let mut args = vec!["-m".into(), "sh".into(), "-c".into(), script.into(), file.into()];
    args.extend([world.exe().as_os_str().to_owned(), "without-io-uring".into()]);
    args.extend(words.iter().map(Into::into));
    let env = [("ZPROXY_TOKEN", world.token())];
    Program::start("unshare", Path::new("unshare"), &args, &env, None)
}

/// Forbidden by the sysctl: the message names it and what to set.
#[test]
fn io_uring_is_disabled() {
    once(|world| {
        let mut trial = with_sysctl(world, "2\n", &["zproxyd", "--version"]);
        let code = trial.wait_exit(SOON);
        if code != 0 {
            eprintln!("skipped: no mount namespace here: {}", trial.err.text());
            return;
        }
        for (value, advice) in [
            ("2\n", "kernel.io_uring_disabled=2 forbids io_uring; set it to 0"),
            ("1\n", "kernel.io_uring_disabled=1 forbids io_uring to this user"),
        ] {
            let state = world.dir().join("state").display().to_string();
            let ports = ["--ctl-port", "0", "--bind", "127.0.0.1", "--state-dir", &state];
            let words = [&["zproxyd", "--backend", "auto"][..], &ports].concat();
            let gateway = with_sysctl(world, value, &words);
            gateway.out.wait_for("ready on epoll", SOON, |line| {
                line.starts_with("zproxyd ready ") && field(line, "backend") == Some("epoll")
            });
            // It comes by another pipe than the line above.
            gateway.err.wait_for("why there is no ring", SOON, |line| line.contains(advice));
            assert_eq!(gateway.err.matching(|line| line.contains(advice)).len(), 1);
            let words = [&["zproxyd", "--backend", "uring"][..], &ports].concat();
            let mut forced = with_sysctl(world, value, &words);
            assert_eq!(forced.wait_exit(SOON), 1);
            assert!(forced.err.text().contains(advice), "{}", forced.err.text());
        }
    });
}

/// A user without privileges whom nobody else is, likely; none when this is not root.
fn somebody() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    if !status.lines().any(|line| line.starts_with("Uid:\t0\t0\t")) {
        eprintln!("skipped: only root can become somebody else");
        return None;
    }
    Some(61_000 + std::process::id() % 2_000 * 2)
}

/// A gateway and a client under the same hardships, as this user.
fn rig_of(world: &World, user: u32, hardship: &[&str], relay: Relay) -> Rig {
    let name = user.to_string();
    let hardship = [hardship, &["as-user", &name]].concat();
    // The directory is everybody's to enter, and each state directory its program's own.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.dir(), open).expect("our own directory");
    let own = |dir: &Path| {
        std::fs::create_dir(dir).expect("a state directory");
        chown(dir, Some(user), Some(user)).expect("root may");
    };
    let local = Listener::start();
    let plan = world.gateway().relay(relay);
    own(plan.state_dir());
    let gateway = plan.start_under(&hardship);
    let plan = world.client(&gateway).local(&local.addr.to_string()).under(&hardship);
    let plan = plan.relay(relay);
    own(plan.state_dir());
    let client = plan.start();
    let public = client.public();
    Rig { path: Way::Tunnel(Box::new(gateway), Box::new(client)), local, public }
}

/// With locked memory for one ring and not for every thread's, `auto` serves on epoll and says why, and
/// `check --backend uring` and serving with it fail for the same reason; or all of them have the ring, on
/// kernels that do not count it.
#[test]
fn locked_memory_for_one_ring() {
    once(|world| {
        let Some(user) = somebody() else { return };
        let state = world.dir().join("state");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.dir(), open).expect("our own directory");
        std::fs::create_dir(&state).expect("a state directory");
        chown(&state, Some(user), Some(user)).expect("root may");
        let name = user.to_string();
        let hardship = ["limit-locked-memory", "589824", "as-user", &name];
        let state = state.display().to_string();
        let words = ["zproxyd", "--bind", "127.0.0.1", "--ctl-port", "0", "--state-dir", &state];
        let start = |words: &[&str]| {
            let words: Vec<_> = hardship.iter().chain(words).map(Into::into).collect();
            let env = [("ZPROXY_TOKEN", world.token())];
            Program::start("zproxyd", world.exe(), &words, &env, None)
        };
        let gateway = start(&words);
        let is_ready = |line: &str| line.starts_with("zproxyd ready ");
        let ready = gateway.out.wait_for("ready", SOON, is_ready);
        let why = |line: &str| line.contains("LimitMEMLOCK");
        if field(&ready, "backend") == Some("epoll") {
            // It comes by another pipe than the line above.
            gateway.err.wait_for("why there is no ring", SOON, why);
        }
        let said = gateway.err.matching(why);
        match field(&ready, "backend") {
            Some("epoll") => assert_eq!(said.len(), 1, "{said:?}"),
            backend => {
                assert!(backend == Some("uring") && said.is_empty(), "{ready} {said:?}");
                return;
            }
        }
        let mut forced = start(&[&words[..], &["--backend", "uring"]].concat());
        assert_eq!(forced.wait_exit(SOON), 1);
        assert!(forced.err.text().contains("LimitMEMLOCK"), "{}", forced.err.text());
        let mut check = start(&["zproxyd", "check", "--backend", "uring", "--state-dir", &state]);
        assert_eq!(check.wait_exit(SOON), 1);
        let fails = |line: &str| line.starts_with("FAIL") && line.contains("LimitMEMLOCK");
        assert_eq!(check.out.matching(fails).len(), 1, "{}", check.out.text());
    });
}

both_backends! {
    /// An unprivileged user whose pipe memory is used up gets pipes of two pages: every byte arrives
    /// all the same, by copies, and each data core that felt it says so once.
    fn pipes_of_two_pages(world) {
        let Some(user) = somebody() else { return };
        let user = user + u32::from(world.backend() == Backend::Epoll);
        let limit = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft");
        if limit.is_ok_and(|limit| limit.trim() == "0") {
            return eprintln!("skipped: fs.pipe-user-pages-soft is 0, which is no limit");
        }
        let words = ["as-user", &user.to_string(), "hold-pipes"].map(Into::into);
        let holder = Program::start("hold-pipes", world.exe(), &words, &[], None);
        holder.out.wait_for("pipes", SOON, |line| line.starts_with("holding "));
        for relay in [Relay::Auto, Relay::Splice] {
            let mut rig = rig_of(world, user, &[], relay);
            for flow in 0..4 {
                scenes::long_flow(&rig, flow, Direction::Up, 24 << 20);
                scenes::long_flow(&rig, flow, Direction::Down, 24 << 20);
            }
            scenes::half_close(&rig, scenes::End::Public, 100_000);
            // A flow that stays makes the cores look about once a second.
            let _flow = rig.flow();
            let cores = world.cores_count();
            let threads = cores + 1;
            let mut told = Vec::new();
            for side in 0..2 {
                let program: &mut Program =
                    if side == 0 { rig.gateway() } else { rig.client() };
                let short = |line: &str| line.contains("fs.pipe-user-pages-soft");
                program.err.wait_for("that pipes are short", SOON, short);
                told.push(program.err.matching(short).len());
                let stats = Stats::of(program, threads);
                assert!(stats.cores("pipes_small") > 0, "{relay:?}: {stats:?}");
                assert_eq!(stats.cores("bytes_spliced"), 0, "{relay:?}: {stats:?}");
                assert!(stats.cores("bytes_copied") > 8 * (24 << 20), "{relay:?}: {stats:?}");
            }
            assert!(told.iter().all(|told| (1..=cores).contains(told)), "{told:?}");
        }
    }

    /// An unprivileged user with 8 MiB of locked memory, the usual limit, has either backend.
    fn eight_mib_of_locked_memory(world) {
        let Some(user) = somebody() else { return };
        let user = user + u32::from(world.backend() == Backend::Epoll);
        let rig = rig_of(world, user, &["limit-locked-memory", "8388608"], world.relay());
        scenes::long_flow(&rig, 1, Direction::Up, 16 << 20);
        scenes::half_close(&rig, scenes::End::Local, 100_000);
    }

    /// 256 descriptors for each program: a crowd is served as far as they go, the flow that was there
    /// first is unharmed, and when the crowd has gone everybody is served again.
    fn few_descriptors(world) {
        let _turn = heavy_turn();
        let local = LocalServer::echo();
        let hardship = ["limit-descriptors", "256"];
        let gateway = world.gateway().start_under(&hardship);
        let client = world.client(&gateway).local(&local.name()).under(&hardship).start();
        let flow = connect(client.public());
        echo_once(&flow, 1).expect("an echo");
        let crowd: Vec<TcpStream> = (0..500).map(|_| connect(client.public())).collect();
        for byte in 0..100 {
            echo_once(&flow, byte).expect("an echo in the crowd");
        }
        drop(crowd);
        eventually("visitors are served again", Duration::from_secs(40), || {
            let Ok(visitor) = try_connect(client.public()) else { return false };
            visitor.set_read_timeout(Some(Duration::from_secs(2))).expect("a read deadline");
            echo_once(&visitor, 7).is_ok()
        });
        echo_once(&flow, 3).expect("an echo afterwards");
    }

    /// Urgent data keeps its place in the stream, both ways, through the whole path.
    fn urgent_data(world) {
        let rig = Rig::tunnel(world);
        let flow = rig.flow();
        for (direction, from, to) in [
            (Direction::Up, &flow.public, &flow.local),
            (Direction::Down, &flow.local, &flow.public),
        ] {
            let pattern = Pattern::new(1, direction);
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| send_with_urgent_bytes(from, pattern));
                let total: u64 = URGENT.iter().map(|count| count + 1).sum();
                receive_pattern(to, pattern, 0, total).expect("every byte in its place");
                assert_eq!(sender.join().expect("everything was taken"), total);
            });
        }
        finish(&flow.public);
        finish(&flow.local);
    }
}

/// Bytes in front of each urgent one.
const URGENT: [u64; 7] = [0, 1, 1_000, 65_536, 1_000_000, 3, 300_000];

/// Sends the pattern with urgent bytes in it, and gives its length.
fn send_with_urgent_bytes(mut to: &TcpStream, pattern: Pattern) -> u64 {
    let mut at = 0;
    for count in URGENT {
        let end = at + count;
        while at < end {
            let chunk = pattern.at(at, usize::try_from(end - at).expect("small").min(60_000));
            to.write_all(chunk).expect("open");
            at += chunk.len() as u64;
        }
        let urgent = pattern.at(at, 1);
        assert_eq!(SockRef::from(to).send_out_of_band(urgent).expect("open"), 1);
        at += 1;
    }
    at
}
