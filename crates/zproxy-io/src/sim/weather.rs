//! How unkind the simulated kernel and network are.

use std::time::Duration;

use super::Random;

/// Nuisances that every correct program must live with. None of them may harm a flow. Chances are
/// in permille of the occasions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weather {
    /// From one host to another, at least …
    pub latency_min: Duration,
    /// … and at most; drawn for every segment.
    pub latency_max: Duration,
    /// Bytes of a socket's send buffer, at least and at most.
    pub send_buffer: (usize, usize),
    /// Bytes of a socket's receive buffer, at least and at most.
    pub receive_buffer: (usize, usize),
    /// Bytes of a segment at most.
    pub segment_max: usize,
    /// An operation moves fewer bytes than it could.
    pub short: u32,
    /// Of the short ones, those that move one byte.
    pub tiny: u32,
    /// An operation that could go on waits all the same.
    pub defer: u32,
    /// An operation runs when its socket is ready, and not only when the driver is asked.
    pub eager: u32,
    /// A result is told late.
    pub late: u32,
    /// Results are told in another order than they came about.
    pub shuffle: u32,
    /// A doorbell is heard late.
    pub deaf: u32,
    /// A turn is followed by a long pause: the thread is not scheduled.
    pub preempt: u32,
}

impl Weather {
    /// No nuisance at all.
    #[must_use]
    pub fn fair() -> Self {
        Self {
            latency_min: Duration::from_micros(50),
            latency_max: Duration::from_micros(50),
            send_buffer: (128 << 10, 128 << 10),
            receive_buffer: (128 << 10, 128 << 10),
            segment_max: 64 << 10,
            short: 0,
            tiny: 0,
            defer: 0,
            eager: 0,
            late: 0,
            shuffle: 0,
            deaf: 0,
            preempt: 0,
        }
    }

    /// Some of everything.
    #[must_use]
    pub fn drawn(random: &mut Random) -> Self {
        let mut pick = |choices: &[u32]| choices[random.place(choices.len())];
        let (short, tiny) = (pick(&[0, 100, 400, 900]), pick(&[0, 100, 500]));
        let (defer, eager) = (pick(&[0, 50, 300]), pick(&[0, 500, 1000]));
        let (late, shuffle) = (pick(&[0, 50, 300]), pick(&[0, 500, 1000]));
        let (deaf, preempt) = (pick(&[0, 50, 300]), pick(&[0, 5, 50]));
        let latency = u64::from(pick(&[10, 200, 2_000, 30_000]));
        let jitter = u64::from(pick(&[1, 2, 5]));
        let least = usize::try_from(pick(&[512, 4 << 10, 64 << 10])).unwrap_or(512);
        let segment_max = usize::try_from(pick(&[700, 1448, 16 << 10, 64 << 10])).unwrap_or(700);
        Self {
            latency_min: Duration::from_micros(latency),
            latency_max: Duration::from_micros(latency * jitter),
            send_buffer: (least, 4 * least),
            receive_buffer: (least, 4 * least),
            segment_max,
            short,
            tiny,
            defer,
            eager,
            late,
            shuffle,
            deaf,
            preempt,
        }
    }
}
