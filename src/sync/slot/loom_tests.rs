//! The slot under every interleaving of two threads: `RUSTFLAGS="--cfg loom" cargo test loom_`.

use super::*;
use loom::future::block_on;
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

/// Counts how often it is woken. What it counts is no part of the model.
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: std::sync::Arc<Count>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn count() -> (std::sync::Arc<Count>, Waker) {
    let count = std::sync::Arc::new(Count(AtomicUsize::new(0)));
    (count.clone(), Waker::from(count))
}

fn poll<T>(pending: &mut Pending<T>, waker: &Waker) -> Poll<Option<T>> {
    Pin::new(pending).poll(&mut Context::from_waker(waker))
}

#[test]
fn loom_an_answer_arrives() {
    loom::model(|| {
        let (reply, pending) = slot();
        let sender = thread::spawn(move || reply.send(7));
        assert_eq!(block_on(pending), Some(7));
        sender.join().unwrap();
    });
}

#[test]
fn loom_a_dropped_reply_ends_the_wait() {
    loom::model(|| {
        let (reply, pending) = slot::<u8>();
        let sender = thread::spawn(move || drop(reply));
        assert_eq!(block_on(pending), None);
        sender.join().unwrap();
    });
}

#[test]
fn loom_an_answer_nobody_waits_for_is_dropped() {
    loom::model(|| {
        let (reply, mut pending) = slot();
        let value = Arc::new(());
        let sent = value.clone();
        let sender = thread::spawn(move || reply.send(sent));
        let (_, waker) = count();
        let _ = poll(&mut pending, &waker);
        drop(pending);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&value), 1, "neither side holds it");
    });
}

#[test]
fn loom_the_last_waker_is_woken() {
    loom::model(|| {
        let (reply, mut pending) = slot();
        let (first, first_waker) = count();
        let (last, last_waker) = count();
        let sender = thread::spawn(move || reply.send(7));
        let polled = poll(&mut pending, &first_waker);
        let replaced = match polled.is_pending() {
            true => poll(&mut pending, &last_waker),
            false => polled,
        };
        sender.join().unwrap();
        let woken = [&first, &last].map(|count| count.0.load(Ordering::SeqCst));
        if replaced.is_pending() {
            assert_eq!(woken, [0, 1], "it waited with the last one");
            assert_eq!(poll(&mut pending, &last_waker), Poll::Ready(Some(7)));
        } else {
            assert_eq!(replaced, Poll::Ready(Some(7)));
            assert_eq!(woken[1], 0);
        }
    });
}

/// A waker whose end uses the slot: the last of a task that held the other side.
struct Holder {
    _reply: Reply<u8>,
}

impl Wake for Holder {
    fn wake(self: std::sync::Arc<Holder>) {}
}

#[test]
fn loom_a_waker_may_end_in_the_slot() {
    loom::model(|| {
        let (reply, mut pending) = slot();
        let holder = std::sync::Arc::new(Holder { _reply: reply });
        let waker = Waker::from(holder.clone());
        assert!(poll(&mut pending, &waker).is_pending());
        // The slot has the only one now. It goes when another takes its place, and answers.
        drop((waker, holder));
        let (woken, waker) = count();
        assert!(poll(&mut pending, &waker).is_pending());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut pending, &waker), Poll::Ready(None));
    });
}
