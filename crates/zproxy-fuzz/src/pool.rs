//! Lists of operations on a pool, against lists that are searched from end to end.

use std::collections::VecDeque;
use std::time::Duration;

use zproxy_proto::limits::{
    IDLE_CONNS_MAX, IDLE_CONNS_MIN, OPENING_DEADLINE, OPENING_MAX, WAITING_PUBLICS_MAX,
    WAITING_PUBLICS_PAUSE, WAITING_PUBLICS_RESUME,
};
use zproxy_proto::pool::{Add, Origin, Pool, Take};

use crate::input::Input;

const OPERATIONS_MAX: usize = 2_000;

struct World {
    pool: Pool<u32, u32>,
    bind_deadline: Duration,
    now: Duration,
    fresh: u32,
    /// Oldest first.
    idle: Vec<u32>,
    waiting: VecDeque<(u32, Duration)>,
    is_crowded: bool,
    in_use: Vec<u32>,
    /// When each proxy_conn was asked for that has not come, oldest first.
    asked: VecDeque<Duration>,
}

impl World {
    fn new(bind_deadline: Duration) -> Self {
        Self {
            pool: Pool::new().with_bind_deadline(bind_deadline),
            bind_deadline,
            now: Duration::from_secs(1),
            fresh: 0,
            idle: Vec::new(),
            waiting: VecDeque::new(),
            is_crowded: false,
            in_use: Vec::new(),
            asked: VecDeque::new(),
        }
    }

    fn name(&mut self) -> u32 {
        self.fresh += 1;
        self.fresh
    }

    fn take(&mut self) {
        let waiter = self.name();
        let target = self.pool.target();
        match self.pool.take(waiter, self.now) {
            Take::Conn(conn) => {
                assert!(self.waiting.is_empty(), "it overtakes");
                assert_eq!(self.idle.pop(), Some(conn), "the one that came last");
                self.in_use.push(conn);
            }
            Take::Waiting => {
                assert!(self.idle.is_empty() && self.waiting.len() < WAITING_PUBLICS_MAX);
                self.waiting.push_back((waiter, self.now + self.bind_deadline));
            }
            Take::Full => {
                assert!(self.idle.is_empty());
                assert_eq!(self.waiting.len(), WAITING_PUBLICS_MAX);
            }
        }
        assert!((target..=IDLE_CONNS_MAX).contains(&self.pool.target()), "demand shrank the pool");
    }

    fn add(&mut self, returned: Option<u32>) {
        let (conn, origin) = match returned {
            Some(conn) => (conn, Origin::Returned),
            None => {
                self.asked.pop_front();
                (self.name(), Origin::Fresh)
            }
        };
        match self.pool.add(conn, origin, self.now) {
            Add::Serve(waiter, served) => {
                assert_eq!(served, conn);
                let first = self.waiting.pop_front().map(|(waiter, _)| waiter);
                assert_eq!(first, Some(waiter), "the one that waits longest");
                self.in_use.push(conn);
            }
            Add::Idle => {
                assert!(self.waiting.is_empty() && self.idle.len() < IDLE_CONNS_MAX);
                self.idle.push(conn);
            }
            Add::Surplus(surplus) => {
                assert_eq!((surplus, self.waiting.len()), (conn, 0));
                assert_eq!(self.idle.len(), IDLE_CONNS_MAX);
            }
        }
    }

    fn remove_idle(&mut self, choice: usize) {
        let conn = self.idle.get(choice).copied().unwrap_or(u32::MAX);
        assert_eq!(self.pool.remove_idle(conn), conn != u32::MAX);
        self.idle.retain(|idle| *idle != conn);
    }

    fn cancel_wait(&mut self, choice: usize) {
        let waiter = self.waiting.get(choice).map_or(u32::MAX, |(waiter, _)| *waiter);
        assert_eq!(self.pool.cancel_wait(waiter), waiter != u32::MAX);
        self.waiting.retain(|(waiting, _)| *waiting != waiter);
    }

    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        let target = self.pool.target();
        let expired = self.pool.handle_timeout(self.now);
        let mut late = Vec::new();
        while let Some((waiter, deadline)) = self.waiting.front().copied() {
            if deadline > self.now {
                break;
            }
            late.push(waiter);
            self.waiting.pop_front();
        }
        assert_eq!(expired.waiters, late, "those whose time is over, and no others");
        self.asked.retain(|asked| *asked + OPENING_DEADLINE > self.now);
        self.close(&expired.surplus);
        assert!(self.pool.target() <= target.max(IDLE_CONNS_MIN), "time alone made the pool grow");
        assert!(
            expired.surplus.is_empty() || self.idle.len() >= self.pool.target(),
            "closed what it wants"
        );
        assert!(self.pool.poll_timeout().is_none_or(|next| next > self.now), "time is done");
    }

    fn close(&mut self, surplus: &[u32]) {
        for conn in surplus {
            let place = self.idle.iter().position(|idle| idle == conn);
            self.idle.remove(place.expect("only what is idle is surplus"));
        }
    }

    fn poll_wanted(&mut self) {
        let wanted = usize::from(self.pool.poll_wanted(self.now));
        let short = (self.waiting.len() + self.pool.target())
            .saturating_sub(self.idle.len() + self.asked.len());
        assert_eq!(wanted, short.min(OPENING_MAX - self.asked.len()));
        self.asked.extend(std::iter::repeat_n(self.now, wanted));
        assert_eq!(self.pool.poll_wanted(self.now), 0, "asked for once");
    }

    fn poll_crowded(&mut self) {
        let is_begun = self.waiting.len() >= WAITING_PUBLICS_PAUSE;
        let is_over = self.waiting.len() <= WAITING_PUBLICS_RESUME;
        self.is_crowded = is_begun || (self.is_crowded && !is_over);
        assert_eq!(self.pool.poll_crowded(), self.is_crowded);
    }

    fn clear(&mut self) {
        let mut all = self.pool.clear();
        all.surplus.sort_unstable();
        self.idle.sort_unstable();
        assert_eq!(all.surplus, self.idle);
        assert!(all.waiters.iter().eq(self.waiting.iter().map(|(waiter, _)| waiter)));
        (self.idle, self.waiting, self.asked) = Default::default();
    }

    fn check(&self) {
        let pool = &self.pool;
        assert_eq!(pool.idle_len(), self.idle.len());
        assert_eq!(pool.waiting_len(), self.waiting.len());
        assert_eq!(pool.opening_len(), self.asked.len());
        assert!(self.idle.is_empty() || self.waiting.is_empty());
        assert!((1..=IDLE_CONNS_MAX).contains(&pool.target()));
        let first = self.waiting.front().map(|(_, deadline)| *deadline);
        let due =
            first.into_iter().chain(self.asked.front().map(|asked| *asked + OPENING_DEADLINE));
        let (due, next) = (due.min(), pool.poll_timeout());
        assert!(due.is_none_or(|due| next.is_some_and(|next| next <= due)), "{next:?}, {due:?}");
    }
}

/// Whatever comes and goes, in whatever order: nothing is lost, nothing is there twice, who came
/// first is served first, and no limit is passed.
pub fn pool(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(Duration::from_millis(u64::from(input.word())));
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        match kind % 16 {
            0..=2 => world.take(),
            3 => (0..input.byte()).for_each(|_| world.take()),
            4 | 5 => world.add(None),
            6 => (0..input.byte()).for_each(|_| world.add(None)),
            7 | 8 => {
                let returned = world.in_use.pop();
                if returned.is_some() {
                    world.add(returned);
                }
            }
            9 => world.remove_idle(usize::from(input.byte())),
            10 => world.cancel_wait(usize::from(input.byte())),
            11 | 12 => world.pass_time(Duration::from_millis(u64::from(input.word()) / 4)),
            13 | 14 => world.poll_wanted(),
            _ => match input.below(8) {
                0 => world.clear(),
                1 => {
                    let half = world.idle.len().div_ceil(2);
                    let surplus = world.pool.shed(world.now);
                    world.close(&surplus);
                    assert_eq!(world.idle.len(), half);
                    assert!(world.pool.target() <= half.max(1));
                }
                _ => {
                    world.pool.ctl_lost();
                    world.asked.clear();
                }
            },
        }
        world.poll_crowded();
        world.check();
    }
}
