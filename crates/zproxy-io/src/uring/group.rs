//! The group of provided buffers: the kernel picks one when bytes have arrived, so a receive that
//! waits holds none.

use std::alloc::{self, Layout};
use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;

/// Size of one buffer in bytes; larger messages take the next path.
pub(super) const BUF_SIZE: usize = 4 << 10;
/// Buffers of the group; a power of two. When all are out, receives go through heap buffers.
const BUFS: u16 = 256;
/// So many of them the kernel has at first, and at least. It uses what it has in turn, so that each is
/// out of the nearest cache when its turn comes; the fewer they are, the warmer they stay. It gets twice
/// as many whenever it runs out, …
const GIVEN_MIN: u16 = 32;
/// … and half as many again after so many receives for which it had enough.
const CALM: u16 = 16 << 10;
const GROUP: u16 = 0;
const PAGE: usize = 4096;

/// The buffers of one ring.
#[derive(Debug)]
pub(crate) struct Group {
    entries: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    tail: Cell<u16>,
    /// Buffers that nobody has, the warmest last.
    spare: RefCell<Vec<u16>>,
    /// Buffers that the kernel has, as far as its completions have told.
    given: Cell<u16>,
    /// Buffers that the kernel is to have.
    wanted: Cell<u16>,
    /// Receives since it ran out.
    calm: Cell<u16>,
    pub(crate) leased: Cell<u64>,
    pub(crate) returned: Cell<u64>,
    /// Set when the ring could not be emptied before it went; the memory then stays for ever.
    abandoned: Cell<bool>,
}

fn entries_layout() -> Layout {
    Layout::from_size_align(usize::from(BUFS) * size_of::<BufRingEntry>(), PAGE)
        .expect("a small power-of-two layout")
}

fn bytes_layout() -> Layout {
    Layout::from_size_align(usize::from(BUFS) * BUF_SIZE, PAGE)
        .expect("a small power-of-two layout")
}

impl Group {
    /// Allocates the buffers and registers them with the ring.
    pub(super) fn register(ring: &Ring) -> io::Result<Rc<Self>> {
        // SAFETY: the layout has a size above zero.
        let entries = unsafe { alloc::alloc_zeroed(entries_layout()) };
        let entries = NonNull::new(entries.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the layout has a size above zero.
        let bytes = unsafe { alloc::alloc_zeroed(bytes_layout()) };
        let bytes = NonNull::new(bytes).ok_or(io::ErrorKind::OutOfMemory)?;
        let group = Rc::new(Self {
            entries,
            bytes,
            tail: Cell::new(0),
            spare: RefCell::new((0..BUFS).rev().collect()),
            given: Cell::new(0),
            wanted: Cell::new(GIVEN_MIN),
            calm: Cell::new(0),
            leased: Cell::new(0),
            returned: Cell::new(0),
            abandoned: Cell::new(false),
        });
        let address = entries.as_ptr() as u64;
        // SAFETY: the memory is page-aligned, large enough for the entries, and lives as long as the
        // ring (the driver empties the ring before it frees the group, or abandons the memory).
        unsafe { ring.submitter().register_buf_ring_with_flags(address, BUFS, GROUP, 0) }?;
        group.top_up();
        Ok(group)
    }

    /// The id that receives name.
    pub(super) fn id() -> u16 {
        GROUP
    }

    /// Gives the kernel as many buffers as it is to have.
    fn top_up(&self) {
        while self.given.get() < self.wanted.get()
            && let Some(id) = self.spare.borrow_mut().pop()
        {
            self.given.set(self.given.get() + 1);
            self.give(id);
        }
    }

    /// The kernel has run out of buffers.
    pub(super) fn ran_out(&self) {
        self.wanted.set(BUFS.min(self.wanted.get() * 2));
        self.calm.set(0);
        self.top_up();
    }

    /// Gives a buffer to the kernel.
    fn give(&self, id: u16) {
        let tail = self.tail.get();
        // SAFETY: the index is masked to the number of entries.
        let mut place = unsafe { self.entries.add(usize::from(tail & (BUFS - 1))) };
        // SAFETY: the entry is initialised (zeroed), and the kernel does not read it before the tail
        // has moved past it; no other reference to it exists.
        let entry = unsafe { place.as_mut() };
        entry.set_addr(self.buffer(id) as u64);
        entry.set_len(BUF_SIZE as u32);
        entry.set_bid(id);
        let tail = tail.wrapping_add(1);
        self.tail.set(tail);
        // SAFETY: `entries` points to the first entry of the registered ring.
        let place = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the tail is two aligned bytes that the kernel reads and only this thread writes.
        let place = unsafe { AtomicU16::from_ptr(place.cast_mut()) };
        place.store(tail, Ordering::Release);
    }

    fn buffer(&self, id: u16) -> *mut u8 {
        assert!(id < BUFS, "the kernel named a buffer that the group does not have");
        // SAFETY: the id is below the number of buffers.
        unsafe { self.bytes.add(usize::from(id) * BUF_SIZE) }.as_ptr()
    }

    /// Takes a buffer that the kernel has filled with `count` bytes.
    pub(super) fn take(self: &Rc<Self>, id: u16, count: usize) -> RingBuf {
        assert!(count <= BUF_SIZE, "the kernel filled more than the buffer");
        self.leased.set(self.leased.get() + 1);
        self.given.set(self.given.get() - 1);
        self.calm.set(self.calm.get() + 1);
        if self.calm.get() == CALM {
            self.wanted.set(GIVEN_MIN.max(self.wanted.get() / 2));
            self.calm.set(0);
        }
        self.top_up();
        RingBuf { id, start: 0, end: count, group: Rc::clone(self) }
    }

    /// The ring is gone with operations in flight: never free the memory.
    pub(super) fn abandon(&self) {
        self.abandoned.set(true);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.abandoned.get() {
            return;
        }
        // SAFETY: allocated with this layout in `register`; the ring no longer uses it.
        unsafe { alloc::dealloc(self.entries.as_ptr().cast(), entries_layout()) };
        // SAFETY: allocated with this layout in `register`; the ring no longer uses it.
        unsafe { alloc::dealloc(self.bytes.as_ptr(), bytes_layout()) };
    }
}

/// A leased buffer of the group; `start..end` is what it holds.
#[derive(Debug)]
pub(crate) struct RingBuf {
    id: u16,
    start: usize,
    end: usize,
    group: Rc<Group>,
}

impl RingBuf {
    /// The bytes that wait to be put.
    pub(crate) fn held(&self) -> &[u8] {
        let start = self.group.buffer(self.id);
        // SAFETY: the kernel has filled the first `end` bytes of this buffer, and does not touch it
        // until it is given back.
        let filled = unsafe { std::slice::from_raw_parts(start, self.end) };
        &filled[self.start..]
    }

    /// Records that the first `count` bytes of [`Self::held`] have left.
    pub(crate) fn note_out(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "more bytes left the buffer than went in");
        self.start += count;
    }
}

impl Drop for RingBuf {
    fn drop(&mut self) {
        self.group.returned.set(self.group.returned.get() + 1);
        self.group.spare.borrow_mut().push(self.id);
        self.group.top_up();
    }
}
