//! SIGTERM and SIGINT: the first asks to finish, the second to stop at once. Every other signal
//! keeps the meaning it has.

use std::io;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No new work; what is under way may finish.
    Drain,
    /// At once.
    Now,
}

/// Calls `on_stop` from a thread of its own: [`Stop::Drain`] for the first signal, [`Stop::Now`]
/// for each later one.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn watch(mut on_stop: impl FnMut(Stop) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let run = move || {
        let mut stop = Stop::Drain;
        for _ in signals.forever() {
            on_stop(stop);
            stop = Stop::Now;
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// The first signal asks to finish, the second to stop at once, whichever of the two they are.
    #[test]
    fn two_signals_two_meanings() {
        let (tell, told) = mpsc::channel();
        watch(move |stop| tell.send(stop).unwrap()).unwrap();
        let limit = Duration::from_secs(20);
        signal_hook::low_level::raise(SIGINT).unwrap();
        assert_eq!(told.recv_timeout(limit), Ok(Stop::Drain));
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert_eq!(told.recv_timeout(limit), Ok(Stop::Now));
    }
}
