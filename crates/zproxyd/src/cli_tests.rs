use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use zproxy_io::RelayMode;
use zproxy_ops::logs::LogFormat;
use zproxy_ops::token::TokenSource;
use zproxy_ops::values::{Backend, Steer};
use zproxy_ops::{Code, Exit, Machine};

use super::{Command, parse_on};
use crate::config::Settings;

fn machine() -> Machine {
    Machine {
        cpus_allowed: vec![0, 1, 2, 3],
        has_ipv6: true,
        is_root: true,
        has_env_token: false,
        variables: BTreeMap::new(),
    }
}

fn parse_with(machine: &Machine, line: &str) -> Result<Command, Exit> {
    let args = std::iter::once("zproxyd").chain(line.split_whitespace());
    parse_on(args.map(Into::into).collect(), machine)
}

fn settings(line: &str) -> Settings {
    match parse_with(&machine(), line) {
        Ok(Command::Serve(settings)) => *settings,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    let exit = parse_with(&machine(), line).unwrap_err();
    assert_eq!(exit.code, Code::Usage, "{line}: {}", exit.message);
    exit.message
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

/// Without any flag, every default is the documented one.
#[test]
fn defaults_are_as_documented() {
    let s = settings("");
    assert_eq!(s.ctl_addr.to_string(), "[::]:8090");
    assert_eq!(s.proxy_addr.to_string(), "[::]:8091");
    assert_eq!(s.public_bind.to_string(), "::");
    assert_eq!(s.public_ports, None);
    assert_eq!(s.data.cores, [0, 1, 2, 3]);
    assert_eq!(s.control_core, None);
    assert_eq!((s.data.backend, s.data.relay), (Backend::Auto, RelayMode::Auto));
    assert_eq!((s.data.busy_poll, s.steer), (Duration::ZERO, Steer::Auto));
    assert_eq!(s.token.token, TokenSource::Unnamed);
    assert_eq!(s.token.state_dir.to_str(), Some("/var/lib/zproxyd"));
    assert_eq!((s.log.format, s.log.dir), (LogFormat::Text, None));
    let seconds = Duration::from_secs;
    assert_eq!(s.flow.drain_timeout, seconds(30));
    assert_eq!((s.flow.idle_timeout, s.flow.half_close_timeout), (None, Some(seconds(3600))));
    assert_eq!(s.flow.dead_after, Some(seconds(120)));
    assert_eq!((s.heartbeat.interval, s.heartbeat.deadline), (seconds(10), seconds(30)));
    assert_eq!((s.grace, s.bind_timeout), (seconds(60), seconds(10)));
}

/// The seeds' command lines work as they stand, with `_` and with `=`.
#[test]
fn the_seeds_command_lines_work() {
    let s = settings("--zproxy_port=8090 --ctl_port=8080 --work_thread_nums=4");
    assert_eq!((s.ctl_addr.port(), s.proxy_addr.port()), (8080, 8090));
    assert_eq!(s.data.cores, [0, 1, 2, 3]);
    let s = settings("--proxy_port=7000 --work_thread_nums=6");
    assert_eq!((s.ctl_addr.port(), s.proxy_addr.port()), (8090, 7000));
    assert_eq!(s.data.cores, [0, 1, 2, 3, 0, 1]);
    for count in ["=0", "=-3", " -3"] {
        assert_eq!(settings(&format!("--work_thread_nums{count}")).data.cores, [0]);
    }
    assert_eq!(settings("--work-thread-nums 2").data.cores, [0, 1]);
}

/// Every flag reaches its setting.
#[test]
fn flags_reach_their_settings() {
    let s = settings(
        "--cores 3,1 --control-core 0 --ctl-port 0 --bind 127.0.0.1 --public-bind [::1] \
         --public-ports 20000-20010 --backend epoll --relay copy --token-file /t --state-dir /s \
         --log-format json --log-dir /l --log-level debug --drain-timeout 0 --grace 5 \
         --heartbeat 0.1 --heartbeat-deadline 0.3 --bind-timeout 0.5 --idle-timeout 7 \
         --half-close-timeout 0 --dead-after 0 --busy-poll 50 --steer never",
    );
    assert_eq!((s.data.cores.as_slice(), s.control_core), ([3, 1].as_slice(), Some(0)));
    assert_eq!((s.ctl_addr.to_string(), s.proxy_addr.port()), ("127.0.0.1:0".into(), 0));
    assert_eq!(s.public_bind.to_string(), "::1");
    assert!(s.allows_public_port(20010) && s.allows_public_port(0) && !s.allows_public_port(20011));
    assert_eq!((s.data.backend, s.data.relay), (Backend::Epoll, RelayMode::Copy));
    assert_eq!(s.data.busy_poll, Duration::from_micros(50));
    let control = s.data.control_driver(None);
    assert_eq!((control.busy_poll, control.relay), (Duration::ZERO, RelayMode::Auto));
    assert_eq!(s.steer, Steer::Never);
    assert_eq!(s.token.token, TokenSource::File("/t".into()));
    assert_eq!(s.token.state_dir.to_str(), Some("/s"));
    assert_eq!(s.log.dir.unwrap().to_str(), Some("/l"));
    assert_eq!(s.heartbeat.deadline, Duration::from_millis(300));
    assert_eq!(s.bind_timeout, Duration::from_millis(500));
    assert_eq!(s.flow.idle_timeout, Some(Duration::from_secs(7)));
    assert_eq!((s.flow.half_close_timeout, s.flow.drain_timeout), (None, Duration::ZERO));
    assert_eq!(s.flow.dead_after, None);
}

/// Without a range, clients cannot take the gateway's privileged ports.
#[test]
fn privileged_ports_need_a_range() {
    let s = settings("");
    assert!(s.allows_public_port(0) && s.allows_public_port(1024) && !s.allows_public_port(22));
    assert!(settings("--public-ports 22").allows_public_port(22));
}

/// Every bad command line is bad usage, and the message names the flag and what would be right.
#[test]
fn bad_flags_are_named() {
    for (line, flag, right) in [
        ("--ctl-port 70000", "--ctl-port", "0 to 65535"),
        ("--ctl_port=-1", "--ctl-port", "0 to 65535"),
        ("--proxy-port x", "--proxy-port", "0 to 65535"),
        ("--ctl-port 65535", "--proxy-port", "65535"),
        ("--ctl-port 9 --proxy-port 9", "--proxy-port", "port each"),
        ("--cores a-b", "--cores", "0-3,6"),
        ("--cores", "--cores", "value"),
        ("--cores 7", "--cores", "may use 0-3"),
        ("--cores 0,0", "--cores", "twice"),
        ("--cores 0 --work_thread_nums=2", "--cores", "cannot be used with"),
        ("--work_thread_nums=many", "--work-thread-nums", "number of threads"),
        ("--work_thread_nums=5000", "--work-thread-nums", "the most is"),
        ("--control-core 9", "--control-core", "may use 0-3"),
        ("--control-core x", "--control-core", "one core number"),
        ("--bind example.com", "--bind", "IP address"),
        ("--public-ports 9-5", "--public-ports", "5-9"),
        ("--public-ports 0-70000", "--public-ports", "20000-29999"),
        ("--backend kqueue", "--backend", "auto, uring or epoll"),
        ("--relay fast", "--relay", "auto, splice or copy"),
        ("--busy-poll 0.5", "--busy-poll", "0 to 100000"),
        ("--steer always", "--steer", "auto or never"),
        ("--log-format xml", "--log-format", "text or json"),
        ("--log-level loud", "--log-level", "info"),
        ("--drain-timeout soon", "--drain-timeout", "number of seconds"),
        ("--drain-timeout=-1", "--drain-timeout", "number of seconds"),
        ("--bind-timeout 0", "--bind-timeout", "more than 0"),
        ("--heartbeat 0", "--heartbeat", "more than 0"),
        ("--heartbeat 0.001", "--heartbeat", "0.05 to 600"),
        ("--heartbeat 5 --heartbeat-deadline 5", "--heartbeat-deadline", "longer"),
        ("--dead-after 1", "--dead-after", "0 or at least 2 s"),
        ("--ctl-prot 1", "--ctl-prot", "--ctl-port"),
        ("serve", "serve", "Usage"),
    ] {
        let message = refused(line);
        assert!(message.contains(flag) && message.contains(right), "{line}: {message}");
    }
}

/// The file's keys are the long flag names, and a flag overrides the file.
#[test]
fn flags_override_the_file() {
    let text = "ctl-port = 1000\nproxy-port = 2000\ncores = [0, 1]\nheartbeat = 0.5\n\
                control-core = 2\npublic-ports = \"5000-6000\"\ntoken-file = \"/f\"";
    let (_dir, path) = file("d.toml", text);
    let s = settings(&format!("--config {path}"));
    assert_eq!((s.ctl_addr.port(), s.proxy_addr.port()), (1000, 2000));
    assert_eq!((s.data.cores.as_slice(), s.control_core), ([0, 1].as_slice(), Some(2)));
    assert_eq!(s.token.token, TokenSource::File("/f".into()));
    assert_eq!(s.config_file.unwrap().display().to_string(), path);
    let s = settings(&format!("--config {path} --ctl-port 3 --work_thread_nums=1 --token-file /t"));
    assert_eq!((s.ctl_addr.port(), s.proxy_addr.port()), (3, 2000));
    assert_eq!(s.data.cores, [0]);
    assert_eq!(s.token.token, TokenSource::File("/t".into()));
}

/// JSON with the same keys means the same.
#[test]
fn json_means_the_same() {
    let (_dir, toml) = file("d.toml", "ctl-port = 1000\ncores = \"0-1\"\ngrace = 2.5");
    let (_other, json) = file("d.json", r#"{"ctl-port": 1000, "cores": "0-1", "grace": 2.5}"#);
    let mut from_toml = settings(&format!("--config {toml}"));
    let mut from_json = settings(&format!("--config {json}"));
    assert_eq!(from_toml.ctl_addr.port(), 1000);
    (from_toml.config_file, from_json.config_file) = (None, None);
    assert_eq!(from_toml, from_json);
}

/// A bad file is bad usage; the message names the file, the key, and what would be right.
#[test]
fn bad_files_are_named() {
    for (text, key, right) in [
        ("ctl_port = 1", "`ctl_port`", "`ctl-port`"),
        ("tokenfile = 'x'", "`tokenfile`", "`token-file`"),
        ("ctl-port = 70000", "`ctl-port`", "0 to 65535"),
        ("ctl-port = true", "`ctl-port`", "a string or a number"),
        ("cores = '9'", "`cores`", "may use 0-3"),
        ("cores = '0'\nwork-thread-nums = 2", "`cores`", "keep one"),
        ("control-core = -1", "`control-core`", "one core number"),
        ("control-core = 9", "`control-core`", "may use 0-3"),
        ("heartbeat = 0", "`heartbeat`", "more than 0"),
        ("log-level = 'loud'", "`log-level`", "info"),
        ("ctl-port 1", "line 1", "TOML"),
    ] {
        let (_dir, path) = file("d.toml", text);
        let message = refused(&format!("--config {path}"));
        let named = message.contains(&path) && message.contains(key) && message.contains(right);
        assert!(named, "{text}: {message}");
    }
    assert!(refused("--config /nowhere.toml").contains("/nowhere.toml"));
}

/// `--check-config` says what was meant and is a good end; it never shows a token.
#[test]
fn check_config_says_what_is_meant() {
    let exit = parse_with(&machine(), "--check-config --cores 0-1 --ctl-port 5").unwrap_err();
    assert_eq!(exit.code, Code::Fine);
    for line in ["cores = 0-1", "ctl = [::]:5", "proxy = [::]:6", "drain-timeout = 30 s"] {
        assert!(exit.message.lines().any(|found| found == line), "{}", exit.message);
    }
}

/// Help and version are good ends; help names every flag of the issue and its groups.
#[test]
fn help_is_complete() {
    let exit = parse_with(&machine(), "--help").unwrap_err();
    assert_eq!(exit.code, Code::Fine);
    for text in [
        "--cores",
        "--control-core",
        "--ctl-port",
        "--proxy-port",
        "--bind",
        "--public-bind",
        "--public-ports",
        "--backend",
        "--token-file",
        "--state-dir",
        "--config",
        "--log-format",
        "--log-dir",
        "--drain-timeout",
        "check",
        "Listening:",
        "stderr",
        "ZPROXY_TOKEN",
    ] {
        assert!(exit.message.contains(text), "{text}: {}", exit.message);
    }
    let exit = parse_with(&machine(), "--version").unwrap_err();
    assert_eq!((exit.code, exit.message.starts_with("zproxyd ")), (Code::Fine, true));
}

/// `check` takes the same flags, behind it.
#[test]
fn check_takes_the_same_flags() {
    match parse_with(&machine(), "check --cores 1 --ctl-port 7") {
        Ok(Command::Check(s)) => assert_eq!((s.data.cores[0], s.ctl_addr.port()), (1, 7)),
        other => panic!("{other:?}"),
    }
    assert!(refused("check --cores 9").contains("--cores"));
}

/// The environment stands between the flags and the file, and decides where IPv6 is missing.
#[test]
fn the_environment_counts() {
    let (_dir, path) = file("d.toml", "token-file = '/f'\nlog-level = 'warn'");
    let mut machine = machine();
    machine.has_env_token = true;
    machine.has_ipv6 = false;
    machine.variables.insert("ZPROXY_LOG", "trace".into());
    machine.variables.insert("STATE_DIRECTORY", "/run/s".into());
    let Ok(Command::Serve(s)) = parse_with(&machine, &format!("--config {path}")) else {
        panic!("not understood");
    };
    assert_eq!(s.token.token, TokenSource::Variable);
    assert_eq!(s.token.state_dir.to_str(), Some("/run/s"));
    assert_eq!(s.log.level, "trace".parse().unwrap());
    assert_eq!(s.ctl_addr.to_string(), "0.0.0.0:8090");
    machine.variables.insert("ZPROXY_LOG", "loud".into());
    let exit = parse_with(&machine, "").unwrap_err();
    assert!(exit.code == Code::Usage && exit.message.contains("ZPROXY_LOG"), "{}", exit.message);
    machine.variables.clear();
    machine.is_root = false;
    assert!(parse_with(&machine, "--help").is_err());
    let exit = parse_with(&machine, "").unwrap_err();
    assert!(exit.message.contains("--state-dir"), "{}", exit.message);
}
