//! All programs in one executable, so that one build serves every test:
//! `zproxy-under-test [HARDSHIP…] zproxyd|zproxy|demo ARGS…` runs exactly what the real executable
//! runs, on a kernel that is less kind if hardships say so:
//!
//! * `without-io-uring`: io_uring is forbidden, as by a container runtime's seccomp profile;
//! * `as-if-io-uring-were-unknown`: the same, answered as by a kernel that has none;
//! * `as-user N`: as this user and group, without any privilege;
//! * `limit-descriptors N`, `limit-locked-memory BYTES`: resource limits.
//!
//! `zproxy-under-test [HARDSHIP…] hold-pipes` uses up the pipe memory of its user, says so, and
//! holds it until its input ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;

use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::{pipe, thread};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    while let Some(count) = args.get(1).and_then(|word| suffer(word.to_str()?, args.get(2))) {
        args.drain(1..=count);
    }
    match args.get(1).and_then(|name| name.to_str()) {
        Some("zproxyd") => zproxyd::main(args.split_off(1)),
        Some("zproxy") => zproxy::main(args.split_off(1)),
        Some("demo") => zproxy_demo::main(args.split_off(1)),
        // The demonstration starts its own executable again for its two children.
        Some(name) if name.starts_with("demo-child-") => zproxy_demo::main(args),
        Some("hold-pipes") => hold_pipes(),
        _ => {
            eprintln!("usage: zproxy-under-test [HARDSHIP…] zproxyd|zproxy|demo|hold-pipes ARGS…");
            ExitCode::from(2)
        }
    }
}

/// Takes a hardship upon this process; tells how many words it has, if it is one.
fn suffer(word: &str, value: Option<&OsString>) -> Option<usize> {
    let number = || -> u32 {
        let value = value.and_then(|value| value.to_str()).expect("a number behind this word");
        value.parse().expect("a number behind this word")
    };
    match word {
        "without-io-uring" => forbid_io_uring(EPERM),
        "as-if-io-uring-were-unknown" => forbid_io_uring(ENOSYS),
        "as-user" => become_user(number()),
        "limit-descriptors" => limit(Resource::Nofile, number()),
        "limit-locked-memory" => limit(Resource::Memlock, number()),
        _ => return None,
    }
    Some(if word.contains("io-uring") { 1 } else { 2 })
}

/// Every call of io_uring fails from here on.
fn forbid_io_uring(errno: u32) {
    // io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture
    // that got them at the same time.
    let rules = BTreeMap::from([(425, vec![]), (426, vec![]), (427, vec![])]);
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture with seccomp");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)
        .expect("a filter");
    let program = BpfProgram::try_from(filter).expect("a filter program");
    seccompiler::apply_filter(&program).expect("a process may always restrict itself");
}

/// There is one thread yet, so what is done to it is done to the process.
fn become_user(number: u32) {
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    thread::set_thread_groups(&[]).expect("root may");
    thread::set_thread_res_gid(group, group, group).expect("root may");
    thread::set_thread_res_uid(user, user, user).expect("root may");
}

fn limit(resource: Resource, number: u32) {
    let number = Some(u64::from(number));
    setrlimit(resource, Rlimit { current: number, maximum: number }).expect("lowering a limit");
}

/// Opens pipes, as large as they come, until there are only the smallest ones.
fn hold_pipes() -> ExitCode {
    const LEAST: usize = 2 * 4096;
    let mut held = Vec::new();
    loop {
        let (read, write) = pipe::pipe().expect("a pipe");
        let mut wanted = 1 << 20;
        while wanted > LEAST && pipe::fcntl_setpipe_size(&write, wanted).is_err() {
            wanted /= 2;
        }
        let size = pipe::fcntl_getpipe_size(&write).expect("a pipe has a size");
        held.push((read, write));
        if size <= LEAST {
            break;
        }
    }
    println!("holding {} pipes", held.len());
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).expect("an input that ends");
    ExitCode::SUCCESS
}
