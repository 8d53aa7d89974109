//! What an operator can get wrong: the exit code is 2, and the message names the flag and what would
//! be right.

use std::net::TcpListener;

use zproxy_tests::{World, both_backends};

/// Runs a program with bad arguments; its message must hold every one of `words`.
fn expect_usage_error(world: &World, program: &str, args: &[&str], words: &[&str]) {
    let state = world.dir().join("state");
    let state = state.to_str().expect("text");
    let backend = ["--backend", world.backend().name(), "--state-dir", state];
    let all = if args.first() == Some(&"forward") {
        [args, &backend[..2]].concat()
    } else {
        [args, &backend[..]].concat()
    };
    let (code, out, err) = world.run_to_end(program, &all);
    assert_eq!(code, 2, "{program} {all:?}\n{out}\n{err}");
    for word in words {
        assert!(err.contains(word), "{program} {all:?}: `{word}` is not in:\n{err}");
    }
}

both_backends! {
    /// Every bad flag of the gateway is named.
    fn of_the_gateway(world) {
        let bad = |args: &[&str], words: &[&str]| expect_usage_error(world, "zproxyd", args, words);
        bad(&["--no-such-flag"], &["--no-such-flag"]);
        bad(&["--ctl-port", "70000"], &["ctl-port", "70000", "65535"]);
        bad(&["--proxy-port", "x"], &["proxy-port"]);
        bad(&["--cores", "banana"], &["--cores", "banana"]);
        bad(&["--cores", "3-1"], &["--cores"]);
        bad(&["--cores", "4000"], &["--cores", "4000"]);
        bad(&["--control-core", "4000"], &["--control-core", "4000"]);
        bad(&["--public-ports", "9-1"], &["--public-ports"]);
        bad(&["--bind", "somewhere"], &["--bind"]);
        bad(&["--heartbeat", "0"], &["--heartbeat"]);
        bad(&["--log-format", "xml"], &["--log-format", "json"]);
        bad(&["--config", "/nonexistent/zproxyd.toml"], &["/nonexistent/zproxyd.toml"]);
    }

    /// Every bad flag of the client is named.
    fn of_the_client(world) {
        let bad = |args: &[&str], words: &[&str]| expect_usage_error(world, "zproxy", args, words);
        bad(&["--server", "127.0.0.1:1"], &["--local"]);
        bad(&["--local", "127.0.0.1:1"], &["--server"]);
        bad(&["--server", "127.0.0.1", "--local", "127.0.0.1:1"], &["--server"]);
        bad(&["--server", "127.0.0.1:1", "--local", "127.0.0.1:70000"], &["--local", "70000"]);
        bad(
            &["--server", "127.0.0.1:1", "--local", "127.0.0.1:1", "--public-port", "70000"],
            &["--public-port", "70000"],
        );
        bad(&["--nonsense"], &["--nonsense"]);
    }

    /// Every bad flag of `zproxy forward` is named.
    fn of_forward(world) {
        let bad = |args: &[&str], words: &[&str]| expect_usage_error(world, "zproxy", args, words);
        bad(&["forward", "--listen", "127.0.0.1:0"], &["--to"]);
        bad(&["forward", "--to", "127.0.0.1:1"], &["--listen"]);
        bad(&["forward", "--listen", "127.0.0.1:0", "--to", "here"], &["--to"]);
    }

    /// A port that somebody else has: exit 1, and the address is named.
    fn a_port_in_use(world) {
        let owner = TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = owner.local_addr().expect("its address").to_string();
        let port = taken.rsplit(':').next().expect("a port").to_owned();
        let state = world.dir().join("state");
        let state = state.to_str().expect("text");
        let common = ["--bind", "127.0.0.1", "--state-dir", state, "--backend"];
        let common = [&common[..], &[world.backend().name()]].concat();
        let first = ["--ctl-port", &port, "--proxy-port", "0"];
        let second = ["--ctl-port", "0", "--proxy-port", &port];
        for ports in [first, second] {
            let (code, out, err) = world.run_to_end("zproxyd", &[&common[..], &ports[..]].concat());
            assert_eq!(code, 1, "{out}\n{err}");
            assert!(err.contains(&taken), "{taken} is not in:\n{err}");
        }
        let forward = ["forward", "--listen", &taken, "--to", "127.0.0.1:1", "--backend"];
        let forward = [&forward[..], &[world.backend().name()]].concat();
        let (code, out, err) = world.run_to_end("zproxy", &forward);
        assert_eq!(code, 1, "{out}\n{err}");
        assert!(err.contains(&taken), "{taken} is not in:\n{err}");
    }
}
