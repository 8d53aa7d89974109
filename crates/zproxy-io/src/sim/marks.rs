//! Marks: which rare places a simulated run has come by. Programs set them in debug builds only.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

thread_local! {
    static IS_KEPT: Cell<bool> = const { Cell::new(true) };
    static MARKS: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// A place that was come by.
pub fn mark(name: &str) {
    if !IS_KEPT.get() {
        return;
    }
    MARKS.with_borrow_mut(|marks| match marks.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(marks.insert(name.to_owned(), 1)),
    });
}

/// An input of a machine in a mode, both by their `Debug` names without what they carry.
pub fn mark_step(machine: &str, mode: &dyn std::fmt::Debug, input: &dyn std::fmt::Debug) {
    if !IS_KEPT.get() {
        return;
    }
    let word = |it: &dyn std::fmt::Debug| {
        let text = format!("{it:?}");
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    };
    mark(&format!("{machine}.{}.{}", word(mode), word(input)));
}

/// Whether marks of this thread are kept, as they are unless told otherwise. They take memory, which
/// who counts that does not want to see.
pub fn keep_marks(keep: bool) {
    IS_KEPT.set(keep);
}

/// The marks of this thread so far, which are forgotten.
#[must_use]
pub fn take_marks() -> BTreeMap<String, u64> {
    MARKS.with_borrow_mut(std::mem::take)
}
