//! The completion slot: one answer from a shard to a caller on any thread.
//!
//! Invariants:
//! 1. A [`Pending`] resolves exactly once: with the value sent, or with `None` when the [`Reply`]
//!    was dropped unanswered.
//! 2. Either side may be dropped at any moment, on any thread; the value is dropped with the last.
//!
//! The lock is held for a few instructions and never while anything is woken or dropped.

use crate::sync::{Arc, Mutex};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

enum State<T> {
    Waiting(Option<Waker>),
    Answered(T),
    Over,
}

/// The shard's side: answers once.
pub(crate) struct Reply<T>(Option<Arc<Mutex<State<T>>>>);

/// The caller's side: a future of the answer.
pub(crate) struct Pending<T>(Arc<Mutex<State<T>>>);

/// A connected pair.
pub(crate) fn slot<T>() -> (Reply<T>, Pending<T>) {
    let state = Arc::new(Mutex::new(State::Waiting(None)));
    (Reply(Some(state.clone())), Pending(state))
}

impl<T> Reply<T> {
    /// Hands the answer over and wakes the caller.
    pub(crate) fn send(mut self, value: T) {
        if let Some(state) = self.0.take() {
            settle(&state, State::Answered(value));
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            settle(&state, State::Over);
        }
    }
}

fn settle<T>(state: &Mutex<State<T>>, outcome: State<T>) {
    let before = std::mem::replace(&mut *state.lock(), outcome);
    if let State::Waiting(Some(waker)) = before {
        waker.wake();
    }
}

impl<T> Future for Pending<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // Cloned before and dropped after: a waker is somebody else's code.
        let waker = context.waker().clone();
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting(waiting) => {
                let before = waiting.replace(waker);
                drop(state);
                drop(before);
                Poll::Pending
            }
            _ => match std::mem::replace(&mut *state, State::Over) {
                State::Answered(value) => Poll::Ready(Some(value)),
                _ => Poll::Ready(None),
            },
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
