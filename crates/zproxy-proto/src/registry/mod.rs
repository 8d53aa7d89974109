//! Who is logged in, and who owns which tunnel and public port. Binds no port: its owner does, and
//! reports.
//!
//! A *session* belongs to one run of one client and may outlive its ctl_conn for
//! [`SESSION_GRACE`]. A *reservation* keeps a port for a name of a client that came back as another
//! run, until it has opened its tunnels again.

mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

pub use ports::{PortPolicy, PortRange, PortRangeError};

use crate::auth::Ticket;
use crate::id::{ClientId, CtlId, TunnelId};
use crate::limits::{
    CLIENTS_MAX, PORT_CANDIDATES_MAX, RESERVATION_GRACE, RESERVATIONS_PER_CLIENT_MAX,
    SESSION_GRACE, TUNNELS_PER_CLIENT_MAX,
};
use crate::wire::{Name, OpenTunnel, Reason, RefusedCode, TunnelRefusedCode};

/// See the module.
#[derive(Debug)]
pub struct Registry {
    policy: PortPolicy,
    clients: HashMap<ClientId, Client>,
    ctls: HashMap<CtlId, ClientId>,
    ports: BTreeMap<u16, Holder>,
    owners: HashMap<TunnelId, ClientId>,
    /// When to look after a client. May be stale; the client's own state decides.
    deadlines: BTreeSet<(Duration, ClientId)>,
    last_epoch: u64,
    last_tunnel: u32,
    grace: Duration,
}

/// The gateway's record of one client: a Control.
#[derive(Debug)]
struct Client {
    name: Name,
    epoch: u64,
    ticket: Ticket,
    link: Link,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    by_name: HashMap<Name, TunnelId>,
    reservations: BTreeMap<Name, u16>,
    reserved_until: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Live(CtlId),
    Grace { until: Duration },
}

/// Who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    Tunnel(ClientId, TunnelId),
    Reservation(ClientId, Name),
}

/// One exposed service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Unique for the life of the gateway.
    pub id: TunnelId,
    /// Unique within the client.
    pub name: Name,
    /// The port the client asked for; 0 is any.
    pub wanted_port: u16,
    /// The port it has.
    pub port: u16,
}

/// A login that may succeed.
#[derive(Clone, Debug)]
pub struct Login {
    /// Who it is, proved.
    pub client_id: ClientId,
    /// What people call it.
    pub name: Name,
    /// The ticket it came with.
    pub resume: Option<Ticket>,
    /// A fresh random id for its ctl_conn.
    pub ctl_id: CtlId,
    /// A fresh random ticket, used if a new session begins.
    pub ticket: Ticket,
}

/// A login's result.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    /// Number of the session; the same after a resume.
    pub epoch: u64,
    /// For coming back; the same after a resume.
    pub ticket: Ticket,
    /// What was before.
    pub before: Before,
}

/// What a login found.
#[derive(Clone, Debug)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// The same run of the client comes back: tunnels, flows and idle proxy_conns go on.
    Resumed {
        /// Its earlier ctl_conn, if that was not known to be lost: treat it as lost, then close it.
        old_ctl: Option<CtlId>,
    },
    /// Another run of the client had a session. It is over: close its ctl_conn, its listeners
    /// (their ports stay reserved for the newcomer), its proxy_conns and its flows.
    TakenOver {
        /// Its ctl_conn, if that was not known to be lost.
        old_ctl: Option<CtlId>,
        /// What it had.
        ended: Ended,
    },
}

/// A refusal of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRefused {
    /// For the program.
    pub code: RefusedCode,
    /// For a person.
    pub reason: Reason,
}

/// A session that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Whose it was.
    pub client_id: ClientId,
    /// What people call the client.
    pub name: Name,
    /// Its number.
    pub epoch: u64,
    /// Tunnels whose listeners are to be closed.
    pub tunnels: Vec<Tunnel>,
}

/// A refusal of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRefusal {
    /// For the program.
    pub code: TunnelRefusedCode,
    /// For a person.
    pub reason: Reason,
}

/// What to do about a wish for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The client has it already.
    AlreadyOpen(Tunnel),
    /// Listen on one of the binding's candidates.
    Bind(Binding),
    /// No.
    Refused(TunnelRefusal),
}

/// Why a port could not be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindFault {
    /// Something else has it.
    InUse,
    /// The gateway is out of descriptors or memory.
    Shortage,
    /// Anything else, such as a missing right.
    Other,
}

/// A tunnel that has no port yet. Try [`Self::next_candidate`] until a bind succeeds, then
/// [`Registry::bound`]; when there is no more, [`Registry::bind_failed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    client_id: ClientId,
    epoch: u64,
    name: Name,
    wanted_port: u16,
    candidates: VecDeque<u16>,
}

impl Binding {
    /// The next port to try; 0 lets the kernel pick.
    pub fn next_candidate(&mut self) -> Option<u16> {
        self.candidates.pop_front()
    }

    /// The tunnel's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The port the client asked for; 0 is any.
    #[must_use]
    pub fn wanted_port(&self) -> u16 {
        self.wanted_port
    }
}

/// Without a range the kernel picks. It may pick a reserved port, so it gets some tries.
const KERNEL_PICKS: usize = 4;

impl Registry {
    /// Nobody is logged in. Exclude the gateway's own ports in the policy.
    #[must_use]
    pub fn new(policy: PortPolicy) -> Self {
        Self {
            policy,
            clients: HashMap::new(),
            ctls: HashMap::new(),
            ports: BTreeMap::new(),
            owners: HashMap::new(),
            deadlines: BTreeSet::new(),
            last_epoch: 0,
            last_tunnel: 0,
            grace: SESSION_GRACE,
        }
    }

    /// The same registry, in which a session without a ctl_conn goes on for so long instead of
    /// [`SESSION_GRACE`].
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Clients with a session, live or in grace.
    #[must_use]
    pub fn clients_len(&self) -> usize {
        self.clients.len()
    }

    /// Tunnels of all clients.
    #[must_use]
    pub fn tunnels_len(&self) -> usize {
        self.owners.len()
    }

    /// Whose ctl_conn it is, if the client is logged in on it.
    #[must_use]
    pub fn client_of(&self, ctl_id: CtlId) -> Option<ClientId> {
        self.ctls.get(&ctl_id).copied()
    }

    /// The ctl_conn of a client, if it has one now.
    #[must_use]
    pub fn ctl_of(&self, client_id: ClientId) -> Option<CtlId> {
        match self.clients.get(&client_id)?.link {
            Link::Live(ctl_id) => Some(ctl_id),
            Link::Grace { .. } => None,
        }
    }

    /// What people call a client.
    #[must_use]
    pub fn name_of(&self, client_id: ClientId) -> Option<&Name> {
        self.clients.get(&client_id).map(|client| &client.name)
    }

    /// A tunnel and whose it is.
    #[must_use]
    pub fn tunnel(&self, tunnel: TunnelId) -> Option<(ClientId, &Tunnel)> {
        let client_id = *self.owners.get(&tunnel)?;
        Some((client_id, self.clients.get(&client_id)?.tunnels.get(&tunnel)?))
    }

    /// The tunnels of a client.
    pub fn tunnels_of(&self, client_id: ClientId) -> impl Iterator<Item = &Tunnel> {
        self.clients.get(&client_id).into_iter().flat_map(|client| client.tunnels.values())
    }

    /// Logs an authenticated client in.
    ///
    /// # Errors
    /// When there are too many clients already.
    pub fn login(&mut self, login: Login, now: Duration) -> Result<LoggedIn, LoginRefused> {
        let Some(client) = self.clients.get(&login.client_id) else {
            return self.login_new(login);
        };
        let resumes = login.resume.is_some_and(|ticket| ticket.matches(&client.ticket));
        if resumes {
            return Ok(self.resume(&login));
        }
        let old_ctl = self.ctl_of(login.client_id);
        let (ended, mut reservations) = self.end(login.client_id).expect("looked up above");
        reservations.extend(ended.tunnels.iter().map(|tunnel| (tunnel.name.clone(), tunnel.port)));
        while reservations.len() > RESERVATIONS_PER_CLIENT_MAX {
            reservations.pop_first();
        }
        let client_id = login.client_id;
        let mut logged_in = self.login_new(login)?;
        self.reserve(client_id, reservations, now + RESERVATION_GRACE);
        logged_in.before = Before::TakenOver { old_ctl, ended };
        Ok(logged_in)
    }

    fn login_new(&mut self, login: Login) -> Result<LoggedIn, LoginRefused> {
        if self.clients.len() >= CLIENTS_MAX {
            let reason = format!("this gateway serves at most {CLIENTS_MAX} clients");
            return Err(LoginRefused { code: RefusedCode::Limit, reason: reason.into() });
        }
        self.last_epoch += 1;
        let client = Client {
            name: login.name,
            epoch: self.last_epoch,
            ticket: login.ticket,
            link: Link::Live(login.ctl_id),
            tunnels: BTreeMap::new(),
            by_name: HashMap::new(),
            reservations: BTreeMap::new(),
            reserved_until: Duration::ZERO,
        };
        self.ctls.insert(login.ctl_id, login.client_id);
        self.clients.insert(login.client_id, client);
        Ok(LoggedIn { epoch: self.last_epoch, ticket: login.ticket, before: Before::Nothing })
    }

    fn resume(&mut self, login: &Login) -> LoggedIn {
        let old_ctl = self.ctl_of(login.client_id);
        if let Some(old_ctl) = old_ctl {
            self.ctls.remove(&old_ctl);
        }
        self.ctls.insert(login.ctl_id, login.client_id);
        let client = self.clients.get_mut(&login.client_id).expect("looked up by the caller");
        client.link = Link::Live(login.ctl_id);
        client.name = login.name.clone();
        let before = Before::Resumed { old_ctl };
        LoggedIn { epoch: client.epoch, ticket: client.ticket, before }
    }

    fn reserve(&mut self, id: ClientId, reservations: BTreeMap<Name, u16>, until: Duration) {
        if reservations.is_empty() {
            return;
        }
        for (name, port) in &reservations {
            self.ports.insert(*port, Holder::Reservation(id, name.clone()));
        }
        let client = self.clients.get_mut(&id).expect("just logged in");
        client.reservations = reservations;
        client.reserved_until = until;
        self.deadlines.insert((until, id));
    }

    /// A ctl_conn is gone. If it is the one its client is logged in on, the session goes on without
    /// for [`SESSION_GRACE`], and the client is named; a late close of an older one means nothing.
    pub fn ctl_lost(&mut self, ctl_id: CtlId, now: Duration) -> Option<ClientId> {
        let client_id = self.ctls.remove(&ctl_id)?;
        let client = self.clients.get_mut(&client_id)?;
        assert_eq!(client.link, Link::Live(ctl_id), "ctls and clients agree");
        let until = now + self.grace;
        client.link = Link::Grace { until };
        self.deadlines.insert((until, client_id));
        Some(client_id)
    }

    /// The client of this ctl_conn said goodbye: its session is over at once.
    pub fn logout(&mut self, ctl_id: CtlId) -> Option<Ended> {
        let client_id = self.client_of(ctl_id)?;
        self.end(client_id).map(|(ended, _)| ended)
    }

    /// The next time at which [`Self::poll_expired`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next session whose grace is over. Ask until there is none.
    pub fn poll_expired(&mut self, now: Duration) -> Option<Ended> {
        while self.deadlines.first().is_some_and(|(deadline, _)| *deadline <= now) {
            let (_, client_id) = self.deadlines.pop_first()?;
            let Some(client) = self.clients.get_mut(&client_id) else { continue };
            if client.reserved_until <= now {
                self.drop_reservations(client_id);
            }
            let link = self.clients.get(&client_id).map(|client| client.link);
            if matches!(link, Some(Link::Grace { until }) if until <= now) {
                return self.end(client_id).map(|(ended, _)| ended);
            }
        }
        None
    }

    fn drop_reservations(&mut self, client_id: ClientId) {
        let Some(client) = self.clients.get_mut(&client_id) else { return };
        for port in std::mem::take(&mut client.reservations).into_values() {
            self.ports.remove(&port);
        }
    }

    /// Forgets a client, and tells what it had.
    fn end(&mut self, client_id: ClientId) -> Option<(Ended, BTreeMap<Name, u16>)> {
        let client = self.clients.remove(&client_id)?;
        if let Link::Live(ctl_id) = client.link {
            self.ctls.remove(&ctl_id);
        }
        for tunnel in client.tunnels.values() {
            self.ports.remove(&tunnel.port);
            self.owners.remove(&tunnel.id);
        }
        for port in client.reservations.values() {
            self.ports.remove(port);
        }
        let tunnels = client.tunnels.into_values().collect();
        let ended = Ended { client_id, name: client.name, epoch: client.epoch, tunnels };
        Some((ended, client.reservations))
    }

    /// What to do about a client's wish for a tunnel. `None` when the client is not logged in on
    /// this ctl_conn (any more).
    pub fn open_tunnel(&self, ctl_id: CtlId, wish: &OpenTunnel) -> Option<Decision> {
        let client_id = self.client_of(ctl_id)?;
        let client = self.clients.get(&client_id)?;
        if let Some(tunnel) = client.tunnel_named(&wish.name) {
            let same = [0, tunnel.wanted_port, tunnel.port].contains(&wish.public_port);
            return Some(if same {
                Decision::AlreadyOpen(tunnel.clone())
            } else {
                let port = tunnel.port;
                refused(
                    TunnelRefusedCode::NameTaken,
                    format!("you have a tunnel {} already, on port {port}", wish.name),
                )
            });
        }
        if client.tunnels.len() >= TUNNELS_PER_CLIENT_MAX {
            return Some(refused(
                TunnelRefusedCode::Limit,
                format!("a client has at most {TUNNELS_PER_CLIENT_MAX} tunnels"),
            ));
        }
        let candidates = match wish.public_port {
            0 => self.free_ports(client_id, client, wish),
            port => self.wanted_port(client_id, client, port).map(|()| VecDeque::from([port])),
        };
        Some(match candidates {
            Err(refusal) => Decision::Refused(refusal),
            Ok(candidates) => Decision::Bind(Binding {
                client_id,
                epoch: client.epoch,
                name: wish.name.clone(),
                wanted_port: wish.public_port,
                candidates,
            }),
        })
    }

    /// Whether a client may try this very port.
    fn wanted_port(&self, id: ClientId, client: &Client, port: u16) -> Result<(), TunnelRefusal> {
        if !self.policy.allows(port) {
            return Err(self.not_allowed(port));
        }
        match self.ports.get(&port) {
            Some(Holder::Tunnel(owner, tunnel)) if *owner == id => {
                let name = client.tunnels.get(tunnel).map_or("", |tunnel| tunnel.name.as_str());
                let reason = format!("port {port} is in use by your tunnel {name}");
                Err(TunnelRefusal { code: TunnelRefusedCode::PortTaken, reason: reason.into() })
            }
            Some(Holder::Tunnel(..)) => Err(port_taken(port)),
            Some(Holder::Reservation(owner, _)) if *owner != id => Err(port_taken(port)),
            Some(Holder::Reservation(..)) | None => Ok(()),
        }
    }

    fn not_allowed(&self, port: u16) -> TunnelRefusal {
        let reason = match self.policy.range {
            Some(range) if !range.contains(port) => {
                format!("port {port} is not allowed; this gateway gives ports {range}")
            }
            _ if port < self.policy.lowest => {
                let lowest = self.policy.lowest;
                format!("port {port} is not allowed; this gateway gives ports from {lowest} up")
            }
            _ => format!("port {port} is not allowed; this gateway needs it itself"),
        };
        TunnelRefusal { code: TunnelRefusedCode::PortNotAllowed, reason: reason.into() }
    }

    /// Ports for a tunnel without a wish: the one it had, then what is free.
    fn free_ports(
        &self,
        id: ClientId,
        client: &Client,
        wish: &OpenTunnel,
    ) -> Result<VecDeque<u16>, TunnelRefusal> {
        let reserved = client.reservations.get(&wish.name).copied();
        let had = reserved.into_iter().chain(wish.last_port);
        let had = had.filter(|port| self.wanted_port(id, client, *port).is_ok());
        let is_free = |port: &u16| !self.ports.contains_key(port);
        let free = self.policy.pickable(id, &wish.name).filter(is_free);
        let mut candidates = VecDeque::new();
        for port in had.chain(free) {
            if candidates.len() >= PORT_CANDIDATES_MAX {
                break;
            }
            if !candidates.contains(&port) {
                candidates.push_back(port);
            }
        }
        match self.policy.range {
            None => candidates.extend([0; KERNEL_PICKS]),
            Some(range) if candidates.is_empty() => {
                let reason = format!("no public port of {range} is free");
                return Err(TunnelRefusal {
                    code: TunnelRefusedCode::Limit,
                    reason: reason.into(),
                });
            }
            Some(_) => {}
        }
        Ok(candidates)
    }

    /// Whether the port is kept for the client of this binding: an earlier run of it had the port.
    #[must_use]
    pub fn is_reserved_for(&self, binding: &Binding, port: u16) -> bool {
        matches!(self.ports.get(&port), Some(Holder::Reservation(id, _)) if *id == binding.client_id)
    }

    /// A candidate could be bound; `port` is the actual one. The tunnel is open now.
    ///
    /// # Errors
    /// Gives the binding back when the port is not usable after all (the kernel picked one that is
    /// reserved or excluded): close the listener and try the next candidate. Also when the session
    /// has ended meanwhile; then there is no next candidate.
    pub fn bound(&mut self, mut binding: Binding, port: u16) -> Result<Tunnel, Binding> {
        let id = binding.client_id;
        let current = self.clients.get(&id).filter(|client| client.epoch == binding.epoch);
        let Some(client) = current else {
            binding.candidates.clear();
            return Err(binding);
        };
        if self.wanted_port(id, client, port).is_err() || client.by_name.contains_key(&binding.name)
        {
            return Err(binding);
        }
        self.last_tunnel = self.last_tunnel.checked_add(1).expect("four billion tunnels");
        let tunnel = Tunnel {
            id: TunnelId(self.last_tunnel),
            name: binding.name,
            wanted_port: binding.wanted_port,
            port,
        };
        self.release_reservations(id, &tunnel);
        let client = self.clients.get_mut(&id).expect("looked up above");
        client.by_name.insert(tunnel.name.clone(), tunnel.id);
        client.tunnels.insert(tunnel.id, tunnel.clone());
        self.owners.insert(tunnel.id, id);
        self.ports.insert(port, Holder::Tunnel(id, tunnel.id));
        Ok(tunnel)
    }

    /// A new tunnel makes the reservation of its name needless, and that of its port.
    fn release_reservations(&mut self, id: ClientId, tunnel: &Tunnel) {
        let client = self.clients.get_mut(&id).expect("looked up by the caller");
        if let Some(port) = client.reservations.remove(&tunnel.name) {
            self.ports.remove(&port);
        }
        if let Some(Holder::Reservation(_, name)) = self.ports.remove(&tunnel.port) {
            client.reservations.remove(&name);
        }
    }

    /// No candidate could be bound. `reason` tells what happened to the last one, for a person;
    /// `in_use` whether something else on the machine has it.
    #[must_use]
    pub fn bind_failed(&self, binding: &Binding, fault: BindFault, reason: &str) -> TunnelRefusal {
        match (binding.wanted_port, fault) {
            (_, BindFault::Shortage) => {
                let reason = format!("the gateway can open no port now: {reason}");
                TunnelRefusal { code: TunnelRefusedCode::Shortage, reason: reason.into() }
            }
            (0, _) => {
                let reason = format!("no free public port was found: {reason}");
                TunnelRefusal { code: TunnelRefusedCode::BindFailed, reason: reason.into() }
            }
            (port, BindFault::InUse) => {
                let reason = format!("port {port} is in use on the gateway");
                TunnelRefusal { code: TunnelRefusedCode::PortTaken, reason: reason.into() }
            }
            (port, BindFault::Other) => {
                let reason = format!("port {port} could not be opened: {reason}");
                TunnelRefusal { code: TunnelRefusedCode::BindFailed, reason: reason.into() }
            }
        }
    }

    /// The client of this ctl_conn gives a tunnel up: close its listeners. `None` when it is not its
    /// own.
    pub fn close_tunnel(&mut self, ctl_id: CtlId, tunnel: TunnelId) -> Option<Tunnel> {
        let client_id = self.client_of(ctl_id)?;
        let client = self.clients.get_mut(&client_id)?;
        let tunnel = client.tunnels.remove(&tunnel)?;
        client.by_name.remove(&tunnel.name);
        self.ports.remove(&tunnel.port);
        self.owners.remove(&tunnel.id);
        Some(tunnel)
    }
}

impl Client {
    fn tunnel_named(&self, name: &Name) -> Option<&Tunnel> {
        self.by_name.get(name).and_then(|id| self.tunnels.get(id))
    }
}

fn refused(code: TunnelRefusedCode, reason: String) -> Decision {
    Decision::Refused(TunnelRefusal { code, reason: reason.into() })
}

fn port_taken(port: u16) -> TunnelRefusal {
    let reason = format!("port {port} is in use by another client");
    TunnelRefusal { code: TunnelRefusedCode::PortTaken, reason: reason.into() }
}
