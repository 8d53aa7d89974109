//! The decoder against arbitrary bytes, and against itself.

use proptest::prelude::*;
use zproxy_proto::auth::{Mac, Nonce, Ticket};
use zproxy_proto::id::{ClientId, CtlId, FlowId, ProxyId, ServerId, TunnelId};
use zproxy_proto::limits::{FRAME_HEADER_SIZE, FRAME_LEN_MAX};
use zproxy_proto::wire::{
    Abort, AbortCode, Challenge, CloseTunnel, Decoder, Fin, Frame, GoAway, Hello, Name, OpenProxy,
    OpenTunnel, Proof, Reason, Refused, RefusedCode, Released, Start, TunnelOpen, TunnelRefused,
    TunnelRefusedCode, Welcome, WireError, decode_preface, decode_proxy_opening,
};

fn name() -> impl Strategy<Value = Name> {
    any::<String>().prop_map(|text| Name::lossy(&text))
}

fn reason() -> impl Strategy<Value = Reason> {
    any::<String>().prop_map(|text| Reason::new(&text.repeat(9)))
}

fn cold() -> impl Strategy<Value = Frame> {
    let bytes32 = any::<[u8; 32]>;
    let hello = (any::<[u8; 16]>(), name(), bytes32(), any::<Option<[u8; 32]>>(), any::<u16>());
    let welcome = (any::<[u8; 16]>(), any::<u64>(), any::<u16>(), any::<bool>(), bytes32());
    prop_oneof![
        hello.prop_map(|(id, name, nonce, resume, data_cores)| Frame::Hello(Hello {
            client_id: ClientId::from_random(id),
            name,
            nonce: Nonce(nonce),
            resume: resume.map(Ticket),
            versions: vec![1],
            data_cores,
        })),
        (any::<[u8; 16]>(), bytes32(), bytes32()).prop_map(|(id, nonce, proof)| {
            let server_id = ServerId::from_random(id);
            Frame::Challenge(Challenge { server_id, nonce: Nonce(nonce), proof: Mac(proof) })
        }),
        bytes32().prop_map(|proof| Frame::Proof(Proof { proof: Mac(proof) })),
        welcome.prop_map(|(ctl_id, number, port, resumed, ticket)| Frame::Welcome(Welcome {
            ctl_id: CtlId(ctl_id),
            epoch: number,
            proxy_port: port,
            heartbeat_ms: number,
            deadline_ms: number,
            data_cores: port,
            resumed,
            ticket: Ticket(ticket),
            tunnels_max: 7,
        })),
        reason().prop_map(|reason| Frame::Refused(Refused { code: RefusedCode::Limit, reason })),
        (name(), any::<u16>(), any::<Option<u16>>()).prop_map(|(name, public_port, last_port)| {
            Frame::OpenTunnel(OpenTunnel { name, public_port, last_port })
        }),
        (name(), any::<u32>(), any::<std::net::SocketAddr>()).prop_map(|(name, tunnel, public)| {
            Frame::TunnelOpen(TunnelOpen { name, tunnel: TunnelId(tunnel), public })
        }),
        (name(), reason()).prop_map(|(name, reason)| {
            let code = TunnelRefusedCode::PortTaken;
            Frame::TunnelRefused(TunnelRefused { name, code, reason })
        }),
        any::<u32>().prop_map(|id| Frame::CloseTunnel(CloseTunnel { tunnel: TunnelId(id) })),
        (reason(), any::<u64>())
            .prop_map(|(reason, drain_ms)| Frame::GoAway(GoAway { reason, drain_ms })),
    ]
}

fn hot() -> impl Strategy<Value = Frame> {
    (0..6u8, any::<u64>(), any::<u64>(), any::<u64>(), any::<u8>()).prop_map(
        |(kind, a, b, c, d)| {
            let (proxy, flow) = (ProxyId(a), FlowId(b));
            match kind {
                0 => Frame::OpenProxy(OpenProxy { core: a as u16, count: b as u16 }),
                1 => Frame::Fin(Fin { proxy, flow, bytes: c }),
                2 => Frame::Released(Released { proxy, flow }),
                3 => Frame::Abort(Abort { proxy, flow, code: AbortCode::from_number(d) }),
                4 => Frame::Ping(a),
                _ => Frame::Pong(a),
            }
        },
    )
}

/// Feeds the pieces one after the other and takes out what comes.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Frame>, WireError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        assert!(decoder.buffered() < FRAME_HEADER_SIZE + FRAME_LEN_MAX, "a bound was broken");
    }
    Ok(frames)
}

proptest! {
    /// Every frame comes back as it went out, however the stream is cut.
    #[test]
    fn frames_round_trip_at_any_cut(
        frames in prop::collection::vec(prop_oneof![cold(), hot()], 1..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode_into(&mut bytes);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let read = decode(cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]])).unwrap();
        // Secrets are not comparable by design; their encoded form is.
        let sent: Vec<_> = frames.iter().map(Frame::encode).collect();
        let read: Vec<_> = read.iter().map(Frame::encode).collect();
        prop_assert_eq!(read, sent);
    }

    /// Byte by byte or all at once: the same frames and the same error.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let whole = decode([&bytes[..]]).map(|frames| frames.len());
        let single = decode(bytes.chunks(1)).map(|frames| frames.len());
        prop_assert_eq!(whole, single);
        let _ = decode_preface(&bytes);
        let _ = decode_proxy_opening(&bytes);
        let _ = Start::decode(&bytes);
    }

    /// A right header with an arbitrary body, and a right frame with a flipped bit, never panic.
    #[test]
    fn nearly_right_bytes_never_panic(
        kind in 0..20u8,
        body in prop::collection::vec(any::<u8>(), 0..100),
        frame in cold(),
        flip in any::<prop::sample::Index>(),
    ) {
        let mut bytes = ((body.len() + 1) as u32).to_be_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&body);
        let _ = decode([&bytes[..]]);
        let mut bytes = frame.encode();
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = decode([&bytes[..]]);
    }
}
