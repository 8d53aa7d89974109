//! What `/proc` says about a process: descriptors, threads, memory, listeners.

use std::collections::HashSet;
use std::fs;

/// The open descriptors of a process, without its three standard streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// Sockets of any kind.
    pub sockets: usize,
    /// Ends of pipes.
    pub pipes: usize,
    /// Everything else: files, eventfds, rings.
    pub others: usize,
}

impl Descriptors {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.sockets + self.pipes + self.others
    }
}

/// The open descriptors of a process now.
#[must_use]
pub fn descriptors(pid: u32) -> Descriptors {
    let mut count = Descriptors::default();
    for (number, target) in links(pid) {
        match target {
            _ if number <= 2 => {}
            target if target.starts_with("socket:") => count.sockets += 1,
            target if target.starts_with("pipe:") => count.pipes += 1,
            _ => count.others += 1,
        }
    }
    count
}

fn links(pid: u32) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?.to_str()?.to_owned()))
        })
        .collect()
}

/// A line of `/proc/PID/status` as a number, without its unit.
fn status(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
}

/// The threads of a process that serve; workers that the kernel itself keeps for a ring come and go
/// and are not counted.
#[must_use]
pub fn threads(pid: u32) -> usize {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let names = entries.flatten().map(|entry| fs::read_to_string(entry.path().join("comm")));
    names.flatten().filter(|name| !name.starts_with("iou-")).count()
}

/// A line of `status` of every thread of a process, the kernel's workers for a ring included.
#[must_use]
pub fn of_every_thread(pid: u32, key: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let texts = entries.flatten().map(|entry| fs::read_to_string(entry.path().join("status")));
    let line = |text: String| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    texts.flatten().filter_map(line).collect()
}

/// The resident memory of a process in bytes.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    status(pid, "VmRSS").unwrap_or(0) * 1_024
}

/// One TCP socket of this machine.
struct Row {
    local_port: u16,
    state: u8,
    inode: String,
}

const ESTABLISHED: u8 = 0x01;
const LISTEN: u8 = 0x0a;

/// As the network namespace of that process has them.
fn tcp_rows(pid: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        rows.extend(text.lines().skip(1).filter_map(row));
    }
    rows
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    Some(Row {
        local_port: u16::from_str_radix(port, 16).ok()?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        inode: (*fields.get(9)?).to_owned(),
    })
}

fn own_rows(pid: u32) -> impl Iterator<Item = Row> {
    let inodes: HashSet<String> = links(pid)
        .into_iter()
        .filter_map(|(_, target)| {
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    tcp_rows(pid).into_iter().filter(move |row| inodes.contains(&row.inode))
}

/// The ports on which a process listens, once per listener, in order.
#[must_use]
pub fn listeners(pid: u32) -> Vec<u16> {
    let mut ports: Vec<u16> =
        own_rows(pid).filter(|row| row.state == LISTEN).map(|row| row.local_port).collect();
    ports.sort_unstable();
    ports
}

/// The established connections of a process at one of its own ports.
#[must_use]
pub fn established_at(pid: u32, port: u16) -> usize {
    own_rows(pid).filter(|row| row.state == ESTABLISHED && row.local_port == port).count()
}

/// The connections of a process, of whatever state, that it has dialled itself: at none of the ports
/// on which it listens.
#[must_use]
pub fn dialled(pid: u32) -> usize {
    let listening = listeners(pid);
    own_rows(pid).filter(|row| !listening.contains(&row.local_port)).count()
}

/// The cores this process may use.
#[must_use]
pub fn cores() -> Vec<usize> {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let mut cores = Vec::new();
    for range in list.unwrap_or("0").trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cores.extend(first..=last);
        }
    }
    cores
}
