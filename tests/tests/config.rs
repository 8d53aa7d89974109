//! Flags, their older names, and files.

use std::time::Duration;

use zproxy_tests::net::{connect, echo_once};
use zproxy_tests::programs::field;
use zproxy_tests::{LocalServer, World, both_backends};

const READY: Duration = Duration::from_secs(20);

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("paths of the tests are text")
}

fn run(world: &World, program: &str, args: &[&str]) -> (i32, String) {
    let (code, out, err) = world.run_to_end(program, args);
    (code, format!("{out}\n{err}"))
}

both_backends! {
    /// The command lines of the seeds start both programs.
    fn the_names_of_the_seeds(world) {
        let local = LocalServer::echo();
        let (backend, relay) = (world.backend().name(), world.relay().name());
        let state = world.dir().join("state");
        let common = ["--backend", backend, "--relay", relay, "--state-dir", text(&state)];
        let gateway = ["--bind", "127.0.0.1", "--ctl_port=0", "--proxy_port=0"];
        let gateway = [&gateway[..], &["--work_thread_nums=0"], &common[..]].concat();
        let gateway = world.bare("zproxyd", &gateway);
        let line = gateway.out.wait_for("ready", READY, |line| line.starts_with("zproxyd ready"));
        let cores = field(&line, "cores").expect("the cores");
        assert!(!cores.contains(','), "no threads are one thread: {line}");
        let ctl = field(&line, "ctl").expect("an address");
        for server in ["--zproxy_server", "--cproxy_server", "--server"] {
            let (server, own) = (format!("{server}={ctl}"), format!("--local_server={}", local.name()));
            let client = [&[server.as_str(), &own, "--work_thread_nums", "-3"], &common[..]].concat();
            let client = world.bare("zproxy", &client);
            let line = client.out.wait_for("ready", READY, |line| line.starts_with("tunnel "));
            let public = field(&line, "public").expect("an address");
            echo_once(&connect(public.parse().expect("an address")), 1).expect("an echo");
        }
    }

    /// A gateway and a client from TOML files, with a flag that overrides one key.
    fn toml_files(world) {
        let (one, two) = (LocalServer::echo(), LocalServer::echo());
        let token = world.file("token", "a-token-from-a-file-0123456789\n");
        let state = world.dir().join("state");
        let gateway = world.file("zproxyd.toml", &format!(
            "bind = \"127.0.0.1\"\nctl-port = 1\nproxy-port = 0\nbackend = \"{}\"\nrelay = \"{}\"\n\
             token-file = \"{}\"\nstate-dir = \"{}\"\n",
            world.backend().name(), world.relay().name(), text(&token), text(&state),
        ));
        let flags = ["--config", text(&gateway), "--ctl-port", "0", "--token-file", text(&token)];
        let gateway = world.bare("zproxyd", &flags);
        let line = gateway.out.wait_for("ready", READY, |line| line.starts_with("zproxyd ready"));
        let client = world.file("zproxy.toml", &format!(
            "server = \"{}\"\nbackend = \"{}\"\nrelay = \"{}\"\nstate-dir = \"{}\"\n\n\
             [[tunnel]]\nname = \"one\"\nlocal = \"{}\"\n\n\
             [[tunnel]]\nname = \"two\"\nlocal = \"{}\"\n",
            field(&line, "ctl").expect("an address"), world.backend().name(), world.relay().name(),
            text(&world.dir().join("client")), one.name(), two.name(),
        ));
        let flags = ["--config", text(&client), "--token-file", text(&token)];
        let client = world.bare("zproxy", &flags);
        for (name, server) in [("one", &one), ("two", &two)] {
            let prefix = format!("tunnel {name} ready ");
            let line = client.out.wait_for("ready", READY, |line| line.starts_with(&prefix));
            let public = field(&line, "public").expect("an address");
            echo_once(&connect(public.parse().expect("an address")), 1).expect("an echo");
            assert_eq!(server.accepted(), 1);
        }
    }

    /// The same keys in JSON.
    fn json_files(world) {
        let local = LocalServer::echo();
        let state = world.dir().join("state");
        let gateway = world.file("zproxyd.json", &format!(
            "{{\"bind\": \"127.0.0.1\", \"ctl-port\": 0, \"proxy-port\": 0, \"backend\": \"{}\", \
             \"relay\": \"{}\", \"state-dir\": \"{}\"}}",
            world.backend().name(), world.relay().name(), text(&state),
        ));
        let gateway = world.bare("zproxyd", &["--config", text(&gateway)]);
        let line = gateway.out.wait_for("ready", READY, |line| line.starts_with("zproxyd ready"));
        let client = world.file("zproxy.json", &format!(
            "{{\"server\": \"{}\", \"relay\": \"{}\", \"state-dir\": \"{}\", \
             \"tunnel\": [{{\"name\": \"only\", \"local\": \"{}\"}}]}}",
            field(&line, "ctl").expect("an address"), world.relay().name(),
            text(&world.dir().join("client")), local.name(),
        ));
        let client = world.bare("zproxy", &["--config", text(&client)]);
        let line = client.out.wait_for("ready", READY, |line| line.starts_with("tunnel only "));
        let public = field(&line, "public").expect("an address");
        echo_once(&connect(public.parse().expect("an address")), 1).expect("an echo");
    }

    /// An unknown key is an error that names it and the nearest known one.
    fn unknown_keys(world) {
        let gateway = world.file("bad.toml", "ctl-prot = 8090\n");
        let (code, said) = run(world, "zproxyd", &["--config", text(&gateway)]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("ctl-prot") && said.contains("ctl-port"), "{said}");
        let client = world.file("bad2.toml",
            "server = \"127.0.0.1:1\"\n[[tunnel]]\nlocal = \"127.0.0.1:1\"\npublik-port = 7\n");
        let (code, said) = run(world, "zproxy", &["--config", text(&client)]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("publik-port") && said.contains("public-port"), "{said}");
        let broken = world.file("broken.toml", "ctl-port = = 3\n");
        let (code, said) = run(world, "zproxyd", &["--config", text(&broken)]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("broken.toml"), "{said}");
    }

    /// `--check-config` says what the flags and the file mean, starts nothing, and ends with 0 or 2.
    fn check_config(world) {
        let state = world.dir().join("state");
        let file = world.file("zproxyd.toml", "ctl-port = 8123\ndrain-timeout = 7\n");
        let (code, said) = run(world, "zproxyd",
            &["--config", text(&file), "--check-config", "--state-dir", text(&state)]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("8123") && said.contains("8124") && said.contains('7'), "{said}");
        assert!(!said.contains(world.token()), "{said}");
        let (code, said) = run(world, "zproxy", &[
            "--server", "gateway.example.com:8090", "--local", "db:5432", "--check-config",
            "--state-dir", text(&state),
        ]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("gateway.example.com:8090") && said.contains("db:5432"), "{said}");
        let bad = world.file("bad.toml", "ctl-port = 70000\n");
        let (code, said) = run(world, "zproxyd", &["--config", text(&bad), "--check-config"]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("ctl-port"), "{said}");
    }

    /// `zproxyd check` reports every feature and limit, and ends with 0 or 1.
    fn check(world) {
        let state = world.dir().join("state");
        let (code, said) = run(world, "zproxyd", &[
            "check", "--backend", world.backend().name(), "--state-dir", text(&state),
        ]);
        assert!(code == 0 || code == 1, "{code}\n{said}");
        let said = said.to_lowercase();
        for word in ["kernel", "ring", "pipe", "descriptors", "somaxconn", "port_range"] {
            assert!(said.contains(word), "`{word}` is not in:\n{said}");
        }
        assert!(said.contains("ok"), "{said}");
    }

    /// Where the kernel forbids io_uring, `auto` serves on epoll and says why and what to change;
    /// `uring` ends with code 1; `check` says so.
    fn io_uring_forbidden(world) {
        let local = LocalServer::echo();
        let plan = world.gateway().backend("auto");
        let gateway = plan.start_under(&["without-io-uring"]);
        assert_eq!(field(&gateway.ready_line, "backend"), Some("epoll"));
        gateway.err.wait_for("why", Duration::from_secs(5), |line| {
            line.contains("epoll") && line.contains("io_uring")
        });
        let client = world.client(&gateway).local(&local.name()).start();
        echo_once(&connect(client.public()), 1).expect("an echo");
        let mut forced = world.gateway().backend("uring").spawn_under(&["without-io-uring"]);
        assert_eq!(forced.wait_exit(Duration::from_secs(10)), 1);
        assert!(forced.err.text().contains("io_uring"), "{}", forced.err.text());
    }

    /// JSON lines on request, on stderr or in files of their own; the flow's line has keys.
    fn logs(world) {
        let local = LocalServer::echo();
        let dir = world.dir().join("logs");
        let gateway = world.gateway().args(["--log-format", "json"]).start();
        let client = world.client(&gateway).local(&local.name());
        let client = client.args(["--log-dir", text(&dir)]).start();
        echo_once(&connect(client.public()), 1).expect("an echo");
        gateway.err.wait_for("the flow's end as JSON", Duration::from_secs(5), |line| {
            line.starts_with('{') && line.contains("\"end\":\"clean\"")
        });
        let strays = gateway.err.matching(|line| !line.starts_with('{'));
        assert!(strays.is_empty(), "not JSON: {strays:#?}");
        let files = std::fs::read_dir(&dir).expect("the log directory").flatten();
        assert!(files.count() > 0, "no log file");
    }

    /// With `--log-dir -` the log is on stdout, between the lines for scripts.
    fn logs_on_stdout(world) {
        let gateway = world.gateway().args(["--log-dir", "-"]).start();
        gateway.out.wait_for("a log line", Duration::from_secs(5), |line| line.contains(" INFO "));
        assert_eq!(gateway.err.text(), "");
    }
}
