//! The threads that make the load, and the CPUs on which they run.
//!
//! Visitors of a gateway come from other machines, and its network card gives each CPU its share of them.
//! On loopback a connection arrives on the CPU of whoever dials, so a single thread of visitors, wherever
//! the scheduler has it at the moment, is a network card with one queue. Threads for small messages are
//! therefore one per CPU and stay there, those of the service too. Bulk is about what bytes cost; its threads
//! float, and so does a visitor who is alone.

use clap::ValueEnum;

use super::client::{Group, Role};

/// Where the threads for small messages run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// One per CPU, and there they stay.
    #[default]
    Spread,
    /// Where the scheduler wants them.
    Float,
}

impl Placement {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spread => "spread",
            Self::Float => "float",
        }
    }
}

/// Who makes the load.
#[derive(Clone, Debug)]
pub(crate) struct Crew {
    /// The CPUs that the load generator may use.
    cpus: Vec<usize>,
    /// As many for everything, when somebody asked for that. They float: there may be few of them for
    /// many CPUs, and client and service had better not share one then.
    threads: Option<usize>,
    placement: Placement,
}

/// Where one thread runs: on one CPU, or anywhere.
pub(crate) type Place = Option<usize>;

impl Crew {
    pub(crate) fn new(cpus: Vec<usize>, threads: Option<usize>, placement: Placement) -> Self {
        assert!(!cpus.is_empty(), "load needs a CPU");
        Self { cpus, threads, placement }
    }

    /// The threads of the service that answer small messages.
    pub(crate) fn fronts(&self) -> Vec<Place> {
        if self.is_spread() { self.one_per_cpu() } else { vec![None; self.few()] }
    }

    /// Threads of the service for bulk.
    pub(crate) fn movers(&self) -> usize {
        self.few()
    }

    /// The threads of a group of clients.
    pub(crate) fn clients(&self, group: &Group) -> Vec<Place> {
        let is_small = matches!(group.role, Role::Echo { .. } | Role::Ask);
        if self.is_spread() && is_small && group.conns >= self.cpus.len() {
            return self.one_per_cpu();
        }
        vec![None; self.few().clamp(1, group.conns.max(1))]
    }

    fn is_spread(&self) -> bool {
        self.placement == Placement::Spread && self.threads.is_none()
    }

    fn one_per_cpu(&self) -> Vec<Place> {
        self.cpus.iter().copied().map(Some).collect()
    }

    /// Half as many as CPUs, if nobody chose: the relay needs the rest.
    fn few(&self) -> usize {
        self.threads.unwrap_or((self.cpus.len() / 2).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: Role = Role::Echo { size: 64 };

    fn crew(threads: Option<usize>, placement: Placement) -> Crew {
        Crew::new(vec![2, 3, 6, 7], threads, placement)
    }

    /// Many small messages come from every CPU; a lone visitor, and bulk, from wherever it is.
    #[test]
    fn small_messages_are_spread() {
        let crew = crew(None, Placement::Spread);
        let all = [Some(2), Some(3), Some(6), Some(7)];
        assert_eq!(crew.clients(&Group { role: ECHO, conns: 32 }), all);
        assert_eq!(crew.clients(&Group { role: Role::Ask, conns: 4 }), all);
        assert_eq!(crew.fronts(), all);
        assert_eq!(crew.clients(&Group { role: ECHO, conns: 1 }), [None]);
        assert_eq!(crew.clients(&Group { role: ECHO, conns: 3 }), [None, None]);
        assert_eq!(crew.clients(&Group { role: Role::Pull, conns: 8 }), [None, None]);
        assert_eq!(crew.movers(), 2);
    }

    /// Whoever asks for it gets floating threads, and as many as wanted, but not more than connections.
    #[test]
    fn threads_can_float() {
        let floating = crew(None, Placement::Float);
        assert_eq!(floating.clients(&Group { role: ECHO, conns: 32 }), [None, None]);
        assert_eq!(floating.fronts(), [None, None]);
        let one = crew(Some(1), Placement::Float);
        assert_eq!((one.fronts(), one.movers()), (vec![None], 1));
        let five = crew(Some(5), Placement::Spread);
        assert_eq!((five.fronts(), five.movers()), (vec![None; 5], 5));
        assert_eq!(five.clients(&Group { role: ECHO, conns: 4 }), [None; 4]);
        assert_eq!(five.clients(&Group { role: Role::Hold, conns: 0 }), [None]);
    }
}
