//! What connections open with: prefaces, `Attach`, `Start`.

use zproxy_proto::limits::{PREFACE_SIZE, PROXY_OPENING_SIZE, START_SIZE};
use zproxy_proto::wire::{
    Kind, Start, WireError, decode_preface, decode_proxy_opening, encode_proxy_opening,
};

/// The openings as `docs/protocol.md` has them, written down once more.
const CTL: [u8; PREFACE_SIZE] = *b"ZPXY\x02\x01\0\0";
const PROXY: [u8; PREFACE_SIZE] = *b"ZPXY\x02\x02\0\0";
const LANE: [u8; PREFACE_SIZE] = *b"ZPXY\x02\x03\0\0";
const START: [u8; 4] = *b"ZST1";

/// How far bytes are from being an opening.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    Unfinished,
    Wrong,
}

fn verdict<T>(result: &Result<Option<T>, WireError>) -> Verdict {
    match result {
        Ok(Some(_)) => Verdict::Right,
        Ok(None) => Verdict::Unfinished,
        Err(_) => Verdict::Wrong,
    }
}

/// Whether one of the two is the beginning of the other.
fn agree(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(a, b)| a == b)
}

fn expected(bytes: &[u8], templates: &[&[u8]], size: usize) -> Verdict {
    match templates.iter().any(|template| agree(bytes, template)) {
        false => Verdict::Wrong,
        true if bytes.len() < size => Verdict::Unfinished,
        true => Verdict::Right,
    }
}

/// Every beginning of the input is judged as a plain comparison with the right bytes judges it: an
/// opening is accepted when it is whole and refused at its first wrong byte. What was read is
/// written as it came.
pub fn openings(bytes: &[u8]) {
    for len in 0..=bytes.len().min(PROXY_OPENING_SIZE + 2) {
        let bytes = &bytes[..len];
        let preface = decode_preface(bytes);
        let right = expected(bytes, &[&CTL, &PROXY, &LANE], PREFACE_SIZE);
        assert_eq!(verdict(&preface), right, "{bytes:?}");
        if let Ok(Some(kind)) = preface {
            let template = match kind {
                Kind::Ctl => CTL,
                Kind::Proxy => PROXY,
                Kind::Lane => LANE,
            };
            assert_eq!(bytes[..PREFACE_SIZE], template);
        }

        let opening = decode_proxy_opening(bytes);
        let right = match expected(bytes, &[&PROXY, &LANE], PROXY_OPENING_SIZE) {
            Verdict::Right if len > PROXY_OPENING_SIZE => Verdict::Wrong,
            verdict => verdict,
        };
        assert_eq!(verdict(&opening), right, "{bytes:?}");
        if let Ok(Some(attach)) = opening {
            assert_eq!(encode_proxy_opening(&attach)[..], *bytes);
        }

        let start = Start::decode(bytes);
        assert_eq!(verdict(&start), expected(bytes, &[&START], START_SIZE), "{bytes:?}");
        if let Ok(Some(start)) = start {
            assert_eq!(start.encode()[..], bytes[..START_SIZE]);
        }
    }
}
