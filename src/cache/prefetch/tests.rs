//! Streams by themselves: what makes one, how far it goes, what ends it.

#![allow(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]

use super::*;

const A: PayloadNo = PayloadNo(1);
const KIB: u64 = 1 << 10;
const SIZE: u64 = 1 << 30;

fn prefetch() -> Prefetch {
    Prefetch::new(1 << 20)
}

/// What a read of `[start, start + len)` asks for, as one range if it is one.
fn note(prefetch: &mut Prefetch, start: u64, len: u64) -> Vec<Range<u64>> {
    prefetch.note(A, start..start + len, SIZE)
}

// scenario 130
#[test]
fn the_second_read_in_order_begins_a_window_that_doubles_up_to_the_cap() {
    let mut prefetch = prefetch();
    assert!(note(&mut prefetch, 0, 64 * KIB).is_empty(), "a first read");
    let mut window = 128 * KIB;
    let mut at = 64 * KIB;
    let mut from = 128 * KIB;
    // Each read that comes to the edge of the last window asks for the next.
    for _ in 0..7 {
        let ranges = note(&mut prefetch, at, 64 * KIB);
        assert_eq!(ranges, [from..from + window]);
        (at, from) = (from, from + window);
        window = (2 * window).min(1 << 20);
    }
    // What is not at the edge asks for nothing.
    let before = at - 64 * KIB;
    assert!(note(&mut prefetch, before, 64 * KIB).is_empty());
}

// scenario 130
#[test]
fn parts_of_pages_count_as_their_pages() {
    let mut prefetch = prefetch();
    // The rest of each page is served from memory: only its first part is seen.
    assert!(note(&mut prefetch, 100, 512).is_empty());
    let ranges = note(&mut prefetch, 4100, 512);
    assert_eq!(ranges, [8 * KIB..136 * KIB]);
    assert!(note(&mut prefetch, 4700, 100).is_empty(), "nothing new");
    assert_eq!(note(&mut prefetch, 8 * KIB, 1), [136 * KIB..392 * KIB]);
}

// scenario 130
#[test]
fn a_stream_backwards_is_read_from_its_near_end() {
    let mut prefetch = prefetch();
    let read = 16 * KIB;
    assert!(note(&mut prefetch, 1 << 20, read).is_empty());
    let ranges = note(&mut prefetch, (1 << 20) - read, read);
    let end = (1 << 20) - read;
    assert_eq!(ranges, [end - 128 * KIB..end]);
    let next = note(&mut prefetch, end - read, read);
    let far = end - 128 * KIB;
    let halves = [far - 128 * KIB..far, far - 256 * KIB..far - 128 * KIB];
    assert_eq!(next, halves);
    // And not below the beginning.
    let mut prefetch = Prefetch::new(1 << 20);
    note(&mut prefetch, 40 * KIB, 8 * KIB);
    assert_eq!(note(&mut prefetch, 32 * KIB, 8 * KIB), [0..32 * KIB]);
    assert!(note(&mut prefetch, 24 * KIB, 8 * KIB).is_empty());
}

// scenario 130
#[test]
fn equal_steps_make_a_stream_of_pieces() {
    for step in [40 * KIB as i64, -40 * KIB as i64] {
        let mut prefetch = prefetch();
        let place = |n: i64| (SIZE / 2).strict_add_signed(n * step);
        assert!(note(&mut prefetch, place(0), 4 * KIB).is_empty());
        assert!(
            note(&mut prefetch, place(1), 4 * KIB).is_empty(),
            "one step"
        );
        let pieces = note(&mut prefetch, place(2), 4 * KIB);
        let expected: Vec<_> = (3..35).map(|n| place(n)..place(n) + 4 * KIB).collect();
        assert_eq!(pieces, expected, "128 KiB of them");
        assert!(note(&mut prefetch, place(2), 4 * KIB).is_empty(), "again");
        let next = note(&mut prefetch, place(35), 4 * KIB);
        let expected: Vec<_> = (36..100).map(|n| place(n)..place(n) + 4 * KIB).collect();
        assert_eq!(next, expected, "behind the reader");
    }
}

// scenario 130
#[test]
fn a_jump_begins_anew_and_several_end_a_stream() {
    let mut prefetch = prefetch();
    note(&mut prefetch, 0, 64 * KIB);
    assert!(!note(&mut prefetch, 64 * KIB, 64 * KIB).is_empty());
    assert!(!note(&mut prefetch, 128 * KIB, 64 * KIB).is_empty());
    assert!(
        note(&mut prefetch, 100 << 20, 64 * KIB).is_empty(),
        "a jump"
    );
    let ranges = note(&mut prefetch, (100 << 20) + 64 * KIB, 64 * KIB);
    let from = (100 << 20) + 128 * KIB;
    assert_eq!(ranges, [from..from + 128 * KIB], "small again");
    // The first reader may be another one, and go on, until it has not been seen for a while.
    assert!(!note(&mut prefetch, 256 * KIB, 64 * KIB).is_empty());
    for n in 0..u64::from(JUMPS_MAX) + 1 {
        note(&mut prefetch, (200 << 20) + n * n * (1 << 20), 4 * KIB);
    }
    assert!(prefetch.streams.is_empty());
    assert!(note(&mut prefetch, 512 * KIB, 64 * KIB).is_empty());
}

// scenario 130
#[test]
fn random_reads_and_a_budget_of_nothing_ask_for_nothing() {
    let mut none = Prefetch::new(4095);
    let mut random = prefetch();
    let mut state = 1_u64;
    for n in 0..1000 {
        assert!(note(&mut none, n * 4096, 4096).is_empty());
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        assert!(note(&mut random, (state >> 40) * 4096, 4096).is_empty());
    }
    assert!(random.seen.len() <= SEEN_MAX);
}

#[test]
fn nothing_is_asked_for_behind_the_end() {
    let mut prefetch = prefetch();
    let size = 200 * KIB + 5;
    let read = |prefetch: &mut Prefetch, start: u64| {
        let end = (start + 64 * KIB).min(size);
        prefetch.note(A, start..end, size)
    };
    assert!(read(&mut prefetch, 0).is_empty());
    assert_eq!(read(&mut prefetch, 64 * KIB), [128 * KIB..size]);
    assert!(read(&mut prefetch, 128 * KIB).is_empty());
    assert!(read(&mut prefetch, 192 * KIB).is_empty());
}

#[test]
fn streams_are_bounded_and_of_one_payload_each() {
    let mut prefetch = prefetch();
    for n in 0..100 {
        let payload = PayloadNo(n);
        prefetch.note(payload, 0..4096, SIZE);
        let other = PayloadNo(n + 1000);
        assert!(prefetch.note(other, 4096..8192, SIZE).is_empty());
        assert!(!prefetch.note(payload, 4096..8192, SIZE).is_empty());
        assert!(prefetch.streams.len() <= STREAMS_MAX);
    }
}
