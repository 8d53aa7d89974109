//! Messages between threads: a box with a bell.
//!
//! Only control crosses threads (conns handed over, ends of flows, demand); bytes never do. Senders
//! give a whole turn's messages at once, so the lock is taken once per turn and never held for long.

use std::sync::{Arc, Mutex, PoisonError};

use zproxy_io::Doorbell;

#[derive(Debug)]
struct Inner<T> {
    letters: Mutex<Vec<T>>,
    bell: Doorbell,
}

/// The receiving end, owned by the thread whose driver has the bell.
#[derive(Debug)]
pub struct Mailbox<T> {
    inner: Arc<Inner<T>>,
}

/// A sending end.
#[derive(Debug)]
pub struct Sender<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> Mailbox<T> {
    /// A mailbox that rings `bell`.
    #[must_use]
    pub fn new(bell: Doorbell) -> Self {
        Self { inner: Arc::new(Inner { letters: Mutex::default(), bell }) }
    }

    /// An end to send with.
    #[must_use]
    pub fn sender(&self) -> Sender<T> {
        Sender { inner: Arc::clone(&self.inner) }
    }

    /// Takes everything out, in the order it was sent, into `out`.
    pub fn take(&self, out: &mut Vec<T>) {
        out.append(&mut self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<T> Sender<T> {
    /// Sends one message.
    pub fn send(&self, letter: T) {
        self.send_all(&mut vec![letter]);
    }

    /// Messages that have not been taken out.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Sends messages in their order and empties `letters`. Rings only when the box was empty:
    /// otherwise the bell has rung already and has not been answered.
    pub fn send_all(&self, letters: &mut Vec<T>) {
        if letters.is_empty() {
            return;
        }
        let mut inner = self.inner.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = inner.is_empty();
        inner.append(letters);
        drop(inner);
        if was_empty {
            self.inner.bell.ring();
        }
    }
}
