//! The mailbox: requests from any thread to one shard, bounded, with one wake-up for many requests.
//!
//! Invariants:
//! 1. At most `capacity` requests wait; a sender that finds it full waits, in its own future, for
//!    the next drain. A request enters whole or not at all, so dropping a sender is safe at any
//!    point.
//! 2. A request that was accepted is drained, or dropped with the mailbox's end, which answers it.
//! 3. The shard takes everything with one lock per pass; it is woken only when it was waiting.
//! 4. When the last sender is gone, the shard is told, after what was sent has been taken.
//!
//! A lock, not a lock-free queue: it is held for a few instructions, taken once per pass by the
//! shard, and one lock covers queue, waker and waiting senders, so that no wake-up can fall between
//! them.

use crate::sync::{Arc, Mutex};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

struct State<T> {
    queue: VecDeque<T>,
    closed: bool,
    receiver: Option<Waker>,
    /// Senders that wait for room.
    waiting: Vec<Waker>,
    /// Senders that exist.
    senders: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    capacity: usize,
}

/// Sends to the shard; clones share it.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The shard's end. Dropping it closes the mailbox.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

/// The mailbox is closed; the shard is gone.
#[derive(Debug)]
pub(crate) struct Gone;

/// A mailbox that holds at most `capacity` requests.
pub(crate) fn mailbox<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        queue: VecDeque::new(),
        closed: false,
        receiver: None,
        waiting: Vec::new(),
        senders: 1,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        capacity,
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.state.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.senders -= 1;
        let receiver = if state.senders == 0 {
            state.receiver.take()
        } else {
            None
        };
        drop(state);
        if let Some(waker) = receiver {
            waker.wake();
        }
    }
}

impl<T> Sender<T> {
    /// Puts a request in, waiting while the mailbox is full.
    ///
    /// # Cancellation
    ///
    /// Dropped before it resolves, the request was not sent.
    pub(crate) async fn send(&self, request: T) -> Result<(), Gone> {
        let mut request = Some(request);
        poll_fn(|context| {
            let mut state = self.0.state.lock();
            if state.closed {
                return Poll::Ready(Err(Gone));
            }
            if state.queue.len() >= self.0.capacity {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
            state.queue.extend(request.take());
            let receiver = state.receiver.take();
            drop(state);
            if let Some(waker) = receiver {
                waker.wake();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

impl<T> Sender<T> {
    /// Puts a request in if there is room for it now; else it is dropped.
    pub(crate) fn offer(&self, request: T) {
        let mut state = self.0.state.lock();
        if state.closed || state.queue.len() >= self.0.capacity {
            return;
        }
        state.queue.push_back(request);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(waker) = receiver {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// Waits for requests and takes all of them, in the order they came, into `batch`.
    ///
    /// False when there are none and nobody is left to send any.
    pub(crate) async fn drain(&mut self, batch: &mut VecDeque<T>) -> bool {
        poll_fn(|context| {
            let mut state = self.0.state.lock();
            if state.queue.is_empty() {
                if state.senders == 0 {
                    return Poll::Ready(false);
                }
                let before = state.receiver.replace(context.waker().clone());
                // It may be the last of its task, whose end may lead back here.
                drop(state);
                drop(before);
                return Poll::Pending;
            }
            if batch.is_empty() {
                std::mem::swap(batch, &mut state.queue);
            } else {
                batch.append(&mut state.queue);
            }
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
            Poll::Ready(true)
        })
        .await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        let unread = std::mem::take(&mut state.queue);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(unread);
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
