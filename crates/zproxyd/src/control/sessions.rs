//! What an authenticated client may do: log in, come back, open and close tunnels, and tell the data
//! cores about its proxy_conns.

use std::collections::hash_map::Entry;
use std::io;

use tracing::{debug, info, warn};
use zproxy_io::{Driver, Ending, Fault};
use zproxy_proto::auth::{SessionKey, Ticket};
use zproxy_proto::control::{GatewayEvent, GatewaySession, Session as Welcome};
use zproxy_proto::id::{CtlId, TunnelId};
use zproxy_proto::limits::{CLIENTS_MAX, TUNNELS_PER_CLIENT_MAX};
use zproxy_proto::registry::{
    Before, BindFault, Binding, Decision, Ended, Login, Tunnel, TunnelRefusal,
};
use zproxy_proto::replay::Replay;
use zproxy_proto::strangers::{Left, Origin};
use zproxy_proto::wire::{Hello, Name, OpenTunnel, RefusedCode, TunnelOpen, TunnelRefused};
use zproxy_relay::Key;

use super::{Control, PeerKind};
use crate::listeners;
use crate::mailbox::{SessionNo, Tell};

/// The sockets of a tunnel, one per data core, and where they listen.
type Bound<D> = (Vec<<D as Driver>::Handle>, std::net::SocketAddr);

/// A client's session.
pub(super) struct Session {
    /// Its ctl_conn, unless that is lost.
    pub(super) peer: Option<Key>,
    /// Authenticates its proxy_conns, with the id of the ctl_conn that made it.
    pub(super) key: SessionKey,
    pub(super) replay: Replay,
    /// Number of the client's data cores.
    pub(super) client_cores: u16,
    ctl_id: CtlId,
    client: String,
    /// Where the client stands, and vouches for.
    origin: Origin,
}

/// A tunnel that not every data core serves yet.
pub(super) struct Opening {
    session: SessionNo,
    tunnel: Tunnel,
    public: std::net::SocketAddr,
    cores_left: usize,
}

impl<D: Driver> Control<D> {
    pub(super) fn machine(&mut self, key: Key) -> Option<&mut GatewaySession> {
        match &mut self.peers.get_mut(key)?.kind {
            PeerKind::Ctl { machine, .. } => Some(machine),
            PeerKind::Proxy { .. } => None,
        }
    }

    fn session_of(&self, key: Key) -> Option<SessionNo> {
        match &self.peers.get(key)?.kind {
            PeerKind::Ctl { session, .. } => *session,
            PeerKind::Proxy { .. } => None,
        }
    }

    pub(super) fn on_event(&mut self, key: Key, event: GatewayEvent) {
        match event {
            GatewayEvent::Authenticated(hello) => self.log_in(key, hello),
            GatewayEvent::OpenTunnel(wish) => self.open_tunnel(key, &wish),
            GatewayEvent::CloseTunnel(tunnel) => self.close_tunnel(key, tunnel),
            GatewayEvent::GoAway(_) => self.say_goodbye(key),
            GatewayEvent::Ended(_) => unreachable!("handled by the caller"),
        }
    }

    fn log_in(&mut self, key: Key, hello: Hello) {
        let now = self.driver.now();
        let ctl_id = CtlId(self.random.bytes());
        let client = hello.name.to_string();
        let client_cores = hello.data_cores;
        let login = Login {
            client_id: hello.client_id,
            name: hello.name,
            resume: hello.resume,
            ctl_id,
            ticket: Ticket(self.random.bytes()),
        };
        let result = self.registry.login(login, now);
        let logged_in = match result {
            Ok(logged_in) => logged_in,
            Err(refused) => {
                if let Some(machine) = self.machine(key) {
                    machine.refuse(refused.code, refused.reason);
                }
                return;
            }
        };
        let session = SessionNo(logged_in.epoch);
        let resumed = matches!(logged_in.before, Before::Resumed { .. });
        self.end_what_was(session, logged_in.before);
        let Some(machine) = self.machine(key) else { return };
        let session_key = machine.session_key().expect("authenticated").clone();
        let welcome = Welcome {
            ctl_id,
            epoch: logged_in.epoch,
            proxy_port: self.proxy_port,
            resumed,
            ticket: logged_in.ticket,
            tunnels_max: TUNNELS_PER_CLIENT_MAX as u32,
        };
        let Some(machine) = self.machine(key) else { return };
        machine.welcome(welcome, now);
        self.note_session(key, session, client.clone());
        let entry = Session {
            peer: Some(key),
            key: session_key,
            replay: Replay::new(),
            client_cores,
            ctl_id,
            client,
            origin: self.vouch(key),
        };
        self.enter(session, entry);
    }

    /// The peer counts as authenticated from now on.
    fn note_session(&mut self, key: Key, no: SessionNo, client: String) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let addr = peer.addr.map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
        if let PeerKind::Ctl { session, .. } = &mut peer.kind {
            assert!(session.replace(no).is_none(), "a ctl_conn logs in once");
        }
        self.note_leaving(key, Left::Known);
        info!("client={client} session={no} peer={addr} logged in");
    }

    fn enter(&mut self, no: SessionNo, entry: Session) {
        self.by_ctl_id.insert(entry.ctl_id, no);
        match self.sessions.entry(no) {
            Entry::Occupied(mut known) => {
                // Ids are not used again within a session, whichever ctl_conn they came by.
                let replay = std::mem::take(&mut known.get_mut().replay);
                let before = known.insert(Session { replay, ..entry });
                self.unvouch(before.origin);
                mark!("resumed");
                self.tell_all(|| Tell::CtlBack { session: no });
            }
            Entry::Vacant(place) => {
                let client = place.insert(entry).client.clone();
                self.tell_all(|| Tell::Session { session: no, client: client.clone() });
            }
        }
    }

    fn end_what_was(&mut self, session: SessionNo, before: Before) {
        match before {
            Before::Nothing => {}
            Before::Resumed { old_ctl } => {
                let was_up = old_ctl.is_some();
                if let Some(entry) = self.sessions.get_mut(&session) {
                    let old = (entry.peer.take(), entry.ctl_id);
                    self.by_ctl_id.remove(&old.1);
                    if let Some(old) = old.0 {
                        self.close_peer(old, Ending::Reset);
                    }
                }
                if was_up {
                    self.tell_all(|| Tell::CtlLost { session });
                }
            }
            Before::TakenOver { ended, .. } => {
                mark!("taken_over");
                let old = self.sessions.get(&SessionNo(ended.epoch)).and_then(|entry| entry.peer);
                self.end_session(&ended, "taken over by another run of the client");
                if let Some(old) = old {
                    self.replace(old);
                }
            }
        }
    }

    /// Sends an older run of a client away.
    fn replace(&mut self, key: Key) {
        if let Some(machine) = self.machine(key) {
            let reason = "another zproxy with the same client id has logged in";
            machine.refuse(RefusedCode::Replaced, reason);
        }
        self.advance(key);
    }

    /// Ends a session: its flows are reset, its ports are free.
    fn end_session(&mut self, ended: &Ended, why: &str) {
        let session = SessionNo(ended.epoch);
        info!("client={} session={session} ended: {why}", ended.name);
        if let Some(entry) = self.sessions.remove(&session) {
            self.by_ctl_id.remove(&entry.ctl_id);
            self.unvouch(entry.origin);
        }
        self.opening.retain(|_, opening| opening.session != session);
        self.tell_all(|| Tell::SessionOver { session });
    }

    /// A client has stopped in good order: its tunnels close now, but what it has sent last may still
    /// be on its way to visitors, so its flows end by themselves (in-band) and not by a reset.
    fn part(&mut self, ended: &Ended) {
        mark!("parted");
        let session = SessionNo(ended.epoch);
        info!("client={} session={session} ended: the client has stopped", ended.name);
        if let Some(entry) = self.sessions.remove(&session) {
            self.by_ctl_id.remove(&entry.ctl_id);
            self.unvouch(entry.origin);
        }
        self.opening.retain(|_, opening| opening.session != session);
        for tunnel in &ended.tunnels {
            let tunnel = tunnel.id;
            self.tell_all(|| Tell::TunnelOver { tunnel });
        }
        self.tell_all(|| Tell::CtlLost { session });
        self.parting.push_back((self.driver.now() + self.grace, session));
        if self.parting.len() > CLIENTS_MAX
            && let Some((_, session)) = self.parting.pop_front()
        {
            self.tell_all(|| Tell::SessionOver { session });
        }
    }

    /// Whoever has parted and is not gone by now is gone.
    pub(super) fn end_parted(&mut self, now: std::time::Duration) {
        while let Some((_, session)) = self.parting.pop_front_if(|(until, _)| *until <= now) {
            self.tell_all(|| Tell::SessionOver { session });
        }
    }

    /// A client's ctl_conn is gone for good: closes it.
    pub(super) fn lose_ctl(&mut self, key: Key, why: &str) {
        self.detach(key, why);
        self.close_peer(key, Ending::Reset);
    }

    /// A client's ctl_conn is over: the session goes on without, unless the client said goodbye.
    pub(super) fn detach(&mut self, key: Key, why: &str) {
        let Some(peer) = self.peers.get(key) else { return };
        let PeerKind::Ctl { session: Some(session), said_goodbye, .. } = &peer.kind else { return };
        let (session, said_goodbye) = (*session, *said_goodbye);
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.peer != Some(key) {
            return;
        }
        entry.peer = None;
        let ctl_id = entry.ctl_id;
        if said_goodbye {
            if let Some(ended) = self.registry.logout(ctl_id) {
                self.part(&ended);
            }
            return;
        }
        warn!("client={} session={session} ctl_conn lost: {why}", entry.client);
        self.by_ctl_id.remove(&ctl_id);
        let now = self.driver.now();
        self.registry.ctl_lost(ctl_id, now);
        self.tell_all(|| Tell::CtlLost { session });
    }

    fn say_goodbye(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let PeerKind::Ctl { said_goodbye, session, .. } = &mut peer.kind else { return };
        *said_goodbye = true;
        if let Some(session) = *session {
            info!("session={session} the client is stopping");
            self.tell_all(|| Tell::Parting { session });
        }
    }

    pub(super) fn expire_sessions(&mut self, now: std::time::Duration) {
        while let Some(ended) = self.registry.poll_expired(now) {
            mark!("expired");
            self.end_session(&ended, "the client did not come back");
        }
    }

    fn open_tunnel(&mut self, key: Key, wish: &OpenTunnel) {
        let Some(session) = self.session_of(key) else { return };
        let Some(ctl_id) = self.sessions.get(&session).map(|entry| entry.ctl_id) else { return };
        match self.registry.open_tunnel(ctl_id, wish) {
            None => {}
            Some(Decision::AlreadyOpen(tunnel)) => {
                let public = std::net::SocketAddr::new(self.public_bind, tunnel.port);
                self.say_open(key, &tunnel, public);
            }
            Some(Decision::Refused(refusal)) => self.say_refused(key, session, &wish.name, refusal),
            Some(Decision::Bind(binding)) => match self.bind(binding) {
                Ok((tunnel, (handles, public))) => {
                    info!("session={session} tunnel={} open public={public}", tunnel.name);
                    let id = tunnel.id;
                    let cores_left = handles.len();
                    for (core, listener) in (0u16..).zip(handles) {
                        let name = tunnel.name.to_string();
                        self.tell(core, Tell::Tunnel { session, tunnel: id, name, listener });
                    }
                    let opening = Opening { session, tunnel, public, cores_left };
                    self.opening.insert(id, opening);
                }
                Err(refusal) => self.say_refused(key, session, &wish.name, refusal),
            },
        }
    }

    /// One more data core serves a tunnel; when all do, the client is told.
    pub(super) fn on_serving(&mut self, tunnel: TunnelId) {
        let Some(opening) = self.opening.get_mut(&tunnel) else { return };
        opening.cores_left -= 1;
        if opening.cores_left > 0 {
            return;
        }
        let opening = self.opening.remove(&tunnel).expect("it was there a moment ago");
        let peer = self.sessions.get(&opening.session).and_then(|entry| entry.peer);
        // Without a ctl_conn: the client asks again when it is back.
        let Some(key) = peer else { return };
        self.say_open(key, &opening.tunnel, opening.public);
        self.advance(key);
    }

    /// Tries the candidates of a binding.
    fn bind(&mut self, mut binding: Binding) -> Result<(Tunnel, Bound<D>), TunnelRefusal> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        while let Some(port) = binding.next_candidate() {
            let cores = self.post.cores();
            let is_ours = self.registry.is_reserved_for(&binding, port);
            match listeners::public::<D>(self.public_bind, port, cores, is_ours) {
                Ok((handles, at)) => match self.registry.bound(binding, at.port()) {
                    Ok(tunnel) => return Ok((tunnel, (handles, at))),
                    Err(unused) => binding = unused,
                },
                Err(error) => last = error,
            }
        }
        let fault = match last.kind() {
            io::ErrorKind::AddrInUse => BindFault::InUse,
            _ if Fault::from_io(&last).is_shortage() => BindFault::Shortage,
            _ => BindFault::Other,
        };
        Err(self.registry.bind_failed(&binding, fault, &last.to_string()))
    }

    fn say_open(&mut self, key: Key, tunnel: &Tunnel, public: std::net::SocketAddr) {
        if let Some(machine) = self.machine(key) {
            let name = tunnel.name.clone();
            machine.tunnel_open(TunnelOpen { name, tunnel: tunnel.id, public });
        }
    }

    fn say_refused(&mut self, key: Key, session: SessionNo, name: &Name, refusal: TunnelRefusal) {
        warn!("session={session} tunnel={name} refused: {}", refusal.reason);
        if let Some(machine) = self.machine(key) {
            let TunnelRefusal { code, reason } = refusal;
            machine.tunnel_refused(TunnelRefused { name: name.clone(), code, reason });
        }
    }

    fn close_tunnel(&mut self, key: Key, tunnel: TunnelId) {
        let Some(session) = self.session_of(key) else { return };
        let Some(ctl_id) = self.sessions.get(&session).map(|entry| entry.ctl_id) else { return };
        match self.registry.close_tunnel(ctl_id, tunnel) {
            Some(tunnel) => {
                info!("session={session} tunnel={} closed", tunnel.name);
                self.tell_all(|| Tell::TunnelOver { tunnel: tunnel.id });
            }
            None => debug!("session={session} closes a tunnel that it does not have"),
        }
    }
}
