//! Bounded waiting for conditions that nobody announces, such as a figure in `/proc`.

use std::time::{Duration, Instant};

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Looks until `holds` is true; panics with `what` when it is not within `within`.
///
/// # Panics
/// When the condition did not come true in time.
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    eventually_some(what, within, || holds().then_some(()));
}

/// Looks until `look` finds something and hands it out.
///
/// # Panics
/// When nothing was found in time.
pub fn eventually_some<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
