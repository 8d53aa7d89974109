//! What a ring may be asked once it is enabled: the operations that the driver has, and nothing else.
//!
//! A ring of its own can open and delete files, and change its set-up. Whoever gets hold of one in
//! this process, by whatever fault, gets only what flows need (Linux 5.10).

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

const OPCODES: [u8; 6] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::PollAdd::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::Splice::CODE,
];

/// Enables a ring that was set up disabled, for the thread that calls this. With no registration
/// allowed, what it has registered by then is what it has.
///
/// # Errors
/// When the ring cannot be enabled. If only the restrictions are refused, it goes without.
pub(super) fn enable(ring: &IoUring) -> io::Result<()> {
    let flags = squeue::Flags::IO_LINK | squeue::Flags::BUFFER_SELECT;
    let mut allowed: Vec<Restriction> = OPCODES.into_iter().map(Restriction::sqe_op).collect();
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    let submitter = ring.submitter();
    let _ = submitter.register_restrictions(&mut allowed);
    submitter.register_enable_rings()
}

#[cfg(test)]
mod tests {
    use super::super::Uring;
    use super::*;
    use crate::DriverConfig;

    /// A driver's ring takes no further registration, and refuses an operation that no flow needs.
    #[test]
    fn a_ring_refuses_what_no_flow_needs() {
        let driver = match Uring::new(&DriverConfig::default()) {
            Ok(driver) => driver,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let mut probe = io_uring::Probe::new();
        let refused = driver.ring.submitter().register_probe(&mut probe).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "registered though enabled");

        let mut builder = IoUring::builder();
        let mut ring: IoUring = builder.setup_r_disabled().build(8).unwrap();
        enable(&ring).unwrap();
        let fd = io_uring::types::Fd(-1);
        let entries = [
            (opcode::Nop::new().build(), libc::EACCES),
            (opcode::Fsync::new(fd).build(), libc::EACCES),
            (opcode::Recv::new(fd, std::ptr::null_mut(), 0).build(), libc::EBADF),
        ];
        for (entry, errno) in entries {
            // SAFETY: the entry names no memory and no descriptor.
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let completion = ring.completion().next().unwrap();
            assert_eq!(completion.result(), -errno);
        }
    }
}
