//! Streams by themselves: what makes one, how far it goes, what ends it.

#![allow(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]

use super::*;

const A: PayloadNo = PayloadNo(1);
const KIB: u64 = 1 << 10;
const SIZE: u64 = 1 << 30;

fn prefetch() -> Prefetch {
    Prefetch::new(1 << 20)
}

/// What a read of `[start, start + len)` asks for, all windows in a row.
fn note(prefetch: &mut Prefetch, start: u64, len: u64) -> Vec<Range<u64>> {
    prefetch.note(A, start..start + len, SIZE, false).concat()
}

// scenario 130
#[test]
fn the_second_read_in_order_begins_a_window_that_doubles_up_to_the_cap() {
    let mut prefetch = prefetch();
    assert!(note(&mut prefetch, 0, 64 * KIB).is_empty(), "a first read");
    let window = |n: u64| {
        let start = |n: u64| match n {
            0..4 => KIB * (128 << n),
            _ => KIB * 1024 * (n - 2),
        };
        start(n)..start(n + 1)
    };
    assert_eq!(note(&mut prefetch, 64 * KIB, 64 * KIB), [window(0)]);
    // The reader has one window, and two are ahead of it.
    let two = note(&mut prefetch, window(0).start, 64 * KIB);
    assert_eq!(two, [window(1), window(2)]);
    for n in 1..8 {
        let first = window(n).start;
        assert_eq!(note(&mut prefetch, first, 64 * KIB), [window(n + 2)]);
        // What is not at the beginning of a window asks for nothing.
        assert!(note(&mut prefetch, first + 64 * KIB, 64 * KIB).is_empty());
    }
    assert_eq!(window(7).end - window(7).start, 1 << 20);
}

#[test]
fn what_is_far_grows_faster() {
    let mut prefetch = prefetch();
    let mut far = |start: u64| {
        prefetch
            .note(A, start..start + 64 * KIB, SIZE, true)
            .concat()
    };
    assert!(far(0).is_empty(), "a first read");
    assert_eq!(far(64 * KIB), [128 * KIB..256 * KIB], "nobody knows yet");
    let two = far(128 * KIB);
    assert_eq!(two, [256 * KIB..768 * KIB, 768 * KIB..1792 * KIB]);
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
    let two = note(&mut prefetch, 8 * KIB, 1);
    assert_eq!(two, [136 * KIB..392 * KIB, 392 * KIB..904 * KIB]);
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
    let next = prefetch.note(A, end - read..end, SIZE, false);
    let far = end - 128 * KIB;
    let halves = [far - 128 * KIB..far, far - 256 * KIB..far - 128 * KIB];
    assert_eq!((next.len(), &next[0][..]), (2, &halves[..]));
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
        let next = note(&mut prefetch, place(3), 4 * KIB);
        let expected: Vec<_> = (35..163).map(|n| place(n)..place(n) + 4 * KIB).collect();
        assert_eq!(next, expected, "two windows behind the reader's");
        let next = note(&mut prefetch, place(163), 4 * KIB);
        let expected: Vec<_> = (164..292).map(|n| place(n)..place(n) + 4 * KIB).collect();
        assert_eq!(next, expected, "behind the reader");
    }
}

// scenario 130
#[test]
fn equal_steps_down_to_the_beginning_end_there() {
    let mut prefetch = prefetch();
    let place = |n: u64| (10 - n) * 40 * KIB;
    assert!(note(&mut prefetch, place(0), 4 * KIB).is_empty());
    assert!(note(&mut prefetch, place(1), 4 * KIB).is_empty());
    let pieces = note(&mut prefetch, place(2), 4 * KIB);
    let expected: Vec<_> = (3..=10).map(|n| place(n)..place(n) + 4 * KIB).collect();
    assert_eq!(pieces, expected);
    for n in 3..=10 {
        assert!(note(&mut prefetch, place(n), 4 * KIB).is_empty(), "{n}");
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
        prefetch.note(A, start..end, size, false)
    };
    assert!(read(&mut prefetch, 0).is_empty());
    assert_eq!(read(&mut prefetch, 64 * KIB), [[128 * KIB..size]]);
    assert!(read(&mut prefetch, 128 * KIB).is_empty());
    assert!(read(&mut prefetch, 192 * KIB).is_empty());
}

#[test]
fn streams_are_bounded_and_of_one_payload_each() {
    let mut prefetch = prefetch();
    for n in 0..100 {
        let payload = PayloadNo(n);
        prefetch.note(payload, 0..4096, SIZE, false);
        let other = PayloadNo(n + 1000);
        assert!(prefetch.note(other, 4096..8192, SIZE, false).is_empty());
        assert!(!prefetch.note(payload, 4096..8192, SIZE, false).is_empty());
        assert!(prefetch.streams.len() <= STREAMS_MAX);
    }
}
