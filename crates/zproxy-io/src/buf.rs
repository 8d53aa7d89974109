//! Heap buffers for bytes that are copied through user space.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Size of a buffer in bytes.
pub(crate) const BUF_SIZE: usize = 64 << 10;
/// Buffers kept for the next lease; more are freed.
const SPARE_BUFS_MAX: usize = 64;

/// The heap buffers of one driver.
#[derive(Debug, Default)]
pub(crate) struct BufPool {
    spare: RefCell<Vec<Box<[u8]>>>,
    pub(crate) leased: Cell<u64>,
    pub(crate) returned: Cell<u64>,
}

impl BufPool {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Leases a buffer with nothing in it.
    pub(crate) fn lease(self: &Rc<Self>) -> Buf {
        self.leased.set(self.leased.get() + 1);
        let spare = self.spare.borrow_mut().pop();
        let bytes = spare.unwrap_or_else(|| vec![0; BUF_SIZE].into_boxed_slice());
        Buf { bytes, start: 0, end: 0, pool: Rc::clone(self) }
    }
}

/// A leased heap buffer; `start..end` is what it holds.
#[derive(Debug)]
pub(crate) struct Buf {
    bytes: Box<[u8]>,
    // Small, because every flow has room for two of these.
    start: u32,
    end: u32,
    pool: Rc<BufPool>,
}

impl Buf {
    /// The bytes that wait to be put.
    pub(crate) fn held(&self) -> &[u8] {
        &self.bytes[self.start as usize..self.end as usize]
    }

    /// All of the buffer, to be filled from the start. Only for an empty one.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        assert_eq!(self.start, self.end, "a buffer is filled only when it is empty");
        self.start = 0;
        self.end = 0;
        &mut self.bytes
    }

    /// Records that the first `count` bytes of [`Self::space`] were filled.
    pub(crate) fn note_in(&mut self, count: usize) {
        assert!(self.start == self.end && count <= self.bytes.len());
        self.start = 0;
        self.end = count as u32;
    }

    /// Records that the first `count` bytes of [`Self::held`] have left.
    pub(crate) fn note_out(&mut self, count: usize) {
        assert!(count <= self.held().len(), "more bytes left the buffer than went in");
        self.start += count as u32;
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.returned.set(self.pool.returned.get() + 1);
        let mut spare = self.pool.spare.borrow_mut();
        if spare.len() < SPARE_BUFS_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}
