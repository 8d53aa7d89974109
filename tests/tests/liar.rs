//! A client that knows the token and does not keep to the protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use zproxy_proto::lane::Notice;
use zproxy_proto::limits::{LANE_RENEWALS_MAX, SETTLING_CONNS_MAX};
use zproxy_proto::wire::Fin;
use zproxy_tests::liar::{Claim, Liar};
use zproxy_tests::net::{connect, echo_once, expect_fin, is_closed};
use zproxy_tests::stats::Stats;
use zproxy_tests::world::heavy_turn;
use zproxy_tests::{LocalServer, both_backends, eventually};

/// Flows that a liar has open at a time.
const BATCH: usize = 128;

/// Lets flows of a liar end at both ends, and releases none of them: gives their proxy_conns.
fn never_release(liar: &mut Liar, count: usize) -> Vec<TcpStream> {
    let mut kept = Vec::with_capacity(count);
    while kept.len() < count {
        let visitors = BATCH.min(count - kept.len());
        let visitors: Vec<_> = (0..visitors).map(|_| connect(liar.public())).collect();
        for (proxy, conn, start) in liar.await_starts(visitors.len()) {
            liar.tell(Notice::Fin(Fin { proxy, flow: start.flow, bytes: 0 }));
            kept.push(conn);
        }
        for visitor in visitors {
            visitor.shutdown(Shutdown::Write).expect("a visitor");
            expect_fin(&visitor);
        }
        assert!(liar.ended.is_none(), "the gateway hung up: {:?}", liar.ended);
    }
    kept
}

/// Takes the proxy_conns out that the gateway has reset.
fn remove_reset(conns: &mut Vec<TcpStream>) -> usize {
    let before = conns.len();
    conns.retain(|conn| match conn.peek(&mut [0]) {
        Err(why) if why.kind() == ErrorKind::WouldBlock => true,
        Err(why) if why.kind() == ErrorKind::ConnectionReset => false,
        other => panic!("neither kept nor reset: {other:?}"),
    });
    before - conns.len()
}

both_backends! {
    /// A client that never releases hits the bound on settling proxy_conns: of those beyond it the
    /// oldest are reset, and no others. Its neighbours' flows, old and new, go on meanwhile, and so do
    /// its own.
    fn flows_that_are_never_released_are_bounded(world) {
        const BEYOND: usize = 300;
        let _turn = heavy_turn();
        let local = LocalServer::echo();
        let mut gateway = world.gateway().one_core().start();
        let neighbour = world.client(&gateway).local(&local.name()).start();
        let flow = connect(neighbour.public());
        let neighbours_are_served = |byte: u8| {
            echo_once(&flow, byte).expect("an echo of an old flow");
            echo_once(&connect(neighbour.public()), byte).expect("an echo of a new flow");
        };
        neighbours_are_served(1);
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(9));
        let mut first = never_release(&mut liar, SETTLING_CONNS_MAX);
        assert_eq!(remove_reset(&mut first), 0, "reset below the bound");
        first.extend(never_release(&mut liar, BEYOND));
        neighbours_are_served(2);
        let mut gone = 0;
        eventually("what is beyond the bound is reset", Duration::from_secs(10), || {
            gone += remove_reset(&mut first);
            gone >= BEYOND
        });
        // All that is left has been looked at by now, so whatever comes is younger.
        let mut second = never_release(&mut liar, BEYOND);
        neighbours_are_served(3);
        eventually("the oldest make room", Duration::from_secs(10), || {
            gone += remove_reset(&mut first);
            gone >= 2 * BEYOND
        });
        assert_eq!((gone, remove_reset(&mut second)), (2 * BEYOND, 0));
        let settling = Stats::of(&mut gateway, 2).cores("settling");
        assert_eq!(settling, SETTLING_CONNS_MAX as u64);
        assert_eq!(never_release(&mut liar, 1).len(), 1);
        neighbours_are_served(4);
    }

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

    /// Idle proxy_conns, and be they as many as the gateway has descriptors, make room for visitors,
    /// again and again, on whichever data core they idle.
    fn idle_proxy_conns_make_room(world) {
        const DESCRIPTORS: u32 = 128;
        let gateway = world.gateway().descriptors_max(DESCRIPTORS).start();
        let mut liar = Liar::with_tunnel(&gateway, world.token(), Claim::new(10));
        let mut flows = Vec::new();
        for byte in 0..8 {
            // Without being asked; what finds no descriptor waits in the kernel for one.
            for _ in 0..2 * DESCRIPTORS {
                let conn = liar.attach(0);
                liar.conns.push(conn);
            }
            let mut visitor = connect(liar.public());
            visitor.write_all(&[byte]).expect("a visitor");
            let (_, conn, _) = liar.await_start();
            conn.set_nonblocking(false).expect("a socket");
            conn.set_read_timeout(Some(Duration::from_secs(5))).expect("a read deadline");
            let mut heard = [0];
            (&conn).read_exact(&mut heard).expect("what the visitor said");
            assert_eq!(heard, [byte]);
            flows.push((visitor, conn));
        }
        assert!(liar.ended.is_none(), "the gateway hung up: {:?}", liar.ended);
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
