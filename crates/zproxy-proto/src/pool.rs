//! The idle proxy_conns and the waiting public conns of one client on one data core.
//!
//! Either list is empty: a public conn waits only while no proxy_conn is idle. The pool follows
//! demand: its target doubles when a public conn finds nothing idle, and shrinks by what nobody
//! needed for a whole [`POOL_WINDOW`].

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use crate::limits::{
    BIND_DEADLINE, IDLE_CONNS_MAX, IDLE_CONNS_MIN, OPENING_DEADLINE, OPENING_MAX, POOL_WINDOW,
    WAITING_PUBLICS_MAX, WAITING_PUBLICS_PAUSE, WAITING_PUBLICS_RESUME,
};

/// See the module. `C` names a proxy_conn, `W` a waiting public conn.
#[derive(Clone, Debug)]
pub struct Pool<C, W> {
    idle: Ordered<C, ()>,
    waiting: Ordered<W, Duration>,
    is_crowded: bool,
    opening: Opening,
    target: usize,
    growth: Growth,
    /// The fewest idle proxy_conns in this window.
    low_water: usize,
    /// When the window ends; none while the pool holds and wants what it does without demand.
    window_end: Option<Duration>,
    /// A public conn waits for so long.
    bind_deadline: Duration,
}

/// Many public conns miss before the first answer to a miss has arrived. They are one miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    Due,
    Done,
}

/// What a public conn gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take<C> {
    /// This proxy_conn, which is not in the pool any more.
    Conn(C),
    /// A place in the waiting list.
    Waiting,
    /// Nothing: the waiting list is full.
    Full,
}

/// Where a proxy_conn comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It has just attached.
    Fresh,
    /// Its flow is over.
    Returned,
}

/// What becomes of a proxy_conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Add<C, W> {
    /// Bind it to this public conn, which does not wait any more.
    Serve(W, C),
    /// It is in the pool.
    Idle,
    /// Nobody needs it: close it.
    Surplus(C),
}

/// What time has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired<C, W> {
    /// Public conns that have waited for too long, no longer in the pool: reset them.
    pub waiters: Vec<W>,
    /// Proxy_conns that nobody needed, no longer in the pool: close them.
    pub surplus: Vec<C>,
}

impl<C, W> Default for Pool<C, W> {
    fn default() -> Self {
        Self {
            idle: Ordered::default(),
            waiting: Ordered::default(),
            is_crowded: false,
            opening: Opening::default(),
            target: IDLE_CONNS_MIN,
            growth: Growth::Due,
            low_water: 0,
            window_end: None,
            bind_deadline: BIND_DEADLINE,
        }
    }
}

impl<C: Copy + Eq + Hash, W: Copy + Eq + Hash> Pool<C, W> {
    /// An empty pool, which wants [`IDLE_CONNS_MIN`] proxy_conns.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same pool, in which a public conn waits for so long instead of [`BIND_DEADLINE`].
    #[must_use]
    pub fn with_bind_deadline(self, bind_deadline: Duration) -> Self {
        Self { bind_deadline, ..self }
    }

    /// Proxy_conns that are idle.
    #[must_use]
    pub fn idle_len(&self) -> usize {
        self.idle.len()
    }

    /// Public conns that wait.
    #[must_use]
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Proxy_conns asked for and not yet arrived.
    #[must_use]
    pub fn opening_len(&self) -> usize {
        self.opening.total
    }

    /// Idle proxy_conns that the pool tries to hold.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }

    /// A public conn wants a proxy_conn: the one that came last, because its path is warmest.
    ///
    /// # Panics
    /// When `waiter` waits already.
    pub fn take(&mut self, waiter: W, now: Duration) -> Take<C> {
        if let Some(conn) = self.idle.pop_newest() {
            self.low_water = self.low_water.min(self.idle.len());
            return Take::Conn(conn);
        }
        self.low_water = 0;
        if self.waiting.len() >= WAITING_PUBLICS_MAX {
            return Take::Full;
        }
        if self.growth == Growth::Due {
            self.growth = Growth::Done;
            self.target = (self.target * 2).min(IDLE_CONNS_MAX);
        }
        self.waiting.insert(waiter, now + self.bind_deadline);
        self.watch(now);
        Take::Waiting
    }

    /// A proxy_conn has become available.
    ///
    /// # Panics
    /// When it is in the pool already.
    pub fn add(&mut self, conn: C, origin: Origin, now: Duration) -> Add<C, W> {
        if origin == Origin::Fresh {
            self.opening.arrived();
            self.growth = Growth::Due;
        }
        if let Some((waiter, _)) = self.waiting.pop_oldest() {
            return Add::Serve(waiter, conn);
        }
        if self.idle.len() >= IDLE_CONNS_MAX {
            return Add::Surplus(conn);
        }
        self.idle.insert(conn, ());
        self.watch(now);
        Add::Idle
    }

    /// Descriptors are short: takes half of the idle proxy_conns out, to be closed, but not the last
    /// one, and wants no more than are left. The place of one that is closed and one that is kept are
    /// together what a public conn takes. To be called again for as long as the shortage lasts.
    pub fn shed(&mut self, now: Duration) -> Vec<C> {
        let close = self.idle.len() / 2;
        let mut surplus = Vec::with_capacity(close);
        for _ in 0..close {
            surplus.extend(self.idle.pop_oldest().map(|(conn, ())| conn));
        }
        self.low_water = self.low_water.min(self.idle.len());
        self.target = self.target.min(self.idle.len()).max(1);
        self.watch(now);
        surplus
    }

    /// The way to the client is a new one, and what was idle may have died unseen on the old one: takes
    /// all of it out, to be closed.
    pub fn distrust(&mut self) -> Vec<C> {
        let mut suspects = Vec::new();
        while let Some((conn, ())) = self.idle.pop_oldest() {
            suspects.push(conn);
        }
        self.low_water = 0;
        suspects
    }

    /// An idle proxy_conn has died. Tells whether it was in the pool.
    pub fn remove_idle(&mut self, conn: C) -> bool {
        let was_idle = self.idle.remove(conn);
        self.low_water = self.low_water.min(self.idle.len());
        was_idle
    }

    /// A waiting public conn has gone. Tells whether it was waiting.
    pub fn cancel_wait(&mut self, waiter: W) -> bool {
        self.waiting.remove(waiter)
    }

    /// Whether so many public conns wait that no more should be accepted. It stays so until half of
    /// them are gone.
    pub fn poll_crowded(&mut self) -> bool {
        let least =
            if self.is_crowded { WAITING_PUBLICS_RESUME + 1 } else { WAITING_PUBLICS_PAUSE };
        self.is_crowded = self.waiting.len() >= least;
        self.is_crowded
    }

    /// How many proxy_conns to ask the client for now. They count as opening from here on. Ask only
    /// while there is a ctl_conn.
    pub fn poll_wanted(&mut self, now: Duration) -> u16 {
        let have = self.idle.len() + self.opening.total;
        let wanted = (self.waiting.len() + self.target).saturating_sub(have);
        let wanted = wanted.min(OPENING_MAX - self.opening.total);
        self.opening.asked(wanted, now);
        u16::try_from(wanted).expect("limits.rs asserts that OPENING_MAX fits")
    }

    /// The ctl_conn is gone: what was asked for will not come.
    pub fn ctl_lost(&mut self) {
        self.opening = Opening::default();
    }

    /// The next time at which [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let waiting = self.waiting.oldest().copied();
        [waiting, self.opening.expiry(), self.window_end].into_iter().flatten().min()
    }

    /// Lets time do its work. Ask [`Self::poll_wanted`] afterwards: lost requests are wanted again.
    pub fn handle_timeout(&mut self, now: Duration) -> Expired<C, W> {
        let mut waiters = Vec::new();
        while self.waiting.oldest().is_some_and(|deadline| *deadline <= now) {
            waiters.extend(self.waiting.pop_oldest().map(|(waiter, _)| waiter));
        }
        self.opening.expire(now);
        let mut surplus = Vec::new();
        if self.window_end.is_some_and(|end| end <= now) {
            self.shrink(&mut surplus);
            self.window_end = None;
            self.watch(now);
        }
        Expired { waiters, surplus }
    }

    /// Takes everything out, for the end of the session.
    pub fn clear(&mut self) -> Expired<C, W> {
        let mut all = Expired { waiters: Vec::new(), surplus: Vec::new() };
        while let Some((waiter, _)) = self.waiting.pop_oldest() {
            all.waiters.push(waiter);
        }
        while let Some((conn, ())) = self.idle.pop_oldest() {
            all.surplus.push(conn);
        }
        *self = Self::default().with_bind_deadline(self.bind_deadline);
        all
    }

    /// The window is over: what nobody took in all of it is not needed.
    fn shrink(&mut self, surplus: &mut Vec<C>) {
        self.target = self.target.saturating_sub(self.low_water).max(IDLE_CONNS_MIN);
        let close = self.idle.len().saturating_sub(self.target).min(self.low_water);
        for _ in 0..close {
            surplus.extend(self.idle.pop_oldest().map(|(conn, ())| conn));
        }
    }

    /// Starts a window if there is something that could be too much, or was too little.
    fn watch(&mut self, now: Duration) {
        let is_usual = self.target == IDLE_CONNS_MIN && self.idle.len() <= IDLE_CONNS_MIN;
        if self.window_end.is_none() && !is_usual {
            self.window_end = Some(now + POOL_WINDOW);
            self.low_water = self.idle.len();
        }
    }
}

/// Keys in the order of their arrival; any of them can be removed in O(log n), taken over many. Once it
/// is as large as it ever was, it allocates nothing.
#[derive(Clone, Debug)]
struct Ordered<K, V> {
    /// By age. One that was removed leaves a gap, but neither end is one.
    by_age: VecDeque<(u64, Option<(K, V)>)>,
    ages: HashMap<K, u64>,
    next: u64,
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self { by_age: VecDeque::new(), ages: HashMap::new(), next: 0 }
    }
}

impl<K: Copy + Eq + Hash, V> Ordered<K, V> {
    fn len(&self) -> usize {
        self.ages.len()
    }

    fn insert(&mut self, key: K, value: V) {
        let earlier = self.ages.insert(key, self.next);
        assert!(earlier.is_none(), "a key is in a pool once");
        self.by_age.push_back((self.next, Some((key, value))));
        self.next += 1;
    }

    fn remove(&mut self, key: K) -> bool {
        let Some(age) = self.ages.remove(&key) else { return false };
        let place = self.by_age.binary_search_by_key(&age, |(age, _)| *age);
        self.by_age[place.expect("what has an age is in the list")].1 = None;
        if self.by_age.len() > 2 * self.len() {
            self.by_age.retain(|(_, held)| held.is_some());
        }
        self.trim();
        true
    }

    fn oldest(&self) -> Option<&V> {
        let (_, held) = self.by_age.front()?;
        held.as_ref().map(|(_, value)| value)
    }

    fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, held) = self.by_age.pop_front()?;
        self.popped(held)
    }

    fn pop_newest(&mut self) -> Option<K> {
        let (_, held) = self.by_age.pop_back()?;
        self.popped(held).map(|(key, _)| key)
    }

    fn popped(&mut self, held: Option<(K, V)>) -> Option<(K, V)> {
        let (key, value) = held.expect("neither end is a gap");
        self.ages.remove(&key);
        self.trim();
        Some((key, value))
    }

    fn trim(&mut self) {
        while self.by_age.front().is_some_and(|(_, held)| held.is_none()) {
            self.by_age.pop_front();
        }
        while self.by_age.back().is_some_and(|(_, held)| held.is_none()) {
            self.by_age.pop_back();
        }
    }
}

/// Requests on their way, oldest first.
#[derive(Clone, Debug, Default)]
struct Opening {
    batches: VecDeque<(Duration, usize)>,
    total: usize,
}

impl Opening {
    fn asked(&mut self, count: usize, now: Duration) {
        if count > 0 {
            self.total += count;
            self.batches.push_back((now + OPENING_DEADLINE, count));
        }
    }

    /// One has come. It may be one that was given up already.
    fn arrived(&mut self) {
        let Some((_, count)) = self.batches.front_mut() else { return };
        *count -= 1;
        self.total -= 1;
        if *count == 0 {
            self.batches.pop_front();
        }
    }

    fn expiry(&self) -> Option<Duration> {
        self.batches.front().map(|(expiry, _)| *expiry)
    }

    fn expire(&mut self, now: Duration) {
        while self.expiry().is_some_and(|expiry| expiry <= now) {
            self.total -= self.batches.pop_front().map_or(0, |(_, count)| count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type P = Pool<u32, u32>;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The last conn in is the first out, and the first public conn to wait is the first served.
    #[test]
    fn lifo_conns_and_fifo_waiters() {
        let mut pool = P::new();
        assert_eq!(pool.add(1, Origin::Fresh, s(0)), Add::Idle);
        assert_eq!(pool.add(2, Origin::Fresh, s(0)), Add::Idle);
        assert_eq!(pool.take(10, s(0)), Take::Conn(2));
        assert_eq!(pool.take(11, s(0)), Take::Conn(1));
        assert_eq!(pool.take(12, s(0)), Take::Waiting);
        assert_eq!(pool.take(13, s(0)), Take::Waiting);
        assert_eq!(pool.add(2, Origin::Returned, s(1)), Add::Serve(12, 2));
        assert_eq!(pool.add(3, Origin::Fresh, s(1)), Add::Serve(13, 3));
        assert_eq!((pool.idle_len(), pool.waiting_len()), (0, 0));
    }

    /// The waiting list has an end, and who waits too long is told.
    #[test]
    fn waiting_is_bounded_in_number_and_time() {
        let mut pool = P::new();
        for waiter in 0..WAITING_PUBLICS_MAX as u32 {
            assert_eq!(pool.take(waiter, s(u64::from(waiter / 512))), Take::Waiting);
        }
        assert_eq!(pool.take(99_999, s(18)), Take::Full);
        assert!(pool.cancel_wait(0));
        assert!(!pool.cancel_wait(0));
        assert_eq!(pool.take(99_999, s(18)), Take::Waiting);
        assert_eq!(pool.poll_timeout(), Some(BIND_DEADLINE));
        assert_eq!(pool.handle_timeout(BIND_DEADLINE).waiters.len(), 511);
        assert_eq!(pool.handle_timeout(BIND_DEADLINE + s(1)).waiters.len(), 512);
        pool.handle_timeout(BIND_DEADLINE + s(18));
        assert_eq!(pool.waiting_len(), 0);
    }

    /// A crowd begins at one mark and is over at another, however those who waited have left.
    #[test]
    fn a_crowd_has_two_marks() {
        let mut pool = P::new();
        let (pause, resume) = (WAITING_PUBLICS_PAUSE as u32, WAITING_PUBLICS_RESUME as u32);
        for waiter in 0..pause {
            assert!(!pool.poll_crowded());
            pool.take(waiter, s(0));
        }
        assert!(pool.poll_crowded());
        for waiter in 0..resume - 2 {
            assert!(pool.cancel_wait(waiter) && pool.poll_crowded());
        }
        assert!(matches!(pool.add(1, Origin::Fresh, s(0)), Add::Serve(..)));
        assert!(pool.poll_crowded());
        assert!(matches!(pool.add(2, Origin::Returned, s(0)), Add::Serve(..)));
        assert!(!pool.poll_crowded());
        pool.take(pause, s(0));
        assert!(!pool.poll_crowded(), "it begins anew at the upper mark");
        for waiter in pause + 1..pause + resume {
            pool.take(waiter, s(0));
        }
        assert!(pool.poll_crowded());
        pool.clear();
        assert!(!pool.poll_crowded());
    }

    /// What is asked for is asked for once, until it is overdue.
    #[test]
    fn requests_expire() {
        let mut pool = P::new();
        assert_eq!(pool.poll_wanted(s(0)), IDLE_CONNS_MIN as u16);
        assert_eq!(pool.poll_wanted(s(0)), 0);
        assert_eq!(pool.add(1, Origin::Fresh, s(1)), Add::Idle);
        assert_eq!(pool.poll_timeout(), Some(OPENING_DEADLINE));
        pool.handle_timeout(OPENING_DEADLINE);
        assert_eq!(pool.opening_len(), 0);
        assert_eq!(pool.poll_wanted(OPENING_DEADLINE), 1);
        assert_eq!(pool.add(2, Origin::Fresh, s(4)), Add::Idle);
        // The one that had been given up comes after all.
        assert_eq!(pool.add(3, Origin::Fresh, s(4)), Add::Idle);
        assert_eq!((pool.opening_len(), pool.poll_wanted(s(4))), (0, 0));
    }

    /// A returned conn is not an answer to a request, and a lost ctl_conn answers none.
    #[test]
    fn only_fresh_conns_count_as_arrived() {
        let mut pool = P::new();
        pool.poll_wanted(s(0));
        pool.add(1, Origin::Returned, s(0));
        assert_eq!(pool.opening_len(), 2);
        pool.ctl_lost();
        assert_eq!(pool.opening_len(), 0);
        assert_eq!(pool.poll_wanted(s(0)), 1);
    }

    /// What was idle before the client came back on another way is handed out no more, and as much is
    /// asked for anew.
    #[test]
    fn suspects_are_replaced() {
        let mut pool = P::new();
        assert_eq!(pool.poll_wanted(s(0)), IDLE_CONNS_MIN as u16);
        pool.add(1, Origin::Fresh, s(0));
        pool.add(2, Origin::Fresh, s(0));
        pool.ctl_lost();
        assert_eq!(pool.distrust(), vec![1, 2]);
        assert_eq!((pool.idle_len(), pool.poll_wanted(s(1))), (0, IDLE_CONNS_MIN as u16));
        assert_eq!(pool.take(1, s(1)), Take::Waiting);
        assert_eq!(pool.add(3, Origin::Fresh, s(1)), Add::Serve(1, 3));
    }

    /// The target doubles once per miss that was answered, up to its limit, and requests are never
    /// more than their limit.
    #[test]
    fn target_follows_misses() {
        let mut pool = P::new();
        for waiter in 0..1000 {
            assert_eq!(pool.take(waiter, s(0)), Take::Waiting);
        }
        assert_eq!(pool.target(), 2 * IDLE_CONNS_MIN);
        assert_eq!(pool.poll_wanted(s(0)), OPENING_MAX as u16);
        assert_eq!(pool.poll_wanted(s(0)), 0);
        for conn in 0..1000 {
            pool.add(conn, Origin::Fresh, s(0));
            pool.take(2000 + conn, s(0));
        }
        assert_eq!(pool.target(), IDLE_CONNS_MAX);
    }

    /// What nobody took for a window goes, what was taken stays, down to the minimum.
    #[test]
    fn unneeded_conns_go() {
        let mut pool = P::new();
        for conn in 0..IDLE_CONNS_MAX as u32 {
            assert_eq!(pool.add(conn, Origin::Returned, s(0)), Add::Idle);
        }
        assert_eq!(pool.add(9999, Origin::Returned, s(0)), Add::Surplus(9999));
        // The first window starts with few conns and says nothing yet.
        let end = pool.poll_timeout().unwrap();
        assert!(pool.handle_timeout(end).surplus.len() <= IDLE_CONNS_MIN + 1);
        for conn in 0..50 {
            assert!(matches!(pool.take(conn, end), Take::Conn(_)));
        }
        let end = pool.poll_timeout().unwrap();
        pool.handle_timeout(end);
        let left = pool.idle_len();
        assert_eq!(left, IDLE_CONNS_MIN);
        assert_eq!(pool.poll_timeout(), None, "nothing to shrink, nothing to wait for");
    }

    /// A steady demand keeps its conns from window to window.
    #[test]
    fn steady_demand_keeps_its_conns() {
        let mut pool = P::new();
        for conn in 0..32 {
            pool.add(conn, Origin::Returned, s(0));
        }
        let mut now = s(0);
        for _ in 0..5 {
            let taken: Vec<u32> = (0..30)
                .map(|waiter| match pool.take(waiter, now) {
                    Take::Conn(conn) => conn,
                    other => panic!("{other:?}"),
                })
                .collect();
            for conn in taken {
                pool.add(conn, Origin::Returned, now);
            }
            now += POOL_WINDOW;
            pool.handle_timeout(now);
        }
        assert!(pool.idle_len() >= 30, "{}", pool.idle_len());
    }

    /// A dead conn leaves, wherever it is in the order, and is not handed out.
    #[test]
    fn dead_conns_leave() {
        let mut pool = P::new();
        for conn in 0..5 {
            pool.add(conn, Origin::Fresh, s(0));
        }
        assert!(pool.remove_idle(2) && pool.remove_idle(4) && !pool.remove_idle(4));
        assert_eq!(pool.take(0, s(0)), Take::Conn(3));
        assert_eq!(pool.take(1, s(0)), Take::Conn(1));
        assert_eq!(pool.clear(), Expired { waiters: vec![], surplus: vec![0] });
    }

    /// At a shortage half of the idle proxy_conns are given up, the oldest first, down to the last one,
    /// and the pool asks for none in their place.
    #[test]
    fn a_shortage_sheds_idle_conns() {
        let mut pool = P::new();
        for conn in 0..9 {
            assert_eq!(pool.add(conn, Origin::Fresh, s(0)), Add::Idle);
        }
        pool.target = 64;
        assert_eq!(pool.shed(s(0)), [0, 1, 2, 3]);
        assert_eq!((pool.idle_len(), pool.target(), pool.poll_wanted(s(0))), (5, 5, 0));
        assert_eq!(pool.shed(s(0)), [4, 5]);
        assert_eq!(pool.shed(s(0)), [6]);
        assert_eq!(pool.shed(s(0)), [7]);
        assert!(pool.shed(s(0)).is_empty());
        assert_eq!((pool.idle_len(), pool.target(), pool.poll_wanted(s(0))), (1, 1, 0));
        assert_eq!(pool.take(9, s(0)), Take::Conn(8));
        assert!(pool.shed(s(0)).is_empty());
        assert_eq!(pool.poll_wanted(s(0)), 1);
    }

    /// A window after a shortage the pool wants as much as it does without demand.
    #[test]
    fn the_pool_recovers_from_a_shortage() {
        let mut pool = P::new();
        pool.shed(s(0));
        assert_eq!((pool.target(), pool.poll_timeout()), (1, Some(POOL_WINDOW)));
        pool.handle_timeout(POOL_WINDOW);
        assert_eq!((pool.target(), pool.poll_timeout()), (IDLE_CONNS_MIN, None));
        assert_eq!(pool.poll_wanted(POOL_WINDOW), 2);
    }
}
