//! The two ends of a lane, joined by a network that cuts the stream where it likes and in some runs
//! changes bytes.

use std::collections::VecDeque;

use zproxy_proto::id::{FlowId, ProxyId};
use zproxy_proto::lane::{Lane, Notice};
use zproxy_proto::proxy_conn::Role;
use zproxy_proto::wire::{Abort, AbortCode, Fin, Released};

use crate::input::Input;

/// More operations only repeat themselves.
const OPERATIONS_MAX: usize = 400;
/// The data cores that the lane joins: the gateway's and the client's.
const CORES: (u16, u16) = (1, 2);

const GATEWAY: usize = 0;
const CLIENT: usize = 1;

struct World {
    ends: [Lane; 2],
    /// Bytes on their way to each end.
    wires: [VecDeque<u8>; 2],
    /// What each end is to hear, in order.
    due: [VecDeque<Notice>; 2],
    /// An end that has met nonsense, which is given up.
    broken: [bool; 2],
    is_honest: bool,
}

fn notice(kind: u8, number: u16) -> Notice {
    let proxy = ProxyId::new(CORES.0, CORES.1, u32::from(number));
    let flow = FlowId::new(CORES.0, u64::from(number) << 30);
    match kind {
        0 => Notice::Fin(Fin { proxy, flow, bytes: u64::from(number) << 40 }),
        1 => Notice::Abort(Abort { proxy, flow, code: AbortCode::from_number(number as u8) }),
        _ => Notice::Released(Released { proxy, flow }),
    }
}

impl World {
    fn say(&mut self, side: usize, notice: Notice) {
        self.ends[side].push(notice);
        self.due[1 - side].push_back(notice);
    }

    fn send(&mut self, side: usize) {
        if self.wires[1 - side].is_empty() {
            let has = self.ends[side].has_outgoing();
            let bytes = self.ends[side].take_outgoing(vec![0; 3]);
            assert_eq!(has, !bytes.is_empty());
            assert!(!self.ends[side].has_outgoing());
            self.wires[1 - side].extend(bytes);
        }
    }

    fn deliver(&mut self, side: usize, count: usize) {
        let count = count.min(self.wires[side].len());
        let bytes: Vec<u8> = self.wires[side].drain(..count).collect();
        if self.broken[side] {
            return;
        }
        self.ends[side].handle_bytes(&bytes);
        loop {
            match self.ends[side].next_notice() {
                Ok(None) => break,
                Ok(Some(notice)) => self.hear(side, notice),
                Err(violation) => {
                    assert!(!self.is_honest, "{violation} between honest ends");
                    self.broken[side] = true;
                    break;
                }
            }
        }
    }

    fn hear(&mut self, side: usize, notice: Notice) {
        let proxy = notice.proxy();
        assert_eq!((proxy.gateway_core(), proxy.client_core()), CORES, "of other cores");
        let is_release = matches!(notice, Notice::Released(_));
        assert!(side == GATEWAY || !is_release, "a gateway releases nothing");
        assert_eq!(notice.input().0, proxy);
        if self.is_honest {
            assert_eq!(self.due[side].pop_front(), Some(notice), "not what was said");
        }
    }
}

/// What one end says the other hears, once and in order, wherever the stream is cut; nonsense is a
/// violation, and nothing is ever heard of proxy_conns of other cores.
pub fn lane(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let name = ProxyId::new(CORES.0, CORES.1, 7);
    let mut world = World {
        ends: [Lane::new(Role::Gateway, name), Lane::new(Role::Client, name)],
        wires: Default::default(),
        due: Default::default(),
        broken: [false; 2],
        is_honest: input.below(4) != 0,
    };
    for _ in 0..OPERATIONS_MAX {
        let Some(kind) = input.next_byte() else { break };
        let side = usize::from(kind & 1);
        match kind >> 1 & 7 {
            0..=2 => {
                let kinds = if side == CLIENT { 3 } else { 2 };
                let notice = notice(input.below(kinds), input.word());
                world.say(side, notice);
            }
            3 | 4 => world.send(side),
            5 => world.deliver(side, usize::from(input.byte())),
            6 => world.deliver(side, usize::MAX),
            _ => {
                let (place, bit) = (usize::from(input.byte()), input.below(8));
                let wire = &mut world.wires[side];
                let len = wire.len().max(1);
                if let Some(byte) = wire.get_mut(place % len).filter(|_| !world.is_honest) {
                    *byte ^= 1 << bit;
                }
            }
        }
        for end in &world.ends {
            assert!(!end.is_backlogged(), "a few notices are no backlog");
        }
    }
    if world.is_honest {
        for side in [GATEWAY, CLIENT] {
            world.deliver(side, usize::MAX);
            world.send(1 - side);
            world.deliver(side, usize::MAX);
            assert!(world.due[side].is_empty(), "never heard: {:?}", world.due[side]);
        }
    }
}
