//! What a program holds, by its own account and by that of `/proc`, and the laws that tie the two.

use crate::proc::{self, Descriptors};
use crate::program::Program;
use crate::stats::Stats;

/// Pipes that a data core keeps for the next bulk flow, at most.
const SPARE_PIPES_MAX: usize = 64;
/// Idle proxy_conns that a data core keeps, at most.
const IDLE_CONNS_MAX: u64 = 256;

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `zproxyd`.
    Gateway,
    /// `zproxy`.
    Client,
}

/// One look at a program.
#[derive(Clone, Debug)]
pub struct Ledger {
    role: Role,
    cores: usize,
    stats: Stats,
    descriptors: Descriptors,
    threads: usize,
    /// Its resident memory.
    pub resident_bytes: u64,
}

/// What a program holds beside its flows, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    sockets: i128,
    /// Ends that the process was born with, or has kept from the flows before the first look.
    pipes: usize,
    others: usize,
    threads: usize,
}

impl Ledger {
    /// Looks at a program with that many data cores.
    #[must_use]
    pub fn of(program: &mut Program, role: Role, cores: usize) -> Self {
        let stats = Stats::of(program, cores + 1);
        let pid = program.pid();
        Self {
            role,
            cores,
            stats,
            descriptors: proc::descriptors(pid),
            threads: proc::threads(pid),
            resident_bytes: proc::resident_bytes(pid),
        }
    }

    /// What is left when everything that the stats account for is taken away.
    #[must_use]
    pub fn frame(&self) -> Frame {
        let control = self.stats.control("socks_opened") - self.stats.control("socks_closed");
        let accounted = i128::from(self.stats.socks() + control);
        let sockets = i128::try_from(self.descriptors.sockets).unwrap_or(i128::MAX) - accounted;
        let Descriptors { pipes, others, .. } = self.descriptors;
        Frame { sockets, pipes, others, threads: self.threads }
    }

    /// Proxy_conns in the hands of data cores.
    #[must_use]
    pub fn conns(&self) -> u64 {
        self.stats.cores("conns")
    }

    /// Bytes put, on either path.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stats.cores("bytes_spliced") + self.stats.cores("bytes_copied")
    }

    /// Flows under way.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.stats.cores(match self.role {
            Role::Gateway => "publics",
            Role::Client => "flows",
        })
    }

    /// True when a gateway's data cores hold nothing at all: there is no client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let stats = &self.stats;
        let held = stats.socks() + stats.pipes() + stats.bufs() + self.conns() + self.flows();
        held + stats.control("sessions") + stats.control("peers") == 0
    }

    /// The laws that are broken, of those that hold when nothing runs through the program.
    #[must_use]
    pub fn breaches_at_rest(&self, frame: Frame) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut law = |holds: bool, what: &str| {
            if !holds {
                breaches.push(format!("{:?}: {what}", self.role));
            }
        };
        let stats = &self.stats;
        law(self.flows() == 0, "a flow is left");
        law(stats.pipes() == 0, "a pipe is on lease");
        law(stats.bufs() == 0, "a buffer is on lease");
        let (held, leaving) = match self.role {
            Role::Gateway => (stats.cores("listeners") + self.conns(), stats.cores("settling")),
            Role::Client => (self.conns(), stats.cores("closing")),
        };
        law(leaving == 0, "a proxy_conn settles, or a socket is being closed");
        law(
            stats.socks() == held + stats.cores("lanes"),
            "a socket has no place, or a place no socket",
        );
        let frame_now = Frame { pipes: frame.pipes, ..self.frame() };
        law(frame_now == frame, "descriptors or threads beside the flows have changed");
        let spare_pipes = self.descriptors.pipes.saturating_sub(frame.pipes);
        law(spare_pipes <= 2 * SPARE_PIPES_MAX * self.cores, "more pipes than spare ones");
        law(
            self.conns() <= IDLE_CONNS_MAX * self.cores as u64,
            "more proxy_conns than a pool keeps",
        );
        breaches
    }

    /// The laws that are broken, of those that hold also while `visits` are under way.
    #[must_use]
    pub fn breaches_under_load(&self, frame: Frame, visits: usize) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut law = |holds: bool, what: &str| {
            if !holds {
                breaches.push(format!("{:?}: {what}", self.role));
            }
        };
        // A flow outlives its visit for a moment, and this is no single moment: be generous.
        let flows = 4 * visits as u64 + 64;
        law(self.flows() <= flows, "more flows than visitors");
        // Both directions of both conns.
        law(self.stats.pipes() <= 2 * flows, "more pipes on lease than directions");
        law(self.stats.bufs() <= 2 * flows, "more buffers on lease than directions");
        law(self.conns() <= IDLE_CONNS_MAX * self.cores as u64 + flows, "too many proxy_conns");
        law(self.threads <= frame.threads, "more threads than at the start");
        breaches
    }
}
