//! What this kernel offers, asked of the kernel itself: the ring's flags, operations and
//! registrations, and the limits of pipes, descriptors, listeners and CPUs.
//!
//! Everything here is cold: it runs once at the start, and in full only for `zproxyd check`. A
//! probe makes what it needs, looks, and leaves nothing behind.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::str::FromStr;

use io_uring::{Builder, IoUring, Probe, opcode};

use crate::pipe::PIPE_SIZE;
use crate::sys;

/// A version of the kernel, as far as features go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The 6 of 6.18.
    pub major: u16,
    /// The 18 of 6.18.
    pub minor: u16,
}

impl Version {
    const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads the front of a release such as `6.18.44-generic`.
    fn from_str(release: &str) -> Result<Self, ()> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or(());
        Ok(Self { major: number()?, minor: number()? })
    }
}

/// The first kernel on which the ring driver works.
pub const RING_KERNEL_MIN: Version = Version::new(5, 19);

/// What a feature is to the ring driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it there is no ring.
    Required,
    /// The ring works without it, but less well.
    Better,
}

/// How it was found out whether a feature is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A ring was set up with the flag.
    SetUp,
    /// The kernel's list of operations (`IORING_REGISTER_PROBE`).
    OpcodeList,
    /// The feature bits that `io_uring_setup(2)` returns.
    FeatureBits,
    /// It was registered with a ring.
    Register,
    /// By the version of the kernel, because asking would need a connection.
    Version,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SetUp => "set up",
            Self::OpcodeList => "opcode list",
            Self::FeatureBits => "feature bit",
            Self::Register => "registered",
            Self::Version => "kernel version",
        })
    }
}

/// One feature of the ring, and whether this kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name for it.
    pub name: &'static str,
    /// The first kernel that has it.
    pub since: Version,
    /// What it is to the ring driver.
    pub need: Need,
    /// What happens without it.
    pub without: &'static str,
    /// How it was found out.
    pub method: Method,
    /// Whether it is there.
    pub found: bool,
}

/// A ring is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSupport {
    /// Every probed feature; the required ones are all found.
    pub features: Vec<Feature>,
}

impl RingSupport {
    /// The set-up flags in use, in the kernel's words.
    pub fn flags(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.features.iter().filter(|f| f.found && f.method == Method::SetUp);
        flags.map(|feature| feature.name)
    }
}

/// Why there is no ring, and who must act.
#[derive(Debug)]
pub enum RingRefusal {
    /// The kernel has no io_uring (`ENOSYS`).
    Absent,
    /// A seccomp filter refuses it, as the default profiles of containers do.
    Filtered,
    /// `kernel.io_uring_disabled` forbids it; 1 to all outside `kernel.io_uring_group`, 2 to all.
    Disabled(u8),
    /// It is refused and nothing says by whom (`EPERM`, `EACCES`): a security module, perhaps.
    Forbidden,
    /// The kernel is too old for a feature that the driver needs.
    Lacks {
        /// The feature.
        name: &'static str,
        /// The first kernel that has it.
        since: Version,
    },
    /// The kernel refuses the memory (`ENOMEM`), which it may count as locked memory.
    NoMemory,
    /// Out of descriptors.
    NoDescriptors,
    /// Anything else.
    Other(io::Error),
}

impl RingRefusal {
    /// Explains the failure of `io_uring_setup(2)` by what else this process can see.
    #[must_use]
    pub fn from_setup(error: io::Error) -> Self {
        Self::explain(error, disabled_sysctl(), has_seccomp_filter())
    }

    fn explain(error: io::Error, sysctl: Option<u8>, is_filtered: bool) -> Self {
        match error.raw_os_error() {
            // Some container engines answer ENOSYS rather than EPERM; the sysctl's presence tells
            // that the kernel itself has it.
            Some(libc::ENOSYS) if is_filtered && sysctl.is_some() => Self::Filtered,
            Some(libc::ENOSYS) => Self::Absent,
            Some(libc::EPERM | libc::EACCES) => match sysctl {
                Some(value @ 1..) => Self::Disabled(value),
                _ if is_filtered => Self::Filtered,
                _ => Self::Forbidden,
            },
            Some(libc::EINVAL) => {
                Self::Lacks { name: "IORING_SETUP_COOP_TASKRUN", since: RING_KERNEL_MIN }
            }
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptors,
            _ => Self::Other(error),
        }
    }
}

/// One line: why, and what to change.
impl fmt::Display for RingRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(
                f,
                "this kernel has no io_uring (ENOSYS); use Linux {RING_KERNEL_MIN} or later, built \
                 with CONFIG_IO_URING"
            ),
            Self::Filtered => f.write_str(
                "a seccomp filter refuses io_uring; allow io_uring_setup, io_uring_enter and \
                 io_uring_register in the profile of the container or service",
            ),
            Self::Disabled(1) => f.write_str(
                "the sysctl kernel.io_uring_disabled=1 forbids io_uring to this user; set it to 0, \
                 or put the user into the group of kernel.io_uring_group",
            ),
            Self::Disabled(value) => write!(
                f,
                "the sysctl kernel.io_uring_disabled={value} forbids io_uring; set it to 0"
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden (EPERM), neither by sysctl nor by seccomp; ask the security \
                 module (SELinux, AppArmor) or the sandbox around this process",
            ),
            Self::Lacks { name, since } => write!(
                f,
                "this kernel's io_uring lacks {name} (Linux {since}); use Linux {RING_KERNEL_MIN} \
                 or later"
            ),
            Self::NoMemory => f.write_str(
                "the kernel refuses the memory for a ring (ENOMEM); raise LimitMEMLOCK \
                 (ulimit -l; every thread has a ring of about 384 KiB) or the memory limit of the \
                 control group",
            ),
            Self::NoDescriptors => {
                f.write_str("no descriptor is left for a ring; raise LimitNOFILE (ulimit -n)")
            }
            Self::Other(error) => write!(f, "io_uring_setup failed: {error}"),
        }
    }
}

impl std::error::Error for RingRefusal {}

/// Entries of a probing ring; it never carries an operation.
const PROBE_ENTRIES: u32 = 8;

/// Asks the kernel for everything that the ring driver uses.
///
/// # Errors
/// Why there can be no ring, explained.
pub fn ring_support() -> Result<RingSupport, RingRefusal> {
    let features = ring_features().map_err(RingRefusal::from_setup)?;
    match features.iter().find(|feature| feature.need == Need::Required && !feature.found) {
        Some(&Feature { name, since, .. }) => Err(RingRefusal::Lacks { name, since }),
        None => Ok(RingSupport { features }),
    }
}

/// Every feature of the ring that the driver uses, found or not.
///
/// # Errors
/// When not even the plainest ring can be set up.
pub fn ring_features() -> io::Result<Vec<Feature>> {
    let ring = IoUring::new(PROBE_ENTRIES)?;
    let mut features = set_up_features();
    features.extend(bit_features(&ring));
    features.extend(opcode_features(&ring)?);
    features.extend(register_features(&ring));
    features.extend(version_features());
    Ok(features)
}

/// A row of the tables below: name, first kernel, need, what happens without it.
type Known = (&'static str, Version, Need, &'static str);

fn feature((name, since, need, without): Known, method: Method, found: bool) -> Feature {
    Feature { name, since, need, without, method, found }
}

const NO_RING: &str = "no ring: epoll serves";

fn set_up_features() -> Vec<Feature> {
    let plain = IoUring::builder;
    let cq = plain().setup_cqsize(4 * PROBE_ENTRIES).clone();
    let clamp = plain().setup_clamp().clone();
    let submit_all = plain().setup_submit_all().clone();
    let coop = plain().setup_coop_taskrun().clone();
    let taskrun_flag = plain().setup_coop_taskrun().setup_taskrun_flag().clone();
    let single = plain().setup_single_issuer().clone();
    let no_sqarray = plain().setup_no_sqarray().clone();
    // Flags are looked at first: whoever lacks memory knew them.
    let can = |builder: &Builder| {
        let refusal = builder.build(PROBE_ENTRIES).err().and_then(|error| error.raw_os_error());
        refusal != Some(libc::EINVAL)
    };
    let rows: [(Known, Builder); 7] = [
        (("IORING_SETUP_CQSIZE", Version::new(5, 5), Need::Required, NO_RING), cq),
        (("IORING_SETUP_CLAMP", Version::new(5, 6), Need::Required, NO_RING), clamp),
        (("IORING_SETUP_SUBMIT_ALL", Version::new(5, 18), Need::Required, NO_RING), submit_all),
        (("IORING_SETUP_COOP_TASKRUN", Version::new(5, 19), Need::Required, NO_RING), coop),
        (("IORING_SETUP_TASKRUN_FLAG", Version::new(5, 19), Need::Required, NO_RING), taskrun_flag),
        (
            (
                "IORING_SETUP_SINGLE_ISSUER",
                Version::new(6, 0),
                Need::Better,
                "the ring takes a lock that nobody contends for",
            ),
            single,
        ),
        (
            (
                "IORING_SETUP_NO_SQARRAY",
                Version::new(6, 6),
                Need::Better,
                "one more memory access per operation",
            ),
            no_sqarray,
        ),
    ];
    rows.into_iter().map(|(known, flag)| feature(known, Method::SetUp, can(&flag))).collect()
}

fn bit_features(ring: &IoUring) -> Vec<Feature> {
    let bits = ring.params();
    let rows: [(Known, bool); 3] = [
        (
            ("IORING_FEAT_NODROP", Version::new(5, 5), Need::Required, NO_RING),
            bits.is_feature_nodrop(),
        ),
        (
            ("IORING_FEAT_FAST_POLL", Version::new(5, 7), Need::Required, NO_RING),
            bits.is_feature_fast_poll(),
        ),
        (
            ("IORING_FEAT_EXT_ARG", Version::new(5, 11), Need::Required, NO_RING),
            bits.is_feature_ext_arg(),
        ),
    ];
    rows.into_iter().map(|(known, found)| feature(known, Method::FeatureBits, found)).collect()
}

fn opcode_features(ring: &IoUring) -> io::Result<Vec<Feature>> {
    let mut list = Probe::new();
    ring.submitter().register_probe(&mut list)?;
    let rows = [
        ("IORING_OP_ACCEPT", Version::new(5, 5), opcode::Accept::CODE),
        ("IORING_OP_RECV", Version::new(5, 6), opcode::Recv::CODE),
        ("IORING_OP_SEND", Version::new(5, 6), opcode::Send::CODE),
        ("IORING_OP_SPLICE", Version::new(5, 7), opcode::Splice::CODE),
        ("IORING_OP_POLL_ADD", Version::new(5, 1), opcode::PollAdd::CODE),
        ("IORING_OP_ASYNC_CANCEL", Version::new(5, 5), opcode::AsyncCancel::CODE),
    ];
    let found = rows.into_iter().map(|(name, since, code)| {
        let known = (name, since, Need::Required, NO_RING);
        feature(known, Method::OpcodeList, list.is_supported(code))
    });
    Ok(found.collect())
}

fn register_features(ring: &IoUring) -> Vec<Feature> {
    // Zeroes ask for the present limits and change nothing.
    let has_max_workers = ring.submitter().register_iowq_max_workers(&mut [0, 0]).is_ok();
    let rows: [(Known, bool); 3] = [
        (
            ("IORING_REGISTER_IOWQ_MAX_WORKERS", Version::new(5, 15), Need::Required, NO_RING),
            has_max_workers,
        ),
        (
            (
                "IORING_REGISTER_IOWQ_AFF",
                Version::new(5, 14),
                Need::Better,
                "the ring's kernel threads roam over all CPUs",
            ),
            has_worker_affinity(),
        ),
        (
            ("IORING_REGISTER_PBUF_RING", Version::new(5, 19), Need::Required, NO_RING),
            has_buffer_ring(),
        ),
    ];
    rows.into_iter().map(|(known, found)| feature(known, Method::Register, found)).collect()
}

/// On a thread of its own: the affinity belongs to the thread's workers and would outlive the ring.
fn has_worker_affinity() -> bool {
    let probe = || -> io::Result<()> {
        let cpus = sys::allowed_cpus()?;
        let cpu = *cpus.first().ok_or(io::ErrorKind::NotFound)?;
        let ring = IoUring::new(PROBE_ENTRIES)?;
        ring.submitter().register_iowq_aff(&sys::cpu_set(cpu))
    };
    std::thread::spawn(probe).join().is_ok_and(|probed| probed.is_ok())
}

/// Memory for a group of provided buffers, aligned as the kernel demands.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn has_buffer_ring() -> bool {
    const BUFS: u16 = 8;
    const GROUP: u16 = 0;
    let page = Box::new(Page([0; 4096]));
    let Ok(ring) = IoUring::new(PROBE_ENTRIES) else { return false };
    let address = page.0.as_ptr() as u64;
    // SAFETY: the page is aligned, holds 8 entries of 16 bytes, and is dropped after the group was
    // unregistered or the registration failed.
    let registered =
        unsafe { ring.submitter().register_buf_ring_with_flags(address, BUFS, GROUP, 0) };
    if registered.is_ok() && ring.submitter().unregister_buf_ring(GROUP).is_err() {
        // The kernel would keep the address: the page must stay.
        Box::leak(page);
    }
    registered.is_ok()
}

fn version_features() -> Vec<Feature> {
    let rows: [Known; 3] = [
        ("multishot accept", Version::new(5, 19), Need::Required, NO_RING),
        ("multishot poll", Version::new(5, 13), Need::Required, NO_RING),
        ("IORING_ASYNC_CANCEL_ANY", Version::new(5, 19), Need::Required, NO_RING),
    ];
    let kernel = kernel_version();
    // A kernel that does not tell its version gets the benefit of the doubt: the driver notices.
    let found = |since: Version| kernel.is_none_or(|kernel| kernel >= since);
    rows.into_iter().map(|known| feature(known, Method::Version, found(known.1))).collect()
}

/// The release of the kernel (`uname -r`).
#[must_use]
pub fn kernel_release() -> Option<String> {
    read("/proc/sys/kernel/osrelease")
}

/// The version of the kernel.
#[must_use]
pub fn kernel_version() -> Option<Version> {
    kernel_release()?.parse().ok()
}

/// `kernel.io_uring_disabled`, where there is one (Linux 6.6).
#[must_use]
pub fn disabled_sysctl() -> Option<u8> {
    number("/proc/sys/kernel/io_uring_disabled")
}

/// Whether a seccomp filter is on this process.
#[must_use]
pub fn has_seccomp_filter() -> bool {
    status_field("Seccomp:").is_some_and(|mode| mode == "2")
}

/// A soft and a hard limit; none means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// As far as the process may raise it.
    pub hard: Option<u64>,
}

/// Limits of the kernel, the process and the control group. None: this system does not tell.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `kernel.io_uring_disabled`.
    pub io_uring_disabled: Option<u8>,
    /// `kernel.io_uring_group`: the group that may use a ring when the former is 1; -1 is none.
    pub io_uring_group: Option<i64>,
    /// Whether a seccomp filter is on this process.
    pub has_seccomp_filter: bool,
    /// `fs.pipe-max-size` in bytes.
    pub pipe_size_max: Option<u64>,
    /// `fs.pipe-user-pages-soft` in pages of 4 KiB per user; 0 is no limit.
    pub pipe_pages_soft: Option<u64>,
    /// `fs.pipe-user-pages-hard` in pages of 4 KiB per user; 0 is no limit.
    pub pipe_pages_hard: Option<u64>,
    /// Whether the two limits above do not bind this process (CAP_SYS_RESOURCE or CAP_SYS_ADMIN).
    pub is_exempt_from_pipe_pages: bool,
    /// What a pipe of [`PIPE_SIZE_WANTED`] bytes really got, in bytes.
    pub pipe_size_got: Result<usize, i32>,
    /// Descriptors of this process.
    pub descriptors: Limit,
    /// Locked memory of this process in bytes.
    pub locked_memory: Limit,
    /// Whether the limit above does not bind this process (CAP_IPC_LOCK).
    pub is_exempt_from_locked_memory: bool,
    /// `fs.nr_open`: as far as root may raise the descriptors of a process.
    pub descriptors_per_process_max: Option<u64>,
    /// `fs.file-max`: open files of the whole system.
    pub files_max: Option<u64>,
    /// `net.core.somaxconn`: connections that may wait in one listener.
    pub listen_backlog_max: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog_max: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<(u16, u16)>,
    /// The CPUs that the control group allows (`0-3`), where it says so.
    pub cgroup_cpus: Option<String>,
    /// The CPU time that the control group allows, in CPUs; none: no quota.
    pub cgroup_cpu_quota: Option<f64>,
}

/// The size that the drivers want for their pipes, in bytes.
pub const PIPE_SIZE_WANTED: usize = PIPE_SIZE;

/// What a ring may count as locked memory, in bytes: its two queues, and some. Linux counts it for
/// who has no CAP_IPC_LOCK before 5.12, and again since 6.14 or so.
pub const RING_LOCKED_SIZE: u64 = 384 << 10;

/// Reads every limit.
#[must_use]
pub fn limits() -> Limits {
    let (soft, hard) = sys::descriptor_limit();
    let finite = |limit| (limit != libc::RLIM_INFINITY).then_some(limit);
    Limits {
        io_uring_disabled: disabled_sysctl(),
        io_uring_group: number("/proc/sys/kernel/io_uring_group"),
        has_seccomp_filter: has_seccomp_filter(),
        pipe_size_max: number("/proc/sys/fs/pipe-max-size"),
        pipe_pages_soft: number("/proc/sys/fs/pipe-user-pages-soft"),
        pipe_pages_hard: number("/proc/sys/fs/pipe-user-pages-hard"),
        is_exempt_from_pipe_pages: has_capability(CAP_SYS_ADMIN)
            || has_capability(CAP_SYS_RESOURCE),
        pipe_size_got: probe_pipe_size(),
        descriptors: Limit { soft: finite(soft), hard: finite(hard) },
        locked_memory: process_limit("Max locked memory"),
        is_exempt_from_locked_memory: has_capability(CAP_IPC_LOCK),
        descriptors_per_process_max: number("/proc/sys/fs/nr_open"),
        files_max: number("/proc/sys/fs/file-max"),
        listen_backlog_max: number("/proc/sys/net/core/somaxconn"),
        syn_backlog_max: number("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
        local_ports: local_ports(),
        cgroup_cpus: cgroup_file("cpuset.cpus.effective"),
        cgroup_cpu_quota: cgroup_file("cpu.max").and_then(|text| parse_quota(&text)),
    }
}

fn probe_pipe_size() -> Result<usize, i32> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(0);
    let (from, _into) = sys::pipe().map_err(errno)?;
    sys::set_pipe_size(from.as_raw_fd(), PIPE_SIZE).map_err(errno)
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: FromStr>(path: &str) -> Option<T> {
    read(path)?.parse().ok()
}

fn local_ports() -> Option<(u16, u16)> {
    let text = read("/proc/sys/net/ipv4/ip_local_port_range")?;
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

fn status_field(name: &str) -> Option<String> {
    let status = read("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

fn has_capability(capability: u32) -> bool {
    let effective = status_field("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    effective.is_some_and(|all| all & 1 << capability != 0)
}

/// A row of `/proc/self/limits`.
fn process_limit(name: &str) -> Limit {
    let text = read("/proc/self/limits").unwrap_or_default();
    let row = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    let mut values = row.split_whitespace().map(|value| value.parse().ok());
    Limit { soft: values.next().flatten(), hard: values.next().flatten() }
}

/// A file of this process's control group (version 2), or of the nearest one above that has it.
fn cgroup_file(name: &str) -> Option<String> {
    let groups = read("/proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut group = group.trim_matches('/');
    loop {
        if let Some(text) = read(&format!("/sys/fs/cgroup/{group}/{name}")) {
            return Some(text);
        }
        if group.is_empty() {
            return None;
        }
        group = group.rsplit_once('/').map_or("", |(above, _)| above);
    }
}

/// `cpu.max`: quota and period in microseconds, or `max`.
fn parse_quota(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: i32, sysctl: Option<u8>, is_filtered: bool) -> RingRefusal {
        RingRefusal::explain(io::Error::from_raw_os_error(errno), sysctl, is_filtered)
    }

    /// Every refusal is one line that tells who refused and what to change.
    #[test]
    fn refusals_tell_what_to_change() {
        for (refusal, says) in [
            (refusal(libc::ENOSYS, None, false), "no io_uring"),
            (refusal(libc::ENOSYS, Some(0), true), "seccomp"),
            (refusal(libc::EPERM, Some(2), false), "io_uring_disabled=2"),
            (refusal(libc::EPERM, Some(1), true), "io_uring_group"),
            (refusal(libc::EPERM, Some(0), true), "seccomp"),
            (refusal(libc::EPERM, None, true), "seccomp"),
            (refusal(libc::EPERM, Some(0), false), "SELinux"),
            (refusal(libc::EINVAL, Some(0), false), "5.19"),
            (refusal(libc::ENOMEM, Some(0), false), "LimitMEMLOCK"),
            (refusal(libc::EMFILE, Some(0), false), "LimitNOFILE"),
            (refusal(libc::EIO, Some(0), false), "io_uring_setup failed"),
        ] {
            let line = refusal.to_string();
            assert!(line.contains(says) && !line.contains('\n'), "{line}");
        }
    }

    /// Releases of all shapes are read as far as features go by them, and compared by number.
    #[test]
    fn versions_parse_and_compare() {
        let version = |text: &str| text.parse::<Version>();
        assert_eq!(version("6.18.44-fc-v445"), Ok(Version::new(6, 18)));
        assert_eq!(version("5.4"), Ok(Version::new(5, 4)));
        assert!(version("6.1.0") < version("6.18.0"));
        assert!(version("nonsense").is_err());
    }

    /// Asked twice, the kernel gives the same answer, and has nothing that is newer than itself.
    #[test]
    fn probing_is_repeatable() {
        let first = ring_support().map_err(|refusal| refusal.to_string());
        let second = ring_support().map_err(|refusal| refusal.to_string());
        assert_eq!(first, second);
        if let Ok(support) = first {
            assert!(support.flags().any(|flag| flag == "IORING_SETUP_COOP_TASKRUN"));
            let since = support.features.iter().filter(|f| f.found).map(|f| f.since).max();
            assert!(since <= kernel_version(), "a kernel has only what it can have");
        }
    }

    /// Limits that every Linux has are found, and a pipe gets no more than the system allows.
    #[test]
    fn limits_are_found() {
        let limits = limits();
        assert!(limits.descriptors.soft.is_none_or(|soft| soft > 0));
        let (size_max, got) = (limits.pipe_size_max, limits.pipe_size_got);
        if let (Some(size_max), Ok(got), false) = (size_max, got, limits.is_exempt_from_pipe_pages)
        {
            assert!(got as u64 <= size_max.max(PIPE_SIZE as u64));
        }
        assert!(limits.local_ports.is_none_or(|(first, last)| first < last));
    }

    /// The quota of a control group is read in CPUs.
    #[test]
    fn quotas_parse() {
        assert_eq!(parse_quota("150000 100000"), Some(1.5));
        assert_eq!(parse_quota("max 100000"), None);
    }
}
