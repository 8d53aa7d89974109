//! Which CPUs a process may use.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs of a list such as `0-3,6`.
pub(crate) fn parse(list: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("{list:?} is no list of CPUs; 0-3,6 would be one");
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last >= CpuSet::MAX_CPU {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The CPUs that this process may use.
pub(crate) fn all() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Keeps the calling thread on one CPU, if it has a place.
pub(crate) fn settle(place: Option<usize>) -> io::Result<()> {
    let Some(cpu) = place else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Keeps the calling thread, and what it starts from now on, on the CPUs of `list`.
pub(crate) fn pin(list: &str) -> Result<(), String> {
    let mut set = CpuSet::new();
    for cpu in parse(list)? {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(|why| format!("CPUs {list}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges and single CPUs mix, twice is once, and nonsense is refused.
    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse("0-2,5,1"), Ok(vec![0, 1, 2, 5]));
        assert_eq!(parse("7"), Ok(vec![7]));
        for wrong in ["", "3-1", "a", "1,", "0-99999999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
