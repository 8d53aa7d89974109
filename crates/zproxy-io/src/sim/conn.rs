//! Connections: two ends, two directions, bounded buffers, FIN and RST.
//!
//! A direction is the sender's send buffer, segments on their way, and the receiver's receive buffer.
//! Together the last two never hold more than the receive buffer's size: the window.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Ending, FarEnd, Fault};

use super::kernel::{ConnId, Event, Kernel, Kind, Owner, SockId};

/// A keep-alive gives a connection up after so much silence.
const KEEPALIVE: Duration = Duration::from_secs(70);
/// The first keep-alive is sent after so much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// An orphan whose peer does not end its direction is given up after so long.
const ORPHAN_TIME: Duration = Duration::from_secs(60);
/// Bytes that are not acknowledged are given up after so long, as with `tcp_retries2` = 15.
const RETRANSMIT_TIME: Duration = Duration::from_secs(924);

#[derive(Debug)]
pub(super) enum Segment {
    Data(Vec<u8>),
    Fin,
    Rst,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct End {
    /// None: nobody has it accepted yet, or its owner has closed it.
    pub(super) sock: Option<SockId>,
    pub(super) addr: SocketAddr,
    /// The dialler's end: the answer has come.
    pub(super) is_connected: bool,
    /// It is in a listener, or on the way there.
    is_awaited: bool,
    /// Its owner has closed it.
    is_orphan: bool,
    send: VecDeque<u8>,
    send_max: usize,
    recv: VecDeque<u8>,
    recv_max: usize,
    /// Bytes on their way to here.
    coming: usize,
    /// No more bytes will be sent …
    has_shut: bool,
    /// … and the FIN is on its way.
    fin_sent: bool,
    fin_seen: bool,
    pub(super) fault: Option<Fault>,
    acks: Acks,
    /// Nothing of the connection is left here: whatever arrives is answered with RST.
    pub(super) is_gone: bool,
}

/// What an end knows of what has come to the other one. Counts are of bytes and FINs in segments.
#[derive(Debug)]
struct Acks {
    sent: u64,
    sent_at: Duration,
    /// That have come here.
    heard: u64,
    acked: u64,
    acked_at: Duration,
    /// The last acknowledgement was lost; it is asked for again until then.
    again_at: Option<Duration>,
}

impl Acks {
    fn new(now: Duration) -> Self {
        Self { sent: 0, sent_at: now, heard: 0, acked: 0, acked_at: now, again_at: None }
    }
}

/// A connection. Side 0 dialled.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ends: [End; 2],
    /// Segments on their way to each end.
    flights: [VecDeque<(Duration, Segment)>; 2],
    /// Nothing gets to this end before then.
    pub(super) dark: [Duration; 2],
}

/// What reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one.
    Some(usize),
    /// Nothing yet.
    Empty,
    /// The peer has ended its direction.
    Eof,
    /// The connection has failed.
    Failed(Fault),
}

/// What writing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// So many bytes went into the send buffer, at least one.
    Some(usize),
    /// The send buffer is full.
    Full,
    /// The connection has failed.
    Failed(Fault),
}

impl End {
    fn new(
        sock: Option<SockId>,
        addr: SocketAddr,
        (send_max, recv_max): (usize, usize),
        now: Duration,
    ) -> Self {
        Self {
            sock,
            addr,
            is_connected: sock.is_none(),
            is_awaited: sock.is_none(),
            is_orphan: false,
            send: VecDeque::new(),
            send_max,
            recv: VecDeque::new(),
            recv_max,
            coming: 0,
            has_shut: false,
            fin_sent: false,
            fin_seen: false,
            fault: None,
            acks: Acks::new(now),
            is_gone: false,
        }
    }

    /// Both directions have ended, or the connection has failed.
    fn is_over(&self) -> bool {
        self.fault.is_some() || (self.has_shut && self.fin_seen)
    }
}

impl Kernel {
    /// The three packets of a handshake begin: both ends exist from now on.
    pub(super) fn open_conn(
        &mut self,
        dialler: SockId,
        from: SocketAddr,
        to: SocketAddr,
    ) -> ConnId {
        let mut sizes = [0; 4];
        for (place, size) in sizes.iter_mut().enumerate() {
            let (least, most) = match place % 2 {
                0 => self.weather.send_buffer,
                _ => self.weather.receive_buffer,
            };
            *size = self.random.between(least as u64, most as u64) as usize;
        }
        let id = self.conns.len();
        let ends = [
            End::new(Some(dialler), from, (sizes[0], sizes[1]), self.now),
            End::new(None, to, (sizes[2], sizes[3]), self.now),
        ];
        let flights = [VecDeque::new(), VecDeque::new()];
        let conn = Conn { ends, flights, dark: [Duration::ZERO; 2] };
        self.conns.push(Some(Box::new(conn)));
        self.sock(dialler).kind = Kind::Stream { conn: id, side: 0 };
        id
    }

    /// Takes the first connection out of a listener.
    pub(super) fn accept(&mut self, listener: SockId, owner: Owner) -> Option<SockId> {
        let socket = self.find(listener)?;
        let process = socket.process;
        let Kind::Listener(it) = &mut socket.kind else { return None };
        let conn = it.backlog.pop_front()?;
        let id = self.insert(process, owner, Kind::Stream { conn, side: 1 });
        let end = &mut self.conn(conn).ends[1];
        assert!(end.is_awaited, "a connection is accepted once");
        end.is_awaited = false;
        end.sock = Some(id);
        Some(id)
    }

    pub(super) fn conn(&mut self, id: ConnId) -> &mut Conn {
        self.conns[id].as_mut().expect("a connection that is in use")
    }

    // --- what owners do -----------------------------------------------------------------------------

    pub(super) fn read(&mut self, (conn, side): (ConnId, usize), out: &mut [u8]) -> Read {
        let end = &mut self.conn(conn).ends[side];
        if end.recv.is_empty() {
            return match end.fault {
                Some(fault) => Read::Failed(fault),
                None if end.fin_seen => Read::Eof,
                None => Read::Empty,
            };
        }
        let count = out.len().min(end.recv.len());
        for (to, byte) in out.iter_mut().zip(end.recv.drain(..count)) {
            *to = byte;
        }
        self.transmit(conn, 1 - side);
        Read::Some(count)
    }

    /// Bytes that could be read now, and whether the end of the stream is behind them.
    pub(super) fn readable(&mut self, (conn, side): (ConnId, usize)) -> (usize, bool) {
        let end = &mut self.conn(conn).ends[side];
        (end.recv.len(), end.fin_seen || end.fault.is_some())
    }

    /// Whether the peer has ended its direction and every byte of it was read.
    pub(super) fn is_at_end(&mut self, (conn, side): (ConnId, usize)) -> bool {
        let end = &mut self.conn(conn).ends[side];
        end.recv.is_empty() && end.fin_seen && end.fault.is_none()
    }

    pub(super) fn write(&mut self, (conn, side): (ConnId, usize), bytes: &[u8]) -> Write {
        let end = &mut self.conn(conn).ends[side];
        if let Some(fault) = end.fault {
            return Write::Failed(fault);
        }
        assert!(!end.has_shut, "nothing is written behind a FIN");
        let count = bytes.len().min(end.send_max - end.send.len());
        if count == 0 {
            return Write::Full;
        }
        end.send.extend(&bytes[..count]);
        self.transmit(conn, side);
        Write::Some(count)
    }

    pub(super) fn shut(&mut self, (conn, side): (ConnId, usize)) {
        let end = &mut self.conn(conn).ends[side];
        if end.fault.is_none() && !end.has_shut {
            end.has_shut = true;
            self.transmit(conn, side);
            self.wake(conn, side);
        }
    }

    /// Whether both directions have ended, and how the connection failed if so.
    pub(super) fn hangup(&mut self, (conn, side): (ConnId, usize)) -> Option<Option<Fault>> {
        let end = &mut self.conn(conn).ends[side];
        end.is_over().then_some(end.fault)
    }

    /// The owner closes its end.
    pub(super) fn close_end(&mut self, conn: ConnId, side: usize, how: Ending) {
        let end = &mut self.conn(conn).ends[side];
        end.sock = None;
        end.is_orphan = true;
        // As Linux does: bytes that nobody has read make an orderly end a lie.
        let is_unread = !end.recv.is_empty();
        if how == Ending::Reset || is_unread {
            if is_unread && how == Ending::Clean {
                self.count("unread_close");
            }
            return self.reset_end(conn, side);
        }
        if end.is_gone {
            return self.sweep(conn);
        }
        end.has_shut = true;
        self.transmit(conn, side);
        let at = self.now + ORPHAN_TIME;
        self.at(at, Event::Linger { conn, side });
        self.finish_orphan(conn, side);
    }

    /// Something on the way kills the connection.
    pub(super) fn kill(&mut self, conn: ConnId) {
        for side in 0..2 {
            let Some(it) = self.conns[conn].as_mut() else { return };
            let end = &mut it.ends[side];
            if !end.is_gone {
                end.is_gone = true;
                end.send.clear();
                end.fault.get_or_insert(Fault::Reset);
                it.flights[side].clear();
                end.coming = 0;
                self.wake(conn, side);
            }
        }
        self.count("conn_killed");
        self.sweep(conn);
    }

    /// An end goes without ceremony: RST.
    pub(super) fn reset_end(&mut self, conn: ConnId, side: usize) {
        let Some(it) = self.conns[conn].as_mut() else { return };
        let end = &mut it.ends[side];
        end.is_awaited = false;
        if !end.is_gone {
            end.is_gone = true;
            end.send.clear();
            end.recv.clear();
            self.count("reset_sent");
            self.launch(conn, 1 - side, Segment::Rst);
        }
        self.sweep(conn);
    }

    // --- the way ------------------------------------------------------------------------------------

    /// Sends as much as the window takes, and the FIN behind the last byte.
    fn transmit(&mut self, conn: ConnId, side: usize) {
        let mut has_sent = false;
        loop {
            let segment_max = self.weather.segment_max;
            let it = self.conn(conn);
            let (window, is_peer_gone) = {
                let peer = &it.ends[1 - side];
                (peer.recv_max.saturating_sub(peer.recv.len() + peer.coming), peer.is_gone)
            };
            let end = &mut it.ends[side];
            if end.is_gone {
                break;
            }
            // Behind the window of a dead peer nobody reads; its RST is on the way, or will be asked
            // for by what is sent.
            let window = if is_peer_gone { window.max(1) } else { window };
            let count = end.send.len().min(window).min(segment_max);
            if count > 0 {
                let bytes: Vec<u8> = end.send.drain(..count).collect();
                it.ends[1 - side].coming += count;
                has_sent = true;
                self.launch(conn, 1 - side, Segment::Data(bytes));
            } else if end.send.is_empty() && end.has_shut && !end.fin_sent {
                end.fin_sent = true;
                self.launch(conn, 1 - side, Segment::Fin);
            } else {
                break;
            }
        }
        if has_sent {
            self.wake(conn, side);
        }
        self.finish_orphan(conn, side);
    }

    fn launch(&mut self, conn: ConnId, to: usize, segment: Segment) {
        let at = self.now + self.latency();
        let now = self.now;
        if !matches!(segment, Segment::Rst) {
            let acks = &mut self.conn(conn).ends[1 - to].acks;
            acks.sent += 1;
            acks.sent_at = now;
        }
        let flight = &mut self.conn(conn).flights[to];
        let at = flight.back().map_or(at, |(last, _)| at.max(*last));
        flight.push_back((at, segment));
        self.at(at, Event::Arrive { conn, to });
    }

    /// Until when nothing gets to this end, if so.
    fn darkness(&mut self, conn: ConnId, to: usize) -> Option<Duration> {
        let it = self.conns[conn].as_ref().expect("in use");
        let own = Some(it.dark[to]).filter(|until| *until > self.now);
        let gap = self.gap(it.ends[1 - to].addr.ip(), it.ends[to].addr.ip());
        own.max(gap)
    }

    pub(super) fn on_arrive(&mut self, conn: ConnId, to: usize) {
        loop {
            let now = self.now;
            let Some(it) = self.conns[conn].as_mut() else { return };
            if it.flights[to].front().is_none_or(|(at, _)| *at > now) {
                break;
            }
            if let Some(until) = self.darkness(conn, to) {
                self.lose(conn, to, until);
                continue;
            }
            let (_, segment) = self.conn(conn).flights[to].pop_front().expect("it is there");
            self.receive(conn, to, segment);
        }
        self.sweep(conn);
    }

    /// What is on its way meets silence: bytes and FINs are sent again, a RST is not.
    fn lose(&mut self, conn: ConnId, to: usize, until: Duration) {
        self.count("segment_lost");
        let again = until + Duration::from_millis(self.random.between(20, 400));
        let flight = &mut self.conn(conn).flights[to];
        let first = flight.front_mut().expect("something is lost");
        if matches!(first.1, Segment::Rst) {
            flight.pop_front();
            self.count("reset_lost");
            let at = self.now + KEEPALIVE_IDLE;
            self.at(at, Event::Probe { conn, side: to });
            return;
        }
        first.0 = again;
        self.at(again, Event::Arrive { conn, to });
    }

    fn receive(&mut self, conn: ConnId, to: usize, segment: Segment) {
        let end = &mut self.conn(conn).ends[to];
        match segment {
            Segment::Rst => {
                if end.is_gone {
                    return;
                }
                end.is_gone = true;
                end.send.clear();
                end.fault.get_or_insert(Fault::Reset);
                self.count("reset_received");
                self.wake(conn, to);
            }
            Segment::Data(bytes) => {
                end.coming -= bytes.len();
                if end.is_gone || end.is_orphan {
                    // Nobody will ever read this: the sender is told.
                    if !end.is_gone {
                        self.count("orphan_reset");
                    }
                    return self.answer_with_reset(conn, to);
                }
                end.recv.extend(bytes);
                self.acknowledge(conn, to);
                self.wake(conn, to);
            }
            Segment::Fin => {
                if end.is_gone {
                    return self.answer_with_reset(conn, to);
                }
                end.fin_seen = true;
                self.acknowledge(conn, to);
                self.wake(conn, to);
                self.finish_orphan(conn, to);
            }
        }
    }

    /// Something has come here: this end says so, and the segment said what has come to the other end.
    fn acknowledge(&mut self, conn: ConnId, to: usize) {
        self.conn(conn).ends[to].acks.heard += 1;
        self.hear_ack(conn, to, self.now);
        match self.darkness(conn, 1 - to) {
            None => self.hear_ack(conn, 1 - to, self.now),
            until => self.conn(conn).ends[1 - to].acks.again_at = until,
        }
    }

    /// An end learns what has come to the other one.
    fn hear_ack(&mut self, conn: ConnId, side: usize, at: Duration) {
        let it = self.conn(conn);
        let heard = it.ends[1 - side].acks.heard;
        let acks = &mut it.ends[side].acks;
        acks.acked = heard;
        acks.acked_at = at;
        acks.again_at = None;
    }

    /// What an end can tell of the other one: see [`crate::Driver::far_end`].
    pub(super) fn far_end(&mut self, (conn, side): (ConnId, usize)) -> FarEnd {
        let now = self.now;
        let is_deaf = self.darkness(conn, side).is_some();
        let is_dark = is_deaf || self.darkness(conn, 1 - side).is_some();
        let again_at = self.conn(conn).ends[side].acks.again_at;
        if let Some(at) = again_at.filter(|at| *at <= now && !is_deaf) {
            self.hear_ack(conn, side, at);
        }
        let end = &self.conn(conn).ends[side];
        let acks = &end.acks;
        // In the dark everything is sent again and again, and a closed window is probed.
        let is_unanswered = is_dark || acks.sent_at >= acks.acked_at;
        let is_probing = is_dark && !end.send.is_empty();
        let owes = !end.is_gone && ((acks.acked < acks.sent && is_unanswered) || is_probing);
        FarEnd { owes, silence: now - acks.acked_at }
    }

    fn answer_with_reset(&mut self, conn: ConnId, to: usize) {
        let it = self.conn(conn);
        it.ends[to].is_gone = true;
        it.ends[to].send.clear();
        if !it.ends[1 - to].is_gone {
            self.launch(conn, 1 - to, Segment::Rst);
        }
    }

    /// An orphan that has said and heard everything is gone.
    fn finish_orphan(&mut self, conn: ConnId, side: usize) {
        let end = &mut self.conn(conn).ends[side];
        if end.is_orphan && end.fin_sent && end.fin_seen {
            end.is_gone = true;
        }
    }

    /// After `KEEPALIVE_IDLE` of silence, the kernel asks whether the other end is there.
    pub(super) fn on_probe(&mut self, conn: ConnId, side: usize) {
        let Some(it) = self.conns[conn].as_ref() else { return };
        if it.ends[side].is_gone {
            return;
        }
        let is_dark = self.darkness(conn, 1 - side).or(self.darkness(conn, side)).is_some();
        if !is_dark && !self.conn(conn).ends[1 - side].is_gone {
            return;
        }
        // While something is on its way no keep-alive is sent: it is sent again, for a long time.
        let far = self.far_end((conn, side));
        if is_dark && far.owes && far.silence < RETRANSMIT_TIME {
            self.count("keepalive_rests");
            let at = self.now + KEEPALIVE_IDLE;
            return self.at(at, Event::Probe { conn, side });
        }
        let fault = if is_dark { Fault::TimedOut } else { Fault::Reset };
        let end = &mut self.conn(conn).ends[side];
        end.fault.get_or_insert(fault);
        end.is_gone = true;
        end.send.clear();
        self.count("keepalive_death");
        self.wake(conn, side);
        self.sweep(conn);
    }

    /// All connections between two machines that are cut off for long enough are given up.
    pub(super) fn watch_silence(&mut self, conn: ConnId) {
        let at = self.now + KEEPALIVE;
        for side in 0..2 {
            self.at(at, Event::Probe { conn, side });
        }
    }

    pub(super) fn on_linger(&mut self, conn: ConnId, side: usize) {
        if let Some(it) = self.conns[conn].as_mut() {
            let end = &mut it.ends[side];
            // What it still has to say it may say, however long that takes.
            if end.fin_sent {
                end.is_gone = true;
                self.sweep(conn);
            } else if !end.is_gone {
                let at = self.now + ORPHAN_TIME;
                self.at(at, Event::Linger { conn, side });
            }
        }
    }

    /// Tells the owner of an end that something changed.
    fn wake(&mut self, conn: ConnId, side: usize) {
        if let Some(sock) = self.conn(conn).ends[side].sock {
            self.notify(sock);
        }
    }

    /// Forgets a connection that both ends have left.
    fn sweep(&mut self, conn: ConnId) {
        let Some(it) = self.conns[conn].as_ref() else { return };
        let is_left = |end: &End| end.is_gone && end.sock.is_none() && !end.is_awaited;
        if it.ends.iter().all(is_left) && it.flights.iter().all(VecDeque::is_empty) {
            self.conns[conn] = None;
        }
    }
}
