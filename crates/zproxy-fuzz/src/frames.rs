//! Frames of a ctl_conn: any stream of bytes, cut anywhere, and any body behind a right header.

use zproxy_proto::limits::{FRAME_HEADER_SIZE, FRAME_LEN_MAX, NAME_LEN_MAX, REASON_LEN_MAX};
use zproxy_proto::wire::{Decoder, Frame, Name, Reason, WireError};

use crate::input::Input;

/// Longer bodies could not be written again: there must be room for what their form leaves out (ids
/// without hyphens, fields with a default).
const BODY_LEN_MAX: usize = FRAME_LEN_MAX - 64;

/// Everything a stream holds, in encoded form, because secrets are not comparable by design.
fn decode<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<(&'static str, Vec<u8>)>, Option<WireError>) {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    check(&frame);
                    frames.push((frame.name(), frame.encode()));
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    assert_eq!(decoder.buffered(), 0, "a broken stream keeps nothing");
                    assert_eq!(decoder.next_frame().unwrap_err(), error, "an error stays");
                    return (frames, Some(error));
                }
            }
        }
        assert!(decoder.buffered() < FRAME_HEADER_SIZE + FRAME_LEN_MAX, "a bound was broken");
    }
    (frames, None)
}

/// What holds for everything that a peer could make us believe.
fn check(frame: &Frame) {
    let name = |name: &Name| {
        let text = name.as_str();
        assert!((1..=NAME_LEN_MAX).contains(&text.len()) && text.is_ascii(), "{text:?}");
        assert!(!text.contains(|c: char| c.is_ascii_control() || c == ' '), "{text:?}");
    };
    let reason = |reason: &Reason| {
        let text = reason.as_str();
        assert!(text.len() <= REASON_LEN_MAX && !text.contains(char::is_control), "{text:?}");
    };
    match frame {
        Frame::Hello(hello) => name(&hello.name),
        Frame::OpenTunnel(open) => name(&open.name),
        Frame::TunnelOpen(open) => name(&open.name),
        Frame::TunnelRefused(refused) => {
            name(&refused.name);
            reason(&refused.reason);
        }
        Frame::Refused(refused) => reason(&refused.reason),
        Frame::GoAway(go_away) => reason(&go_away.reason),
        _ => {}
    }
}

/// What was written is read as the same again.
fn check_again(frames: &[(&'static str, Vec<u8>)]) {
    for (name, bytes) in frames {
        let (again, error) = decode([&bytes[..]]);
        assert_eq!(error, None, "{name} is not readable when it is written again");
        assert_eq!(again, [(*name, bytes.clone())]);
    }
}

/// A stream holds the same frames and the same error however it is cut; what was read and is
/// written again is read as the same; nothing is kept beyond the bound.
pub fn frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut cuts: Vec<usize> = (0..input.below(8)).map(|_| usize::from(input.word())).collect();
    let stream = input.rest();
    let stream = &stream[..stream.len().min(BODY_LEN_MAX)];
    let whole = decode([stream]);
    cuts.iter_mut().for_each(|cut| *cut %= stream.len() + 1);
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    assert_eq!(decode(cuts.windows(2).map(|ends| &stream[ends[0]..ends[1]])), whole);
    if stream.len() <= 512 {
        assert_eq!(decode(stream.chunks(1)), whole);
    }
    check_again(&whole.0);
}

/// A frame of any type with any body is a frame or an error, and is read as the same when it is
/// written again.
pub fn bodies(bytes: &[u8]) {
    let Some((&kind, body)) = bytes.split_first() else { return };
    let body = &body[..body.len().min(BODY_LEN_MAX)];
    let len = u32::try_from(body.len() + 1).expect("cut above");
    let mut frame = len.to_be_bytes().to_vec();
    frame.push(kind % 18);
    frame.extend_from_slice(body);
    let (frames, error) = decode([&frame[..]]);
    assert_eq!(frames.len() + usize::from(error.is_some()), 1, "a frame or an error");
    check_again(&frames);
}
