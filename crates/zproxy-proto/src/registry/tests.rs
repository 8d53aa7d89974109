//! Sessions, tunnels and ports, with a clock that the tests turn.

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn id(n: u8) -> ClientId {
    ClientId::from_random([n; 16])
}

fn ctl(n: u8) -> CtlId {
    CtlId([n; 16])
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn registry(range: Option<&str>) -> Registry {
    let range = range.map(|range| range.parse().unwrap());
    Registry::new(PortPolicy { range, excluded: vec![8090, 8091], lowest: 1 })
}

fn login(registry: &mut Registry, client: u8, ctl_id: u8, resume: Option<u8>) -> LoggedIn {
    let login = Login {
        client_id: id(client),
        name: name("box"),
        resume: resume.map(|n| Ticket([n; 32])),
        ctl_id: ctl(ctl_id),
        ticket: Ticket([ctl_id; 32]),
    };
    registry.login(login, NOW).unwrap()
}

fn wish(text: &str, public_port: u16, last_port: Option<u16>) -> OpenTunnel {
    OpenTunnel { name: name(text), public_port, last_port }
}

/// Opens a tunnel on the first candidate; the kernel "picks" 40000 and up.
fn open(registry: &mut Registry, ctl_id: u8, wish: &OpenTunnel) -> Tunnel {
    match registry.open_tunnel(ctl(ctl_id), wish).unwrap() {
        Decision::AlreadyOpen(tunnel) => tunnel,
        Decision::Refused(refusal) => panic!("{refusal:?}"),
        Decision::Bind(mut binding) => {
            let port = match binding.next_candidate().unwrap() {
                0 => 40000 + registry.last_tunnel as u16,
                port => port,
            };
            registry.bound(binding, port).unwrap()
        }
    }
}

fn refusal(registry: &Registry, ctl_id: u8, wish: &OpenTunnel) -> TunnelRefusal {
    match registry.open_tunnel(ctl(ctl_id), wish).unwrap() {
        Decision::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Everything that holds in every state.
fn check(registry: &Registry) {
    let mut ports = BTreeMap::new();
    let mut tunnels = 0;
    for (id, client) in &registry.clients {
        for tunnel in client.tunnels.values() {
            tunnels += 1;
            assert_eq!(registry.owners[&tunnel.id], *id);
            assert_eq!(client.by_name[&tunnel.name], tunnel.id);
            assert!(ports.insert(tunnel.port, Holder::Tunnel(*id, tunnel.id)).is_none());
        }
        assert_eq!(client.by_name.len(), client.tunnels.len());
        for (name, port) in &client.reservations {
            assert!(ports.insert(*port, Holder::Reservation(*id, name.clone())).is_none());
        }
        if let Link::Live(ctl_id) = client.link {
            assert_eq!(registry.ctls[&ctl_id], *id);
        }
    }
    assert_eq!(registry.owners.len(), tunnels);
    assert_eq!(registry.ports, ports);
    let live = registry.clients.values().filter(|c| matches!(c.link, Link::Live(_))).count();
    assert_eq!(registry.ctls.len(), live);
}

/// A run that comes back with its ticket has its tunnels, ids and ports as before.
#[test]
fn resume_keeps_everything() {
    let mut r = registry(None);
    let first = login(&mut r, 1, 1, None);
    assert!(matches!(first.before, Before::Nothing));
    let web = open(&mut r, 1, &wish("web", 0, None));
    assert_eq!(r.ctl_lost(ctl(1), NOW), Some(id(1)));
    assert_eq!(r.ctl_of(id(1)), None);
    assert!(r.open_tunnel(ctl(1), &wish("web", 0, None)).is_none(), "not logged in now");
    let again = login(&mut r, 1, 2, Some(1));
    assert!(matches!(again.before, Before::Resumed { old_ctl: None }));
    assert_eq!(again.epoch, first.epoch);
    assert!(again.ticket.matches(&first.ticket));
    assert_eq!(open(&mut r, 2, &wish("web", 0, Some(web.port))), web);
    assert_eq!(r.poll_expired(NOW + SESSION_GRACE * 2), None, "it is back");
    check(&r);
}

/// A resume before the loss was noticed names the old ctl_conn; its late close means nothing.
#[test]
fn late_close_of_an_old_ctl_conn() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let again = login(&mut r, 1, 2, Some(1));
    assert!(matches!(again.before, Before::Resumed { old_ctl: Some(old) } if old == ctl(1)));
    assert_eq!(r.ctl_lost(ctl(1), NOW), None);
    assert_eq!(r.logout(ctl(1)), None);
    assert_eq!(r.ctl_of(id(1)), Some(ctl(2)));
    check(&r);
}

/// Another run of the same client takes over, and gets the ports of the names it opens again,
/// whatever others want meanwhile.
#[test]
fn takeover_keeps_the_ports() {
    let mut r = registry(None);
    let first = login(&mut r, 1, 1, None);
    let web = open(&mut r, 1, &wish("web", 0, None));
    let ssh = open(&mut r, 1, &wish("ssh", 2222, None));
    let second = login(&mut r, 1, 2, Some(99));
    let Before::TakenOver { old_ctl, ended } = second.before else { panic!() };
    assert_eq!((old_ctl, ended.epoch), (Some(ctl(1)), first.epoch));
    assert_eq!(ended.tunnels, [web.clone(), ssh.clone()]);
    assert_ne!(second.epoch, first.epoch);
    check(&r);

    login(&mut r, 2, 3, None);
    assert_eq!(refusal(&r, 3, &wish("x", web.port, None)).code, TunnelRefusedCode::PortTaken);
    let again = open(&mut r, 2, &wish("web", 0, None));
    assert_eq!(again.port, web.port);
    assert_ne!(again.id, web.id, "a tunnel id is never used again");
    assert_eq!(open(&mut r, 2, &wish("ssh", 2222, None)).port, 2222);
    check(&r);
}

/// Reservations that nobody uses are given up.
#[test]
fn reservations_expire() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    open(&mut r, 1, &wish("web", 5000, None));
    login(&mut r, 1, 2, None);
    login(&mut r, 2, 3, None);
    assert_eq!(refusal(&r, 3, &wish("x", 5000, None)).code, TunnelRefusedCode::PortTaken);
    assert_eq!(r.poll_timeout(), Some(NOW + RESERVATION_GRACE));
    assert_eq!(r.poll_expired(NOW + RESERVATION_GRACE), None);
    assert_eq!(open(&mut r, 3, &wish("x", 5000, None)).port, 5000);
    assert_eq!(r.poll_timeout(), None);
    check(&r);
}

/// A session without a ctl_conn is over after the grace, not before, and its ports are free.
#[test]
fn grace_ends() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let web = open(&mut r, 1, &wish("web", 5000, None));
    r.ctl_lost(ctl(1), NOW);
    login(&mut r, 2, 2, None);
    assert_eq!(refusal(&r, 2, &wish("x", 5000, None)).code, TunnelRefusedCode::PortTaken);
    assert_eq!(r.poll_expired(NOW + SESSION_GRACE - Duration::from_millis(1)), None);
    let ended = r.poll_expired(NOW + SESSION_GRACE).unwrap();
    assert_eq!((ended.client_id, ended.tunnels), (id(1), vec![web]));
    assert_eq!(r.poll_expired(NOW + SESSION_GRACE), None);
    assert_eq!(open(&mut r, 2, &wish("x", 5000, None)).port, 5000);
    let late = login(&mut r, 1, 4, Some(1));
    assert!(matches!(late.before, Before::Nothing), "the ticket is worth nothing now");
    check(&r);
}

/// A goodbye ends the session at once.
#[test]
fn logout_frees_the_ports() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    open(&mut r, 1, &wish("web", 5000, None));
    assert_eq!(r.logout(ctl(1)).unwrap().tunnels.len(), 1);
    assert_eq!((r.clients_len(), r.tunnels_len(), r.client_of(ctl(1))), (0, 0, None));
    check(&r);
}

/// Ports outside the range and the gateway's own are refused with words that help.
#[test]
fn ports_that_are_not_allowed() {
    let mut r = registry(Some("5000-5001"));
    login(&mut r, 1, 1, None);
    let refused = refusal(&r, 1, &wish("web", 80, None));
    assert_eq!(refused.code, TunnelRefusedCode::PortNotAllowed);
    let words = "port 80 is not allowed; this gateway gives ports 5000-5001";
    assert_eq!(refused.reason.as_str(), words);
    let mut open_range = registry(None);
    login(&mut open_range, 1, 1, None);
    let refused = refusal(&open_range, 1, &wish("web", 8090, None));
    assert_eq!(refused.code, TunnelRefusedCode::PortNotAllowed);
    // The kernel may pick what must not be given.
    let Some(Decision::Bind(mut binding)) = open_range.open_tunnel(ctl(1), &wish("a", 0, None))
    else {
        panic!()
    };
    assert_eq!(binding.next_candidate(), Some(0));
    let mut binding = open_range.bound(binding, 8091).unwrap_err();
    assert_eq!(binding.next_candidate(), Some(0));
    assert!(open_range.bound(binding, 8092).is_ok());
}

/// From a range each tunnel gets a free port, the same one each time, until there is none.
#[test]
fn ports_from_a_range() {
    let mut r = registry(Some("8089-8092"));
    login(&mut r, 1, 1, None);
    let first = open(&mut r, 1, &wish("a", 0, None));
    let second = open(&mut r, 1, &wish("b", 0, None));
    let mut ports = [first.port, second.port];
    ports.sort_unstable();
    assert_eq!(ports, [8089, 8092], "its own ports are left out");
    let refused = refusal(&r, 1, &wish("c", 0, None));
    assert_eq!(refused.code, TunnelRefusedCode::Limit);
    assert_eq!(refused.reason.as_str(), "no public port of 8089-8092 is free");
    let closed = r.close_tunnel(ctl(1), first.id).unwrap();
    assert_eq!(open(&mut r, 1, &wish("a", 0, None)).port, closed.port);
    check(&r);
}

/// The port it had comes first, if it may be had.
#[test]
fn last_port_is_tried_first() {
    let mut r = registry(Some("5000-5999"));
    login(&mut r, 1, 1, None);
    assert_eq!(open(&mut r, 1, &wish("a", 0, Some(5777))).port, 5777);
    assert_ne!(open(&mut r, 1, &wish("b", 0, Some(5777))).port, 5777);
    assert_ne!(open(&mut r, 1, &wish("c", 0, Some(80))).port, 80);
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let Some(Decision::Bind(mut binding)) = r.open_tunnel(ctl(1), &wish("a", 0, Some(5777))) else {
        panic!()
    };
    assert_eq!((binding.next_candidate(), binding.next_candidate()), (Some(5777), Some(0)));
}

/// A name is one tunnel: the same wish gets the same answer, another port does not.
#[test]
fn names_are_unique_per_client() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let web = open(&mut r, 1, &wish("web", 5000, None));
    assert_eq!(open(&mut r, 1, &wish("web", 5000, None)), web);
    assert_eq!(refusal(&r, 1, &wish("web", 5001, None)).code, TunnelRefusedCode::NameTaken);
    let taken = refusal(&r, 1, &wish("other", 5000, None));
    assert_eq!(taken.reason.as_str(), "port 5000 is in use by your tunnel web");
    login(&mut r, 2, 2, None);
    assert_eq!(open(&mut r, 2, &wish("web", 5002, None)).port, 5002);
    check(&r);
}

/// A client cannot close another one's tunnel.
#[test]
fn tunnels_are_closed_by_their_owner() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    login(&mut r, 2, 2, None);
    let web = open(&mut r, 1, &wish("web", 5000, None));
    assert_eq!(r.close_tunnel(ctl(2), web.id), None);
    assert_eq!(r.tunnel(web.id), Some((id(1), &web)));
    assert_eq!(r.close_tunnel(ctl(1), web.id), Some(web.clone()));
    assert_eq!(r.close_tunnel(ctl(1), web.id), None);
    check(&r);
}

/// What a bind failed with is told in words.
#[test]
fn bind_failures() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let binding = |port| match r.open_tunnel(ctl(1), &wish("web", port, None)) {
        Some(Decision::Bind(binding)) => binding,
        other => panic!("{other:?}"),
    };
    let refused = r.bind_failed(&binding(80), BindFault::InUse, "address in use");
    assert_eq!(refused.code, TunnelRefusedCode::PortTaken);
    assert_eq!(refused.reason.as_str(), "port 80 is in use on the gateway");
    let refused = r.bind_failed(&binding(80), BindFault::Other, "permission denied");
    assert_eq!(refused.code, TunnelRefusedCode::BindFailed);
    assert_eq!(refused.reason.as_str(), "port 80 could not be opened: permission denied");
    assert_eq!(
        r.bind_failed(&binding(0), BindFault::InUse, "x").code,
        TunnelRefusedCode::BindFailed
    );
    for port in [0, 80] {
        let refused = r.bind_failed(&binding(port), BindFault::Shortage, "too many open files");
        assert_eq!(refused.code, TunnelRefusedCode::Shortage);
    }
}

/// A session that ended while its port was being bound does not get the tunnel.
#[test]
fn bound_too_late() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    let Some(Decision::Bind(binding)) = r.open_tunnel(ctl(1), &wish("web", 5000, None)) else {
        panic!()
    };
    login(&mut r, 1, 2, None);
    let mut binding = r.bound(binding, 5000).unwrap_err();
    assert_eq!(binding.next_candidate(), None);
    check(&r);
}

/// Both limits have an answer.
#[test]
fn limits_have_answers() {
    let mut r = registry(None);
    login(&mut r, 1, 1, None);
    for n in 0..TUNNELS_PER_CLIENT_MAX {
        open(&mut r, 1, &wish(&format!("t{n}"), 10000 + n as u16, None));
    }
    let refused = refusal(&r, 1, &wish("one-more", 9, None));
    assert_eq!(refused.code, TunnelRefusedCode::Limit);
    for n in 1..CLIENTS_MAX {
        let mut random = [0; 16];
        random[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let login = Login {
            client_id: ClientId::from_random(random),
            name: name("box"),
            resume: None,
            ctl_id: CtlId(random),
            ticket: Ticket([0; 32]),
        };
        assert!(r.login(login, NOW).is_ok());
    }
    let login = |client| Login {
        client_id: id(client),
        name: name("box"),
        resume: None,
        ctl_id: ctl(200),
        ticket: Ticket([0; 32]),
    };
    assert_eq!(r.login(login(200), NOW).unwrap_err().code, RefusedCode::Limit);
    assert!(r.login(login(1), NOW).is_ok(), "who is in already may come again");
    check(&r);
}

/// Random operations keep the books in order.
#[test]
fn random_operations_keep_the_books() {
    let mut r = registry(Some("5000-5019"));
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let (mut now, mut serial) = (NOW, 10u64);
    for _ in 0..20_000 {
        let client = id(random(6) as u8);
        let ctl_id = r.ctl_of(client).unwrap_or(ctl(0));
        match random(8) {
            0 => {
                serial += 1;
                let mut fresh = [0; 16];
                fresh[..8].copy_from_slice(&serial.to_be_bytes());
                let resume = r.clients.get(&client).map(|client| client.ticket);
                let resume = resume.filter(|_| random(2) == 0);
                let mut ticket = [0; 32];
                ticket[..8].copy_from_slice(&serial.to_be_bytes());
                let ticket = Ticket(ticket);
                let ctl_id = CtlId(fresh);
                let login = Login { client_id: client, name: name("n"), resume, ctl_id, ticket };
                r.login(login, now).unwrap();
            }
            1 => drop(r.ctl_lost(ctl_id, now)),
            2 if random(4) == 0 => drop(r.logout(ctl_id)),
            3 => {
                let tunnel = r.tunnels_of(client).next().map(|tunnel| tunnel.id);
                drop(tunnel.and_then(|tunnel| r.close_tunnel(ctl_id, tunnel)));
            }
            4 => {
                now += Duration::from_secs(random(40));
                while r.poll_expired(now).is_some() {}
            }
            _ => {
                let port = [0, 5000 + random(25) as u16][random(2) as usize];
                let wish = wish(&format!("t{}", random(8)), port, Some(5003));
                if let Some(Decision::Bind(mut binding)) = r.open_tunnel(ctl_id, &wish) {
                    let port = binding.next_candidate().unwrap();
                    r.bound(binding, port).unwrap();
                }
            }
        }
        check(&r);
    }
}
