//! Thin entry point; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    zproxy_bench::main(std::env::args_os().collect())
}
