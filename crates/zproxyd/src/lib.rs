//! The program.
#![forbid(unsafe_code)]

pub mod check;
pub mod cli;
pub mod config;
mod mailbox;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program with the given arguments (the first is the program name).
pub fn main(_args: Vec<OsString>) -> ExitCode {
    ExitCode::FAILURE
}
