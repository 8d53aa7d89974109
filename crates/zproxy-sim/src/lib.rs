//! Gateway, clients, visitors and services in one thread, on the simulated kernel of `zproxy-io`.
//!
//! A seed decides everything: the weather, the programs, who visits, what goes wrong and who runs
//! next. The programs are the real ones, one turn of a loop at a time.
//!
//! `plan` what a seed means · `run` one run, with its scheduler and its troubles · `programs` gateway
//! and clients as loops · `crowd` visitors and services · `script` what they do · `bytes` what they
//! say · `ledger` what is known of flows, and the verdicts · `marks` rare places · `sweep` many seeds ·
//! `mutants` deliberate faults · `scenes` what was found once.

#![forbid(unsafe_code)]

mod bytes;
mod crowd;
mod ledger;
mod marks;
mod mutants;
mod plan;
mod programs;
mod run;
#[cfg(test)]
mod scenes;
mod script;
mod sweep;

pub use marks::{REQUIRED, missing_marks};
pub use mutants::{MUTANTS, Mutant};
pub use run::{Options, Report, Saboteur, Victim, run};
pub use sweep::{Failure, REGRESSIONS, Sweep, run_guarded, sweep};
