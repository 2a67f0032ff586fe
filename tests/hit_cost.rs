//! What a hit costs: no allocation, and no wait for anybody. Contract clause 6, scenario 128.

mod common;

use common::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending counts no more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on; it came from the system's allocator.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Polls a future once, with nobody to wake.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

// scenario 128
// S-6
#[test]
fn a_hit_is_ready_at_once_and_allocates_nothing() {
    run(async {
        let bench = Bench::small();
        let mut config = bench.config();
        config.read_buffer_bytes = 1 << 20;
        let store = open(config).await.unwrap();
        let (a, data) = (id("a"), pattern(1, 64 * KIB));
        store.write_at(&a, 0, data.clone()).await.unwrap();
        store.flush(&a).await.unwrap();
        for page in 0..16 {
            store.read_at(&a, page * 4096, 4096).await.unwrap();
        }
        let mut target = vec![0; 4096];
        let before = ALLOCATIONS.get();
        for n in 0..4000_usize {
            let (page, from) = (n % 16 * 4096, n % 7 * 512);
            let expected = &data[page + from..page + 4096];
            match poll_once(store.read_at(&a, (page + from) as u64, 4096 - from)) {
                Poll::Ready(Ok(chunks)) => assert_eq!(chunks.into_bytes(), expected),
                _ => panic!("a hit is ready at its first poll"),
            }
            let read = store.read_into(&a, page as u64, &mut target);
            assert!(matches!(poll_once(read), Poll::Ready(Ok(4096))));
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
        store.close().await.unwrap();
    });
}
