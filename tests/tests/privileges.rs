//! What the programs give up, and that nobody finds the token by looking at them.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use zproxy_tests::net::{connect, echo_once};
use zproxy_tests::world::own_low_ports;
use zproxy_tests::{LocalServer, World, both_backends, proc};

const EXIT_DEADLINE: Duration = Duration::from_secs(15);

/// A user whom every system has, and who may nothing.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this test can be another user; says so if not.
fn can_switch() -> bool {
    if !is_root() {
        eprintln!("skipped: only root can become another user");
    }
    is_root()
}

/// The directory of the test, open enough for a user who has only what was given to it.
fn let_others_pass(world: &World) {
    fs::set_permissions(world.dir(), Permissions::from_mode(0o711)).expect("our own directory");
}

fn user_of(path: &str) -> u32 {
    fs::metadata(path).expect("a live process").uid()
}

both_backends! {
    /// The token is neither on the command line nor in the environment of a running program, however
    /// it was given.
    fn the_token_cannot_be_looked_up(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().args(["--log-level", "trace"]).start();
        let by_variable = world.client(&gateway).local(&local.name()).start();
        let file = world.file("token", world.token());
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("our own file");
        let file = file.to_str().expect("text");
        let plan = world.client(&gateway).token(None).args(["--token-file", file]);
        let by_file = plan.local(&local.name()).start();
        for pid in [gateway.pid(), by_variable.pid(), by_file.pid()] {
            for what in ["cmdline", "environ"] {
                match fs::read(format!("/proc/{pid}/{what}")) {
                    Ok(bytes) => {
                        let text = String::from_utf8_lossy(&bytes);
                        assert!(!text.is_empty(), "{what} of {pid} is empty");
                        assert!(!text.contains(world.token()), "{what} of {pid} has the token");
                    }
                    Err(why) => assert_eq!(why.kind(), ErrorKind::PermissionDenied, "{what}"),
                }
            }
        }
        // The start of the environment says where the variable was.
        if let Ok(bytes) = fs::read(format!("/proc/{}/environ", by_variable.pid())) {
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains("ZPROXY_TOKEN=xxxx"), "the variable was not wiped");
        }
    }

    /// No thread of either program can gain a privilege by executing something.
    fn no_new_privileges(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let client = world.client(&gateway).local(&local.name()).start();
        let forward = world.forward(&local.name());
        for pid in [gateway.pid(), client.pid(), forward.pid()] {
            let threads = proc::of_every_thread(pid, "NoNewPrivs");
            assert!(threads.len() >= 2 && threads.iter().all(|flag| flag == "1"), "{threads:?}");
        }
    }

    /// Nobody else of the same user may look into a program, which also means that it leaves no core
    /// dump, unless the operator allows it.
    fn only_root_looks_into_the_programs(world) {
        let user = if is_root() { NOBODY } else { rustix::process::geteuid().as_raw() };
        let name = user.to_string();
        let start = |args: &[&str]| {
            let state = world.dir().join(format!("state-{}", world.next()));
            let state = state.to_str().expect("text").to_owned();
            let base = ["--ctl-port", "0", "--bind", "127.0.0.1", "--user", &name, "--state-dir"];
            let backend = ["--backend", world.backend().name()];
            let args = [&base[..], &[&state], &backend, args].concat();
            let program = world.bare("zproxyd", &args);
            let ready = |line: &str| line.starts_with("zproxyd ready ");
            program.out.wait_for("ready", EXIT_DEADLINE, ready);
            program
        };
        let closed = start(&[]);
        assert_eq!(user_of(&format!("/proc/{}/fd", closed.pid())), 0);
        let open = start(&["--allow-core-dumps"]);
        assert_eq!(user_of(&format!("/proc/{}/fd", open.pid())), user);
    }

    /// With `--user` every thread is that user, in no other group and without any capability; the
    /// token stays root's, the log is the user's, and flows work.
    fn another_user(world) {
        if !can_switch() {
            return;
        }
        let_others_pass(world);
        let local = LocalServer::echo();
        let logs = world.dir().join("logs");
        let dir = logs.to_str().expect("text");
        let plan = world.gateway().without_token();
        let token = plan.state_dir().join("token");
        let gateway = plan.args(["--user", "nobody", "--log-dir", dir]).start();
        let plan = world.client(&gateway).token(None).args(["--user", "65534:65534"]);
        let plan = plan.args(["--token-file", token.to_str().expect("text")]);
        let client = plan.local(&local.name()).start();
        for _ in 0..20 {
            echo_once(&connect(client.public()), 1).expect("an echo");
        }
        for pid in [gateway.pid(), client.pid()] {
            for uid in proc::of_every_thread(pid, "Uid") {
                assert_eq!(uid, "65534 65534 65534 65534");
            }
            let groups = proc::of_every_thread(pid, "Groups");
            assert!(groups.iter().all(|of_one| of_one.split(' ').count() == 1), "{groups:?}");
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                let sets = proc::of_every_thread(pid, set);
                assert!(sets.len() >= 3, "{sets:?}");
                assert!(sets.iter().all(|set| set == "0000000000000000"), "{set}: {sets:?}");
            }
        }
        let about = fs::metadata(&token).expect("the token");
        assert_eq!((about.uid(), about.mode() & 0o777), (0, 0o600));
        assert_eq!(fs::metadata(&logs).expect("the logs").uid(), NOBODY);
        let files: Vec<_> = fs::read_dir(&logs).expect("the logs").flatten().collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().expect("a log").uid(), NOBODY);
    }

    /// With `--user`, ports below 1024 are served all the same where the operator allows them, with
    /// the one capability that this takes, and the gateway's own ports may be such.
    fn another_user_on_low_ports(world) {
        if !can_switch() {
            return;
        }
        let local = LocalServer::echo();
        let (first, last) = own_low_ports().into_inner();
        let range = format!("{}-{last}", first + 2);
        let plan = world.gateway().args(["--user", "nobody", "--public-ports", &range]);
        let gateway = plan.ports(first, first + 1).start();
        let client = world.client(&gateway).local(&local.name()).public_port(last).start();
        assert_eq!(client.public().port(), last);
        echo_once(&connect(client.public()), 1).expect("an echo");
        for set in proc::of_every_thread(gateway.pid(), "CapPrm") {
            assert!(["0000000000000000", "0000000000000400"].contains(&set.as_str()), "{set}");
        }
        drop((client, gateway));
        let high = world.gateway().args(["--user", "nobody"]).ports(first, first + 1).start();
        for set in proc::of_every_thread(high.pid(), "CapPrm") {
            assert_eq!(set, "0000000000000000", "kept though nothing needs it");
        }
    }

    /// A user whom there is not, and one whom the program may not become, is an error that says so.
    fn an_impossible_user(world) {
        let state = world.dir().join("state");
        let state = state.to_str().expect("text");
        let base = ["--ctl-port", "0", "--state-dir", state, "--user"];
        let run = |user| world.run_to_end("zproxyd", &[&base[..], &[user]].concat());
        let (code, _, err) = run("no-such-user-here");
        assert_eq!(code, 2);
        assert!(err.contains("--user: there is no user no-such-user-here"), "{err}");
        let (code, _, err) = run("a b");
        assert_eq!(code, 2);
        assert!(err.contains("USER:GROUP"), "{err}");
        if !is_root() {
            let (code, _, err) = run("root");
            assert_eq!(code, 1);
            assert!(err.contains("only root can"), "{err}");
        }
    }
}
