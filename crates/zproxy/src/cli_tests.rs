use std::collections::BTreeMap;
use std::time::Duration;

use zproxy_ops::token::TokenSource;
use zproxy_ops::values::{Backend, Steer};
use zproxy_ops::{Code, Exit, Machine};

use super::{Command, parse_on};
use crate::config::{ForwardSettings, Settings};

fn machine() -> Machine {
    Machine {
        cpus_allowed: vec![0, 1],
        has_ipv6: true,
        is_root: true,
        has_env_token: false,
        variables: BTreeMap::new(),
    }
}

fn parse(line: &str) -> Result<Command, Exit> {
    let args = std::iter::once("zproxy").chain(line.split_whitespace());
    parse_on(args.map(Into::into).collect(), &machine())
}

fn settings(line: &str) -> Settings {
    match parse(line) {
        Ok(Command::Serve(settings)) => *settings,
        other => panic!("{line}: {other:?}"),
    }
}

fn forward(line: &str) -> ForwardSettings {
    match parse(line) {
        Ok(Command::Forward(settings)) => *settings,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    let exit = parse(line).unwrap_err();
    assert_eq!(exit.code, Code::Usage, "{line}: {}", exit.message);
    exit.message
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

fn tunnels(settings: &Settings) -> Vec<String> {
    let show =
        |t: &crate::config::TunnelSettings| format!("{} {} {}", t.name, t.local, t.public_port);
    settings.tunnels.iter().map(show).collect()
}

fn forwards(settings: &ForwardSettings) -> Vec<String> {
    settings.forwards.iter().map(|f| format!("{} {}", f.listen, f.to)).collect()
}

/// Whether one hop is steered: by default where that pays.
#[test]
fn one_hop_is_steered_unless_told() {
    assert_eq!(forward("forward --listen :1 --to a:1").steer, Steer::Auto);
    assert_eq!(forward("forward --listen :1 --to a:1 --steer never").steer, Steer::Never);
}

/// Two addresses are enough, and every default is the documented one.
#[test]
fn two_addresses_are_enough() {
    let s = settings("--server gw.example:8090 --local 127.0.0.1:80");
    assert_eq!(s.server.to_string(), "gw.example:8090");
    assert_eq!(tunnels(&s), ["127.0.0.1-80 127.0.0.1:80 0"]);
    assert_eq!(s.data.cores, [0, 1]);
    assert_eq!(s.connect_timeout, Duration::from_secs(5));
    assert_eq!(s.flow.drain_timeout, Duration::from_secs(30));
    assert_eq!(s.token.token, TokenSource::Unnamed);
    assert_eq!(s.token.state_dir.to_str(), Some("/var/lib/zproxy"));
}

/// The seeds' command lines work as they stand.
#[test]
fn the_seeds_command_lines_work() {
    let s = settings("--local_server=127.0.0.1:9999 --zproxy_server=127.0.0.1:8080");
    assert_eq!((s.server.port, s.tunnels[0].local.port), (8080, 9999));
    let s = settings("--local_server=127.0.0.1:9999 --cproxy_server=a:1 --work_thread_nums=-1");
    assert_eq!((s.server.to_string().as_str(), s.data.cores.len()), ("a:1", 1));
}

/// Every flag reaches its setting.
#[test]
fn flags_reach_their_settings() {
    let s = settings(
        "--server a:1 --local b:2 --public-port 8000 --name web --cores 1 --backend uring \
         --token-file /t --state-dir /s --connect-timeout 0.5 --drain-timeout 1 --heartbeat 1 \
         --heartbeat-deadline 2 --idle-timeout 3 --half-close-timeout 4 --dead-after 5.5 --log-level off \
         --busy-poll 30",
    );
    assert_eq!(s.data.busy_poll, Duration::from_micros(30));
    assert_eq!(tunnels(&s), ["web b:2 8000"]);
    assert_eq!((s.data.cores.as_slice(), s.data.backend), ([1].as_slice(), Backend::Uring));
    assert_eq!(s.token.token, TokenSource::File("/t".into()));
    assert_eq!(s.connect_timeout, Duration::from_millis(500));
    assert_eq!(s.heartbeat.deadline, Duration::from_secs(2));
    assert_eq!(s.flow.half_close_timeout, Some(Duration::from_secs(4)));
    assert_eq!(s.flow.dead_after, Some(Duration::from_millis(5_500)));
}

/// Every bad command line is bad usage, and the message names the flag and what would be right.
#[test]
fn bad_flags_are_named() {
    let long_name = format!("--server a:1 --local b:1 --name {}", "x".repeat(65));
    for (line, flag, right) in [
        ("", "--local", "Usage"),
        ("--server a:1", "--local", "127.0.0.1:8080"),
        ("--local a:1", "--server", "gateway.example.com:8090"),
        ("--server a --local b:1", "--server", "a:8080"),
        ("--server a:1 --local b", "--local", "b:8080"),
        ("--server a:1 --local b:0", "--local", "1 to 65535"),
        ("--server a:1 --local b:70000", "--local", "1 to 65535"),
        ("--server a:1 --local ::1", "--local", "[::1]:PORT"),
        ("--server http://a:1 --local b:1", "--server", "HOST:PORT"),
        ("--server a:1 --local b:1 --public-port 70000", "--public-port", "0 to 65535"),
        ("--server a:1 --local b:1 --cores 0-9", "--cores", "may use 0-1"),
        ("--server a:1 --local b:1 --cores x", "--cores", "0-3,6"),
        ("--server a:1 --local b:1 --name a/b", "--name", "letters"),
        (&long_name, "--name", "64"),
        ("--server a:1 --local b:1 --connect-timeout 0", "--connect-timeout", "more than 0"),
        ("--server a:1 --locla b:1", "--locla", "--local"),
        ("forward", "--listen", "--to"),
        ("forward --listen :1", "--to is missing", "pairs"),
        ("forward --to a:1", "--listen is missing", "pairs"),
        ("forward --listen :1 --to a:1 --to b:1", "--listen is missing", "pairs"),
        ("forward --listen :1 --to a:1 --steer no", "--steer", "auto or never"),
        ("forward --listen x:1 --to a:1", "--listen", "ADDR:PORT"),
        ("forward --listen :1 --to a", "--to", "a:8080"),
        ("forward --listen :1 --to a:1 --listen :1 --to b:1", "--listen", "twice"),
        ("forward --listen :1 --to a:1 --cores 5", "--cores", "may use 0-1"),
    ] {
        let message = refused(line);
        assert!(message.contains(flag) && message.contains(right), "{line}: {message}");
    }
}

const SEVERAL: &str = "server = 'gw:8090'\nconnect-timeout = 2\n\
    [[tunnel]]\nname = 'web'\nlocal = '127.0.0.1:80'\npublic-port = 8000\n\
    [[tunnel]]\nlocal = 'db:5432'\n\
    [[forward]]\nlisten = ':2222'\nto = 'h:22'\n";

/// A file may have several tunnels and forwards; each command takes its own.
#[test]
fn a_file_has_several() {
    let (_dir, path) = file("c.toml", SEVERAL);
    let s = settings(&format!("--config {path}"));
    assert_eq!(s.server.to_string(), "gw:8090");
    assert_eq!(s.connect_timeout, Duration::from_secs(2));
    assert_eq!(tunnels(&s), ["web 127.0.0.1:80 8000", "db-5432 db:5432 0"]);
    let f = forward(&format!("forward --config {path}"));
    assert_eq!(forwards(&f), ["[::]:2222 h:22"]);
    assert_eq!(f.connect_timeout, Duration::from_secs(2));
}

/// JSON with the same keys means the same.
#[test]
fn json_means_the_same() {
    let (_dir, toml) = file("c.toml", SEVERAL);
    let text = r#"{"server": "gw:8090", "connect-timeout": 2, "tunnel": [
        {"name": "web", "local": "127.0.0.1:80", "public-port": 8000}, {"local": "db:5432"}],
        "forward": [{"listen": ":2222", "to": "h:22"}]}"#;
    let (_other, json) = file("c.json", text);
    let mut from_toml = settings(&format!("--config {toml}"));
    let mut from_json = settings(&format!("--config {json}"));
    (from_toml.config_file, from_json.config_file) = (None, None);
    assert_eq!(from_toml, from_json);
}

/// A flag overrides the file: `--local` is the whole list, other flags change the only tunnel.
#[test]
fn flags_override_the_file() {
    let (_dir, path) = file("c.toml", SEVERAL);
    let s = settings(&format!("--config {path} --server other:1 --local x:1"));
    assert_eq!((s.server.to_string().as_str(), tunnels(&s)), ("other:1", vec!["x-1 x:1 0".into()]));
    let message = refused(&format!("--config {path} --public-port 5"));
    assert!(message.contains("--public-port") && message.contains("--local"), "{message}");
    let f = forward(&format!("forward --config {path} --listen 127.0.0.1:0 --to y:1"));
    assert_eq!(forwards(&f), ["127.0.0.1:0 y:1"]);
    let (_one, path) = file("c.toml", "server = 'gw:1'\n[[tunnel]]\nlocal = 'a:1'\nname = 'web'");
    let s = settings(&format!("--config {path} --public-port 5"));
    assert_eq!(tunnels(&s), ["web a:1 5"]);
    let (_top, path) = file("c.toml", "server = 'gw:1'\nlocal = 'a:1'\npublic-port = 7");
    assert_eq!(tunnels(&settings(&format!("--config {path}"))), ["a-1 a:1 7"]);
    assert_eq!(tunnels(&settings(&format!("--config {path} --name n"))), ["n a:1 7"]);
}

/// A bad file is bad usage; the message names the file, the key, and what would be right.
#[test]
fn bad_files_are_named() {
    for (text, key, right) in [
        ("sever = 'a:1'", "`sever`", "`server`"),
        ("server = 5", "`server`", "HOST:PORT"),
        ("server = 'a:1'\n[[tunnel]]\nname = 'x'", "`tunnel[1].local`", "127.0.0.1:8080"),
        ("[[tunnel]]\nlocal = 'a:1'\npublic_port = 1", "`tunnel[1].public_port`", "`public-port`"),
        ("[[tunnel]]\nlocal = 'a:1'\nname = 'a b'", "`tunnel[1].name`", "letters"),
        ("[[tunnel]]\nlocal = 'a:1'\nname = 3", "`tunnel[1].name`", "string"),
        ("[[forward]]\nlisten = ':1'\nto = 'x'", "`forward[1].to`", "x:8080"),
        ("[[tunnels]]\nlocal = 'a:1'", "`tunnels`", "`tunnel`"),
    ] {
        let (_dir, path) = file("c.toml", text);
        let message = refused(&format!("--config {path}"));
        let named = message.contains(&path) && message.contains(key) && message.contains(right);
        assert!(named, "{text}: {message}");
    }
    let twice =
        "server = 'a:1'\n[[tunnel]]\nlocal='a:1'\nname='w'\n[[tunnel]]\nlocal='b:1'\nname='w'";
    let (_dir, path) = file("c.toml", twice);
    assert!(refused(&format!("--config {path}")).contains("\"w\""));
    let (_dir, path) = file("c.toml", "[[forward]]\nlisten = ':1'\nto = 'x:1'");
    assert!(refused(&format!("--config {path}")).contains("zproxy forward"));
    let (_dir, path) = file("c.toml", "[[forward]]\nlisten = ':1'");
    let message = refused(&format!("forward --config {path}"));
    assert!(message.contains("`forward[1].to`"), "{message}");
}

/// Forwards come in pairs, as many as wanted.
#[test]
fn forwards_come_in_pairs() {
    let f = forward("forward --listen 127.0.0.1:1 --to a:1 --listen [::1]:2 --to b:2");
    assert_eq!(forwards(&f), ["127.0.0.1:1 a:1", "[::1]:2 b:2"]);
}

/// `--check-config` says what was meant and is a good end, for both commands.
#[test]
fn check_config_says_what_is_meant() {
    let (_dir, path) = file("c.toml", SEVERAL);
    for (line, says) in [
        (
            format!("--config {path} --check-config"),
            "tunnel web: local = 127.0.0.1:80, public-port = 8000",
        ),
        (
            format!("forward --config {path} --check-config"),
            "forward: listen = [::]:2222, to = h:22",
        ),
    ] {
        let exit = parse(&line).unwrap_err();
        assert_eq!(exit.code, Code::Fine);
        assert!(exit.message.lines().any(|found| found == says), "{}", exit.message);
    }
}

/// Help and version are good ends, and help names every flag of the issue.
#[test]
fn help_is_complete() {
    let exit = parse("--help").unwrap_err();
    assert_eq!(exit.code, Code::Fine);
    for text in [
        "--server",
        "--local",
        "--public-port",
        "--name",
        "--backend",
        "--cores",
        "--token-file",
        "--config",
        "forward",
        "zproxy_server",
        "local_server",
    ] {
        assert!(exit.message.contains(text), "{text}: {}", exit.message);
    }
    let exit = parse("forward --help").unwrap_err();
    assert!(exit.code == Code::Fine && exit.message.contains("--listen"));
    assert!(parse("--version").unwrap_err().message.starts_with("zproxy "));
}
