//! What the gateway says.

use std::io::Write;
use std::net::SocketAddr;

use tracing::{error, info, warn};
use zproxy_io::Driver;
use zproxy_ops::Exit;
use zproxy_proto::control::{ClientEvent, End};
use zproxy_proto::limits::{GATEWAY_CORES_COUNTED_MAX, RESTING_CONNS_MAX};
use zproxy_proto::wire::{RefusedCode, Welcome};

use super::Control;
use super::link::{Door, Link};
use super::tunnels::Answer;
use crate::identity::Identity;
use crate::mailbox::Tell;

impl<D: Driver> Control<'_, D> {
    /// Hears everything that has come and sends what there is to send.
    pub(super) fn pump(&mut self) -> Result<(), Exit> {
        while let Link::Up(ctl) = &mut self.link
            && let Some(event) = ctl.session.poll_event()
        {
            self.on_event(event)?;
        }
        if let Link::Up(ctl) = &mut self.link
            && let Some(why) = ctl.lost.take()
        {
            self.lose(&format!("the ctl_conn is lost: {why}"));
        }
        self.transmit();
        Ok(())
    }

    fn on_event(&mut self, event: ClientEvent) -> Result<(), Exit> {
        match event {
            ClientEvent::Welcomed(welcome) => self.on_welcome(&welcome),
            ClientEvent::TunnelOpen(open) => {
                let Link::Up(ctl) = &self.link else { unreachable!("it has just spoken") };
                let answer = self.tunnels.on_open(&open, ctl.gateway);
                if let Answer::Open { number, line } = answer {
                    let id = open.tunnel;
                    self.tell_all(|| Tell::Tunnel { id, number });
                    line.iter().for_each(|line| (self.herald)(line));
                }
            }
            ClientEvent::TunnelRefused(refused) => {
                let now = self.driver.now();
                match self.tunnels.on_refused(&refused, now) {
                    Answer::Refused(text) => error!("{text}"),
                    Answer::AllRefused(text) => return Err(Exit::refused(text)),
                    Answer::Nothing | Answer::Open { .. } => {}
                }
            }
            ClientEvent::CloseTunnel(id) => {
                let now = self.driver.now();
                if let Some(name) = self.tunnels.on_closed(id, now) {
                    warn!("tunnel {name} was closed by the gateway");
                }
            }
            ClientEvent::OpenProxy(open) => self.open_proxies(open),
            ClientEvent::GoAway(go_away) => {
                info!("the gateway is going to stop: {}", go_away.reason);
            }
            ClientEvent::Ended(end) => self.on_end(&end)?,
        }
        Ok(())
    }

    fn on_welcome(&mut self, welcome: &Welcome) {
        let Link::Up(ctl) = &mut self.link else { unreachable!("it has just spoken") };
        let at = SocketAddr::new(ctl.gateway.ip(), welcome.proxy_port);
        let gateway_cores = usize::from(welcome.data_cores);
        let resting_max = gateway_cores.min(GATEWAY_CORES_COUNTED_MAX) * RESTING_CONNS_MAX;
        ctl.door = Some(Door { ctl_id: welcome.ctl_id, at, gateway_cores, resting_max });
        let gateway = ctl.gateway;
        let verb = if welcome.resumed { "resumed" } else { "opened" };
        info!("gateway={gateway} ctl={} session={} {verb}", welcome.ctl_id, welcome.epoch);
        if !welcome.resumed && self.ticket.is_some() {
            self.end_session();
        }
        self.renew_lanes();
        self.ticket = Some(welcome.ticket);
        self.backoff.reset();
        for open in self.tunnels.ask_all() {
            self.link.with_session(|session| session.open_tunnel(open));
        }
    }

    /// What belonged to the session before is worth nothing now.
    fn end_session(&mut self) {
        self.ticket = None;
        self.tell_all(|| Tell::SessionOver);
        self.lanes.clear();
        for core in &mut self.cores {
            core.serial = 0;
        }
    }

    /// The session machine has ended the ctl_conn.
    fn on_end(&mut self, end: &End) -> Result<(), Exit> {
        match end {
            End::Refused { code, reason } if code.is_final() => {
                return Err(Exit::refused(format!("the gateway refuses us ({code}): {reason}")));
            }
            End::GatewayUnproven => return Err(Exit::refused(end.to_string())),
            End::Refused { code: RefusedCode::Replaced, .. } => {
                // A copied state directory: fighting over the id would bring both of us down for ever.
                warn!("another client has our id; going on with another one (see --state-dir)");
                self.lose(&format!("the ctl_conn is lost: {end}"));
                self.end_session();
                self.identity = Identity::fresh(&mut self.random);
            }
            _ => self.lose(&format!("the ctl_conn is lost: {end}")),
        }
        Ok(())
    }
}

/// Tells the world that a tunnel is ready. Nobody may be listening.
pub(super) fn announce(line: &str) {
    info!("{line}");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
