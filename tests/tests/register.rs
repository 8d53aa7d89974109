//! Registration: who gets in, and who gets which port.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use zproxy_tests::net::{connect, echo_once, try_connect};
use zproxy_tests::programs::field;
use zproxy_tests::world::own_ports;
use zproxy_tests::{LocalServer, both_backends, eventually};

const EXIT_DEADLINE: Duration = Duration::from_secs(15);

fn expect_echo(public: SocketAddr) {
    let conn = connect(public);
    for byte in 0..10 {
        echo_once(&conn, byte).unwrap_or_else(|why| panic!("an echo through {public}: {why}"));
    }
}

both_backends! {
    /// Both programs say that they are ready in the agreed words, with real ports, and then they are.
    fn ready_lines_tell_the_truth(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        assert_eq!(field(&gateway.ready_line, "backend"), Some(world.backend().name()));
        assert_eq!(
            gateway.ready_line,
            format!(
                "zproxyd ready ctl={} proxy={} backend={} cores={}",
                gateway.ctl,
                gateway.proxy,
                world.backend().name(),
                world.cores()
            )
        );
        let client = world.client(&gateway).local(&local.name()).start();
        let tunnel = client.tunnel("main");
        assert_eq!(tunnel.local, local.name());
        assert_ne!(tunnel.public.port(), 0);
        expect_echo(tunnel.public);
    }

    /// The proxy port is the one behind the ctl port unless something else is asked for.
    fn the_proxy_port_follows_the_ctl_port(world) {
        let port = *own_ports().start();
        let ctl = port.to_string();
        let state = world.dir().join("defaults");
        let state = state.to_str().expect("text");
        let args = ["--bind", "127.0.0.1", "--ctl-port", &ctl, "--state-dir", state];
        let gateway = world.bare("zproxyd", &args);
        let line = gateway.out.wait_for("ready", EXIT_DEADLINE, |line| line.starts_with("zproxyd "));
        assert_eq!(field(&line, "proxy"), Some(format!("127.0.0.1:{}", port + 1).as_str()));
    }

    /// A dual-stack gateway serves IPv4 and IPv6 visitors.
    fn the_default_address_serves_both_families(world) {
        if TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6");
            return;
        }
        let local = LocalServer::echo();
        let gateway = world.gateway().args(["--public-bind", "::"]).start();
        let client = world.client(&gateway).local(&local.name()).start();
        let port = client.public().port();
        expect_echo(SocketAddr::from(([127, 0, 0, 1], port)));
        expect_echo(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)));
    }

    /// Two clients have their own tunnels, and each visitor reaches the right one.
    fn two_clients_do_not_meet(world) {
        let (first, second) = (LocalServer::echo(), LocalServer::echo());
        let gateway = world.gateway().start();
        let one = world.client(&gateway).local(&first.name()).start();
        let two = world.client(&gateway).local(&second.name()).start();
        assert_ne!(one.public(), two.public());
        expect_echo(one.public());
        assert_eq!((first.accepted(), second.accepted()), (1, 0));
        expect_echo(two.public());
        assert_eq!((first.accepted(), second.accepted()), (1, 1));
    }

    /// A gateway without a token makes one, keeps it private, and prints a command that works.
    fn a_gateway_makes_its_own_token(world) {
        let local = LocalServer::echo();
        let plan = world.gateway().without_token();
        let state_dir = plan.state_dir().to_owned();
        let gateway = plan.start();
        let is_command = |line: &str| line.contains("zproxy --server");
        gateway.out.wait_for("a command that starts a client", Duration::from_secs(10), is_command);
        let files = std::fs::read_dir(state_dir).expect("state");
        let token = files
            .flatten()
            .find(|file| file.file_name().to_string_lossy().contains("token"))
            .expect("a token file");
        let mode = token.metadata().expect("its mode").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let secret = std::fs::read_to_string(token.path()).expect("a token");
        assert!(secret.trim().len() >= 16, "a token of {} letters", secret.trim().len());

        let path = token.path();
        let file = path.to_str().expect("text");
        let plan = world.client(&gateway).token(None).args(["--token-file", file]);
        let client = plan.local(&local.name()).start();
        expect_echo(client.public());
        for text in [gateway.out.text(), gateway.err.text(), client.out.text(), client.err.text()] {
            assert!(!text.contains(secret.trim()), "the secret is in:\n{text}");
        }
    }

    /// The shared token never appears in what either program says, not even at the finest log level.
    fn no_secret_is_ever_logged(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().args(["--log-level", "trace"]).start();
        let plan = world.client(&gateway).local(&local.name());
        let client = plan.args(["--log-level", "trace"]).start();
        expect_echo(client.public());
        for text in [gateway.out.text(), gateway.err.text(), client.out.text(), client.err.text()] {
            assert!(!text.contains(world.token()), "the secret is in:\n{text}");
        }
    }

    /// A client with the wrong token ends with code 3 and a reason; the others are not concerned.
    fn a_wrong_token_is_refused(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let good = world.client(&gateway).local(&local.name()).start();
        let plan = world.client(&gateway).token(Some("another-token-that-is-long-enough-9876"));
        let mut bad = plan.local(&local.name()).spawn();
        assert_eq!(bad.wait_exit(EXIT_DEADLINE), 3);
        assert!(bad.err.text().contains("token"), "no reason in:\n{}", bad.err.text());
        expect_echo(good.public());
    }

    /// A client that was given no token at all is told so before it dials.
    fn a_missing_token_is_a_usage_error(world) {
        let gateway = world.gateway().start();
        let mut client = world.client(&gateway).token(None).local("127.0.0.1:9").spawn();
        assert_eq!(client.wait_exit(EXIT_DEADLINE), 2);
        let said = client.err.text();
        assert!(said.contains("ZPROXY_TOKEN") && said.contains("--token-file"), "{said}");
    }

    /// The wanted public port is the one that is served.
    fn a_wanted_port_is_served(world) {
        let local = LocalServer::echo();
        let (first, last) = own_ports().into_inner();
        let range = format!("{first}-{last}");
        let gateway = world.gateway().args(["--public-ports", &range]).start();
        let plan = world.client(&gateway).local(&local.name()).public_port(first + 3);
        let client = plan.start();
        assert_eq!(client.public().port(), first + 3);
        expect_echo(client.public());
        // Any port comes from the range as well.
        let other = world.client(&gateway).local(&local.name()).start();
        assert!((first..=last).contains(&other.public().port()), "{}", other.public());
        expect_echo(other.public());
    }

    /// A port outside the range is refused with a reason, and the client ends with code 3.
    fn a_port_that_is_not_allowed_is_refused(world) {
        let (first, last) = own_ports().into_inner();
        let range = format!("{first}-{last}");
        let gateway = world.gateway().args(["--public-ports", &range]).start();
        let plan = world.client(&gateway).local("127.0.0.1:9").public_port(last + 1);
        let mut client = plan.spawn();
        assert_eq!(client.wait_exit(EXIT_DEADLINE), 3);
        let said = client.err.text();
        assert!(said.contains(&(last + 1).to_string()), "the port is not named in:\n{said}");
    }

    /// A port that another client's tunnel has, or another program, is refused with a reason.
    fn a_port_that_is_taken_is_refused(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().start();
        let owner = world.client(&gateway).local(&local.name()).start();
        let plan = world.client(&gateway).local(&local.name());
        let mut second = plan.public_port(owner.public().port()).spawn();
        assert_eq!(second.wait_exit(EXIT_DEADLINE), 3);
        let foreign = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = foreign.local_addr().expect("its number").port();
        let mut third = world.client(&gateway).local(&local.name()).public_port(port).spawn();
        assert_eq!(third.wait_exit(EXIT_DEADLINE), 3);
        let said = third.err.text();
        assert!(said.contains(&port.to_string()), "the port is not named in:\n{said}");
        expect_echo(owner.public());
    }

    /// Of several tunnels one is refused; the reason is logged and the others work.
    fn the_other_tunnels_work(world) {
        let local = LocalServer::echo();
        let foreign = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = foreign.local_addr().expect("its number").port();
        let gateway = world.gateway().start();
        let text = format!(
            "[[tunnel]]\nname = \"first\"\nlocal = \"{local}\"\n\n\
             [[tunnel]]\nname = \"taken\"\nlocal = \"{local}\"\npublic-port = {port}\n\n\
             [[tunnel]]\nname = \"last\"\nlocal = \"{local}\"\n",
            local = local.name()
        );
        let config = world.file("client.toml", &text);
        let mut client = world.client(&gateway).config(&config, 2).start();
        expect_echo(client.tunnel("first").public);
        expect_echo(client.tunnel("last").public);
        client.err.wait_for("the refusal", Duration::from_secs(5), |line| {
            line.contains("taken") && line.contains(&port.to_string())
        });
        assert_eq!(client.try_exit(), None);
    }

    /// When a client stops, its public ports stop listening, at the gateway that goes on.
    fn ports_close_with_their_client(world) {
        let local = LocalServer::echo();
        let gateway = world.gateway().args(["--grace", "1"]).start();
        let mut client = world.client(&gateway).local(&local.name()).start();
        let public = client.public();
        expect_echo(public);
        client.terminate();
        assert_eq!(client.wait_exit(EXIT_DEADLINE), 0);
        eventually("the public port is closed", Duration::from_secs(10), || {
            try_connect(public).is_err()
        });
        let next = world.client(&gateway).local(&local.name()).start();
        expect_echo(next.public());
    }
}
