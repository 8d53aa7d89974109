//! `zproxyd check`: what the kernel, the limits and the configuration are good for, with a verdict
//! and an advice each. It starts nothing and leaves nothing behind.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use zproxy_io::probe::{self, Feature, Limits, RING_KERNEL_MIN, RING_LOCKED_SIZE, RingRefusal};
use zproxy_io::{DriverConfig, Epoll, ListenOptions, Open, Uring, sock};
use zproxy_ops::report::{Report, Verdict};
use zproxy_ops::token::{self, TokenSource};
use zproxy_ops::values::Backend;
use zproxy_ops::{cores, state};

use crate::config::Settings;

/// Fewer descriptors than this serve fewer flows than a gateway is expected to.
const DESCRIPTORS_WANTED: u64 = 65_536;
/// Listeners with less room than this refuse connections in a burst.
const BACKLOG_WANTED: u64 = 4096;
/// A range of local ports smaller than this limits the flows to one LocalServer.
const LOCAL_PORTS_WANTED: u32 = 16_384;
/// Fewer pipes of full size than this serve fewer flows at full speed.
const FULL_PIPES_WANTED: u64 = 64;

/// Prints the report on stdout, whatever it says; 0 when nothing fails, else 1.
#[must_use]
pub fn run(settings: &Settings) -> ExitCode {
    let report = report(settings);
    // Nobody is left to tell when stdout is gone.
    let _ = writeln!(io::stdout(), "{report}");
    report.code().into()
}

/// The report itself.
#[must_use]
pub fn report(settings: &Settings) -> Report {
    let mut report = Report::default();
    let limits = probe::limits();
    add_kernel(&mut report, &limits);
    add_backend(&mut report, settings);
    add_ring_features(&mut report);
    add_pipes(&mut report, &limits);
    add_descriptors(&mut report, &limits);
    add_locked_memory(&mut report, settings, &limits);
    add_network(&mut report, &limits);
    add_cpus(&mut report, settings, &limits);
    add_addresses(&mut report, settings);
    add_files(&mut report, settings);
    report
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

fn add_kernel(report: &mut Report, limits: &Limits) {
    let release = shown(probe::kernel_release());
    match probe::kernel_version() {
        Some(version) if version < RING_KERNEL_MIN => {
            let advice = format!("epoll only; Linux {RING_KERNEL_MIN} or later has the ring");
            report.add("kernel", release, Verdict::Warn, advice);
        }
        _ => report.add("kernel", release, Verdict::Ok, ""),
    }
    let (value, name) = (limits.io_uring_disabled, "kernel.io_uring_disabled");
    match value {
        None | Some(0) => report.add(name, shown(value), Verdict::Ok, "the ring is allowed"),
        Some(1) => {
            let group = shown(limits.io_uring_group);
            let advice =
                format!("only root and group {group} (kernel.io_uring_group) have the ring");
            report.add(name, "1", Verdict::Warn, advice);
        }
        Some(value) => {
            let advice = "epoll only; sysctl kernel.io_uring_disabled=0 allows the ring";
            report.add(name, value.to_string(), Verdict::Warn, advice);
        }
    }
    let (value, advice) = match limits.has_seccomp_filter {
        true => ("yes", "must allow io_uring_setup, io_uring_enter and io_uring_register"),
        false => ("no", ""),
    };
    report.add("seccomp filter", value, Verdict::Ok, advice);
}

/// What serving would use. The driver itself is asked, as it is when serving starts.
fn add_backend(report: &mut Report, settings: &Settings) {
    let asked = settings.data.backend;
    let relay = settings.data.relay;
    let config = DriverConfig { relay, ..DriverConfig::default() };
    let epoll = || Epoll::open(&config).map(drop);
    // As many at a time as serving needs: one for each data core, and one for the control thread.
    let threads = settings.data.cores.len() + 1;
    let ring = || match probe::ring_support() {
        Ok(_) => (0..threads)
            .map(|_| Uring::new(&config))
            .collect::<Result<Vec<_>, _>>()
            .map(|drivers| format!("flags {}", drivers[0].ring_flags()))
            .map_err(|error| error.to_string()),
        Err(refusal) => Err(refusal.to_string()),
    };
    let (value, verdict, advice) = match asked {
        Backend::Epoll => match epoll() {
            Ok(()) => ("epoll", Verdict::Ok, "as --backend says".to_owned()),
            Err(error) => ("none", Verdict::Fail, error.to_string()),
        },
        Backend::Uring => match ring() {
            Ok(flags) => ("uring", Verdict::Ok, flags),
            Err(why) => ("none", Verdict::Fail, format!("{why}; or use --backend auto")),
        },
        Backend::Auto => match (ring(), epoll()) {
            (Ok(flags), _) => ("uring", Verdict::Ok, flags),
            (Err(why), Ok(())) => ("epoll", Verdict::Warn, why),
            (Err(why), Err(error)) => ("none", Verdict::Fail, format!("{why}; {error}")),
        },
    };
    report.add("backend", value, verdict, advice);
}

fn add_ring_features(report: &mut Report) {
    match probe::ring_features() {
        Ok(features) => features.iter().for_each(|feature| add_feature(report, feature)),
        Err(error) => {
            let why = RingRefusal::from_setup(error).to_string();
            report.add("io_uring_setup", "refused", Verdict::Warn, why);
        }
    }
}

fn add_feature(report: &mut Report, feature: &Feature) {
    let Feature { name, since, without, method, found, .. } = feature;
    let value = format!("{} ({method})", if *found { "yes" } else { "no" });
    if *found {
        report.add(*name, value, Verdict::Ok, format!("since Linux {since}"));
    } else {
        // Not a failure: epoll serves, or the ring does with less.
        report.add(*name, value, Verdict::Warn, format!("{without}; Linux {since} has it"));
    }
}

fn add_pipes(report: &mut Report, limits: &Limits) {
    let wanted = probe::PIPE_SIZE_WANTED;
    let name = "fs.pipe-max-size";
    match limits.pipe_size_max {
        Some(max) if max < wanted as u64 => {
            let advice = format!("bulk flows are slower; sysctl fs.pipe-max-size={wanted}");
            report.add(name, max.to_string(), Verdict::Warn, advice);
        }
        max => report.add(name, shown(max), Verdict::Ok, ""),
    }
    let name = format!("a pipe of {} KiB", wanted >> 10);
    match limits.pipe_size_got {
        Ok(got) if got >= wanted => report.add(name, "yes", Verdict::Ok, ""),
        Ok(got) => {
            let advice = "bulk flows are slower; raise fs.pipe-max-size";
            report.add(name, format!("{} KiB", got >> 10), Verdict::Warn, advice);
        }
        Err(errno) => {
            let why = io::Error::from_raw_os_error(errno);
            let advice = format!("{why}; bulk flows are slower; raise fs.pipe-user-pages-soft");
            report.add(name, "refused", Verdict::Warn, advice);
        }
    }
    let pipe_pages = (wanted / 4096) as u64;
    for (name, pages) in [
        ("fs.pipe-user-pages-soft", limits.pipe_pages_soft),
        ("fs.pipe-user-pages-hard", limits.pipe_pages_hard),
    ] {
        match pages {
            None | Some(0) => report.add(name, shown(pages), Verdict::Ok, ""),
            Some(pages) if limits.is_exempt_from_pipe_pages => {
                let advice = "does not bind this process (CAP_SYS_RESOURCE or CAP_SYS_ADMIN)";
                report.add(name, pages.to_string(), Verdict::Ok, advice);
            }
            Some(pages) => {
                let full = pages / pipe_pages;
                let verdict = if full < FULL_PIPES_WANTED { Verdict::Warn } else { Verdict::Ok };
                let advice =
                    format!("{full} pipes of full size per user; 0 is no limit, more is faster");
                report.add(name, pages.to_string(), verdict, advice);
            }
        }
    }
}

fn add_descriptors(report: &mut Report, limits: &Limits) {
    let unlimited = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |l| l.to_string());
    let hard = limits.descriptors.hard;
    let value = format!("{} of {}", unlimited(limits.descriptors.soft), unlimited(hard));
    // The soft limit is raised to the hard one at the start, so only the latter counts.
    let flows = hard.map_or("unlimited".to_owned(), |hard| format!("about {}", hard / 2));
    let (verdict, advice) = if hard.is_some_and(|hard| hard < DESCRIPTORS_WANTED) {
        let more = format!("{flows} flows; LimitNOFILE={} or more has room for more", 1 << 20);
        (Verdict::Warn, more)
    } else {
        (Verdict::Ok, format!("{flows} flows"))
    };
    report.add("descriptors (nofile)", value, verdict, advice);
    let per_process = limits.descriptors_per_process_max;
    report.add("fs.nr_open", shown(per_process), Verdict::Ok, "the most LimitNOFILE can be");
    report.add("fs.file-max", shown(limits.files_max), Verdict::Ok, "");
}

/// One ring for each data core, one for the control thread, and one that is tried at the start.
fn add_locked_memory(report: &mut Report, settings: &Settings, limits: &Limits) {
    let rings = settings.data.cores.len() as u64 + 2;
    let wanted = rings * RING_LOCKED_SIZE;
    let name = "locked memory (memlock)";
    match limits.locked_memory.soft {
        None => report.add(name, "unlimited", Verdict::Ok, ""),
        Some(size) if limits.is_exempt_from_locked_memory => {
            report.add(name, size.to_string(), Verdict::Ok, "does not bind this process");
        }
        Some(size) if size >= wanted => {
            report.add(name, size.to_string(), Verdict::Ok, "enough for the rings");
        }
        Some(size) => {
            let advice = format!("maybe too little for {rings} rings; LimitMEMLOCK={wanted}");
            report.add(name, size.to_string(), Verdict::Warn, advice);
        }
    }
}

fn add_network(report: &mut Report, limits: &Limits) {
    for (name, value, burst) in [
        ("net.core.somaxconn", limits.listen_backlog_max, "connections that wait in a listener"),
        ("net.ipv4.tcp_max_syn_backlog", limits.syn_backlog_max, "handshakes under way"),
    ] {
        match value {
            // SYN cookies take over where the second one ends, so neither is a failure.
            Some(found) if found < BACKLOG_WANTED && name.ends_with("somaxconn") => {
                let advice = format!("bursts may be refused; sysctl {name}={BACKLOG_WANTED}");
                report.add(name, found.to_string(), Verdict::Warn, advice);
            }
            value => report.add(name, shown(value), Verdict::Ok, burst),
        }
    }
    let name = "net.ipv4.ip_local_port_range";
    match limits.local_ports {
        Some((first, last)) => {
            let count = u32::from(last.saturating_sub(first)) + 1;
            let verdict = if count < LOCAL_PORTS_WANTED { Verdict::Warn } else { Verdict::Ok };
            let advice = format!("{count} ports for public port 0 and for dialling one address");
            report.add(name, format!("{first}-{last}"), verdict, advice);
        }
        None => report.add(name, "unknown", Verdict::Ok, ""),
    }
}

fn add_cpus(report: &mut Report, settings: &Settings, limits: &Limits) {
    let used = &settings.data.cores;
    let value = cores::show(used);
    let distinct: std::collections::BTreeSet<_> = used.iter().collect();
    if distinct.len() < used.len() {
        let advice = "several data cores share a CPU; use fewer";
        report.add("data cores", value, Verdict::Warn, advice);
    } else {
        report.add("data cores", value, Verdict::Ok, "");
    }
    if let Some(cpus) = &limits.cgroup_cpus {
        report.add("cgroup CPUs", cpus.clone(), Verdict::Ok, "");
    }
    match limits.cgroup_cpu_quota {
        Some(quota) if quota < distinct.len() as f64 => {
            let advice = "less than the data cores could use; all of them stall when it is spent";
            report.add("cgroup CPU quota", format!("{quota}"), Verdict::Warn, advice);
        }
        quota => report.add(
            "cgroup CPU quota",
            quota.map_or("none".to_owned(), |quota| quota.to_string()),
            Verdict::Ok,
            "",
        ),
    }
}

fn add_addresses(report: &mut Report, settings: &Settings) {
    add_address(report, "ctl address", "--ctl-port or --bind", settings.ctl_addr);
    add_address(report, "proxy address", "--proxy-port or --bind", settings.proxy_addr);
    let public = SocketAddr::new(settings.public_bind, 0);
    add_address(report, "public address", "--public-bind", public);
    let value = settings.public_ports.map_or("unprivileged".to_owned(), |range| range.to_string());
    let advice = "ports that clients may ask for (--public-ports)";
    report.add("public ports", value, Verdict::Ok, advice);
}

fn add_address(report: &mut Report, name: &str, flags: &str, at: SocketAddr) {
    let shown = match (at.ip(), at.port()) {
        (IpAddr::V6(ip), 0) => format!("[{ip}]:any"),
        (ip, 0) => format!("{ip}:any"),
        _ => at.to_string(),
    };
    let (verdict, advice) = match sock::listen(at, ListenOptions::default()) {
        Ok(_) => (Verdict::Ok, String::new()),
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse => {
                (Verdict::Warn, format!("taken, perhaps by a running zproxyd; else change {flags}"))
            }
            ErrorKind::PermissionDenied => (
                Verdict::Fail,
                format!("{error}; ports below 1024 need CAP_NET_BIND_SERVICE; or change {flags}"),
            ),
            _ => (Verdict::Fail, format!("{error}; change {flags}")),
        },
    };
    report.add(name, shown, verdict, advice);
}

fn add_files(report: &mut Report, settings: &Settings) {
    let state_dir = &settings.token.state_dir;
    add_directory(report, "state directory", "--state-dir", state_dir);
    if let Some(dir) = &settings.log.dir {
        add_directory(report, "log directory", "--log-dir", dir);
    }
    let kept = state_dir.join(token::FILE_NAME);
    let found = match &settings.token.token {
        // What is not there yet is made when serving starts.
        TokenSource::Unnamed if !kept.exists() => {
            report.add("token", "none yet", Verdict::Ok, "made when serving starts");
            return;
        }
        TokenSource::Unnamed => token::load(&TokenSource::File(kept)),
        named => token::load(named),
    };
    match found {
        Ok(token) if token.warnings.is_empty() => report.add("token", "found", Verdict::Ok, ""),
        Ok(token) => report.add("token", "found", Verdict::Warn, token.warnings.join("; ")),
        Err(error) => report.add("token", "unusable", Verdict::Fail, error.to_string()),
    }
}

fn add_directory(report: &mut Report, name: &str, flag: &str, dir: &Path) {
    let value = dir.display().to_string();
    if !dir.exists() {
        report.add(name, value, Verdict::Ok, "made when serving starts");
        return;
    }
    match state::try_write(dir) {
        Ok(()) => report.add(name, value, Verdict::Ok, "writable"),
        Err(error) => {
            let advice = format!("cannot be written: {error}; change its owner or {flag}");
            report.add(name, value, Verdict::Fail, advice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, parse};

    fn check(dir: &Path, more: &str) -> Report {
        let line = format!(
            "zproxyd check --bind 127.0.0.1 --ctl-port 0 --state-dir {} {more}",
            dir.display()
        );
        match parse(line.split_whitespace().map(Into::into).collect()) {
            Ok(Command::Check(settings)) => report(&settings),
            other => panic!("{other:?}"),
        }
    }

    fn verdict(report: &Report, name: &str) -> Verdict {
        report.rows.iter().find(|row| row.name == name).expect("the row is there").verdict
    }

    /// The report covers the kernel, the ring, the limits and the configuration, and on a machine
    /// that runs these tests nothing fails.
    #[test]
    fn the_report_covers_everything() {
        let top = tempfile::tempdir().unwrap();
        let found = check(top.path(), "--backend epoll");
        for name in [
            "kernel",
            "kernel.io_uring_disabled",
            "backend",
            "fs.pipe-max-size",
            "fs.pipe-user-pages-soft",
            "descriptors (nofile)",
            "net.core.somaxconn",
            "net.ipv4.ip_local_port_range",
            "data cores",
            "ctl address",
            "state directory",
            "token",
        ] {
            assert_ne!(verdict(&found, name), Verdict::Fail, "{name}\n{found}");
        }
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0, "something was left behind");
    }

    /// What would stop the gateway fails, and a port in use is only worth a warning, because the
    /// gateway itself may be running.
    #[test]
    fn what_would_stop_the_gateway_fails() {
        let top = tempfile::tempdir().unwrap();
        let short = top.path().join("short");
        std::fs::write(&short, "short").unwrap();
        let token = format!("--token-file {}", short.display());
        assert_eq!(verdict(&check(top.path(), &token), "token"), Verdict::Fail);
        assert_eq!(verdict(&check(&short, ""), "state directory"), Verdict::Fail);
        let far = check(top.path(), "--public-bind 192.0.2.1");
        assert_eq!(verdict(&far, "public address"), Verdict::Fail);
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let found = check(top.path(), &format!("--proxy-port {port}"));
        assert_eq!(verdict(&found, "proxy address"), Verdict::Warn);
    }
}
