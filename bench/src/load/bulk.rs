//! Moving as many bytes as a socket takes or gives, as cheaply as the load generator can.
//!
//! Source and sink share the machine with what is measured, so what they cost is missing there.
//! [`Style::Plain`] does what an application does: it writes a buffer and reads into one.
//! [`Style::Light`] does as little as the kernel allows: the source sends pages of a file, the sink
//! lets the kernel throw the bytes away after they have arrived. Either way bytes are counted where
//! they arrive.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::net::{RecvFlags, recv};

/// Bytes per system call.
const CHUNK_SIZE: usize = 256 * 1024;

/// System calls for one connection before the others get their turn.
const TURN_MAX: usize = 4;

/// How source and sink touch the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Style {
    /// write(2) from a buffer, read(2) into a buffer.
    Plain,
    /// sendfile(2) at the source, MSG_TRUNC at the sink.
    Light,
}

impl Style {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Light => "light",
        }
    }
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// So many bytes moved; the connection goes on.
    Moved(u64),
    /// So many bytes moved, then the connection ended.
    Ended(u64),
}

/// A thread's buffers for bulk transfer.
pub(crate) struct Mover {
    style: Style,
    source: Vec<u8>,
    sink: Vec<u8>,
    file: OwnedFd,
}

impl Mover {
    pub(crate) fn new(style: Style) -> io::Result<Self> {
        let file = memfd_create("zproxy-bench-source", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, CHUNK_SIZE as u64)?;
        let source: Vec<u8> = (0..CHUNK_SIZE).map(|at| (at % 251) as u8).collect();
        rustix::io::write(&file, &source)?;
        Ok(Self { style, source, sink: vec![0; CHUNK_SIZE], file })
    }

    /// Writes what the socket takes.
    pub(crate) fn push(&self, mut stream: &TcpStream) -> Turn {
        self.turn(|| match self.style {
            Style::Plain => stream.write(&self.source),
            Style::Light => {
                let mut start = 0;
                Ok(sendfile(stream, &self.file, Some(&mut start), CHUNK_SIZE)?)
            }
        })
    }

    /// Reads what has arrived.
    pub(crate) fn pull(&mut self, mut stream: &TcpStream) -> Turn {
        let (style, mut sink) = (self.style, std::mem::take(&mut self.sink));
        let turn = self.turn(|| match style {
            Style::Plain => stream.read(&mut sink),
            Style::Light => Ok(recv(stream, sink.as_mut_slice(), RecvFlags::TRUNC)?.1),
        });
        self.sink = sink;
        turn
    }

    fn turn(&self, mut step: impl FnMut() -> io::Result<usize>) -> Turn {
        let mut moved = 0;
        for _ in 0..TURN_MAX {
            match step() {
                Ok(0) => return Turn::Ended(moved),
                Ok(count) => {
                    moved += count as u64;
                    // A short count nearly always means that the next call would find nothing.
                    if count < CHUNK_SIZE {
                        break;
                    }
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => break,
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Turn::Ended(moved),
            }
        }
        Turn::Moved(moved)
    }
}
