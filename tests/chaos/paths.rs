//! One path goes dead while something is on its way, and nobody says so.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use zproxy_tests::net::{
    bounded, connect, expect_fin, expect_reset_within, fill_up, finish, receive_pattern,
};
use zproxy_tests::netns::GATEWAY_OUTSIDE;
use zproxy_tests::pair::Frames;
use zproxy_tests::site::{PROXY_PORT, PUBLIC_PORT};
use zproxy_tests::{Direction, Net, Pair, Pattern, Site, World, both_backends, eventually_some};

use crate::length;

/// What the programs are told.
const DEAD_AFTER: Duration = length(3, 20);
/// Far from the quarter of an hour that TCP takes.
const NOTICED: Duration = Duration::from_secs(90);
/// For so long a slow reader reads nothing: several times as long.
const PAUSE: Duration = length(15, 75);
const SOON: Duration = Duration::from_secs(30);

/// The programs, and a LocalServer whose part the test plays.
struct Scene {
    pair: Pair,
    listener: TcpListener,
    net: Net,
    frames: Frames,
}

fn public() -> SocketAddr {
    (GATEWAY_OUTSIDE, PUBLIC_PORT).into()
}

impl Scene {
    fn start(world: &World, net: Net) -> Self {
        let (gateway, client) = Site::plans(world, &net);
        let listener = net.client.within(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let local = listener.local_addr().expect("its address").to_string();
        listener.set_nonblocking(true).expect("no waiting");
        let limit = DEAD_AFTER.as_secs().to_string();
        let args = ["--dead-after", &limit];
        let (gateway, client) = (gateway.args(args), client.args(args));
        let mut pair = Pair::start(world, gateway, client.local(&local));
        let frames = pair.frames();
        Self { pair, listener, net, frames }
    }

    /// Both ends of a flow, at which something was said and heard.
    fn flow(&self) -> (TcpStream, TcpStream) {
        self.flow_of(connect(public()))
    }

    fn flow_of(&self, visitor: TcpStream) -> (TcpStream, TcpStream) {
        (&visitor).write_all(b"?").expect("an open conn");
        let accept = || self.listener.accept().ok();
        let (local, _) = eventually_some("the client dials", SOON, accept);
        local.set_nonblocking(false).expect("waiting");
        local.set_read_timeout(Some(SOON)).expect("a deadline");
        let mut heard = [0];
        (&local).read_exact(&mut heard).expect("the question");
        (&local).write_all(b"!").expect("an open conn");
        (&visitor).read_exact(&mut heard).expect("the answer");
        (visitor, local)
    }

    fn expect_rest(mut self) {
        drop(self.flow());
        self.pair.expect_rest(self.frames);
    }
}

both_backends! {
    /// A visitor vanishes while bytes are on their way to it: its flow is reset, and the service hears
    /// of it, long before TCP gives up. The flow of another visitor goes on.
    fn a_visitor_vanishes(world) {
        Site::run(|net| {
            let scene = Scene::start(world, net);
            let (gone, service) = scene.flow();
            let (other, other_service) = scene.flow();
            let port = gone.local_addr().expect("its address").port();
            let (from, to) = (format!("tcp dport {port} drop"), format!("tcp sport {port} drop"));
            scene.net.public.filter(&from, "");
            scene.net.gateway.filter(&to, "");
            (&service).write_all(b"to nobody").expect("an open conn");
            expect_reset_within(&service, NOTICED);
            (&other).write_all(b"?").expect("the other flow goes on");
            let mut heard = [0];
            (&other_service).read_exact(&mut heard).expect("the other flow goes on");
            scene.net.public.unfilter();
            scene.net.gateway.unfilter();
            drop((gone, other, other_service));
            scene.expect_rest();
        });
    }

    /// The way of the proxy_conns and lanes goes dead under flows, and the ctl_conn lives: both ends of
    /// each flow are reset, nothing is kept, and when packets pass again visitors are served.
    fn only_the_proxy_port_is_swallowed(world) {
        Site::run(|net| {
            let scene = Scene::start(world, net);
            let (downward, upward) = (scene.flow(), scene.flow());
            scene.net.gateway.filter(&format!("tcp dport {PROXY_PORT} drop"), "");
            scene.net.client.filter(&format!("tcp sport {PROXY_PORT} drop"), "");
            (&downward.1).write_all(b"to nobody").expect("an open conn");
            (&downward.0).write_all(b"to nobody").expect("an open conn");
            (&upward.0).write_all(b"to nobody").expect("an open conn");
            (&upward.1).write_all(b"to nobody").expect("an open conn");
            for end in [&downward.0, &downward.1, &upward.0, &upward.1] {
                expect_reset_within(end, NOTICED);
            }
            scene.net.gateway.unfilter();
            scene.net.client.unfilter();
            scene.expect_rest();
        });
    }

    /// A visitor that reads nothing for several times as long, its window closed, is left alone: its
    /// kernel answers. In the end it has every byte.
    fn a_slow_reader_is_no_dead_path(world) {
        Site::run(|net| {
            let scene = Scene::start(world, net);
            // Small from the beginning: the kernel promises no window that it has no memory for.
            let visitor = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            visitor.set_recv_buffer_size(16 << 10).expect("a small buffer");
            visitor.connect(&public().into()).expect("the port is open");
            let (visitor, service) = scene.flow_of(bounded(visitor.into()));
            let pattern = Pattern::new(7, Direction::Down);
            let sent = fill_up(&service, pattern);
            assert!(sent > 0, "there is no room at all");
            // The length of the pause, not a wait for anything.
            thread::sleep(PAUSE);
            finish(&service);
            receive_pattern(&visitor, pattern, 0, sent).expect("every byte");
            expect_fin(&visitor);
            drop((visitor, service));
            scene.expect_rest();
        });
    }
}
