//! Every bound of the product, and the answer when it is reached.

use std::time::Duration;

// --- the wire -----------------------------------------------------------------------------------

/// Bytes of a frame behind its length field (type and body). Longer: the ctl_conn is refused at the
/// header, before anything is buffered.
pub const FRAME_LEN_MAX: usize = 64 << 10;
/// Bytes in front of a frame's body: the length and the type.
pub const FRAME_HEADER_SIZE: usize = 5;
/// Bytes of the preface of every connection between the two programs.
pub const PREFACE_SIZE: usize = 8;
/// Bytes of the `Start` that turns an idle proxy_conn to data mode.
pub const START_SIZE: usize = 16;
/// Bytes of the `Attach` behind the preface of a proxy_conn.
pub const ATTACH_SIZE: usize = 56;
/// Bytes with which a proxy_conn opens: preface and `Attach`. What is more is a violation, because
/// the client must wait for a `Start`.
pub const PROXY_OPENING_SIZE: usize = PREFACE_SIZE + ATTACH_SIZE;
/// Bytes of a client's or tunnel's name. Longer: a usage error in the client, a violation on the wire.
pub const NAME_LEN_MAX: usize = 64;
/// Bytes of a reason for a person. Longer ones are cut.
pub const REASON_LEN_MAX: usize = 512;
/// Protocol versions a client may offer. More: a violation.
pub const VERSIONS_MAX: usize = 16;
/// Bytes that wait to be sent on one ctl_conn. More: the peer does not read, the ctl_conn is closed.
pub const CTL_SEND_BACKLOG_MAX: usize = 4 << 20;
/// Bytes that wait to be sent on one lane. More: the peer does not read, the lane is closed and flows
/// end in-band.
pub const LANE_SEND_BACKLOG_MAX: usize = 1 << 20;
/// Bytes of a lane's frame at most: none but hot frames travel there, the longest is a `Fin`. Longer:
/// the lane is closed.
pub const LANE_FRAME_LEN_MAX: usize = 25;
/// Time after which a lane that was lost, or could not be made, is dialled again.
pub const LANE_RETRY: Duration = Duration::from_secs(1);

/// Times that a lane between the same two data cores may be made anew at once, and one more for every
/// [`LANE_RETRY`]: an honest client does it after a loss, and once for each new ctl_conn. More: the new
/// one is reset, and the client dials again later.
pub const LANE_RENEWALS_MAX: u32 = 16;

// --- secrets ------------------------------------------------------------------------------------

/// Bytes of the shared token at least. Shorter: an error of configuration.
pub const TOKEN_LEN_MIN: usize = 16;
/// Bytes of the shared token at most. Longer: an error of configuration.
pub const TOKEN_LEN_MAX: usize = 4096;
/// Random bytes in a token that the gateway makes.
pub const TOKEN_RANDOM_SIZE: usize = 32;

// --- peers --------------------------------------------------------------------------------------

/// Time from accept (or connect) to an authenticated peer. Later: closed and counted.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections on the ctl and proxy ports that have not authenticated yet (*strangers*). At the limit
/// the oldest of the origin that has the most of them makes room: an honest peer is done within a
/// few round trips.
pub const STRANGERS_MAX: usize = 1024;
/// Strangers of one origin (an IPv4 address, an IPv6 /64). At the limit its oldest makes room.
///
/// A proxy_conn is a stranger for no time at all, because its 64 bytes come right behind the TCP
/// handshake, and a ctl_conn for one round trip. So this is room for hundreds of clients behind one
/// NAT that all come back within the same 100 ms.
pub const STRANGERS_PER_ORIGIN_MAX: usize = STRANGERS_MAX / 2;
/// Strangers that one turn of the control core may let in on top of everybody else before it has
/// listened to them: two full listen queues. More: reset at once.
pub const STRANGERS_AT_ONCE_MAX: usize = 8192;
/// Handshakes of one origin that may fail in a row. More: reset at accept, until some are forgiven,
/// unless a client with a session has the same address.
///
/// Only failures count, so that no number of clients and proxy_conns behind one address is too
/// many. A client with a wrong token gives up after its first failure, and a health check that
/// connects and hangs up fails every second or so; neither comes near.
pub const FAILURES_PER_ORIGIN_MAX: u32 = 256;
/// Time for which a failed handshake is held against its origin, one after the other: in the long
/// run, an origin has one failure in that time.
pub const FAILURE_FORGIVEN: Duration = Duration::from_millis(30);
/// Origins without a stranger whose failures are remembered. More: those with the fewest are
/// forgiven early.
pub const ORIGINS_MAX: usize = 16 << 10;
/// Bytes of a frame from a peer that is not authenticated, behind its length field. Longer: refused
/// at the header. A `Hello` and a `Proof` have some hundreds.
pub const STRANGER_FRAME_LEN_MAX: usize = 4 << 10;
/// The most that is read at once from a peer that is not authenticated.
pub const STRANGER_RECV_MAX: usize = 2 << 10;
/// Letters of the control core that a data core has not taken yet. At the limit nothing more is read
/// from ctl_conns that have just spoken, and proxy_conns for that data core are reset, until it has
/// taken some. A client's control thread drops orders for proxy_conns there; the gateway asks again.
pub const LETTERS_MAX: usize = 4096;
/// Clients with a session, live or in grace. More: `Refused{limit}`. Also the sessions whose client
/// has said goodbye and whose last flows are ending. More: those of the oldest are reset.
pub const CLIENTS_MAX: usize = 4096;
/// Tunnels of one client. More: `TunnelRefused{limit}`.
pub const TUNNELS_PER_CLIENT_MAX: usize = 1024;
/// Reserved ports of one client: remembered for tunnels that it has not opened again yet. More: the
/// oldest are forgotten.
pub const RESERVATIONS_PER_CLIENT_MAX: usize = TUNNELS_PER_CLIENT_MAX;
/// Public ports that are tried for one tunnel with port 0. None was free: `TunnelRefused`.
pub const PORT_CANDIDATES_MAX: usize = 256;
/// Data cores of one program. More: an error of configuration; a peer that claims more is refused.
pub const DATA_CORES_MAX: u16 = 1024;

// --- heartbeat and session ----------------------------------------------------------------------

/// Time between two pings of each side on a ctl_conn, unless configured.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Silence after which the peer of a ctl_conn counts as dead, unless configured.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(30);
/// The shortest heartbeat interval or deadline that can be configured or announced.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// The longest heartbeat interval or deadline that can be configured or announced.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(600);
/// Time for which a session without a ctl_conn keeps its ports and idle proxy_conns. Later: its
/// tunnels are closed.
pub const SESSION_GRACE: Duration = Duration::from_secs(60);
/// Time for which ports stay reserved by name after a session ended without a goodbye.
pub const RESERVATION_GRACE: Duration = Duration::from_secs(60);

// --- flows --------------------------------------------------------------------------------------

/// Public conns that wait for a proxy_conn, per client and data core, at which no more are accepted:
/// visitors wait in the kernel.
pub const WAITING_PUBLICS_PAUSE: usize = 1024;
/// So few have to be left before more are accepted.
pub const WAITING_PUBLICS_RESUME: usize = WAITING_PUBLICS_PAUSE / 2;
/// Public conns that wait for a proxy_conn, per client and data core. An accept that is being stopped
/// may still bring all that the kernel has queued: room for two full listen queues. More, over several
/// tunnels: reset and counted.
pub const WAITING_PUBLICS_MAX: usize = WAITING_PUBLICS_PAUSE + 8192;
/// Time that a public conn waits for a proxy_conn. Later: reset and counted.
pub const BIND_DEADLINE: Duration = Duration::from_secs(10);
/// Time to connect to the LocalServer. Later: `Abort{timeout}`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for which an end of a flow, an idle proxy_conn or a lane may owe an acknowledgement, unless
/// configured. Later: reset. An outage of half that time is survived for sure, because TCP doubles the
/// time between two tries.
pub const DEAD_AFTER: Duration = Duration::from_secs(120);
/// The shortest such time that can be configured: kernels ration their answers, and the first probes of
/// a closed window may go without.
pub const DEAD_AFTER_MIN: Duration = Duration::from_secs(2);
/// Idle proxy_conns per client and data core at most. Surplus ones are closed.
pub const IDLE_CONNS_MAX: usize = 256;
/// Idle proxy_conns per client and data core that are held without demand.
pub const IDLE_CONNS_MIN: usize = 2;
/// Proxy_conns asked for and not yet arrived, per client and data core. At the limit no more are
/// asked for until some arrive or expire.
pub const OPENING_MAX: usize = 256;
/// Proxy_conns of a client without a flow, per data core of it and of the gateway (but for no more than
/// [`GATEWAY_CORES_COUNTED_MAX`]): idle, being opened, or dead and not yet known to be. More: requests are
/// dropped; the gateway asks again.
pub const RESTING_CONNS_MAX: usize = 1024;
/// Data cores that a gateway can claim to have more proxy_conns.
pub const GATEWAY_CORES_COUNTED_MAX: usize = 32;
/// Proxy_conns per client and data core of the gateway whose client has not released their flow yet, by
/// which time both ends have ended. More: those that have waited longest are reset.
pub const SETTLING_CONNS_MAX: usize = 4096;
/// Time after which a proxy_conn that was asked for and did not arrive is asked for again.
pub const OPENING_DEADLINE: Duration = Duration::from_secs(3);
/// Time over which the pool watches its low-water mark before it shrinks its target.
pub const POOL_WINDOW: Duration = Duration::from_secs(10);
/// Proxy_conns that a client opens at the same time (per data core). More requests are dropped; the
/// gateway asks again.
pub const DIALS_MAX: usize = 256;
/// Serials below the highest one seen that are still accepted, per client data core of a session.
/// Older: the proxy_conn is refused.
pub const REPLAY_WINDOW: usize = 8192;
/// Time that the other end of a failed dial has to close the proxy_conn. Later: closed by this end.
pub const ABORT_DEADLINE: Duration = Duration::from_secs(5);

// --- coming back --------------------------------------------------------------------------------

/// The first wait before a client dials again, before jitter.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// The longest wait before a client dials again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Time from SIGTERM to the end of the last flow, unless configured.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

const _: () = assert!(PREFACE_SIZE == 8);
const _: () = assert!(START_SIZE == 4 + 4 + 8);
const _: () = assert!(ATTACH_SIZE == 16 + 8 + 32);
const _: () = assert!(CTL_SEND_BACKLOG_MAX >= 2 * (FRAME_LEN_MAX + FRAME_HEADER_SIZE));
// The widest cold frame (a reason, a name and some numbers) must fit even when every byte of its
// text is escaped as six bytes of JSON.
const _: () = assert!(6 * (NAME_LEN_MAX + REASON_LEN_MAX) + 1024 <= FRAME_LEN_MAX);
const _: () = assert!(STRANGERS_PER_ORIGIN_MAX < STRANGERS_MAX);
const _: () = assert!(STRANGERS_MAX < STRANGERS_AT_ONCE_MAX);
const _: () = assert!(STRANGER_FRAME_LEN_MAX >= 16 * NAME_LEN_MAX + 1024);
// A pool may ask for so many proxy_conns at once, and they may all fail, when the client is killed.
const _: () = assert!(OPENING_MAX <= STRANGERS_PER_ORIGIN_MAX);
const _: () = assert!(WAITING_PUBLICS_RESUME >= OPENING_MAX);
const _: () = assert!(IDLE_CONNS_MIN >= 1 && IDLE_CONNS_MIN <= IDLE_CONNS_MAX);
const _: () = assert!(OPENING_MAX <= u16::MAX as usize);
// What was idle may be dead and not yet known to be, when as much is asked for anew.
const _: () = assert!(RESTING_CONNS_MAX >= 2 * (IDLE_CONNS_MAX + OPENING_MAX));
// A burst of lost and repeated requests must not leave the replay window behind.
const _: () = assert!(REPLAY_WINDOW >= 4096 && REPLAY_WINDOW.is_multiple_of(64));
const _: () = assert!(REPLAY_WINDOW >= 8 * OPENING_MAX);
const _: () = assert!(BACKOFF_FIRST.as_millis() < 1000);
const _: () = assert!(BACKOFF_FIRST.as_millis() <= BACKOFF_MAX.as_millis());
const _: () = assert!(HEARTBEAT_INTERVAL.as_millis() * 2 < HEARTBEAT_DEADLINE.as_millis());
const _: () = assert!(OPENING_DEADLINE.as_millis() * 2 < BIND_DEADLINE.as_millis());
const _: () = assert!(TOKEN_LEN_MIN <= 2 * TOKEN_RANDOM_SIZE);
const _: () = assert!(2 * TOKEN_RANDOM_SIZE <= TOKEN_LEN_MAX);
