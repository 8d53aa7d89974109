//! The two halves of a round: taking bytes from a source and putting them into a sink. Nothing
//! here waits.

use std::io;
use std::rc::Rc;

use crate::buf::{Buf, BufPool};
use crate::lease::Store;
use crate::pipe::{Pipe, PipePool};
use crate::policy::Path;
use crate::{Fault, Lease, sys};

use super::entry::Entry;

/// What a lease is made of.
pub(super) struct Pools {
    pub(super) pipes: Rc<PipePool>,
    pub(super) bufs: Rc<BufPool>,
}

/// What taking found.
pub(super) enum Taken {
    Bytes(Lease),
    /// Nothing yet; an event will tell.
    Empty,
    Eof,
    Failed(Fault),
}

/// What putting did.
pub(super) enum Put {
    /// So many bytes, at least one.
    Some(usize),
    /// The sink is full; an event will tell when it is not.
    Blocked,
    Failed(Fault),
}

/// Takes what is there. `spare` is an emptied lease whose pipe or buffer may be used again.
pub(super) fn take(source: &mut Entry, pools: &Pools, spare: Option<Lease>) -> Taken {
    if !source.ready.readable {
        return Taken::Empty;
    }
    let spare = spare.map(|lease| lease.store);
    match source.policy.path() {
        Path::Receive | Path::Copy => match spare {
            Some(Store::Buf(buf)) => copy_in(source, buf),
            _ => copy_in(source, pools.bufs.lease()),
        },
        Path::Splice => match spare {
            Some(Store::Pipe(pipe)) => splice_in(source, pipe, pools),
            _ => match pools.pipes.lease() {
                Ok(pipe) => splice_in(source, pipe, pools),
                // Out of descriptors or of pipe memory: slower, but it moves.
                Err(_) => copy_in(source, pools.bufs.lease()),
            },
        },
    }
}

fn splice_in(source: &mut Entry, mut pipe: Pipe, pools: &Pools) -> Taken {
    assert_eq!(pipe.held(), 0, "only an empty pipe is filled");
    loop {
        match sys::splice(source.raw(), pipe.write_end(), pipe.size()) {
            // With urgent data at the head of the queue and a FIN behind it, splice(2) says 0 as
            // well. recv(2) knows.
            Ok(0) => return copy_in(source, pools.bufs.lease()),
            Ok(count) => {
                pipe.note_in(count);
                source.policy.note_spliced(count);
                return Taken::Bytes(Lease::new(Store::Pipe(pipe)));
            }
            Err(error) if is_interrupted(&error) => {}
            // The pipe is empty, so a slot is free, and it is the socket that has nothing to give,
            // or has urgent data that only recv(2) can pass.
            Err(error) if is_would_block(&error) => {
                if source.ready.urgent {
                    return copy_in(source, pools.bufs.lease());
                }
                source.ready.readable = false;
                return Taken::Empty;
            }
            Err(error) => return Taken::Failed(source.fail(Fault::from_io(&error))),
        }
    }
}

fn copy_in(source: &mut Entry, mut buf: Buf) -> Taken {
    let fd = source.raw();
    loop {
        let space = buf.space();
        let size = space.len();
        match receive(source, |flags| sys::recv(fd, space, flags), size) {
            Received::Count(count) => {
                source.policy.note_copied(count, size);
                buf.note_in(count);
                let mut lease = Lease::new(Store::Buf(buf));
                if count < size && is_at_end(source) {
                    lease.add_end();
                }
                return Taken::Bytes(lease);
            }
            Received::Again => {}
            Received::Empty => return Taken::Empty,
            Received::Eof => return Taken::Eof,
            Received::Failed(fault) => return Taken::Failed(fault),
        }
    }
}

/// Whether the stream was announced to end and has nothing left, so that the end is known at once.
fn is_at_end(source: &mut Entry) -> bool {
    if !source.ready.read_ended || source.ready.urgent {
        return false;
    }
    match sys::is_at_end(source.raw()) {
        Ok(is_at_end) => is_at_end && source.known_fault().is_none(),
        Err(error) => {
            source.fail(Fault::from_io(&error));
            false
        }
    }
}

/// What one recv(2) found.
pub(super) enum Received {
    /// So many bytes, at least one.
    Count(usize),
    /// Nothing was learned: call again.
    Again,
    Empty,
    Eof,
    Failed(Fault),
}

/// Calls recv(2) with room for `size` bytes and takes note of what it says about the socket.
pub(super) fn receive(
    source: &mut Entry,
    recv: impl FnOnce(libc::c_int) -> io::Result<usize>,
    size: usize,
) -> Received {
    match recv(libc::MSG_DONTWAIT) {
        Ok(0) => source.known_fault().map_or(Received::Eof, Received::Failed),
        Ok(count) => {
            // A short read has emptied the queue, except at an urgent mark, where reading stops;
            // what comes later is a new edge, except for a FIN that was announced already.
            let ready = &mut source.ready;
            if count < size && !ready.read_ended && !ready.urgent {
                ready.readable = false;
            }
            Received::Count(count)
        }
        Err(error) if is_interrupted(&error) => Received::Again,
        Err(error) if is_would_block(&error) => {
            // At an urgent mark a pending signal makes recv(2) say this too, so with urgent data
            // about, only the second time counts.
            if source.ready.urgent {
                source.ready.urgent = false;
                return Received::Again;
            }
            source.ready.readable = false;
            Received::Empty
        }
        Err(error) => Received::Failed(source.fail(Fault::from_io(&error))),
    }
}

/// Puts what the sink has room for.
pub(super) fn put(sink: &mut Entry, lease: &mut Lease) -> Put {
    let held = lease.len();
    let fd = sink.raw();
    sink.was_spliced_into |= matches!(lease.store, Store::Pipe(_));
    let outcome = send(sink, held, || match &lease.store {
        // The exact count: naming more would make the kernel hold back the last segments, waiting
        // for bytes that are not in the pipe.
        Store::Pipe(pipe) => sys::splice(pipe.read_end(), fd, held),
        Store::Buf(buf) if lease.has_end() => sys::send_more(fd, buf.held()),
        Store::Buf(buf) => sys::send(fd, buf.held()),
        Store::Ring(buf) => sys::send(fd, buf.held()),
    });
    if let Put::Some(count) = outcome {
        match &mut lease.store {
            Store::Pipe(pipe) => pipe.note_out(count),
            Store::Buf(buf) => buf.note_out(count),
            Store::Ring(buf) => buf.note_out(count),
        }
    }
    outcome
}

/// Sends up to `size` bytes with `call` and takes note of what it says about the socket.
pub(super) fn send(
    sink: &mut Entry,
    size: usize,
    mut call: impl FnMut() -> io::Result<usize>,
) -> Put {
    assert!(size > 0, "there is something to put");
    if !sink.ready.writable {
        return Put::Blocked;
    }
    loop {
        match call() {
            Ok(0) => panic!("the kernel took none of {size} bytes and gave no reason"),
            Ok(count) => {
                // A short count means that the kernel met a full buffer on the way, and has marked
                // the socket: the edge will come, unless the last one has been.
                sink.ready.writable = count == size || sink.ready.hangup;
                return Put::Some(count);
            }
            Err(error) if is_interrupted(&error) => {}
            Err(error) if is_would_block(&error) => {
                sink.ready.writable = false;
                return Put::Blocked;
            }
            Err(error) => return Put::Failed(sink.fail(Fault::from_io(&error))),
        }
    }
}

pub(super) fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

pub(super) fn is_would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
