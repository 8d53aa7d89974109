//! What is known of every flow, and the verdicts: the oracle.

use std::collections::BTreeMap;
use std::time::Duration;

use zproxy_io::Fault;

use crate::bytes::Way;
use crate::script::{Script, Who};

/// How a connection ended for the one who had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions, by FIN.
    Clean,
    /// It was reset, or never came about.
    Failed(Fault),
    /// By its own abort, as the script says.
    Aborted,
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    /// Bytes written.
    pub(crate) sent: u64,
    /// Bytes read.
    pub(crate) got: u64,
    /// It has written its FIN.
    pub(crate) has_shut: bool,
    /// It has read the other's.
    pub(crate) has_heard: bool,
    pub(crate) end: Option<End>,
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) script: Script,
    pub(crate) tunnel: usize,
    pub(crate) began: Duration,
    pub(crate) ended: Option<Duration>,
    pub(crate) visitor: Side,
    pub(crate) service: Side,
    /// A service has met it.
    pub(crate) is_met: bool,
    /// It came when everything was well: no excuse counts.
    pub(crate) is_probe: bool,
}

/// What a fault may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaks {
    /// Every flow that lives meanwhile.
    All,
    /// Only flows that begin meanwhile or shortly before.
    Starters,
}

/// A time in which flows may fail.
#[derive(Clone, Copy, Debug)]
struct Harm {
    from: Duration,
    until: Duration,
    breaks: Breaks,
}

/// A flow that began so long before a fault may still wait for its service.
const START_TIME: Duration = Duration::from_secs(14);

/// All flows of a run.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    flows: Vec<Flow>,
    harms: Vec<Harm>,
    /// Services' connections that ended without a byte.
    pub(crate) silent: u64,
    /// Half-closed flows in which nothing moves for so long do not go on.
    pub(crate) half_close: Option<Duration>,
    pub(crate) marks: BTreeMap<&'static str, u64>,
}

impl Ledger {
    pub(crate) fn begin(&mut self, flow: Flow) -> u32 {
        self.flows.push(flow);
        u32::try_from(self.flows.len() - 1).expect("fewer than 2^32 flows")
    }

    pub(crate) fn flow(&mut self, flow: u32) -> &mut Flow {
        &mut self.flows[flow as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn mark(&mut self, name: &'static str) {
        *self.marks.entry(name).or_default() += 1;
    }

    /// Flows may fail for a while.
    pub(crate) fn harm(&mut self, from: Duration, until: Duration, breaks: Breaks) {
        self.harms.push(Harm { from, until, breaks });
    }

    /// Flows that have not ended for their visitor or their service.
    pub(crate) fn open(&self) -> usize {
        let is_open = |flow: &&Flow| {
            flow.visitor.end.is_none() || (flow.is_met && flow.service.end.is_none())
        };
        self.flows.iter().filter(is_open).count()
    }

    /// The first flow that has not ended.
    pub(crate) fn first_open(&self) -> Option<(usize, &Flow)> {
        self.flows.iter().enumerate().find(|(_, flow)| {
            flow.visitor.end.is_none() || (flow.is_met && flow.service.end.is_none())
        })
    }

    /// A FIN was read after so many bytes.
    pub(crate) fn on_fin(&mut self, flow: u32, way: Way) -> Result<(), String> {
        let it = &mut self.flows[flow as usize];
        let (from, to, total) = match way {
            Way::Up => (it.visitor, &mut it.service, it.script.up),
            Way::Down => (it.service, &mut it.visitor, it.script.down),
        };
        to.has_heard = true;
        // A service that was told nothing keeps no account.
        let is_told = it.script.up > 0 || way == Way::Up;
        if to.got != total || (is_told && !(from.has_shut && from.sent == total)) {
            return Err(format!(
                "flow {flow} {way:?}: a FIN behind {} of {total} bytes; the sender had sent {} and \
                 its FIN: {}",
                to.got, from.sent, from.has_shut
            ));
        }
        Ok(())
    }

    /// One end is over.
    pub(crate) fn end(&mut self, flow: u32, who: Who, end: End, now: Duration) {
        let it = &mut self.flows[flow as usize];
        let side = match who {
            Who::Visitor => &mut it.visitor,
            Who::Service => &mut it.service,
        };
        assert!(side.end.is_none(), "an end ends once");
        side.end = Some(end);
        if it.visitor.end.is_some() && (!it.is_met || it.service.end.is_some()) {
            it.ended = Some(now);
        }
        let half_closed = it.visitor.has_shut != it.service.has_shut;
        if end == End::Clean && half_closed {
            self.mark("half_closed_at_end");
        }
    }

    /// Judges every flow after all have ended.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let mutes = self.flows.iter().filter(|flow| flow.script.up == 0).count() as u64;
        if self.silent > mutes {
            return Err(format!(
                "{} connections reached a service without a byte and with a FIN, {mutes} visitors \
                 had nothing to say",
                self.silent
            ));
        }
        for (number, flow) in self.flows.iter().enumerate() {
            self.judge_one(flow).map_err(|why| format!("flow {number}: {why}; {flow:?}"))?;
        }
        Ok(())
    }

    fn judge_one(&self, flow: &Flow) -> Result<(), String> {
        let Some(end) = flow.visitor.end else { return Err("it did not end".into()) };
        if flow.is_met && flow.service.end.is_none() {
            return Err("it did not end for its service".into());
        }
        if self.half_close.is_some_and(|limit| flow.script.rest > limit) {
            let is_failed = |side: &Side| matches!(side.end, Some(End::Failed(_)));
            let is_over = is_failed(&flow.visitor) && is_failed(&flow.service);
            return if is_over { Ok(()) } else { Err("it outlived the half-close limit".into()) };
        }
        let is_mute = flow.script.up == 0;
        let is_clean = end == End::Clean && (is_mute || flow.service.end == Some(End::Clean));
        // An abort that came too late to matter is none.
        let is_aborted = flow.script.abort.is_some();
        if is_clean || is_aborted || (!flow.is_probe && self.excuses(flow)) {
            return Ok(());
        }
        Err("it failed without a cause".into())
    }

    fn excuses(&self, flow: &Flow) -> bool {
        let ended = flow.ended.unwrap_or(Duration::MAX);
        self.harms.iter().any(|harm| {
            let from = match harm.breaks {
                Breaks::All => harm.from,
                Breaks::Starters => harm.from.saturating_sub(START_TIME),
            };
            match harm.breaks {
                Breaks::All => flow.began <= harm.until && ended >= from,
                Breaks::Starters => flow.began <= harm.until && flow.began >= from,
            }
        })
    }

    /// How flows ended: clean, failed, aborted.
    pub(crate) fn sums(&self) -> [usize; 3] {
        let mut sums = [0; 3];
        for flow in &self.flows {
            match flow.visitor.end {
                Some(End::Clean) => sums[0] += 1,
                Some(End::Failed(_)) => sums[1] += 1,
                Some(End::Aborted) => sums[2] += 1,
                None => {}
            }
        }
        sums
    }
}
