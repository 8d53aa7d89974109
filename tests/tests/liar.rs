//! A client that knows the token and does not keep to the protocol.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use zproxy_proto::lane::Notice;
use zproxy_proto::limits::LANE_RENEWALS_MAX;
use zproxy_proto::wire::Fin;
use zproxy_tests::liar::{Claim, Liar};
use zproxy_tests::net::{connect, is_closed};
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

    /// A client that makes a lane anew without end is put off: after a number of them further ones are
    /// reset, and the last one that was taken stays.
    fn a_lane_is_made_anew_without_end(world) {
        const LANES: usize = 60;
        let gateway = world.gateway().start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(8));
        let begun = Instant::now();
        let lanes: Vec<TcpStream> = (0..LANES).map(|_| liar.dial_lane()).collect();
        let open = || (0..LANES).filter(|number| !is_closed(&lanes[*number])).collect::<Vec<_>>();
        eventually("only one lane is left", Duration::from_secs(10), || open().len() == 1);
        let seconds = usize::try_from(begun.elapsed().as_secs()).expect("a short time");
        // The first one was made at the beginning.
        let admitted = LANE_RENEWALS_MAX as usize + seconds;
        assert!(open()[0] < admitted, "of {LANES} lanes at once {:?} is left", open());
        assert!(liar.ended.is_none(), "the gateway hung up: {:?}", liar.ended);
    }
}
