//! The epoll backend (being written).

/// The epoll driver.
#[derive(Debug)]
pub struct Epoll {}
