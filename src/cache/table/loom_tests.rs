//! The table under every interleaving: `RUSTFLAGS="--cfg loom" cargo test loom_`.

use super::*;
use crate::sync::Arc;
use bytes::BytesMut;
use loom::thread;

fn id() -> PayloadId {
    PayloadId::new("a").unwrap()
}

/// A page whose bytes all say which version it is.
fn entry(page: u64, version: u8, last: bool) -> Entry {
    let mut bytes = BytesMut::new();
    bytes.resize(PAGE, version);
    Entry {
        id: id(),
        page,
        frame: bytes.freeze(),
        start: 0,
        len: PAGE as u16,
        last,
    }
}

/// The shard: puts a page in, if a slot of it can be had.
fn put(table: &Table, page: u64, version: u8, last: bool) -> Option<Slot> {
    let free = |slot: &Slot| !table.is_valid(*slot);
    let slot = table.slots_of(&id(), page).into_iter().find(free).unwrap();
    let filled = table.fill(slot, entry(page, version, last), Origin::Demand);
    filled.then_some(slot)
}

/// The versions of the pages that a read sees, if it is a hit.
fn versions(table: &Table, pages: usize) -> Option<Vec<u8>> {
    let hit = table.read(&id(), 0, pages * PAGE)?;
    let bytes = hit.chunks.into_bytes();
    assert!(bytes.len().is_multiple_of(PAGE), "whole pages");
    let pages = bytes.chunks(PAGE).map(|page| {
        assert!(page.iter().all(|byte| *byte == page[0]), "of one version");
        page[0]
    });
    Some(pages.collect())
}

#[test]
fn loom_what_was_invalidated_before_is_not_seen() {
    loom::model(|| {
        let table = Arc::new(Table::new(PAGE as u64));
        let slot = put(&table, 0, 1, true).unwrap();
        let acknowledged = Arc::new(AtomicBool::new(false));
        let (mine, told) = (table.clone(), acknowledged.clone());
        let reader = thread::spawn(move || {
            let after = told.load(Ordering::Acquire);
            let seen = versions(&mine, 1);
            assert!(
                !after || seen != Some(vec![1]),
                "an old page after the answer"
            );
        });
        table.invalidate(slot);
        table.count_change();
        acknowledged.store(true, Ordering::Release);
        // Whether or not the reader is in the way, nobody waits.
        table.clear(slot);
        put(&table, 0, 2, true);
        reader.join().unwrap();
        assert_ne!(versions(&table, 1), Some(vec![1]));
    });
}

#[test]
fn loom_pages_of_one_read_were_valid_at_once() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let table = Arc::new(Table::new(PAGE as u64));
        let slots = [0, 1].map(|page| put(&table, page, 1, page == 1).unwrap());
        let mine = table.clone();
        let reader = thread::spawn(move || {
            // Page 0 was changed first: whoever sees the change of page 1 has to see that of 0.
            let seen = versions(&mine, 2);
            assert_ne!(
                seen,
                Some(vec![1, 2]),
                "a later change without an earlier one"
            );
        });
        for (page, slot) in slots.into_iter().enumerate() {
            table.invalidate(slot);
            table.count_change();
            table.clear(slot);
            put(&table, page as u64, 2, page == 1);
        }
        reader.join().unwrap();
    });
}

#[test]
fn loom_a_change_of_what_was_evicted_counts() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let table = Arc::new(Table::new(PAGE as u64));
        let slots = [0, 1].map(|page| put(&table, page, 1, page == 1).unwrap());
        let mine = table.clone();
        let reader = thread::spawn(move || {
            let seen = versions(&mine, 2);
            assert_ne!(
                seen,
                Some(vec![1, 2]),
                "a later change without an earlier one"
            );
        });
        // Both pages are evicted; then page 0 is changed, and page 1, which alone comes back.
        for slot in slots {
            table.invalidate(slot);
            table.clear(slot);
        }
        table.count_change();
        table.count_change();
        put(&table, 1, 2, true);
        reader.join().unwrap();
    });
}

#[test]
fn loom_a_slot_used_again_is_never_taken_for_what_it_was() {
    loom::model(|| {
        let table = Arc::new(Table::new(PAGE as u64));
        let slot = put(&table, 0, 1, true).unwrap();
        let mine = table.clone();
        let reader = thread::spawn(move || {
            let seen = versions(&mine, 1);
            assert!(seen.is_none() || seen == Some(vec![1]), "{seen:?}");
        });
        table.invalidate(slot);
        // Another page comes into the same slot, unless the reader is in it.
        table.fill(slot, entry(7, 2, true), Origin::Demand);
        reader.join().unwrap();
    });
}

#[test]
fn loom_a_closed_table_gives_nothing() {
    loom::model(|| {
        let table = Arc::new(Table::new(PAGE as u64));
        put(&table, 0, 1, true).unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let (mine, closed) = (table.clone(), told.clone());
        let reader = thread::spawn(move || {
            let after = closed.load(Ordering::Acquire);
            assert!(
                !after || versions(&mine, 1).is_none(),
                "a hit in a closed store"
            );
        });
        table.close();
        told.store(true, Ordering::Release);
        reader.join().unwrap();
    });
}
