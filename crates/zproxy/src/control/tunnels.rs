//! The tunnels of this client, as the gateway sees them.

use std::net::SocketAddr;
use std::time::Duration;

use zproxy_ops::values::HostPort;
use zproxy_proto::id::TunnelId;
use zproxy_proto::wire::{Name, OpenTunnel, TunnelOpen, TunnelRefused};

use crate::config::TunnelSettings;

/// A tunnel that was open once and is refused now is asked for again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// One tunnel.
#[derive(Debug)]
struct Tunnel {
    name: Name,
    local: HostPort,
    wanted_port: u16,
    /// Where the public reached it last.
    public: Option<SocketAddr>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for on this ctl_conn, or not answered yet.
    Wanted,
    Open(TunnelId),
    /// The reason, and when to ask again.
    Refused(String, Option<Duration>),
}

/// All of them, by number.
#[derive(Debug)]
pub(super) struct Tunnels(Vec<Tunnel>);

/// What the gateway's answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing that anybody has to hear.
    Nothing,
    /// The tunnel of this number is open; the line is for stdout, if it says something new.
    Open { number: usize, line: Option<String> },
    /// One tunnel is refused; the others work.
    Refused(String),
    /// None is left: why.
    AllRefused(String),
}

impl Tunnels {
    pub(super) fn new(settings: &[TunnelSettings]) -> Self {
        let tunnel = |settings: &TunnelSettings| Tunnel {
            name: Name::lossy(&settings.name),
            local: settings.local.clone(),
            wanted_port: settings.public_port,
            public: None,
            state: State::Wanted,
        };
        Self(settings.iter().map(tunnel).collect())
    }

    /// Forgets what an earlier ctl_conn had said, and what to ask on a new one.
    pub(super) fn ask_all(&mut self) -> Vec<OpenTunnel> {
        self.0.iter_mut().map(Tunnel::ask).collect()
    }

    /// What to ask again now.
    pub(super) fn ask_due(&mut self, now: Duration) -> Vec<OpenTunnel> {
        let is_due = |tunnel: &&mut Tunnel| tunnel.retry_at().is_some_and(|at| at <= now);
        self.0.iter_mut().filter(is_due).map(Tunnel::ask_again).collect()
    }

    /// When [`Self::ask_due`] has something to ask.
    pub(super) fn next_retry(&self) -> Option<Duration> {
        self.0.iter().filter_map(Tunnel::retry_at).min()
    }

    /// The gateway listens; where it says only the port, it is at `gateway`.
    pub(super) fn on_open(&mut self, open: &TunnelOpen, gateway: SocketAddr) -> Answer {
        let Some(number) = self.number(&open.name) else { return Answer::Nothing };
        let tunnel = &mut self.0[number];
        tunnel.state = State::Open(open.tunnel);
        let ip = open.public.ip();
        let ip = if ip.is_unspecified() { gateway.ip() } else { ip };
        let public = SocketAddr::new(ip, open.public.port());
        let is_news = tunnel.public.replace(public) != Some(public);
        let line =
            || format!("tunnel {} ready public={public} local={}", tunnel.name, tunnel.local);
        Answer::Open { number, line: is_news.then(line) }
    }

    pub(super) fn on_refused(&mut self, refused: &TunnelRefused, now: Duration) -> Answer {
        let Some(number) = self.number(&refused.name) else { return Answer::Nothing };
        let text =
            format!("tunnel {} is refused ({}): {}", refused.name, refused.code, refused.reason);
        let tunnel = &mut self.0[number];
        let passes = tunnel.public.is_some() || refused.code.is_passing();
        let is_news = !matches!(&tunnel.state, State::Refused(known, _) if *known == text);
        tunnel.state = State::Refused(text.clone(), passes.then_some(now + RETRY));
        if let Some(all) = self.all_refused() {
            return Answer::AllRefused(all);
        }
        if is_news { Answer::Refused(text) } else { Answer::Nothing }
    }

    /// The gateway does not serve the tunnel any more. Gives its name, if it was ours.
    pub(super) fn on_closed(&mut self, id: TunnelId, now: Duration) -> Option<&Name> {
        let tunnel = self.0.iter_mut().find(|tunnel| tunnel.state == State::Open(id))?;
        tunnel.state = State::Refused(String::new(), Some(now + RETRY));
        Some(&tunnel.name)
    }

    fn number(&self, name: &Name) -> Option<usize> {
        self.0.iter().position(|tunnel| tunnel.name == *name)
    }

    /// The reasons, if no tunnel is open or may yet be.
    fn all_refused(&self) -> Option<String> {
        let reasons = self.0.iter().map(|tunnel| match &tunnel.state {
            State::Refused(reason, None) => Some(reason.as_str()),
            _ => None,
        });
        reasons.collect::<Option<Vec<_>>>().map(|reasons| reasons.join("\n"))
    }
}

impl Tunnel {
    fn ask(&mut self) -> OpenTunnel {
        // A refusal that was logged is not logged again when it is repeated.
        if !matches!(self.state, State::Refused(..)) {
            self.state = State::Wanted;
        }
        OpenTunnel {
            name: self.name.clone(),
            public_port: self.wanted_port,
            last_port: self.public.map(|public| public.port()),
        }
    }

    fn ask_again(&mut self) -> OpenTunnel {
        if let State::Refused(_, retry_at) = &mut self.state {
            *retry_at = None;
        }
        self.ask()
    }

    fn retry_at(&self) -> Option<Duration> {
        match self.state {
            State::Refused(_, retry_at) => retry_at,
            State::Wanted | State::Open(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use zproxy_proto::wire::TunnelRefusedCode;

    use super::*;

    fn tunnels(count: u16) -> Tunnels {
        let settings = (0..count).map(|number| TunnelSettings {
            name: format!("t{number}"),
            local: "127.0.0.1:80".parse().unwrap(),
            public_port: 0,
        });
        Tunnels::new(&settings.collect::<Vec<_>>())
    }

    fn open(name: &str, public: &str) -> TunnelOpen {
        let public = public.parse().unwrap();
        TunnelOpen { name: Name::lossy(name), tunnel: TunnelId(7), public }
    }

    fn refusal(name: &str, code: TunnelRefusedCode) -> TunnelRefused {
        TunnelRefused { name: Name::lossy(name), code, reason: "no".into() }
    }

    const NOW: Duration = Duration::from_secs(100);

    /// A line is printed when a tunnel opens and when its address has changed, and a gateway that
    /// listens everywhere is shown as where it was dialled.
    #[test]
    fn lines_are_news() {
        let mut tunnels = tunnels(1);
        assert_eq!(tunnels.ask_all()[0].last_port, None);
        let gateway = "192.0.2.1:8090".parse().unwrap();
        let Answer::Open { number: 0, line: Some(line) } =
            tunnels.on_open(&open("t0", "[::]:2000"), gateway)
        else {
            panic!("it is open for the first time")
        };
        assert_eq!(line, "tunnel t0 ready public=192.0.2.1:2000 local=127.0.0.1:80");
        assert_eq!(tunnels.ask_all()[0].last_port, Some(2000));
        let again = tunnels.on_open(&open("t0", "[::]:2000"), gateway);
        assert_eq!(again, Answer::Open { number: 0, line: None });
        let moved = tunnels.on_open(&open("t0", "[::]:2001"), gateway);
        assert!(matches!(moved, Answer::Open { line: Some(_), .. }));
        assert_eq!(tunnels.on_open(&open("else", "[::]:1"), gateway), Answer::Nothing);
    }

    /// The last refusal is the end, an earlier one is not.
    #[test]
    fn all_refused_is_the_end() {
        let mut tunnels = tunnels(2);
        let code = TunnelRefusedCode::PortTaken;
        assert!(matches!(tunnels.on_refused(&refusal("t1", code), NOW), Answer::Refused(_)));
        let Answer::AllRefused(all) = tunnels.on_refused(&refusal("t0", code), NOW) else {
            panic!("none is left")
        };
        assert_eq!(all.lines().count(), 2);
        assert!(all.contains("t0") && all.contains("port_taken"), "{all}");
    }

    /// A gateway that is short of something for a moment is no reason to end, not even at the start.
    #[test]
    fn a_shortage_passes() {
        let mut tunnels = tunnels(1);
        let short = refusal("t0", TunnelRefusedCode::Shortage);
        assert!(matches!(tunnels.on_refused(&short, NOW), Answer::Refused(_)));
        assert_eq!(tunnels.ask_due(NOW + RETRY).len(), 1);
    }

    /// A tunnel that was open is asked for again and again, and its refusal is told once.
    #[test]
    fn what_was_open_is_wanted_back() {
        let mut tunnels = tunnels(1);
        let gateway = "192.0.2.1:8090".parse().unwrap();
        let _ = tunnels.on_open(&open("t0", "[::]:2000"), gateway);
        assert_eq!(tunnels.next_retry(), None);
        let taken = refusal("t0", TunnelRefusedCode::PortTaken);
        assert!(matches!(tunnels.on_refused(&taken, NOW), Answer::Refused(_)));
        assert_eq!(tunnels.next_retry(), Some(NOW + RETRY));
        assert_eq!(tunnels.ask_due(NOW).len(), 0);
        assert_eq!(tunnels.ask_due(NOW + RETRY).len(), 1);
        assert_eq!(tunnels.on_refused(&taken, NOW), Answer::Nothing);
    }
}
