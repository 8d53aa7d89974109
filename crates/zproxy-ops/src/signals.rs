//! SIGTERM and SIGINT: the first asks to finish, the second to stop at once. SIGUSR1 asks what was
//! counted so far. Every other signal keeps the meaning it has.

use std::io;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A `stats` line of every thread that has a driver.
    Stats,
    /// The end.
    Stop(Stop),
}

/// How to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No new work; what is under way may finish.
    Drain,
    /// At once.
    Now,
}

/// Calls `on_wish` from a thread of its own: with [`Stop::Drain`] for the first signal that asks for
/// the end and [`Stop::Now`] for each later one, with [`Wish::Stats`] for each SIGUSR1.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn watch(mut on_wish: impl FnMut(Wish) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    let run = move || {
        let mut stop = Stop::Drain;
        for signal in signals.forever() {
            if signal == SIGUSR1 {
                on_wish(Wish::Stats);
                continue;
            }
            on_wish(Wish::Stop(stop));
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

    /// The first signal asks to finish, the second to stop at once, whichever of the two they are;
    /// SIGUSR1 is neither.
    #[test]
    fn two_signals_two_meanings() {
        let (tell, told) = mpsc::channel();
        watch(move |wish| tell.send(wish).unwrap()).unwrap();
        let limit = Duration::from_secs(20);
        let signals = [
            (SIGUSR1, Wish::Stats),
            (SIGINT, Wish::Stop(Stop::Drain)),
            (SIGUSR1, Wish::Stats),
            (SIGTERM, Wish::Stop(Stop::Now)),
        ];
        for (signal, wish) in signals {
            signal_hook::low_level::raise(signal).unwrap();
            assert_eq!(told.recv_timeout(limit), Ok(wish));
        }
    }
}
