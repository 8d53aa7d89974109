//! Chaos on real kernels: gateway, client, LocalServer and visitors, each in its place of a network of
//! the test's own, while links are cut, packets swallowed, programs killed, and descriptors, disks and
//! patience run out.
//!
//! The verdict is never an eye's or a clock's: every byte is a function of its flow and position, every
//! end is a FIN or a RST as it was sent, and afterwards the programs' own counts and `/proc` must agree
//! that nothing is left. In plain `cargo test` the faults are short; `cargo chaos` has them in full
//! length. Without the right to make network namespaces, each case says so and is skipped.

mod crowds;
mod kills;
mod links;
mod paces;
mod paths;
mod shortages;

use std::time::Duration;

/// Whether faults last as long as in the worst case that is promised for.
const IS_FULL: bool = cfg!(feature = "chaos-full");

/// How long a fault lasts: briefly in everyday tests.
const fn length(brief_secs: u64, full_secs: u64) -> Duration {
    Duration::from_secs(if IS_FULL { full_secs } else { brief_secs })
}
