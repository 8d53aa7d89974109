//! Cuts a byte stream into frames.

use crate::limits::{FRAME_HEADER_SIZE, FRAME_LEN_MAX, LANE_FRAME_LEN_MAX};

use super::WireError;
use super::frame::{Frame, Type};

/// Holds the bytes of a ctl_conn or a lane that are not a whole frame yet: never more than one maximal frame
/// plus what was pushed since the last [`Self::next_frame`] that had nothing to give.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    frame_len_max: usize,
    /// Bytes of `bytes` that have been given out.
    taken: usize,
    /// A stream is worth nothing behind its first error, so the error stays.
    broken: Option<WireError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { bytes: Vec::new(), frame_len_max: FRAME_LEN_MAX, taken: 0, broken: None }
    }
}

impl Decoder {
    /// An empty decoder of a ctl_conn.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty decoder of a lane.
    pub(crate) fn for_lane() -> Self {
        Self { frame_len_max: LANE_FRAME_LEN_MAX, ..Self::default() }
    }

    /// Frames may have so many bytes behind their length field, from the next one on; at most
    /// [`FRAME_LEN_MAX`].
    pub fn limit_frames(&mut self, frame_len_max: usize) {
        self.frame_len_max = frame_len_max.min(FRAME_LEN_MAX);
    }

    /// Appends bytes of the stream. Behind an error they are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.bytes.drain(..std::mem::take(&mut self.taken));
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Bytes that wait for more.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// The next frame; `None` when more bytes are needed. Call it until then after each push.
    ///
    /// # Errors
    /// At the first header or body that is wrong, and the same one ever after.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let result = decode_one(&self.bytes[self.taken..], self.frame_len_max);
        match result {
            Ok(Some((frame, len))) => {
                self.taken += len;
                Ok(Some(frame))
            }
            Ok(None) => {
                self.bytes.drain(..std::mem::take(&mut self.taken));
                Ok(None)
            }
            Err(error) => {
                let frame_len_max = self.frame_len_max;
                *self = Self { broken: Some(error), frame_len_max, ..Self::default() };
                Err(error)
            }
        }
    }
}

/// The frame at the front of `bytes` and how many of them it is.
fn decode_one(bytes: &[u8], frame_len_max: usize) -> Result<Option<(Frame, usize)>, WireError> {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*len);
    if len == 0 || len as usize > frame_len_max {
        return Err(WireError::FrameLen(len));
    }
    let Some((&kind, rest)) = rest.split_first() else { return Ok(None) };
    let kind = Type::of(kind)?;
    let body_len = len as usize - 1;
    kind.check_len(body_len)?;
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    Ok(Some((Frame::decode(kind, body)?, FRAME_HEADER_SIZE + body_len)))
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use crate::id::*;

    fn all(bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// The layout of a hot frame is what the protocol says, byte for byte.
    #[test]
    fn fin_layout() {
        let fin =
            Fin { proxy: ProxyId::new(1, 2, 3), flow: FlowId::new(1, 4), bytes: 0x1_0000_0005 };
        let bytes = Frame::Fin(fin).encode();
        let expected = [
            0, 0, 0, 25, 11, 0, 1, 0, 2, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 5,
        ];
        assert_eq!(bytes, expected);
        assert!(matches!(all(&bytes).unwrap()[..], [Frame::Fin(read)] if read == fin));
    }

    /// Lengths and types that cannot be are refused at the header, before any body has come.
    #[test]
    fn wrong_headers_are_refused_at_once() {
        assert_eq!(all(&[0, 1, 0, 1]).unwrap_err(), WireError::FrameLen(65537));
        assert_eq!(all(&[0xff; 4]).unwrap_err(), WireError::FrameLen(u32::MAX));
        assert_eq!(all(&[0; 4]).unwrap_err(), WireError::FrameLen(0));
        assert_eq!(all(&[0, 0, 0, 9, 0]).unwrap_err(), WireError::FrameType(0));
        assert_eq!(all(&[0, 0, 0, 9, 17]).unwrap_err(), WireError::FrameType(17));
        assert!(matches!(
            all(&[0, 0, 0, 9, 11]),
            Err(WireError::FixedLen { frame: "Fin", len: 8 })
        ));
        assert_eq!(all(&[0, 1, 0, 0, 1]).unwrap().len(), 0, "64 KiB is allowed");
    }

    /// Behind an error nothing is decoded and nothing is kept.
    #[test]
    fn an_error_is_the_end() {
        let mut decoder = Decoder::new();
        decoder.push(&[0; 4]);
        assert!(decoder.next_frame().is_err());
        decoder.push(&Frame::Ping(1).encode());
        assert!(decoder.next_frame().is_err());
        assert_eq!(decoder.buffered(), 0);
    }

    /// Unknown fields of a newer peer are ignored, missing ones that have a default are not missed.
    #[test]
    fn json_is_lenient() {
        let body = br#"{"name":"web","future":{"a":[1,2]}}"#;
        let mut bytes = ((body.len() + 1) as u32).to_be_bytes().to_vec();
        bytes.push(6);
        bytes.extend_from_slice(body);
        let frames = all(&bytes).unwrap();
        let [Frame::OpenTunnel(open)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!((open.name.as_str(), open.public_port, open.last_port), ("web", 0, None));
    }

    /// Text in a body that breaks the rules of names breaks the frame.
    #[test]
    fn names_are_checked() {
        let body = br#"{"name":"a\nb","public_port":1}"#;
        let mut bytes = ((body.len() + 1) as u32).to_be_bytes().to_vec();
        bytes.push(6);
        bytes.extend_from_slice(body);
        assert_eq!(all(&bytes).unwrap_err(), WireError::Body { frame: "OpenTunnel" });
    }
}
