//! The ring itself: set-up, submission, reaping. It knows nothing of sockets.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, squeue, types};

use super::restrict;
use crate::probe::RingRefusal;
use crate::{DriverLost, sys};

/// The lengths of a ring's two queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queues {
    /// Submission entries. More operations than this in one turn are submitted in several calls.
    pub(super) submission: u32,
    /// Completion entries: room for bursts of multishot accepts on top of everything in flight. More
    /// wait in the kernel (IORING_FEAT_NODROP, Linux 5.5), which is slower but loses nothing.
    pub(super) completion: u32,
}

impl Default for Queues {
    fn default() -> Self {
        Self { submission: 1024, completion: 16384 }
    }
}

/// Kernel worker threads for splices. Nothing that blocks is ever handed to them, so two suffice: one
/// runs while the other is being woken.
const WORKERS_MAX: u32 = 2;

/// How long a ring waits for memory when it is made, and between two tries.
const MEMORY_PATIENCE: Duration = Duration::from_secs(3);
const MEMORY_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no ring.
#[derive(Debug)]
pub enum RingError {
    /// `io_uring_setup(2)` failed.
    Setup(RingRefusal),
    /// The worker threads could not be limited (`IORING_REGISTER_IOWQ_MAX_WORKERS`, Linux 5.15).
    Workers(io::Error),
    /// The group of provided buffers could not be registered (`IORING_REGISTER_PBUF_RING`,
    /// Linux 5.19).
    Buffers(io::Error),
    /// The ring, all set up, could not be enabled (`IORING_REGISTER_ENABLE_RINGS`, Linux 5.10).
    Enable(io::Error),
    /// The doorbell could not be made (`eventfd(2)`).
    Doorbell(io::Error),
    /// The kernel does not know an operation that the driver needs.
    Opcode(&'static str),
}

impl std::fmt::Display for RingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setup(refusal) => refusal.fmt(f),
            Self::Workers(error) => {
                write!(f, "the ring's workers cannot be limited ({error}); use Linux 5.15 or later")
            }
            Self::Buffers(error) => {
                write!(f, "provided buffers are not available ({error}); use Linux 5.19 or later")
            }
            Self::Enable(error) => write!(f, "the ring cannot be enabled ({error})"),
            Self::Doorbell(error) => write!(f, "eventfd failed: {error}"),
            Self::Opcode(name) => {
                write!(f, "this kernel's io_uring lacks {name}; use Linux 5.19 or later")
            }
        }
    }
}

impl std::error::Error for RingError {}

/// One io_uring, owned by the thread that made it.
pub(super) struct Ring {
    ring: IoUring,
    /// Entries that found the submission queue full, chains kept whole.
    backlog: VecDeque<Vec<squeue::Entry>>,
    flags: &'static str,
    pub(super) enters: u64,
    /// Entries that were queued.
    pub(super) submissions: u64,
    pub(super) overflows: u64,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("flags", &self.flags).finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn new(
        cpu: Option<usize>,
        is_chained: bool,
        queues: Queues,
    ) -> Result<Self, RingError> {
        let (ring, flags) = build_patiently(is_chained, queues)
            .map_err(|error| RingError::Setup(RingRefusal::from_setup(error)))?;
        check_opcodes(&ring)?;
        let submitter = ring.submitter();
        let mut workers = [WORKERS_MAX, WORKERS_MAX];
        submitter.register_iowq_max_workers(&mut workers).map_err(RingError::Workers)?;
        if let Some(cpu) = cpu {
            // Workers do not inherit the pinning of the thread that they work for. Where the kernel
            // refuses (the CPU is outside the cgroup's set), they roam, which is merely slower.
            let _ = submitter.register_iowq_aff(&sys::cpu_set(cpu));
        }
        Ok(Self { ring, backlog: VecDeque::new(), flags, enters: 0, submissions: 0, overflows: 0 })
    }

    /// Ends the set-up: from here on operations are taken, those that the driver has.
    pub(super) fn enable(&self) -> Result<(), RingError> {
        restrict::enable(&self.ring).map_err(RingError::Enable)
    }

    /// The set-up flags that this kernel granted.
    pub(super) fn flags(&self) -> &'static str {
        self.flags
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// Queues entries that belong together: linked ones are never torn apart by a submission.
    pub(super) fn push(&mut self, entries: &[squeue::Entry]) {
        self.submissions += entries.len() as u64;
        if !self.backlog.is_empty() || !self.try_push(entries) {
            self.backlog.push_back(entries.to_vec());
        }
    }

    fn try_push(&mut self, entries: &[squeue::Entry]) -> bool {
        // SAFETY: the driver keeps every buffer, address and descriptor named by an entry alive and
        // in place until the entry's completion has been reaped.
        unsafe { self.ring.submission().push_multiple(entries) }.is_ok()
    }

    fn flush_backlog(&mut self) {
        while let Some(entries) = self.backlog.pop_front() {
            if !self.try_push(&entries) {
                self.backlog.push_front(entries);
                return;
            }
        }
    }

    /// Whether there is something to submit.
    pub(super) fn is_loaded(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    /// Whether completions wait in the kernel for this thread to come by.
    pub(super) fn has_task_work(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Whether completions are there to be reaped.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Watches without a system call until there are completions, or some wait in the kernel for
    /// this thread; false when `end` came first.
    pub(super) fn watch_until(&mut self, end: Duration) -> bool {
        /// A look costs less than the clock.
        const LOOKS: u32 = 16;
        loop {
            for _ in 0..LOOKS {
                if self.has_completions() || self.has_task_work() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if sys::now() >= end {
                return false;
            }
        }
    }

    /// Submits what is queued and, if `patience` is not zero, waits for a completion for so long
    /// (`None`: for ever).
    pub(super) fn enter(&mut self, patience: Option<Duration>) -> Result<(), DriverLost> {
        self.flush_backlog();
        self.enters += 1;
        if self.ring.submission().cq_overflow() {
            self.overflows += 1;
        }
        // While a backlog remains, another submission must follow at once.
        let patience = if self.backlog.is_empty() { patience } else { Some(Duration::ZERO) };
        let result = match patience {
            Some(Duration::ZERO) => self.ring.submit(),
            Some(time) => {
                let time = types::Timespec::from(time);
                let args = types::SubmitArgs::new().timespec(&time);
                self.ring.submitter().submit_with_args(1, &args)
            }
            None => self.ring.submit_and_wait(1),
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // ETIME: the wait is over. EINTR: a signal. EBUSY and EAGAIN: completions must be reaped
            // before more is accepted; the entries stay queued.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(DriverLost { call: "io_uring_enter", error }),
        }
    }

    /// Takes the next completion that has arrived.
    pub(super) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }
}

/// The kernel gives the rings of a process that has died back only a while after it: a program that is
/// started again at once may find no room until then.
fn build_patiently(is_chained: bool, queues: Queues) -> io::Result<(IoUring, &'static str)> {
    let until = Instant::now() + MEMORY_PATIENCE;
    loop {
        match build(is_chained, queues) {
            Err(error) if is_out_of_memory(&error) && Instant::now() < until => {
                std::thread::sleep(MEMORY_PAUSE);
            }
            built => return built,
        }
    }
}

pub(super) fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

/// Builds a ring with the best flags the kernel knows.
///
/// A ring of splice chains has COOP_TASKRUN: a worker then runs the next link of a chain by itself.
/// Any other has DEFER_TASKRUN: completions are posted only when this thread asks for them, in
/// batches, and nothing interrupts it in between.
fn build(is_chained: bool, queues: Queues) -> io::Result<(IoUring, &'static str)> {
    let mut base = IoUring::builder();
    base.dontfork().setup_clamp().setup_cqsize(queues.completion).setup_submit_all();
    base.setup_r_disabled();
    let mut deferred = base.clone();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut lean = deferred.clone();
    lean.setup_no_sqarray();
    base.setup_coop_taskrun().setup_taskrun_flag();
    let mut single = base.clone();
    single.setup_single_issuer();
    let mut single_lean = single.clone();
    single_lean.setup_no_sqarray();
    let attempts = [
        (lean, "SINGLE_ISSUER DEFER_TASKRUN TASKRUN_FLAG SUBMIT_ALL CQSIZE CLAMP NO_SQARRAY"),
        (deferred, "SINGLE_ISSUER DEFER_TASKRUN TASKRUN_FLAG SUBMIT_ALL CQSIZE CLAMP"),
        (single_lean, "SINGLE_ISSUER COOP_TASKRUN TASKRUN_FLAG SUBMIT_ALL CQSIZE CLAMP NO_SQARRAY"),
        (single, "SINGLE_ISSUER COOP_TASKRUN TASKRUN_FLAG SUBMIT_ALL CQSIZE CLAMP"),
        (base, "COOP_TASKRUN TASKRUN_FLAG SUBMIT_ALL CQSIZE CLAMP"),
    ];
    let mut last = None;
    for (builder, flags) in attempts.into_iter().skip(if is_chained { 2 } else { 0 }) {
        match builder.build(queues.submission) {
            Ok(ring) => return Ok((ring, flags)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.expect("every attempt either succeeded or left its error"))
}

fn check_opcodes(ring: &IoUring) -> Result<(), RingError> {
    use io_uring::opcode;
    let mut probe = io_uring::Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| RingError::Setup(RingRefusal::from_setup(error)))?;
    let needed = [
        ("IORING_OP_ACCEPT", opcode::Accept::CODE),
        ("IORING_OP_RECV", opcode::Recv::CODE),
        ("IORING_OP_SEND", opcode::Send::CODE),
        ("IORING_OP_SPLICE", opcode::Splice::CODE),
        ("IORING_OP_POLL_ADD", opcode::PollAdd::CODE),
        ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(RingError::Opcode(name)),
        None => Ok(()),
    }
}
