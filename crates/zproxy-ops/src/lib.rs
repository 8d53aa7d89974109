//! What an operator touches: values of flags, configuration files, the token, the state directory,
//! logs, signals, exit codes and the check report.
//!
//! Both programs use this crate, so that a flag, a file key and an error read the same in either.
//! Nothing here moves a byte of a flow, and nothing here may print a secret.
#![forbid(unsafe_code)]

pub mod boot;
pub mod config;
pub mod cores;
pub mod exit;
pub mod flags;
mod lines;
pub mod logs;
pub mod machine;
pub mod privileges;
pub mod report;
pub mod signals;
pub mod state;
pub mod token;
pub mod values;

pub use exit::{Code, Exit};
pub use machine::Machine;
