//! One run: everything is started, visited, troubled, left in peace, judged, and stopped.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use zproxy_io::sim::{ProcessName, Random, Sabotage, World, take_marks};

use crate::crowd::Crowd;
use crate::ledger::Breaks;
use crate::plan::{Plan, Trouble, Visit};
use crate::programs::{
    CTL_PORT, Client, Gateway, HEARTBEAT_DEADLINE, PROXY_PORT, Place, Program, Settings, client_ip,
    gateway_ip, public_at, service_at, start_client, start_gateway,
};
use crate::script::Script;

/// Everything is up after so long at most.
const START_TIME: Duration = Duration::from_secs(60);
/// When the troubles are over, every flow has ended after so long at most: a client that was cut off
/// waits for half a minute before it dials again, and a visitor who was not heard for one.
const PEACE_TIME: Duration = Duration::from_secs(240);
/// A flow in peace ends within so long.
const PROBE_TIME: Duration = Duration::from_secs(60);
/// Pools shrink and orphans die meanwhile.
const QUIET_TIME: Duration = Duration::from_secs(150);
/// Both programs stop within so long.
const STOP_TIME: Duration = Duration::from_secs(60);
/// So many turns without time passing are a loop that does not end.
const TURNS_MAX: u64 = 400_000;

/// Makes a saboteur for one process.
pub type Saboteur = fn() -> Sabotage;

/// Where a deliberate fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// In the gateway.
    Gateway,
    /// In every client.
    Client,
}

/// How runs differ from what their seed says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A deliberate fault, which the run should notice.
    pub sabotage: Option<(Victim, Saboteur)>,
}

/// What a good run tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal runs have equal traces.
    pub trace: u64,
    /// Flows: clean, failed, aborted.
    pub flows: [usize; 3],
    /// Rare places that it came by, and how often.
    pub marks: BTreeMap<String, u64>,
    /// Turns of all loops.
    pub turns: u64,
    /// Virtual time.
    pub time: Duration,
}

/// Runs one seed.
///
/// # Errors
/// What was wrong.
///
/// # Panics
/// When a program breaks one of its own promises.
pub fn run(seed: u64, options: &Options) -> Result<Report, String> {
    run_plan(seed, &Plan::drawn(seed), options)
}

/// Runs a plan; the seed decides what the plan does not.
pub(crate) fn run_plan(seed: u64, plan: &Plan, options: &Options) -> Result<Report, String> {
    let settings = Settings::new(plan.times, &plan.owners, plan.is_named);
    drop(take_marks());
    let mut run = Run::new(seed, plan, &settings, *options)?;
    let result = run.live();
    let at = run.world.now() - run.began;
    result.map_err(|why| format!("after {:.6} s: {why}", at.as_secs_f64()))?;
    let mut marks = take_marks();
    for (name, count) in run.crowd.ledger.marks.iter().chain(&run.world.counts()) {
        *marks.entry((*name).to_owned()).or_default() += count;
    }
    Ok(Report {
        trace: run.world.trace(),
        flows: run.crowd.ledger.sums(),
        marks,
        turns: run.turns,
        time: at,
    })
}

/// Something to be done later.
#[derive(Clone, Copy, Debug)]
enum Todo {
    Visit(Visit),
    Trouble(Trouble),
    /// Start the gateway, or a client, again.
    Start(Option<usize>),
    Service(usize, bool),
    Backlog(usize),
    Names,
    /// An answer of a resolver is due.
    Answer,
}

struct Run<'a> {
    plan: &'a Plan,
    settings: &'a Settings,
    options: Options,
    world: World,
    /// Decides who runs next.
    random: Random,
    seeds: u64,
    began: Duration,
    gateway: Option<Program<Gateway>>,
    clients: Vec<Option<Program<Client<'a>>>>,
    /// Programs that were asked to stop, to be started again so much later.
    stopping: BTreeMap<Option<usize>, Duration>,
    crowd: Crowd,
    todo: BTreeMap<(Duration, u64), Todo>,
    todo_next: u64,
    questions: Vec<(Duration, zproxy::sim::Question)>,
    has_names: bool,
    /// When nobody suffers any more from what was done.
    calm_at: Duration,
    turns: u64,
    turns_now: u64,
}

impl<'a> Run<'a> {
    fn new(
        seed: u64,
        plan: &'a Plan,
        settings: &'a Settings,
        options: Options,
    ) -> Result<Self, String> {
        let world = World::new(seed, plan.weather.clone());
        let visitors = world.spawn(Ipv4Addr::new(10, 0, 3, 1).into());
        let services = world.spawn(service_at(0).ip());
        let mut crowd = Crowd::new(world.clone(), visitors, services);
        crowd.ledger.half_close = plan.times.half_close;
        for tunnel in 0..plan.owners.len() {
            crowd.open_service(service_at(tunnel));
        }
        let mut run = Self {
            plan,
            settings,
            options,
            began: world.now(),
            world,
            random: Random::new(seed ^ 0x00AC_7045),
            seeds: seed.wrapping_mul(0x0001_0001_0001),
            gateway: None,
            clients: settings.clients.iter().map(|_| None).collect(),
            stopping: BTreeMap::new(),
            crowd,
            todo: BTreeMap::new(),
            todo_next: 0,
            questions: Vec::new(),
            has_names: true,
            calm_at: Duration::ZERO,
            turns: 0,
            turns_now: 0,
        };
        run.start(None)?;
        for client in 0..settings.clients.len() {
            run.start(Some(client))?;
        }
        Ok(run)
    }

    fn live(&mut self) -> Result<(), String> {
        self.go_until(START_TIME, "tunnels do not open", Self::is_ready)?;
        let start = self.world.now();
        for visit in &self.plan.visits {
            self.later(start + visit.at, Todo::Visit(*visit));
        }
        for (at, trouble) in &self.plan.troubles {
            self.later(start + *at, Todo::Trouble(*trouble));
        }
        self.go_until(PEACE_TIME, "flows do not end", Self::is_peaceful)?;
        self.crowd.ledger.judge()?;
        self.probe()?;
        self.go_until(QUIET_TIME, "the programs do not come to rest", Self::is_at_rest)?;
        self.check_rest()?;
        self.stop()
    }

    fn later(&mut self, at: Duration, what: Todo) {
        self.todo_next += 1;
        self.todo.insert((at, self.todo_next), what);
    }

    // --- the scheduler ----------------------------------------------------------------------------

    /// Runs until `is_done`, and fails with `why` when that takes longer than `limit`.
    fn go_until(
        &mut self,
        limit: Duration,
        why: &str,
        is_done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let give_up = self.world.now() + limit;
        while !is_done(self) {
            if self.world.now() >= give_up || !self.step(give_up)? {
                let open = self.crowd.ledger.first_open();
                return Err(format!("{why} within {limit:?}; first open flow: {open:?}"));
            }
        }
        Ok(())
    }

    /// Lets somebody run, or time pass; false when nothing will ever happen again.
    fn step(&mut self, latest: Duration) -> Result<bool, String> {
        if self.crowd.run()? {
            return Ok(true);
        }
        let now = self.world.now();
        if let Some(((at, _), _)) = self.todo.first_key_value()
            && *at <= now
        {
            let (_, what) = self.todo.pop_first().expect("just seen");
            self.act(what)?;
            return Ok(true);
        }
        let mut due = Vec::new();
        let mut next: Option<Duration> = None;
        for (who, place, driver) in self.loops() {
            match self.world.wake_time(driver) {
                Some(at) if at <= now => due.push((who, place)),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        if !due.is_empty() {
            let (who, place) = due[self.random.place(due.len())];
            self.turn(who, place)?;
            return Ok(true);
        }
        // Looking at the loops may have let operations run, and so woken an app.
        if self.crowd.run()? {
            return Ok(true);
        }
        let times = [next, self.world.next_event(), self.todo.keys().next().map(|(at, _)| *at)];
        let Some(at) = times.into_iter().flatten().min() else { return Ok(false) };
        self.turns_now = 0;
        self.world.advance(at.min(latest).max(now));
        Ok(true)
    }

    fn loops(&self) -> Vec<(Option<usize>, Place, zproxy_io::sim::DriverName)> {
        let gateway = self.gateway.iter().flat_map(|it| it.program.loops());
        let gateway = gateway.map(|(place, driver)| (None, place, driver));
        let clients = self.clients.iter().enumerate().flat_map(|(client, it)| {
            let loops = it.iter().flat_map(|it| it.program.loops());
            loops.map(move |(place, driver)| (Some(client), place, driver))
        });
        gateway.chain(clients).collect()
    }

    fn turn(&mut self, who: Option<usize>, place: Place) -> Result<(), String> {
        self.turns += 1;
        self.turns_now += 1;
        if self.turns_now > TURNS_MAX {
            return Err(format!("{who:?} {place:?} turns and turns, and no time passes"));
        }
        let mut asked = Vec::new();
        let is_over = match who {
            None => {
                let it = self.gateway.as_mut().expect("it runs");
                self.world.run_as(it.process);
                it.program.turn(place)?;
                it.program.is_over()
            }
            Some(client) => {
                let it = self.clients[client].as_mut().expect("it runs");
                self.world.run_as(it.process);
                it.program.turn(place).map_err(|why| format!("client {client} ends: {why}"))?;
                asked.extend(std::iter::from_fn(|| it.program.questions.next()));
                it.program.control.is_none()
            }
        };
        for question in asked {
            let at = self.world.now() + Duration::from_micros(self.random.between(10, 50_000));
            self.questions.push((at, question));
            self.later(at, Todo::Answer);
        }
        if is_over {
            self.bury(who);
            if let Some(time) = self.stopping.remove(&who) {
                let at = self.world.now() + time;
                self.later(at, Todo::Start(who));
            }
        }
        Ok(())
    }

    // --- programs ---------------------------------------------------------------------------------

    fn start(&mut self, who: Option<usize>) -> Result<(), String> {
        self.seeds = self.seeds.wrapping_add(0x1_0000);
        let wanted = if who.is_some() { Victim::Client } else { Victim::Gateway };
        let sabotage = self.options.sabotage.filter(|(victim, _)| *victim == wanted);
        let sabotage = sabotage.map(|(_, make)| make());
        match who {
            None => {
                let settings = &self.settings.gateway;
                let cores = self.plan.gateway_cores;
                let made = start_gateway(&self.world, settings, cores, self.seeds, sabotage)?;
                self.gateway = Some(made);
            }
            Some(client) => {
                let settings = &self.settings.clients[client];
                let cores = self.plan.client_cores;
                let made =
                    start_client(&self.world, settings, client, cores, self.seeds, sabotage)?;
                self.clients[client] = Some(made);
            }
        }
        Ok(())
    }

    /// A program is gone, with everything that it had.
    fn bury(&mut self, who: Option<usize>) {
        let process = match who {
            None => self.gateway.take().map(|it| it.process),
            Some(client) => self.clients[client].take().map(|it| it.process),
        };
        if let Some(process) = process {
            self.world.bury(process);
        }
    }

    fn process(&self, who: Option<usize>) -> Option<ProcessName> {
        match who {
            None => self.gateway.as_ref().map(|it| it.process),
            Some(client) => self.clients[client].as_ref().map(|it| it.process),
        }
    }

    // --- what happens -----------------------------------------------------------------------------

    fn act(&mut self, what: Todo) -> Result<(), String> {
        match what {
            Todo::Visit(visit) => {
                self.crowd.visit(visit.tunnel, public_at(visit.tunnel), visit.script, false);
            }
            Todo::Trouble(trouble) => self.make(trouble),
            Todo::Start(who) => self.start(who)?,
            Todo::Service(tunnel, is_up) => self.crowd.set_service(tunnel, is_up),
            Todo::Backlog(tunnel) => self.crowd.set_backlog(tunnel, 4096),
            Todo::Names => self.has_names = true,
            Todo::Answer => self.answer(),
        }
        Ok(())
    }

    fn answer(&mut self) {
        let now = self.world.now();
        let due: Vec<usize> =
            (0..self.questions.len()).rev().filter(|it| self.questions[*it].0 <= now).collect();
        for place in due {
            let (_, question) = self.questions.remove(place);
            let ip = match question.host.as_str() {
                "gateway.sim" => Some(gateway_ip()),
                "service.sim" => Some(service_at(0).ip()),
                _ => None,
            };
            let ip = ip.filter(|_| self.has_names);
            let port = question.port;
            question.answer(ip.map(|ip| SocketAddr::new(ip, port)).into_iter().collect());
        }
    }

    fn harm(&mut self, time: Duration, breaks: Breaks) {
        let now = self.world.now();
        self.crowd.ledger.harm(now, now + time, breaks);
    }

    /// A path is dark for some time, which is felt for some time more. If the programs may give up who
    /// is behind it, flows end that were there before.
    fn harm_in_the_dark(&mut self, time: Duration, more: Duration) {
        let second = Duration::from_secs(1);
        if time + second < self.plan.times.dead_after {
            self.harm(time + more, Breaks::Starters);
        } else {
            self.harm(time + more.max(10 * second), Breaks::All);
        }
    }

    fn make(&mut self, trouble: Trouble) {
        let now = self.world.now();
        // A heartbeat may not have noticed it yet when it is over.
        self.calm_at = self.calm_at.max(now + trouble.time() + 2 * HEARTBEAT_DEADLINE);
        let seconds = Duration::from_secs;
        match trouble {
            Trouble::CutCtl { client } => {
                if let Some(conn) = self.conn_of(client, CTL_PORT) {
                    self.crowd.ledger.mark("trouble.cut_ctl");
                    self.world.kill_conn(conn);
                }
            }
            Trouble::DarkenCtl { client, side, time } => {
                // New visitors wait for the heartbeat to notice, and some longer than they may.
                self.harm(HEARTBEAT_DEADLINE + seconds(10), Breaks::Starters);
                if let Some(conn) = self.conn_of(client, CTL_PORT) {
                    self.crowd.ledger.mark("trouble.darken_ctl");
                    for end in [0, 1].into_iter().filter(|end| side == 2 || side == *end) {
                        self.world.darken_conn(conn, end, now + time);
                    }
                }
            }
            Trouble::CutProxyConn { client } => {
                if let Some(conn) = self.conn_of(client, PROXY_PORT) {
                    self.crowd.ledger.mark("trouble.cut_proxy_conn");
                    self.harm(seconds(2), Breaks::All);
                    self.world.kill_conn(conn);
                }
            }
            Trouble::DarkenProxyConn { client, side, time } => {
                self.harm_in_the_dark(time, seconds(0));
                if let Some(conn) = self.conn_of(client, PROXY_PORT) {
                    self.crowd.ledger.mark("trouble.darken_proxy_conn");
                    self.world.darken_conn(conn, side, now + time);
                }
            }
            Trouble::Partition { client, way, time } => {
                self.crowd.ledger.mark("trouble.partition");
                self.harm_in_the_dark(time, seconds(40));
                let (gateway, client) = (gateway_ip(), client_ip(client));
                if way != 1 {
                    self.world.cut(gateway, client, now + time);
                }
                if way != 0 {
                    self.world.cut(client, gateway, now + time);
                }
            }
            Trouble::Starve { who, time, of } => {
                if let Some(process) = self.process(who) {
                    self.crowd.ledger.mark("trouble.starve");
                    self.harm(time + seconds(5), Breaks::Starters);
                    self.world.starve(process, now + time, of);
                }
            }
            Trouble::Freeze { who, time } => {
                if let Some(process) = self.process(who) {
                    self.crowd.ledger.mark("trouble.freeze");
                    self.harm(time + seconds(15), Breaks::Starters);
                    self.world.freeze(process, now + time);
                }
            }
            Trouble::Jump { time } => {
                self.crowd.ledger.mark("trouble.jump");
                self.harm(time + seconds(15), Breaks::Starters);
                self.world.advance(now + time);
            }
            Trouble::Kill { who, time } => {
                if self.process(who).is_some() && !self.stopping.contains_key(&who) {
                    self.crowd.ledger.mark("trouble.kill");
                    self.harm(time + seconds(45), Breaks::All);
                    self.bury(who);
                    self.later(now + time, Todo::Start(who));
                }
            }
            Trouble::Stop { who, time } => self.make_stop(who, time),
            Trouble::ServiceDown { tunnel, time } => {
                self.crowd.ledger.mark("trouble.service_down");
                self.harm(time, Breaks::Starters);
                self.crowd.set_service(tunnel, false);
                self.later(now + time, Todo::Service(tunnel, true));
            }
            Trouble::ServiceStuck { tunnel, time } => {
                self.crowd.ledger.mark("trouble.service_stuck");
                self.harm(time + seconds(5), Breaks::Starters);
                self.crowd.set_backlog(tunnel, 0);
                self.later(now + time, Todo::Backlog(tunnel));
            }
            Trouble::NoNames { time } => {
                self.crowd.ledger.mark("trouble.no_names");
                self.harm(time + seconds(5), Breaks::Starters);
                self.has_names = false;
                self.later(now + time, Todo::Names);
            }
            Trouble::Crowd { tunnel, visitors } => {
                self.crowd.ledger.mark("trouble.crowd");
                for _ in 0..visitors {
                    let script = Script::plain(20, 20);
                    self.crowd.visit(tunnel, public_at(tunnel), script, false);
                }
            }
        }
    }

    fn make_stop(&mut self, who: Option<usize>, time: Duration) {
        if self.process(who).is_none() || self.stopping.contains_key(&who) {
            return;
        }
        self.crowd.ledger.mark("trouble.stop");
        let now = self.world.now();
        let drain = self.plan.times.drain;
        let back = drain + time + Duration::from_secs(45);
        self.crowd.ledger.harm(now, now + back, Breaks::Starters);
        // What has not ended by then is cut off.
        let cut = drain.saturating_sub(Duration::from_millis(200));
        self.crowd.ledger.harm(now + cut, now + back, Breaks::All);
        match who {
            None => self.gateway.as_ref().expect("it runs").program.stops.drain(),
            Some(client) => self.clients[client].as_ref().expect("it runs").program.stops.stop(),
        }
        self.stopping.insert(who, time);
    }

    /// Some connection of a client to a port of the gateway.
    fn conn_of(&mut self, client: usize, port: u16) -> Option<usize> {
        let ip: IpAddr = client_ip(client);
        let conns = self.world.conns_to(SocketAddr::new(gateway_ip(), port));
        let conns: Vec<usize> =
            conns.into_iter().filter(|conn| self.world.dialler_of(*conn) == Some(ip)).collect();
        if conns.is_empty() { None } else { Some(conns[self.random.place(conns.len())]) }
    }

    // --- what is expected -------------------------------------------------------------------------

    fn is_ready(&self) -> bool {
        let is_up = |it: &Option<Program<Client<'_>>>, settings: &zproxy::config::Settings| {
            it.as_ref().is_some_and(|it| {
                let is_welcomed =
                    it.program.control.as_ref().is_some_and(|(_, it)| it.is_welcomed());
                is_welcomed && it.program.ready.borrow().len() == settings.tunnels.len()
            })
        };
        let is_served = self.gateway.as_ref().is_some_and(|it| {
            let cores = it.program.cores.iter().flatten();
            let [.., up] = it.program.control.as_ref().map_or([0; 4], |(_, it)| it.census());
            let tunnels = self.plan.owners.len();
            cores.into_iter().all(|(_, core)| core.census().tunnels == tunnels)
                && up == self.clients.len()
        });
        is_served && self.clients.iter().zip(&self.settings.clients).all(|(it, of)| is_up(it, of))
    }

    /// Everything that was to happen has happened, everybody is back, and no flow is open.
    fn is_peaceful(&self) -> bool {
        self.world.now() >= self.calm_at
            && self.todo.values().all(|what| matches!(what, Todo::Answer))
            && self.stopping.is_empty()
            && self.is_quiet()
            && self.is_ready()
    }

    /// No flow is open. This is asked after every step, and the first half is cheap.
    fn is_quiet(&self) -> bool {
        self.crowd.open() == 0 && self.crowd.ledger.open() == 0
    }

    /// New flows work.
    fn probe(&mut self) -> Result<(), String> {
        for round in 0..2u64 {
            for tunnel in 0..self.plan.owners.len() {
                for size in [1, 3_000] {
                    let script = Script::plain(size + round, size);
                    self.crowd.visit(tunnel, public_at(tunnel), script, true);
                }
            }
            self.go_until(PROBE_TIME, "flows in peace do not end", Self::is_quiet)?;
        }
        self.crowd.ledger.judge()
    }

    /// Nothing is on its way.
    fn is_at_rest(&self) -> bool {
        self.check_rest().is_ok()
    }

    /// Every socket, lease, place and timer is accounted for.
    fn check_rest(&self) -> Result<(), String> {
        let gateway = &self.gateway.as_ref().expect("it runs").program;
        // Up to two cores on either side: those of the smaller side share those of the larger one.
        let (of_gateway, of_client) = (self.plan.gateway_cores, self.plan.client_cores);
        let gateway_lanes = self.clients.len() * of_client.div_ceil(of_gateway);
        let client_lanes = of_gateway.div_ceil(of_client);
        let mut gateway_idle = 0;
        for (core, it) in gateway.cores.iter().enumerate() {
            let census = it.as_ref().expect("it runs").1.census();
            let open = census.stats.socks_opened - census.stats.socks_closed;
            let known = census.listeners + census.publics + census.conns + census.lanes;
            let is_good = census.publics == 0
                && census.conns == census.idle
                && census.listeners == self.plan.owners.len()
                && census.accepting == census.listeners
                && census.tunnels == census.listeners
                && census.sessions == self.clients.len()
                && census.lanes == gateway_lanes
                && open == known as u64
                && census.stats.bufs_leased == census.stats.bufs_returned;
            if !is_good {
                return Err(format!("gateway core {core} is not at rest: {census:?}"));
            }
            gateway_idle += census.idle;
        }
        let control = &gateway.control.as_ref().expect("it runs").1;
        let stats = control.stats();
        let [doors, peers, sessions, _] = control.census();
        let is_good = (doors, peers, sessions) == (2, self.clients.len(), self.clients.len());
        if !is_good || stats.socks_opened - stats.socks_closed != (doors + peers) as u64 {
            return Err(format!("the control core is not at rest: {doors} {peers} {stats:?}"));
        }
        let mut client_idle = 0;
        for (number, it) in self.clients.iter().enumerate() {
            let client = &it.as_ref().expect("it runs").program;
            for (core, it) in client.cores.iter().enumerate() {
                let census = it.as_ref().expect("it runs").1.census();
                let open = census.stats.socks_opened - census.stats.socks_closed;
                let is_good = census.flows == 0
                    && census.closing == 0
                    && census.dialling == 0
                    && census.conns == census.idle
                    && census.names == census.conns
                    && census.lanes == client_lanes
                    && open == (census.conns + census.lanes) as u64
                    && census.stats.bufs_leased == census.stats.bufs_returned;
                if !is_good {
                    return Err(format!("client {number} core {core} is not at rest: {census:?}"));
                }
                client_idle += census.idle;
            }
            let control = &client.control.as_ref().expect("it runs").1;
            let stats = control.stats();
            if control.closing() > 0 || stats.socks_opened - stats.socks_closed != 1 {
                return Err(format!("client {number} control is not at rest: {stats:?}"));
            }
        }
        if gateway_idle != client_idle {
            return Err(format!("{gateway_idle} proxy_conns here and {client_idle} there"));
        }
        Ok(())
    }

    /// Both programs stop when they are asked to, and nothing is left.
    fn stop(&mut self) -> Result<(), String> {
        for client in 0..self.clients.len() {
            self.clients[client].as_ref().expect("it runs").program.stops.stop();
        }
        let is_done = |run: &Self| run.clients.iter().all(Option::is_none);
        self.go_until(STOP_TIME, "clients do not stop", is_done)?;
        self.gateway.as_ref().expect("it runs").program.stops.drain();
        self.go_until(STOP_TIME, "the gateway does not stop", |run| run.gateway.is_none())?;
        self.crowd.go_home();
        let is_empty = |run: &Self| run.world.left() == (0, 0);
        self.go_until(QUIET_TIME, "sockets or connections are left", is_empty)
    }
}
