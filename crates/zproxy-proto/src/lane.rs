//! A lane: the connection between one data core of the client and one of the gateway over which
//! they tell each other how flows end.
//!
//! A notice that concerns a flow goes from the thread that has it to the thread that needs it, and
//! no other thread is woken. The bytes of the flow travel on its proxy_conn meanwhile, so either may
//! overtake the other; [`crate::proxy_conn`] copes with that, and with the loss of a lane.

use std::time::Duration;

use crate::control::Violation;
use crate::id::{FlowId, ProxyId};
use crate::limits::{LANE_RENEWALS_MAX, LANE_RETRY, LANE_SEND_BACKLOG_MAX};
use crate::proxy_conn::{Input, Role};
use crate::wire::{Abort, Decoder, Fin, Frame, Released};

/// What is told of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The sender's direction has ended.
    Fin(Fin),
    /// The client expects the next `Start`.
    Released(Released),
    /// The flow failed.
    Abort(Abort),
}

impl Notice {
    /// Which proxy_conn's machine is to hear it, and as what.
    #[must_use]
    pub fn input(&self) -> (ProxyId, Input) {
        match *self {
            Self::Fin(it) => (it.proxy, Input::PeerFin(it.flow, it.bytes)),
            Self::Released(it) => (it.proxy, Input::PeerReleased(it.flow)),
            Self::Abort(it) => (it.proxy, Input::PeerAbort(it.flow, it.code)),
        }
    }

    /// The proxy_conn it is about.
    #[must_use]
    pub fn proxy(&self) -> ProxyId {
        self.input().0
    }

    fn flow(&self) -> FlowId {
        match self {
            Self::Fin(it) => it.flow,
            Self::Released(it) => it.flow,
            Self::Abort(it) => it.flow,
        }
    }

    fn frame(self) -> Frame {
        match self {
            Self::Fin(it) => Frame::Fin(it),
            Self::Released(it) => Frame::Released(it),
            Self::Abort(it) => Frame::Abort(it),
        }
    }
}

/// How often a lane is made anew: [`LANE_RENEWALS_MAX`] times, and once more for every [`LANE_RETRY`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Renewals {
    spent: u32,
    since: Duration,
}

impl Renewals {
    /// Whether it may be made anew now; if so, that counts.
    pub fn admit(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.since);
        let regained = passed.as_millis() / LANE_RETRY.as_millis();
        self.spent = self.spent.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
        if self.spent == 0 {
            self.since = now;
        } else if regained > 0 {
            self.since += LANE_RETRY * u32::try_from(regained).unwrap_or(u32::MAX);
        }
        let is_admitted = self.spent < LANE_RENEWALS_MAX;
        self.spent += u32::from(is_admitted);
        is_admitted
    }
}

/// One end of a lane. Its owner takes bytes to send only when the earlier ones are sent, so a peer
/// that does not read is noticed.
#[derive(Debug)]
pub struct Lane {
    role: Role,
    gateway_core: u16,
    client_core: u16,
    decoder: Decoder,
    outgoing: Vec<u8>,
}

impl Lane {
    /// The `role` end of a lane between the two data cores that `name` tells.
    #[must_use]
    pub fn new(role: Role, name: ProxyId) -> Self {
        Self {
            role,
            gateway_core: name.gateway_core(),
            client_core: name.client_core(),
            decoder: Decoder::for_lane(),
            outgoing: Vec::new(),
        }
    }

    /// The gateway's data core.
    #[must_use]
    pub fn gateway_core(&self) -> u16 {
        self.gateway_core
    }

    /// The client's data core.
    #[must_use]
    pub fn client_core(&self) -> u16 {
        self.client_core
    }

    /// Bytes have come. Ask [`Self::next_notice`] until it has none.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next notice of the peer.
    ///
    /// # Errors
    /// When the peer breaks the protocol; the lane is worth nothing from then on.
    pub fn next_notice(&mut self) -> Result<Option<Notice>, Violation> {
        let Some(frame) = self.decoder.next_frame()? else { return Ok(None) };
        let name = frame.name();
        let notice = match frame {
            Frame::Fin(it) => Notice::Fin(it),
            Frame::Released(it) if self.role == Role::Gateway => Notice::Released(it),
            Frame::Abort(it) => Notice::Abort(it),
            _ => return Err(Violation::Unexpected(name)),
        };
        let proxy = notice.proxy();
        let is_in_range = proxy.gateway_core() == self.gateway_core
            && proxy.client_core() == self.client_core
            && notice.flow().gateway_core() == self.gateway_core;
        if is_in_range { Ok(Some(notice)) } else { Err(Violation::OutOfRange(name)) }
    }

    /// Queues a notice for the peer.
    pub fn push(&mut self, notice: Notice) {
        notice.frame().encode_into(&mut self.outgoing);
    }

    /// Whether the peer does not read: the lane is to be given up.
    #[must_use]
    pub fn is_backlogged(&self) -> bool {
        self.outgoing.len() > LANE_SEND_BACKLOG_MAX
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Bytes to send, in exchange for a spent buffer.
    pub fn take_outgoing(&mut self, mut spare: Vec<u8>) -> Vec<u8> {
        spare.clear();
        std::mem::replace(&mut self.outgoing, spare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some renewals at once are well, and one in the time between two honest tries for ever; what is
    /// not admitted does not count.
    #[test]
    fn renewals_are_rationed() {
        let mut renewals = Renewals::default();
        let at = |millis| Duration::from_secs(1_000) + Duration::from_millis(millis);
        let admitted =
            |renewals: &mut Renewals, now| (0..100).filter(|_| renewals.admit(now)).count();
        assert_eq!(admitted(&mut renewals, at(0)), LANE_RENEWALS_MAX as usize);
        assert_eq!(admitted(&mut renewals, at(999)), 0);
        assert_eq!(admitted(&mut renewals, at(1_000)), 1);
        assert_eq!(admitted(&mut renewals, at(1_999)), 0);
        assert_eq!(admitted(&mut renewals, at(5_500)), 4);
        assert_eq!(admitted(&mut renewals, at(6_000)), 1);
        assert!((7..1_000).all(|second| renewals.admit(at(second * 1_000))));
        assert_eq!(admitted(&mut renewals, at(9_999_000)), LANE_RENEWALS_MAX as usize);
    }
    use crate::wire::{AbortCode, WireError};

    const PROXY: ProxyId = ProxyId::new(1, 2, 3);
    const FLOW: FlowId = FlowId::new(1, 4);

    fn end(role: Role) -> Lane {
        Lane::new(role, PROXY)
    }

    fn heard(lane: &mut Lane, frame: &Frame) -> Result<Option<Notice>, Violation> {
        lane.handle_bytes(&frame.encode());
        lane.next_notice()
    }

    /// Notices arrive as they were said, in order, wherever the stream is cut.
    #[test]
    fn notices_round_trip() {
        let said = [
            Notice::Fin(Fin { proxy: PROXY, flow: FLOW, bytes: 7 }),
            Notice::Abort(Abort { proxy: PROXY, flow: FLOW, code: AbortCode::Timeout }),
            Notice::Released(Released { proxy: PROXY, flow: FLOW }),
        ];
        let (mut client, mut gateway) = (end(Role::Client), end(Role::Gateway));
        assert!(!client.has_outgoing());
        said.iter().for_each(|notice| client.push(*notice));
        let bytes = client.take_outgoing(vec![1, 2]);
        assert!(!client.has_outgoing());
        let mut got = Vec::new();
        for byte in bytes {
            gateway.handle_bytes(&[byte]);
            got.extend(gateway.next_notice().unwrap());
        }
        assert_eq!(got, said);
        assert_eq!(got[0].input(), (PROXY, Input::PeerFin(FLOW, 7)));
    }

    /// Only hot frames travel on a lane, a gateway releases nothing, and a notice about a proxy_conn
    /// of other cores is a violation.
    #[test]
    fn what_does_not_belong_is_refused() {
        let unexpected = |name| Err(Violation::Unexpected(name));
        let out_of_range = |name| Err(Violation::OutOfRange(name));
        assert_eq!(heard(&mut end(Role::Gateway), &Frame::Ping(1)), unexpected("Ping"));
        let released = Frame::Released(Released { proxy: PROXY, flow: FLOW });
        assert_eq!(heard(&mut end(Role::Client), &released), unexpected("Released"));
        for (proxy, flow) in [
            (ProxyId::new(0, 2, 3), FLOW),
            (ProxyId::new(1, 0, 3), FLOW),
            (PROXY, FlowId::new(0, 4)),
        ] {
            let fin = Frame::Fin(Fin { proxy, flow, bytes: 0 });
            assert_eq!(heard(&mut end(Role::Gateway), &fin), out_of_range("Fin"));
        }
    }

    /// A length that no frame of a lane has is refused before anything is buffered.
    #[test]
    fn long_frames_are_refused_at_the_header() {
        let mut lane = end(Role::Gateway);
        lane.handle_bytes(&[0, 0, 0, 26]);
        assert_eq!(lane.next_notice(), Err(Violation::Wire(WireError::FrameLen(26))));
    }

    /// A peer that does not read is noticed.
    #[test]
    fn a_backlog_shows() {
        let mut lane = end(Role::Gateway);
        let fin = Notice::Fin(Fin { proxy: PROXY, flow: FLOW, bytes: 7 });
        while lane.outgoing.len() <= LANE_SEND_BACKLOG_MAX {
            assert!(!lane.is_backlogged());
            lane.push(fin);
        }
        assert!(lane.is_backlogged());
    }
}
