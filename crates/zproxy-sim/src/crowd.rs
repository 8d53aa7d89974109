//! Visitors and services: plain programs that never block, and check every byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use zproxy_io::sim::{AppSock, Dialled, ProcessName, Read, World, Write};
use zproxy_io::{Ending, Fault};

use crate::bytes::{HEAD_SIZE, Way, first_wrong, flow_of, pattern};
use crate::ledger::{End, Flow, Ledger, Side};
use crate::script::{Fin, Script, Who};

/// The largest piece that is written or read at once.
const PIECE_MAX: usize = 64 << 10;

/// A connection of a visitor or service.
struct Conn {
    flow: Option<u32>,
    who: Who,
    tunnel: usize,
    is_open: bool,
    head: Vec<u8>,
    next_write: Duration,
    next_read: Duration,
    /// Until when it rests, once it has what it answers to.
    rest_until: Option<Duration>,
    reminded: Option<Duration>,
}

/// A service: where it listens, unless it is down.
struct Service {
    at: SocketAddr,
    listener: Option<AppSock>,
}

/// All of them.
pub(crate) struct Crowd {
    world: World,
    visitors: ProcessName,
    services: ProcessName,
    doors: Vec<Service>,
    conns: BTreeMap<AppSock, Conn>,
    pub(crate) ledger: Ledger,
    piece: Vec<u8>,
}

impl Crowd {
    pub(crate) fn new(world: World, visitors: ProcessName, services: ProcessName) -> Self {
        Self {
            world,
            visitors,
            services,
            doors: Vec::new(),
            conns: BTreeMap::new(),
            ledger: Ledger::default(),
            piece: vec![0; PIECE_MAX],
        }
    }

    /// Starts the service of the next tunnel.
    pub(crate) fn open_service(&mut self, at: SocketAddr) {
        self.doors.push(Service { at, listener: None });
        self.set_service(self.doors.len() - 1, true);
    }

    /// Takes a service down or up.
    pub(crate) fn set_service(&mut self, tunnel: usize, is_up: bool) {
        let door = &mut self.doors[tunnel];
        if is_up && door.listener.is_none() {
            let listener = self.world.listen(self.services, door.at).expect("a free port");
            door.listener = Some(listener);
        } else if !is_up && let Some(listener) = door.listener.take() {
            self.world.close(listener, Ending::Clean);
        }
    }

    /// Lets a service accept so slowly that its queue is full, or not any more.
    pub(crate) fn set_backlog(&mut self, tunnel: usize, most: usize) {
        if let Some(listener) = self.doors[tunnel].listener {
            self.world.set_backlog(listener, most);
        }
    }

    /// A visitor comes.
    pub(crate) fn visit(&mut self, tunnel: usize, to: SocketAddr, script: Script, is_probe: bool) {
        let began = self.world.now();
        let flow = self.ledger.begin(Flow {
            script,
            tunnel,
            began,
            ended: None,
            visitor: Side::default(),
            service: Side::default(),
            is_met: false,
            is_probe,
        });
        let sock = self.world.dial(self.visitors, to);
        self.conns.insert(sock, Conn::new(Some(flow), Who::Visitor, tunnel));
    }

    /// Lets everybody go on whom something happened to.
    pub(crate) fn run(&mut self) -> Result<bool, String> {
        let mut is_any = false;
        while let Some(sock) = self.world.app_news() {
            is_any = true;
            let door = self.doors.iter().position(|door| door.listener == Some(sock));
            if let Some(tunnel) = door {
                while let Some(conn) = self.world.accept(sock) {
                    self.conns.insert(conn, Conn::new(None, Who::Service, tunnel));
                    self.go_on(conn)?;
                }
            } else {
                self.go_on(sock)?;
            }
        }
        Ok(is_any)
    }

    fn go_on(&mut self, sock: AppSock) -> Result<(), String> {
        // The news may be older than its end.
        let Some(mut conn) = self.conns.remove(&sock) else { return Ok(()) };
        let end = self.step(sock, &mut conn)?;
        self.world.note(sock_word(&conn, end));
        let Some(end) = end else {
            self.conns.insert(sock, conn);
            return Ok(());
        };
        let how = if end == End::Clean { Ending::Clean } else { Ending::Reset };
        self.world.close(sock, how);
        if let Some(flow) = conn.flow {
            self.ledger.end(flow, conn.who, end, self.world.now());
        }
        Ok(())
    }

    fn step(&mut self, sock: AppSock, conn: &mut Conn) -> Result<Option<End>, String> {
        if conn.who == Who::Visitor && !conn.is_open {
            match self.world.dialled(sock) {
                Dialled::NotYet => return Ok(None),
                Dialled::Failed(fault) => return Ok(Some(End::Failed(fault))),
                Dialled::Connected => conn.is_open = true,
            }
        }
        if conn.flow.is_none()
            && let Some(end) = self.read_head(sock, conn)?
        {
            return Ok(end);
        }
        let flow = conn.flow.expect("a head was read");
        if let Some(end) = self.read(sock, conn, flow)? {
            return Ok(Some(end));
        }
        if let Some(end) = self.write(sock, conn, flow) {
            return Ok(Some(end));
        }
        let side = self.ledger.flow(flow).side(conn.who);
        Ok((side.has_shut && side.has_heard).then_some(End::Clean))
    }

    /// A service learns which flow it has. The outer option: there is nothing more to do now.
    #[expect(clippy::option_option, reason = "whether to stop, and with which end")]
    fn read_head(&mut self, sock: AppSock, conn: &mut Conn) -> Result<Option<Option<End>>, String> {
        loop {
            let mut piece = [0; HEAD_SIZE as usize];
            let room = piece.len() - conn.head.len();
            match self.world.read(sock, &mut piece[..room]) {
                Read::Some(count) => conn.head.extend_from_slice(&piece[..count]),
                Read::Empty => return Ok(Some(None)),
                Read::Failed(fault) => return Ok(Some(Some(End::Failed(fault)))),
                Read::Eof if conn.head.is_empty() => {
                    self.ledger.silent += 1;
                    return Ok(Some(Some(End::Clean)));
                }
                Read::Eof => {
                    return Err(format!("a FIN inside the head {:?} of a flow", conn.head));
                }
            }
            if let Ok(head) = <[u8; HEAD_SIZE as usize]>::try_from(conn.head.as_slice()) {
                let flow = flow_of(head).filter(|flow| (*flow as usize) < self.ledger.len());
                let Some(flow) = flow else { return Err(format!("no flow begins with {head:?}")) };
                let it = self.ledger.flow(flow);
                if it.is_met {
                    return Err(format!("flow {flow} reaches a service twice"));
                }
                if it.tunnel != conn.tunnel {
                    let (right, wrong) = (it.tunnel, conn.tunnel);
                    return Err(format!("flow {flow} of tunnel {right} reaches {wrong}"));
                }
                it.is_met = true;
                it.service.got = HEAD_SIZE;
                conn.flow = Some(flow);
                return Ok(None);
            }
        }
    }

    fn read(&mut self, sock: AppSock, conn: &mut Conn, flow: u32) -> Result<Option<End>, String> {
        let script = self.ledger.flow(flow).script;
        let (pace, way, total) = match conn.who {
            Who::Visitor => (script.visitor, Way::Down, script.down),
            Who::Service => (script.service, Way::Up, script.up),
        };
        while !self.ledger.flow(flow).side(conn.who).has_heard {
            if self.ledger.flow(flow).is_to_abort(conn.who) {
                return Ok(Some(End::Aborted));
            }
            if !conn.is_time(&self.world, sock, conn.next_read) {
                break;
            }
            let room = pace.read.clamp(1, PIECE_MAX);
            match self.world.read(sock, &mut self.piece[..room]) {
                Read::Some(count) => {
                    let side = self.ledger.flow(flow).side(conn.who);
                    let offset = side.got;
                    side.got += count as u64;
                    if side.got > total {
                        return Err(format!("flow {flow} {way:?}: more than {total} bytes"));
                    }
                    let wrong = first_wrong(flow, way, offset, &self.piece[..count]);
                    if let Some(wrong) = wrong {
                        return Err(format!("flow {flow} {way:?}: byte {wrong} is wrong"));
                    }
                    conn.next_read = self.world.now() + pace.read_pause;
                }
                Read::Empty => break,
                Read::Eof => {
                    self.ledger.on_fin(flow, way)?;
                    self.note_half_close(flow, conn.who);
                }
                Read::Failed(fault) => return Ok(Some(End::Failed(fault))),
            }
        }
        Ok(None)
    }

    fn note_half_close(&mut self, flow: u32, who: Who) {
        let it = self.ledger.flow(flow);
        let (total, name) = match who {
            Who::Visitor => (it.script.up, "half_close_by_service"),
            Who::Service => (it.script.down, "half_close_by_visitor"),
        };
        if it.side(who).sent < total {
            self.ledger.mark(name);
        }
    }

    fn write(&mut self, sock: AppSock, conn: &mut Conn, flow: u32) -> Option<End> {
        let Flow { script, .. } = *self.ledger.flow(flow);
        let (pace, way, total, fin) = match conn.who {
            Who::Visitor => (script.visitor, Way::Up, script.up, script.visitor_fin),
            Who::Service => (script.service, Way::Down, script.down, script.service_fin),
        };
        loop {
            let it = self.ledger.flow(flow);
            if it.is_to_abort(conn.who) {
                return Some(End::Aborted);
            }
            let side = *it.side(conn.who);
            let may_write = conn.who == Who::Visitor || side.got >= script.answer_after;
            if side.has_shut || !may_write {
                return None;
            }
            if conn.who == Who::Service {
                let rested = *conn.rest_until.get_or_insert(self.world.now() + script.rest);
                if !conn.is_time(&self.world, sock, rested) {
                    return None;
                }
            }
            if side.sent == total {
                if fin == Fin::WhenDone || side.has_heard {
                    self.ledger.flow(flow).side(conn.who).has_shut = true;
                    self.world.shut(sock);
                }
                return None;
            }
            if !conn.is_time(&self.world, sock, conn.next_write) {
                return None;
            }
            let left = usize::try_from(total - side.sent).unwrap_or(PIECE_MAX);
            let room = pace.write.clamp(1, PIECE_MAX).min(left);
            pattern(flow, way, side.sent, &mut self.piece[..room]);
            match self.world.write(sock, &self.piece[..room]) {
                Write::Some(count) => {
                    self.ledger.flow(flow).side(conn.who).sent += count as u64;
                    conn.next_write = self.world.now() + pace.write_pause;
                }
                Write::Full => return None,
                Write::Failed(fault) => return Some(End::Failed(fault)),
            }
        }
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.conns.len()
    }

    /// Closes every listener.
    pub(crate) fn go_home(&mut self) {
        for tunnel in 0..self.doors.len() {
            self.set_service(tunnel, false);
        }
    }
}

impl Conn {
    fn new(flow: Option<u32>, who: Who, tunnel: usize) -> Self {
        let (next_write, next_read) = (Duration::ZERO, Duration::ZERO);
        let (is_open, head, reminded) = (who == Who::Service, Vec::new(), None);
        let rest_until = None;
        Self { flow, who, tunnel, is_open, head, next_write, next_read, rest_until, reminded }
    }

    /// Whether it is time for something; if not, it will be remembered.
    fn is_time(&mut self, world: &World, sock: AppSock, at: Duration) -> bool {
        let now = world.now();
        if at <= now {
            return true;
        }
        if self.reminded.is_none_or(|reminded| reminded <= now || reminded > at) {
            self.reminded = Some(at);
            world.remind(sock, at);
        }
        false
    }
}

impl Flow {
    fn side(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Visitor => &mut self.visitor,
            Who::Service => &mut self.service,
        }
    }

    fn is_to_abort(&mut self, who: Who) -> bool {
        let side = *self.side(who);
        let is_due = |(by, after): (Who, u64)| by == who && side.sent + side.got >= after;
        // Who has ended his direction has nothing to abort but the other's.
        self.script.abort.is_some_and(is_due) && !(side.has_shut && side.has_heard)
    }
}

fn sock_word(conn: &Conn, end: Option<End>) -> u64 {
    let end = match end {
        None => 0,
        Some(End::Clean) => 1,
        Some(End::Aborted) => 2,
        Some(End::Failed(Fault::Reset)) => 3,
        Some(End::Failed(_)) => 4,
    };
    u64::from(conn.flow.unwrap_or(u32::MAX)) << 4 | end << 1 | u64::from(conn.who == Who::Visitor)
}
