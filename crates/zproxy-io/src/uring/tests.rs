//! What only a ring has: queues that overflow.

use std::collections::HashSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;

const SOCKS: usize = 500;

/// Far more completions at once than the completion queue holds: the overflow is counted, and every
/// operation comes home exactly once, with its byte.
#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    for relay in [RelayMode::Auto, RelayMode::Splice, RelayMode::Copy] {
        let config = DriverConfig { relay, ..DriverConfig::default() };
        let queues = Queues { submission: 8, completion: 16 };
        let Ok(mut driver) = Uring::with_queues(&config, queues) else {
            let is_required = std::env::var_os("ZPROXY_REQUIRE_URING").is_some();
            assert!(!is_required, "no uring here although it is required");
            eprintln!("skipped: no uring here");
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let at = listener.local_addr().expect("its address");
        let mut fars = Vec::new();
        let mut waiting = HashSet::new();
        for number in 0..SOCKS {
            fars.push(TcpStream::connect(at).expect("a connection"));
            let (near, _) = listener.accept().expect("a connection");
            near.set_nonblocking(true).expect("a socket");
            let from = driver.adopt(OwnedFd::from(near));
            let token = Token(number as u64);
            driver.submit(token, Op::Fill { from });
            waiting.insert(token);
        }
        // A turn without a wait: everything is submitted, and nothing is there to come home.
        let mut done = Vec::new();
        for _ in 0..SOCKS / 8 + 1 {
            driver.wait(Some(Duration::ZERO), &mut done).expect("a ring");
        }
        assert!(done.is_empty(), "{done:?}");
        for far in &mut fars {
            far.write_all(b"x").expect("open");
        }
        let give_up = sys::now() + Duration::from_secs(20);
        while !waiting.is_empty() {
            assert!(sys::now() < give_up, "{} operations never came home", waiting.len());
            driver.wait(Some(give_up), &mut done).expect("a ring");
            for done in done.drain(..) {
                assert!(waiting.remove(&done.token), "{:?} came home twice", done.token);
                let Outcome::Filled(lease) = done.outcome else { panic!("{:?}", done.outcome) };
                assert_eq!(lease.len(), 1);
            }
        }
        if relay != RelayMode::Splice {
            assert!(driver.stats().cq_overflows > 0, "the queue was long enough after all");
        }
    }
}
