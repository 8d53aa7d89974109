//! All programs in one executable, so that one build serves every test:
//! `zproxy-under-test zproxyd|zproxy|demo ARGS…` runs exactly what the real executable runs.
//! `zproxy-under-test without-io-uring zproxyd|zproxy ARGS…` runs it on a kernel that, as far as
//! the program can tell, forbids io_uring as a container runtime's seccomp profile does.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == "without-io-uring") {
        forbid_io_uring();
        args.remove(1);
    }
    match args.get(1).and_then(|name| name.to_str()) {
        Some("zproxyd") => zproxyd::main(args.split_off(1)),
        Some("zproxy") => zproxy::main(args.split_off(1)),
        Some("demo") => zproxy_demo::main(args.split_off(1)),
        // The demonstration starts its own executable again for its two children.
        Some(name) if name.starts_with("demo-child-") => zproxy_demo::main(args),
        _ => {
            eprintln!("usage: zproxy-under-test [without-io-uring] zproxyd|zproxy|demo ARGS…");
            ExitCode::from(2)
        }
    }
}

/// Every call of io_uring fails with EPERM from here on.
fn forbid_io_uring() {
    // io_uring_setup, io_uring_enter and io_uring_register have these numbers on every architecture
    // that got them at the same time.
    let rules = BTreeMap::from([(425, vec![]), (426, vec![]), (427, vec![])]);
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture with seccomp");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(1), arch)
        .expect("a filter");
    let program = BpfProgram::try_from(filter).expect("a filter program");
    seccompiler::apply_filter(&program).expect("a process may always restrict itself");
}
