//! What a driver tells of the far end of a connection. (That one which has vanished owes an answer is
//! shown in `tests/chaos/paths.rs`: on loopback nobody vanishes.)

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use zproxy_io::{Driver, Ending, Op, RelayMode, Sock};

use crate::support::{Kit, World};

conformance!(who_has_answered_owes_nothing, who_does_not_read_owes_nothing);

conformance_simulated!(who_has_answered_owes_nothing,);

/// Fills the way to a far end that does not read.
fn fill_up<D: Driver>(world: &mut World<D>, near: Sock) {
    let token = world.submit(Op::Send { sock: near, buf: vec![7; 16 << 20] });
    world.assert_waits(token);
}

/// A far end that has answered everything owes nothing, in traffic, at rest and half-closed; of a
/// socket that is closed nothing is told.
fn who_has_answered_owes_nothing<K: Kit>() {
    let mut world = World::new::<K>(RelayMode::Auto);
    let (near, far) = world.meet();
    for _ in 0..3 {
        let token = world.submit(Op::Send { sock: near, buf: vec![1; 100] });
        world.outcome(token);
        world.settle();
        assert!(!world.driver.far_end(near).expect("it is connected").owes);
    }
    world.driver.shutdown_write(near);
    world.settle();
    let told = world.driver.far_end(near).expect("it is connected");
    assert!(!told.owes, "{told:?}");
    drop(far);
    world.close(near, Ending::Clean);
    assert_eq!(world.driver.far_end(near), None);
    world.finish();
}

/// A far end whose window is closed, or that has no memory for what was sent, answers when it is asked:
/// it may owe for a moment, but not for long.
fn who_does_not_read_owes_nothing<K: Kit>() {
    for is_short_of_memory in [false, true] {
        let mut world = World::new::<K>(RelayMode::Auto);
        let (near, far) = world.pair();
        if is_short_of_memory {
            shrink(&far);
        }
        fill_up(&mut world, near);
        // The kernel asks again after 200 ms, 400 ms, …, at last less often than answers are rationed.
        let until = world.driver.now() + Duration::from_secs(4);
        let mut answers = 0;
        let mut last = Duration::ZERO;
        while world.driver.now() < until {
            world.settle();
            let told = world.driver.far_end(near).expect("it is connected");
            assert!(!told.owes || told.silence < Duration::from_secs(2), "{told:?}");
            answers += u32::from(told.silence < last);
            last = told.silence;
        }
        assert!(answers >= 2, "it was asked {answers} times");
        drop(far);
        world.finish();
    }
}

/// Takes memory away that the window has promised already.
fn shrink(far: &TcpStream) {
    let size: libc::c_int = 8 << 10;
    let (fd, len) = (far.as_raw_fd(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `size` is readable for `len` bytes.
    let status = unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, (&raw const size).cast(), len)
    };
    assert_eq!(status, 0, "SO_RCVBUF");
}
