//! Pipes and the pool they are leased from.
//!
//! A pipe may go back to the pool only when it is empty; one with bytes in it is closed. That is
//! decided here, from the count this module keeps itself, and nowhere else.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use crate::sys;

/// Wanted size of a pipe in bytes. A slot (page) holds one fragment of a socket buffer, so a pipe
/// fills up by slots long before bytes; 1 MiB is the default `fs.pipe-max-size`.
pub(crate) const PIPE_SIZE: usize = 1 << 20;
/// A smaller pipe is not worth splicing through.
const USEFUL_SIZE: usize = 64 << 10;
/// After a pipe that was of no use, so many leases are refused without asking the kernel again: it
/// takes several system calls to learn that nothing has changed.
const REFUSALS: u32 = 255;
/// Empty pipes kept for the next lease; more are closed.
const SPARE_PIPES_MAX: usize = 64;

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// The pipes of one driver.
#[derive(Debug)]
pub(crate) struct PipePool {
    spare: RefCell<Vec<Ends>>,
    wanted_size: Cell<usize>,
    pub(crate) leased: Cell<u64>,
    pub(crate) returned: Cell<u64>,
    /// Pipes that came too small.
    pub(crate) small: Cell<u64>,
    /// Leases that will be refused at once.
    refusals: Cell<u32>,
}

impl PipePool {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            spare: RefCell::default(),
            wanted_size: Cell::new(PIPE_SIZE),
            leased: Cell::new(0),
            returned: Cell::new(0),
            small: Cell::new(0),
            refusals: Cell::new(0),
        })
    }

    /// Leases an empty pipe.
    ///
    /// # Errors
    /// Out of descriptors or memory. The caller then moves the bytes through a buffer.
    pub(crate) fn lease(self: &Rc<Self>) -> io::Result<Pipe> {
        let spare = self.spare.borrow_mut().pop();
        let ends = match spare {
            Some(ends) => ends,
            None => self.open_useful()?,
        };
        self.leased.set(self.leased.get() + 1);
        Ok(Pipe { ends: Some(ends), held: 0, pool: Rc::clone(self) })
    }

    /// Past `fs.pipe-user-pages-soft` an unprivileged user gets pipes of two pages. Splicing in such
    /// steps costs more than copying does; the caller copies, and a later lease tries again.
    fn open_useful(&self) -> io::Result<Ends> {
        if let Some(left) = self.refusals.get().checked_sub(1) {
            self.refusals.set(left);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let ends = self.open()?;
        if ends.size < USEFUL_SIZE {
            self.small.set(self.small.get() + 1);
            self.refusals.set(REFUSALS);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(ends)
    }

    fn open(&self) -> io::Result<Ends> {
        let (read, write) = sys::pipe()?;
        // Beyond `fs.pipe-max-size` or `fs.pipe-user-pages-soft` the kernel refuses to grow it
        // (EPERM); then the next smaller size is tried, and what it has is good enough in the end.
        let mut wanted = self.wanted_size.get();
        let size = loop {
            match sys::set_pipe_size(write.as_raw_fd(), wanted) {
                Ok(size) => break size,
                Err(_) if wanted > (64 << 10) => wanted /= 2,
                Err(_) => break sys::pipe_size(write.as_raw_fd())?,
            }
        };
        Ok(Ends { read, write, size })
    }
}

/// A leased pipe and the number of bytes in it.
#[derive(Debug)]
pub(crate) struct Pipe {
    ends: Option<Ends>,
    held: usize,
    pool: Rc<PipePool>,
}

impl Pipe {
    fn ends(&self) -> &Ends {
        self.ends.as_ref().expect("a pipe has its ends until it is dropped")
    }

    pub(crate) fn read_end(&self) -> RawFd {
        self.ends().read.as_raw_fd()
    }

    pub(crate) fn write_end(&self) -> RawFd {
        self.ends().write.as_raw_fd()
    }

    /// Nominal capacity in bytes. It can hold more: fragments larger than a page take one slot.
    pub(crate) fn size(&self) -> usize {
        self.ends().size
    }

    /// Bytes in the pipe.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Records that `count` bytes went in.
    pub(crate) fn note_in(&mut self, count: usize) {
        self.held += count;
    }

    /// Records that `count` bytes came out.
    pub(crate) fn note_out(&mut self, count: usize) {
        assert!(count <= self.held, "more bytes left the pipe than went in");
        self.held -= count;
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.pool.returned.set(self.pool.returned.get() + 1);
        let Some(ends) = self.ends.take() else { return };
        let mut spare = self.pool.spare.borrow_mut();
        if self.held == 0 && spare.len() < SPARE_PIPES_MAX {
            spare.push(ends);
        }
        // Otherwise the ends close here, and the bytes are gone for good.
    }
}
