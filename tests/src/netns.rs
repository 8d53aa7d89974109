//! Networks of a test's own: three network namespaces in a row, public – gateway – client, with a
//! pair of veth devices between neighbours. They can be slowed (tbf), filtered (nftables) and cut
//! (a device taken down), which needs root.
//!
//! ```text
//!  public 10.77.1.2 ──── 10.77.1.1 gateway 10.77.2.1 ──── 10.77.2.2 client
//! ```
//!
//! Namespaces have the number of the test's process in their names. They go when the [`Net`] drops;
//! those of a run that was killed go, with whatever still runs in them, when the next run begins.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The gateway as the public sees it.
pub const GATEWAY_OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 1, 1));
/// The gateway as the client sees it.
pub const GATEWAY_INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 1));
/// Another address for the gateway, free until a test gives it away.
pub const GATEWAY_MOVED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 2, 9));

/// Where named namespaces are.
const NAMED_DIR: &str = "/run/netns";
const PREFIX: &str = "zproxy-test-";
/// The variable that makes a machine without namespaces a failure: `required`.
const REQUIRED: &str = "ZPROXY_TESTS_NETNS";

/// One network namespace.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
}

impl Place {
    /// Runs `act` on a thread inside, so that every socket and every thread it makes belongs here.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let run = || {
            let path = format!("{NAMED_DIR}/{}", self.name);
            let namespace = File::open(&path).unwrap_or_else(|why| panic!("{path}: {why}"));
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|why| panic!("entering {path}: {why}"));
            act()
        };
        let ended = thread::scope(|scope| scope.spawn(run).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The words before a program's name that make it run inside. They keep its process id.
    #[must_use]
    pub fn launcher(&self) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name].map(Into::into).into()
    }

    /// As [`Place::launcher`], with shell commands before, in a mount namespace of the program's own:
    /// what they mount is gone with the program.
    #[must_use]
    pub fn launcher_after(&self, commands: &str) -> Vec<OsString> {
        let mut words = self.launcher();
        words.extend(["sh", "-c", &format!("{commands} && exec \"$0\" \"$@\"")].map(Into::into));
        words
    }

    /// Runs `ip` here.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, words: &str) {
        run(&format!("ip -n {} {words}", self.name), "").unwrap_or_else(|why| panic!("{why}"));
    }

    /// Chooses the congestion control of what is opened here from now on; false when this kernel does not
    /// have it.
    #[must_use]
    pub fn congestion_control(&self, name: &str) -> bool {
        // It is the network's of the thread that writes.
        self.within(|| fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name).is_ok())
    }

    /// What the kernel tells of each connection from here to a port, in the words of `ss(8)`.
    ///
    /// # Panics
    /// When there is no `ss`.
    #[must_use]
    pub fn conns_to(&self, port: u16) -> Vec<String> {
        let words = format!("ss -N {} -tinHO state established dport = {port}", self.name);
        let told = run(&words, "").unwrap_or_else(|why| panic!("{why}"));
        told.lines().map(ToOwned::to_owned).collect()
    }

    /// Slows what leaves through a device.
    ///
    /// # Panics
    /// When that is not to be had.
    pub fn slow(&self, device: &str, megabits: u32) {
        let shape = format!("root tbf rate {megabits}mbit burst 256kb latency 50ms");
        let words = format!("tc -n {} qdisc replace dev {device} {shape}", self.name);
        run(&words, "").unwrap_or_else(|why| panic!("{why}"));
    }

    /// Replaces all rules for what comes in and for what goes out.
    ///
    /// # Panics
    /// When nftables refuses them.
    pub fn filter(&self, incoming: &str, outgoing: &str) {
        let script = format!(
            "table inet chaos {{}}\nflush table inet chaos\ntable inet chaos {{\n\
             chain incoming {{\ntype filter hook input priority 0\n{incoming}\n}}\n\
             chain outgoing {{\ntype filter hook output priority 0\n{outgoing}\n}}\n}}\n"
        );
        let words = format!("ip netns exec {} nft -f -", self.name);
        run(&words, &script).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Lets everything pass again.
    pub fn unfilter(&self) {
        self.filter("", "");
    }
}

/// Three namespaces in a row.
#[derive(Debug)]
pub struct Net {
    /// Where visitors are.
    pub public: Place,
    /// Where the gateway is.
    pub gateway: Place,
    /// Where the client and the LocalServer are.
    pub client: Place,
}

/// The gateway's device towards the public.
pub const OUTSIDE: &str = "outside";
/// The gateway's device towards the client.
pub const INSIDE: &str = "inside";
/// The only device of the public, and of the client.
pub const UPLINK: &str = "uplink";

impl Net {
    /// A network, or nothing, with a line that says so, where namespaces are not permitted.
    ///
    /// # Panics
    /// When there are none and `ZPROXY_TESTS_NETNS` is `required`, or when the network cannot be made
    /// though namespaces are permitted.
    #[must_use]
    pub fn open() -> Option<Self> {
        static SWEEP: Once = Once::new();
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        static TURN: Mutex<()> = Mutex::new(());
        SWEEP.call_once(sweep);
        // `ip netns add` prepares a directory when it is the first.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, serial) = (std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let place = |role| Place { name: format!("{PREFIX}{own}-{serial}-{role}") };
        let net = Self { public: place("p"), gateway: place("g"), client: place("c") };
        if let Err(why) = run(&format!("ip netns add {}", net.public.name), "") {
            let is_required = std::env::var_os(REQUIRED).is_some_and(|word| word == "required");
            assert!(!is_required, "{REQUIRED}=required, but there are no namespaces: {why}");
            // Past the test harness, which shows only what failing tests print.
            let _ = writeln!(std::io::stderr(), "skipped: no network namespaces here: {why}");
            return None;
        }
        for place in [&net.gateway, &net.client] {
            run(&format!("ip netns add {}", place.name), "").unwrap_or_else(|why| panic!("{why}"));
        }
        drop(turn);
        for (place, device, own, peer) in [
            (&net.public, OUTSIDE, "10.77.1.2/24", "10.77.1.1/24"),
            (&net.client, INSIDE, "10.77.2.2/24", "10.77.2.1/24"),
        ] {
            let far = &net.gateway;
            place.ip(&format!("link add {UPLINK} type veth peer name {device} netns {}", far.name));
            place.ip(&format!("addr add {own} dev {UPLINK}"));
            far.ip(&format!("addr add {peer} dev {device}"));
            place.ip(&format!("link set {UPLINK} up"));
            far.ip(&format!("link set {device} up"));
        }
        for place in net.places() {
            place.ip("link set lo up");
            // Not the machine's choice. BBR takes what the kernel drops for want of memory, when hundreds
            // are slow, for a policer, and may then be at 1 KB/s for two minutes; see `paces`.
            let is_chosen = place.congestion_control("cubic") || place.congestion_control("reno");
            assert!(is_chosen, "{}: the kernel has no reno", place.name);
        }
        Some(net)
    }

    /// Slows the way between gateway and client, both directions.
    pub fn slow(&self, megabits: u32) {
        self.gateway.slow(INSIDE, megabits);
        self.client.slow(UPLINK, megabits);
    }

    /// Takes the way between gateway and client down, or up again.
    pub fn cut(&self, is_cut: bool) {
        let state = if is_cut { "down" } else { "up" };
        self.gateway.ip(&format!("link set {INSIDE} {state}"));
    }

    /// Swallows everything between gateway and client, both ways, without a word to anybody.
    pub fn swallow(&self) {
        self.gateway.filter(&format!("iifname {INSIDE} drop"), &format!("oifname {INSIDE} drop"));
    }

    fn places(&self) -> [&Place; 3] {
        [&self.public, &self.gateway, &self.client]
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in self.places() {
            let _ = run(&format!("ip netns del {}", place.name), "");
        }
    }
}

/// Runs a command; the error says what it said.
fn run(command: &str, input: &str) -> Result<String, String> {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap_or_default();
    let failed = |why: &dyn std::fmt::Display| format!("{command}: {why}");
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|why| failed(&why))?;
    let mut stdin = child.stdin.take().expect("piped");
    // A command that wants no input may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|why| failed(&why))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
}

/// Removes what runs that were killed have left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMED_DIR) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let Some((owner, _)) = owner else { continue };
        if fs::exists(format!("/proc/{owner}")).unwrap_or(true) {
            continue;
        }
        let left = run(&format!("ip netns pids {name}"), "").unwrap_or_default();
        for pid in left.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = run(&format!("ip netns del {name}"), "");
    }
}
