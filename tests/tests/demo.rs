//! The newcomer's one command.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use zproxy_tests::net::{connect, echo_once, try_connect};
use zproxy_tests::{LocalServer, Program, World, both_backends, eventually};

const READY: Duration = Duration::from_secs(40);

fn start(world: &World, args: &[&str]) -> (Program, SocketAddr) {
    let backend = world.backend().name();
    let demo = world.bare("demo", &[&["--backend", backend], args].concat());
    let line = demo.out.wait_for("the public address", READY, |line| line.contains("public "));
    let url = line.split("http://").nth(1).expect("a URL");
    let public = url.trim_end_matches('/').parse().expect("an address");
    demo.out.wait_for("how to stop it", READY, |line| line.contains("Ctrl-C"));
    (demo, public)
}

fn ask(public: SocketAddr, request: &str) -> String {
    let mut conn = connect(public);
    conn.write_all(request.as_bytes()).expect("the request");
    let mut answer = String::new();
    conn.read_to_string(&mut answer).expect("the answer");
    answer
}

fn expect_gone(public: SocketAddr) {
    eventually("nothing is left of the demonstration", Duration::from_secs(15), || {
        try_connect(public).is_err()
    });
}

both_backends! {
    /// The built-in page is reached through the tunnel, shows the request, and Ctrl-C stops it all.
    fn the_built_in_service(world) {
        let (mut demo, public) = start(world, &[]);
        demo.out.wait_for("a curl line", READY, |line| line.contains("curl http://"));
        let answer = ask(
            public,
            "GET /some/where HTTP/1.1\r\nHost: demo\r\nX-Mine: <b>\r\nConnection: close\r\n\r\n",
        );
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        for word in ["Hello from behind ZProxy", "GET /some/where", "X-Mine: <b>"] {
            assert!(answer.contains(word), "`{word}` is not in:\n{answer}");
        }
        let page = ask(
            public,
            "GET / HTTP/1.1\r\nAccept: text/html\r\nX-Mine: <b>\r\nConnection: close\r\n\r\n",
        );
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
        demo.signal(Signal::INT);
        assert_eq!(demo.wait_exit(Duration::from_secs(15)), 0);
        expect_gone(public);
    }

    /// A service of one's own is exposed instead.
    fn a_service_of_ones_own(world) {
        let local = LocalServer::echo();
        let (mut demo, public) = start(world, &["--local", &local.name()]);
        echo_once(&connect(public), 1).expect("an echo");
        demo.terminate();
        assert_eq!(demo.wait_exit(Duration::from_secs(15)), 0);
        expect_gone(public);
    }

    /// However the demonstration dies, its children do not outlive it.
    fn killed_without_warning(world) {
        let (mut demo, public) = start(world, &[]);
        demo.kill9();
        expect_gone(public);
    }
}
