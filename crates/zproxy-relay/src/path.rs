//! Whether the other end of a conn still answers. One that has vanished while something was on its way
//! to it would keep its flow until TCP gives up, in about 15 minutes: keep-alive rests meanwhile, and
//! TCP_USER_TIMEOUT would also cut off who merely does not read (since Linux 5.11).

use std::num::NonZeroU32;
use std::time::Duration;

use zproxy_io::{Driver, FarEnd, Sock};

/// A conn is asked about so often.
const ASK_INTERVAL: Duration = Duration::from_secs(60);
/// One that owes an acknowledgement is asked about so often.
const SUSPECT_INTERVAL: Duration = Duration::from_secs(10);

/// How long an other end may owe an acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct PathLimit {
    dead_after: Option<Duration>,
    ask: Duration,
    suspect: Duration,
}

impl PathLimit {
    /// A limit; none: whoever vanishes is TCP's business.
    #[must_use]
    pub fn new(dead_after: Option<Duration>) -> Self {
        let part = |most: Duration, of| dead_after.map_or(most, |limit| most.min(limit / of));
        Self { dead_after, ask: part(ASK_INTERVAL, 2), suspect: part(SUSPECT_INTERVAL, 12) }
    }
}

/// What is believed of one conn's other end. Small: every flow has two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    /// When to ask again; none: it was never asked about.
    next: Option<Moment>,
    /// Since when it has been known to owe an acknowledgement, and has given none.
    owing_since: Option<Moment>,
}

/// A time in tenths of a second, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment(NonZeroU32);

impl Moment {
    fn at(time: Duration) -> Self {
        let tenths = u32::try_from(time.as_millis() / 100).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(tenths).unwrap_or(NonZeroU32::MIN))
    }

    fn time(self) -> Duration {
        Duration::from_millis(u64::from(self.0.get()) * 100)
    }
}

impl Path {
    /// To be called about once a second, which costs nothing most of the time. Tells whether the other
    /// end counts as gone.
    pub fn is_dead<D: Driver>(
        &mut self,
        driver: &D,
        sock: Sock,
        limit: &PathLimit,
        now: Duration,
    ) -> bool {
        let Some(dead_after) = limit.dead_after else { return false };
        // A conn that does not live to be asked about costs nothing at all.
        let next = *self.next.get_or_insert(Moment::at(now + limit.ask));
        if now < next.time() {
            return false;
        }
        let is_dead = self.judge(driver.far_end(sock), limit, dead_after, now);
        let wait = if self.owing_since.is_some() { limit.suspect } else { limit.ask };
        self.next = Some(Moment::at(now + wait));
        is_dead
    }

    fn judge(
        &mut self,
        far: Option<FarEnd>,
        limit: &PathLimit,
        dead_after: Duration,
        now: Duration,
    ) -> bool {
        // Who has just acknowledged something is there, whatever else it owes.
        let Some(far) = far.filter(|far| far.owes && far.silence >= limit.suspect) else {
            self.owing_since = None;
            return false;
        };
        // How long it has been silent says nothing of how long it has owed something: what it owes may
        // have been sent a moment ago. So that is counted from the first look that found it owing.
        let since = self.owing_since.map(Moment::time);
        let since = since.filter(|since| far.silence >= now.saturating_sub(*since)).unwrap_or(now);
        self.owing_since = Some(Moment::at(since));
        // TCP doubles the time between two tries, so after an outage the first answer comes after up to
        // twice its length; and at a closed window two tries are up to 120 s apart. One interval more,
        // and at least two tries have failed that no shorter outage explains.
        now.saturating_sub(since) >= dead_after + limit.suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AFTER: Duration = Duration::from_secs(120);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// When a conn counts as dead that is looked at from 1,000 s on, and of which the kernel says this.
    fn died_at(mut says: impl FnMut(u64) -> (bool, u64)) -> Option<u64> {
        let limit = PathLimit::new(Some(DEAD_AFTER));
        let mut path = Path::default();
        (1_000..5_000).find(|now| {
            let (owes, silence) = says(*now);
            let far = Some(FarEnd { owes, silence: s(silence) });
            let next = *path.next.get_or_insert(Moment::at(s(*now) + limit.ask));
            if s(*now) < next.time() {
                return false;
            }
            let is_dead = path.judge(far, &limit, DEAD_AFTER, s(*now));
            let wait = if path.owing_since.is_some() { s(10) } else { s(60) };
            path.next = Some(Moment::at(s(*now) + wait));
            is_dead
        })
    }

    /// An other end that owes an acknowledgement and gives none is dead, after the limit and not before,
    /// even if it had been silent for long when there was nothing to answer.
    #[test]
    fn who_owes_for_too_long_is_dead() {
        let sent_at = 1_500;
        let says =
            |silent_since: u64| move |now: u64| (now >= sent_at, now.saturating_sub(silent_since));
        for silent_since in [1, 900, 1_499] {
            let died = died_at(says(silent_since)).expect("it is dead");
            assert!((sent_at + 130..=sent_at + 60 + 10 + 131).contains(&died), "{died}");
        }
    }

    /// A slow reader answers the probes of its closed window, of which there is one in two minutes: it
    /// lives, whenever it is asked about.
    #[test]
    fn a_closed_window_is_no_death() {
        for every in [7, 60, 119, 120] {
            assert_eq!(died_at(|now| (now % every == 0, now % every + every)), None, "{every}");
        }
        assert_eq!(died_at(|now| (false, now)), None, "who owes nothing is never dead");
    }

    /// An outage of a minute is survived, although the first answer may come two minutes after the last.
    #[test]
    fn a_minute_of_silence_is_no_death() {
        for begin in 1_060..1_130 {
            let end = begin + 121;
            let says = |now: u64| match now {
                _ if now < begin => (true, 0),
                _ if now < end => (true, now - begin),
                _ => (true, 0),
            };
            assert_eq!(died_at(says), None, "from {begin} on");
            // A probe that was lost in it, and the next one's answer on its way after two minutes.
            let says = |now: u64| match now {
                _ if now < begin => (false, now % 120),
                _ if now <= end => (true, now - begin + 120),
                _ => (false, now - end),
            };
            assert_eq!(died_at(says), None, "probe at {begin}");
        }
    }

    /// A sign of life ends a suspicion, and the next one begins from nothing.
    #[test]
    fn suspicion_ends() {
        let says = |now: u64| (true, if now < 2_000 { now % 100 } else { now - 2_000 });
        let died = died_at(says).expect("it is dead");
        assert!((2_140..=2_210).contains(&died), "{died}");
    }

    /// Without a limit, and without an answer from the kernel, nobody is dead.
    #[test]
    fn no_limit_no_death() {
        let limit = PathLimit::new(None);
        assert_eq!((limit.dead_after, limit.ask), (None, ASK_INTERVAL));
        let mut path = Path { next: None, owing_since: Some(Moment::at(s(1))) };
        assert!(!path.judge(None, &limit, DEAD_AFTER, s(9_999)));
        assert_eq!(path.owing_since, None);
    }
}
