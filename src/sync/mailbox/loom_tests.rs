//! The mailbox under every interleaving: `RUSTFLAGS="--cfg loom" cargo test loom_`.

use super::*;
use loom::future::block_on;
use loom::thread;
use std::pin::pin;
use std::task::{Context, Waker};

/// Drains until `count` requests have come, or nobody is left to send any.
fn receive(receiver: &mut Receiver<u8>, count: usize) -> Vec<u8> {
    let (mut all, mut batch) = (Vec::new(), VecDeque::new());
    while all.len() < count && block_on(receiver.drain(&mut batch)) {
        assert!(!batch.is_empty(), "a drain brings something");
        all.extend(batch.drain(..));
    }
    all
}

#[test]
fn loom_a_full_mailbox_lets_its_sender_in_later() {
    loom::model(|| {
        let (sender, mut receiver) = mailbox(1);
        let client = thread::spawn(move || {
            for request in [1, 2] {
                block_on(sender.send(request)).unwrap();
            }
        });
        assert_eq!(receive(&mut receiver, 3), [1, 2], "in order, and no more");
        client.join().unwrap();
    });
}

#[test]
fn loom_two_senders_share_one_place() {
    let mut model = loom::model::Builder::new();
    // Three threads have too many interleavings; bugs of waiting show within a few switches.
    model.preemption_bound = Some(2);
    model.check(|| {
        let (sender, mut receiver) = mailbox(1);
        let clients: Vec<_> = [1, 2]
            .into_iter()
            .map(|request| {
                let sender = sender.clone();
                thread::spawn(move || block_on(sender.send(request)).unwrap())
            })
            .collect();
        drop(sender);
        let mut all = receive(&mut receiver, 3);
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
    });
}

#[test]
fn loom_what_is_inside_goes_with_the_receiver() {
    loom::model(|| {
        let (sender, receiver) = mailbox(1);
        let request = Arc::new(());
        let sent = [request.clone(), request.clone()];
        let client = thread::spawn(move || {
            let [first, second] = sent;
            // Either got in, or was told that nobody is there; neither waits for ever.
            let first = block_on(sender.send(first)).is_ok();
            let second = block_on(sender.send(second)).is_ok();
            assert!(first || !second, "once closed, always closed");
            assert!(!second, "there was room for one, and nobody drains");
        });
        drop(receiver);
        client.join().unwrap();
        assert_eq!(Arc::strong_count(&request), 1, "all of them were dropped");
    });
}

#[test]
fn loom_the_last_sender_is_missed() {
    loom::model(|| {
        let (sender, mut receiver) = mailbox::<u8>(1);
        let other = sender.clone();
        let client = thread::spawn(move || drop(other));
        drop(sender);
        assert_eq!(receive(&mut receiver, 1), []);
        client.join().unwrap();
    });
}

#[test]
fn loom_a_sender_that_gives_up_takes_nobodys_place() {
    loom::model(|| {
        let (sender, mut receiver) = mailbox(1);
        block_on(sender.send(1)).unwrap();
        let client = thread::spawn(move || {
            {
                // It waits behind the first request, or gets in, and is dropped either way.
                let mut waiting = pin!(sender.send(2));
                let mut context = Context::from_waker(Waker::noop());
                let _ = waiting.as_mut().poll(&mut context);
            }
            block_on(sender.send(3)).unwrap();
        });
        let all = receive(&mut receiver, 4);
        assert!(all == [1, 3] || all == [1, 2, 3], "{all:?}");
        client.join().unwrap();
    });
}
