//! Lists of operations on the registry, against a model that searches where the registry looks up.

use std::collections::BTreeMap;
use std::time::Duration;

use zproxy_proto::auth::Ticket;
use zproxy_proto::id::{ClientId, CtlId, TunnelId};
use zproxy_proto::limits::RESERVATION_GRACE;
use zproxy_proto::registry::{
    Before, BindFault, Binding, Decision, Ended, LoggedIn, Login, PortPolicy, Registry, Tunnel,
};
use zproxy_proto::wire::{Name, OpenTunnel, TunnelRefusedCode};

use crate::input::Input;

const CLIENTS: u8 = 5;
const NAMES: u8 = 6;
const PENDING_MAX: usize = 4;
/// More operations only repeat themselves.
const OPERATIONS_MAX: usize = 400;

fn client_id(client: u8) -> ClientId {
    ClientId::from_random([client; 16])
}

fn ctl_id(serial: u64) -> CtlId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&serial.to_be_bytes());
    CtlId(bytes)
}

fn ticket(serial: u64) -> Ticket {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&serial.to_be_bytes());
    Ticket(bytes)
}

fn name(number: u8) -> Name {
    Name::new(format!("t{number}")).expect("a plain name")
}

/// A session as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    epoch: u64,
    /// Serial of its ticket.
    ticket: u64,
    /// Serial of its ctl_conn, or when its grace ends.
    link: Result<u64, Duration>,
    tunnels: Vec<Tunnel>,
    /// Ports kept for tunnels of an earlier run, and until when.
    kept: BTreeMap<Name, u16>,
    kept_until: Duration,
}

/// Who has a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Tunnel,
    Kept(u8),
}

#[derive(Debug)]
struct Pending {
    client: u8,
    epoch: u64,
    binding: Binding,
}

struct World {
    registry: Registry,
    policy: PortPolicy,
    grace: Duration,
    now: Duration,
    clients: BTreeMap<u8, Known>,
    pending: Vec<Pending>,
    /// Serials for ctl_conns and tickets.
    serial: u64,
    last_epoch: u64,
    last_tunnel: u32,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let range = match input.below(3) {
            0 => None,
            1 => Some("5000-5009".parse().expect("a range")),
            _ => Some("5003-5004".parse().expect("a range")),
        };
        let policy = PortPolicy { range, excluded: vec![5003], lowest: 1024 };
        let grace = Duration::from_secs(u64::from(input.below(60)));
        Self {
            registry: Registry::new(policy.clone()).with_grace(grace),
            policy,
            grace,
            now: Duration::from_secs(1),
            clients: BTreeMap::new(),
            pending: Vec::new(),
            serial: 0,
            last_epoch: 0,
            last_tunnel: 0,
        }
    }

    fn may_be_given(&self, port: u16) -> bool {
        port >= 1024 && port != 5003 && self.policy.range.is_none_or(|range| range.contains(port))
    }

    fn holder(&self, port: u16) -> Option<Holder> {
        self.clients.iter().find_map(|(&client, known)| {
            if known.tunnels.iter().any(|tunnel| tunnel.port == port) {
                return Some(Holder::Tunnel);
            }
            known.kept.values().any(|&kept| kept == port).then_some(Holder::Kept(client))
        })
    }

    fn may_have(&self, client: u8, port: u16) -> bool {
        self.may_be_given(port)
            && self.holder(port).is_none_or(|holder| holder == Holder::Kept(client))
    }

    /// The ctl_conn that an operation names: mostly the live one of a client, else an old one.
    fn some_ctl(&self, input: &mut Input<'_>) -> (CtlId, Option<u8>) {
        let choice = input.byte();
        let client = choice % CLIENTS;
        let live = self.clients.get(&client).and_then(|known| known.link.ok());
        match live {
            Some(serial) if choice < 200 => (ctl_id(serial), Some(client)),
            _ => {
                let serial = u64::from(input.byte()) % (self.serial + 2);
                let owner = |known: &Known| known.link == Ok(serial);
                let owner = self.clients.iter().find(|(_, known)| owner(known));
                (ctl_id(serial), owner.map(|(&client, _)| client))
            }
        }
    }

    fn login(&mut self, input: &mut Input<'_>) {
        let client = input.below(CLIENTS);
        self.serial += 1;
        let serial = self.serial;
        let known = self.clients.get(&client);
        let shown = match input.below(3) {
            0 => None,
            1 => known.map(|known| known.ticket),
            _ => Some(u64::from(input.byte())),
        };
        let login = Login {
            client_id: client_id(client),
            name: name(client),
            resume: shown.map(ticket),
            ctl_id: ctl_id(serial),
            ticket: ticket(serial),
        };
        let LoggedIn { epoch, ticket: got, before } =
            self.registry.login(login, self.now).expect("there are few clients");
        let earlier = self.clients.remove(&client);
        let old_ctl = earlier.as_ref().and_then(|known| known.link.ok()).map(ctl_id);
        match (earlier, before) {
            (Some(known), Before::Resumed { old_ctl: told }) => {
                assert_eq!(shown, Some(known.ticket), "resumed with a wrong ticket");
                assert_eq!((epoch, told), (known.epoch, old_ctl));
                assert!(got.matches(&ticket(known.ticket)));
                self.clients.insert(client, Known { link: Ok(serial), ..known });
            }
            (Some(known), Before::TakenOver { old_ctl: told, ended }) => {
                assert_ne!(shown, Some(known.ticket), "a right ticket resumes");
                assert_eq!(told, old_ctl);
                check_ended(client, &known, &ended);
                let mut kept = known.kept;
                kept.extend(known.tunnels.into_iter().map(|tunnel| (tunnel.name, tunnel.port)));
                self.begin(client, serial, epoch, kept);
            }
            (None, Before::Nothing) => self.begin(client, serial, epoch, BTreeMap::new()),
            (earlier, before) => panic!("{before:?} after {earlier:?}"),
        }
    }

    fn begin(&mut self, client: u8, serial: u64, epoch: u64, kept: BTreeMap<Name, u16>) {
        self.last_epoch += 1;
        assert_eq!(epoch, self.last_epoch, "sessions are numbered");
        let kept_until = self.now + RESERVATION_GRACE;
        let (link, tunnels) = (Ok(serial), Vec::new());
        let known = Known { epoch, ticket: serial, link, tunnels, kept, kept_until };
        self.clients.insert(client, known);
    }

    fn ctl_lost(&mut self, input: &mut Input<'_>) {
        let (ctl, owner) = self.some_ctl(input);
        assert_eq!(self.registry.ctl_lost(ctl, self.now), owner.map(client_id));
        let known = owner.and_then(|client| self.clients.get_mut(&client));
        known.into_iter().for_each(|known| known.link = Err(self.now + self.grace));
    }

    fn logout(&mut self, input: &mut Input<'_>) {
        let (ctl, owner) = self.some_ctl(input);
        match (self.registry.logout(ctl), owner) {
            (None, None) => {}
            (Some(ended), Some(client)) => {
                let known = self.clients.remove(&client).expect("it owns a ctl_conn");
                check_ended(client, &known, &ended);
            }
            (ended, owner) => panic!("{ended:?} of {owner:?}"),
        }
    }

    fn open_tunnel(&mut self, input: &mut Input<'_>) {
        let (ctl, owner) = self.some_ctl(input);
        let port = |choice: u8| match choice {
            0..=99 => 0,
            100..=230 => 5000 + u16::from(choice % 12),
            _ => u16::from(choice) - 230,
        };
        let (wanted, last) = (port(input.byte()), input.byte());
        let wish = OpenTunnel {
            name: name(input.below(NAMES)),
            public_port: wanted,
            last_port: (last > 127).then(|| port(last)),
        };
        let decision = self.registry.open_tunnel(ctl, &wish);
        let Some(client) = owner else { return assert_eq!(decision, None, "not logged in") };
        let decision = decision.expect("it is logged in");
        let known = &self.clients[&client];
        let code = |decision: &Decision| match decision {
            Decision::Refused(refusal) => {
                assert!(!refusal.reason.as_str().is_empty());
                Some(refusal.code)
            }
            _ => None,
        };
        if let Some(tunnel) = known.tunnels.iter().find(|tunnel| tunnel.name == wish.name) {
            if [0, tunnel.wanted_port, tunnel.port].contains(&wanted) {
                assert_eq!(decision, Decision::AlreadyOpen(tunnel.clone()));
            } else {
                assert_eq!(code(&decision), Some(TunnelRefusedCode::NameTaken));
            }
            return;
        }
        if wanted != 0 && !self.may_be_given(wanted) {
            return assert_eq!(code(&decision), Some(TunnelRefusedCode::PortNotAllowed));
        }
        if wanted != 0 && !self.may_have(client, wanted) {
            return assert_eq!(code(&decision), Some(TunnelRefusedCode::PortTaken));
        }
        let right = self.candidates(client, &wish);
        if right.is_empty() {
            return assert_eq!(code(&decision), Some(TunnelRefusedCode::Limit));
        }
        let Decision::Bind(binding) = decision else { panic!("{decision:?}, not {right:?}") };
        check_candidates(&binding, &right);
        let epoch = known.epoch;
        self.pending.push(Pending { client, epoch, binding });
        if self.pending.len() > PENDING_MAX || input.flag() {
            let last = self.pending.len() - 1;
            self.bind(last, input);
        }
    }

    /// The ports to be tried: first those that the tunnel had, then, in any order, what is free.
    fn candidates(&self, client: u8, wish: &OpenTunnel) -> Vec<u16> {
        if wish.public_port != 0 {
            return vec![wish.public_port];
        }
        let kept = self.clients[&client].kept.get(&wish.name).copied();
        let mut all = Vec::new();
        for port in kept.into_iter().chain(wish.last_port) {
            if self.may_have(client, port) && !all.contains(&port) {
                all.push(port);
            }
        }
        match self.policy.range {
            Some(_) => {
                let free = |port: &u16| self.may_be_given(*port) && self.holder(*port).is_none();
                let free = (5000..=5009).filter(free).filter(|port| !all.contains(port));
                all.extend(free.collect::<Vec<_>>());
            }
            None => all.push(0),
        }
        all
    }

    /// Tries the next candidate of a binding; the kernel picks for 0 and sometimes refuses.
    fn bind(&mut self, index: usize, input: &mut Input<'_>) {
        let Pending { client, epoch, mut binding } = self.pending.swap_remove(index);
        let Some(candidate) = binding.next_candidate() else {
            let fault = [BindFault::InUse, BindFault::Other, BindFault::Shortage];
            let fault = fault[usize::from(input.below(3))];
            let refusal = self.registry.bind_failed(&binding, fault, "no");
            assert!(matches!(
                refusal.code,
                TunnelRefusedCode::PortTaken
                    | TunnelRefusedCode::BindFailed
                    | TunnelRefusedCode::Shortage
            ));
            return;
        };
        if input.below(4) == 0 {
            return self.pending.push(Pending { client, epoch, binding });
        }
        let port = match candidate {
            0 => 5000 + u16::from(input.below(12)),
            port => port,
        };
        let kept = self.holder(port) == Some(Holder::Kept(client));
        assert_eq!(self.registry.is_reserved_for(&binding, port), kept);
        let lives = self.clients.get(&client).is_some_and(|known| known.epoch == epoch);
        let has_name = lives
            && self.clients[&client].tunnels.iter().any(|tunnel| tunnel.name == *binding.name());
        let right = lives && !has_name && self.may_have(client, port);
        let (bound_name, wanted_port) = (binding.name().clone(), binding.wanted_port());
        match self.registry.bound(binding, port) {
            Ok(tunnel) => {
                assert!(right, "{tunnel:?} may not be");
                self.last_tunnel += 1;
                let id = TunnelId(self.last_tunnel);
                assert_eq!(tunnel, Tunnel { id, name: bound_name, wanted_port, port });
                let known = self.clients.get_mut(&client).expect("it lives");
                known.kept.retain(|name, kept| *name != tunnel.name && *kept != port);
                known.tunnels.push(tunnel);
            }
            Err(mut binding) => {
                assert!(!right, "port {port} could have been {bound_name}'s");
                match lives {
                    true => self.pending.push(Pending { client, epoch, binding }),
                    false => assert_eq!(binding.next_candidate(), None, "its session is over"),
                }
            }
        }
    }

    fn close_tunnel(&mut self, input: &mut Input<'_>) {
        let (ctl, owner) = self.some_ctl(input);
        let id = TunnelId(u32::from(input.byte()) % (self.last_tunnel + 2));
        let known = owner.and_then(|client| self.clients.get_mut(&client));
        let right = known.and_then(|known| {
            let index = known.tunnels.iter().position(|tunnel| tunnel.id == id)?;
            Some(known.tunnels.remove(index))
        });
        assert_eq!(self.registry.close_tunnel(ctl, id), right);
    }

    fn pass_time(&mut self, input: &mut Input<'_>) {
        self.now += Duration::from_secs(u64::from(input.below(80)));
        while let Some(ended) = self.registry.poll_expired(self.now) {
            let over = |known: &Known| known.link.is_err_and(|until| until <= self.now);
            let client = (0..CLIENTS).find(|client| client_id(*client) == ended.client_id);
            let client = client.expect("one of the clients");
            let known = self.clients.remove(&client).expect("it has a session");
            assert!(over(&known), "ended before its time: {known:?}");
            check_ended(client, &known, &ended);
        }
        for known in self.clients.values_mut() {
            assert!(known.link.is_ok_and(|_| true) || known.link.is_err_and(|at| at > self.now));
            if known.kept_until <= self.now {
                known.kept.clear();
            }
        }
        assert!(self.registry.poll_timeout().is_none_or(|next| next > self.now), "time is done");
    }

    fn check(&self) {
        let registry = &self.registry;
        assert_eq!(registry.clients_len(), self.clients.len());
        let tunnels = self.clients.values().flat_map(|known| &known.tunnels);
        assert_eq!(registry.tunnels_len(), tunnels.clone().count());
        for client in 0..CLIENTS {
            let id = client_id(client);
            let known = self.clients.get(&client);
            let link = known.and_then(|known| known.link.ok());
            assert_eq!(registry.ctl_of(id), link.map(ctl_id));
            assert_eq!(registry.name_of(id).is_some(), known.is_some());
            let mut right = known.map_or(Vec::new(), |known| known.tunnels.iter().collect());
            right.sort_by_key(|tunnel| tunnel.id);
            let mut told: Vec<_> = registry.tunnels_of(id).collect();
            told.sort_by_key(|tunnel| tunnel.id);
            assert_eq!(told, right);
            for tunnel in right {
                assert_eq!(registry.tunnel(tunnel.id), Some((id, tunnel)));
                assert!(self.may_be_given(tunnel.port), "{tunnel:?}");
            }
            if let Some(serial) = link {
                assert_eq!(registry.client_of(ctl_id(serial)), Some(id));
            }
        }
        let mut ports: Vec<u16> = tunnels.map(|tunnel| tunnel.port).collect();
        ports.extend(self.clients.values().flat_map(|known| known.kept.values()));
        let count = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count, "a port has two holders");

        let graces = self.clients.values().filter_map(|known| known.link.err());
        let kept = self.clients.values().filter(|known| !known.kept.is_empty());
        let due = graces.chain(kept.map(|known| known.kept_until)).min();
        let next = registry.poll_timeout();
        assert!(due.is_none_or(|due| next.is_some_and(|next| next <= due)), "{next:?}, {due:?}");
    }
}

fn check_ended(client: u8, known: &Known, ended: &Ended) {
    assert_eq!((ended.client_id, ended.epoch), (client_id(client), known.epoch));
    let mut right = known.tunnels.clone();
    right.sort_by_key(|tunnel| tunnel.id);
    let mut told = ended.tunnels.clone();
    told.sort_by_key(|tunnel| tunnel.id);
    assert_eq!(told, right);
}

/// The first of the right ports are those that the tunnel had, in order; the others come in any
/// order, once each. A 0 may be tried several times.
fn check_candidates(binding: &Binding, right: &[u16]) {
    let mut binding = binding.clone();
    let mut told: Vec<u16> = std::iter::from_fn(|| binding.next_candidate()).collect();
    if right.last() == Some(&0) {
        told.dedup();
        return assert_eq!(told, right);
    }
    assert_eq!(told.first().is_some_and(|first| right.contains(first)), !right.is_empty());
    let (mut told, mut right) = (told, right.to_vec());
    told.sort_unstable();
    right.sort_unstable();
    assert_eq!(told, right, "not exactly what may be tried");
}

/// Whatever clients do, in whatever order: sessions, tunnels and ports are what the model says.
pub fn registry(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        match kind % 10 {
            0 | 1 => world.login(&mut input),
            2 => world.ctl_lost(&mut input),
            3 => world.logout(&mut input),
            4..=6 => world.open_tunnel(&mut input),
            7 if !world.pending.is_empty() => {
                let index = usize::from(input.byte()) % world.pending.len();
                world.bind(index, &mut input);
            }
            8 => world.close_tunnel(&mut input),
            _ => world.pass_time(&mut input),
        }
        world.check();
    }
}
