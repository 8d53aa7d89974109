//! A client that knows the token and does not keep to the protocol.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::time::Duration;

use zproxy_proto::lane::Notice;
use zproxy_proto::wire::Fin;
use zproxy_tests::liar::{Claim, Liar};
use zproxy_tests::net::connect;
use zproxy_tests::{both_backends, eventually};

both_backends! {
    /// A client that never releases a flow does not hold the gateway's descriptor for ever: settling
    /// ends with the half-close deadline.
    fn a_flow_that_is_never_released(world) {
        let gateway = world.gateway().args(["--half-close-timeout", "1"]).start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(7));
        let visitor = connect(liar.public());
        let (proxy, conn, start) = liar.await_start();
        visitor.shutdown(Shutdown::Write).expect("a visitor");
        liar.tell(Notice::Fin(Fin { proxy, flow: start.flow, bytes: 0 }));
        // Both ends are announced; what is missing is `Released`, and never comes.
        eventually("the gateway lets go", Duration::from_secs(10), || {
            liar.turn();
            assert!(liar.ended.is_none(), "the gateway hung up: {:?}", liar.ended);
            match conn.peek(&mut [0]) {
                Ok(0) => true,
                Ok(_) => panic!("bytes after the start"),
                Err(why) => why.kind() == ErrorKind::ConnectionReset,
            }
        });
    }
}
