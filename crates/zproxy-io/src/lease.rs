//! The residue of a round: bytes that were taken and not yet put.

use std::os::fd::RawFd;

use crate::buf::Buf;
use crate::pipe::Pipe;
use crate::sys;
use crate::uring::RingBuf;

/// Bytes on their way, and the pipe or buffer that holds them. It moves by value through the
/// operations of one pump. Dropping it discards the bytes: an empty pipe goes back to its pool, one
/// with bytes in it is closed, so one flow's bytes cannot reach another.
#[derive(Debug)]
pub struct Lease {
    pub(crate) store: Store,
    /// The stream ends behind these bytes.
    has_end: bool,
}

/// Where the bytes of a lease are.
#[derive(Debug)]
pub(crate) enum Store {
    /// In the kernel, in a pipe.
    Pipe(Pipe),
    /// In a heap buffer.
    Buf(Buf),
    /// In a buffer of a ring's provided-buffer group.
    Ring(RingBuf),
}

impl Lease {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, has_end: false }
    }

    /// The stream ends behind the bytes of this lease. What a fill brings home may say so of its source,
    /// where that is known without waiting; the next fill would say it in any case. Given to
    /// [`crate::Op::Drain`], it ends the sink behind the last byte.
    pub fn add_end(&mut self) {
        self.has_end = true;
    }

    /// Takes the end off the bytes, and tells whether there was one.
    pub fn take_end(&mut self) -> bool {
        std::mem::take(&mut self.has_end)
    }

    /// Whether the stream ends behind the bytes.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.has_end
    }

    /// Bytes that wait to be put.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Pipe(pipe) => pipe.held(),
            Store::Buf(buf) => buf.held().len(),
            Store::Ring(buf) => buf.held().len(),
        }
    }

    /// Whether every byte has been taken out by [`Self::take_head`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes up to `out.len()` bytes off the front and tells how many.
    pub fn take_head(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len());
        let out = &mut out[..count];
        match &mut self.store {
            Store::Pipe(pipe) => {
                read_exactly(pipe.read_end(), out);
                pipe.note_out(count);
            }
            Store::Buf(buf) => {
                out.copy_from_slice(&buf.held()[..count]);
                buf.note_out(count);
            }
            Store::Ring(buf) => {
                out.copy_from_slice(&buf.held()[..count]);
                buf.note_out(count);
            }
        }
        count
    }
}

/// Reads bytes that are known to be in the pipe.
fn read_exactly(pipe: RawFd, mut out: &mut [u8]) {
    while !out.is_empty() {
        match sys::read(pipe, out) {
            Ok(0) => panic!("a pipe held fewer bytes than were counted"),
            Ok(count) => out = &mut out[count..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("a pipe held fewer bytes than were counted: {error}"),
        }
    }
}
