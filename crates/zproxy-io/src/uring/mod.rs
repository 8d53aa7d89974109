//! The io_uring backend (being written).

/// Settings of one ring.
#[derive(Clone, Debug, Default)]
pub struct UringConfig {}
/// Why there is no ring.
#[derive(Debug)]
pub enum RingError {}
/// The io_uring driver.
#[derive(Debug)]
pub struct Uring {}
#[derive(Debug)]
pub(crate) struct RingBuf {
    never: std::convert::Infallible,
}
impl RingBuf {
    pub(crate) fn held(&self) -> &[u8] {
        match self.never {}
    }
    pub(crate) fn note_out(&mut self, _count: usize) {
        match self.never {}
    }
}
