//! The read buffer by itself: what it keeps, what leaves, what counts.

use super::*;
use crate::cache::table::Table;
use crate::chunks::Chunks;

const NO: PayloadNo = PayloadNo(7);

struct Rig {
    table: Arc<Table>,
    buffer: ReadBuffer,
    id: PayloadId,
}

impl Rig {
    fn new(pages: u64) -> Rig {
        let table = Arc::new(Table::new(pages * PAGE as u64));
        let buffer = ReadBuffer::new(table.clone(), pages * PAGE as u64);
        let id = PayloadId::new("a").unwrap();
        Rig { table, buffer, id }
    }

    /// Puts pages in that lie in one frame; each byte says which page it is in.
    fn put(&mut self, pages: std::ops::Range<u64>, origin: Origin) -> Option<Bytes> {
        let bytes: Vec<u8> = pages.clone().flat_map(|page| [page as u8; PAGE]).collect();
        let memory = bytes.len() as u64;
        let mut room = self.buffer.reserve(&[memory]);
        let frame = room.put(bytes.into(), memory).ok()?;
        let first = pages.start;
        let pages = pages.map(|number| Page {
            number,
            start: ((number - first) as usize * PAGE) as u32,
            len: PAGE as u16,
            last: false,
            at: Some(place(number)),
        });
        let key = (NO, &self.id);
        self.buffer.insert(key, &frame, pages, origin);
        Some(frame)
    }

    fn put_one(&mut self, page: u64) -> bool {
        self.put(page..page + 1, Origin::Demand).is_some()
    }

    /// Reads as a caller does.
    fn read(&self, page: u64) -> Option<Vec<u8>> {
        let hit = self.table.read(&self.id, page * PAGE as u64, PAGE)?;
        Some(hit.chunks.into_bytes().to_vec())
    }

    fn hit(&self, page: u64) -> bool {
        let bytes = self.read(page);
        assert!(bytes.as_ref().is_none_or(|it| *it == [page as u8; PAGE]));
        bytes.is_some()
    }

    fn pages_used(&self) -> u64 {
        self.buffer.used() / PAGE as u64
    }
}

fn place(page: u64) -> Location {
    Location::new(crate::types::SegmentId(3), (page as usize * PAGE) as u32)
}

// scenario 128
#[test]
fn what_was_read_is_a_hit_and_what_is_used_stays() {
    let mut rig = Rig::new(8);
    assert!(!rig.hit(0));
    for page in 0..8 {
        assert!(rig.put_one(page));
        assert!(page > 3 || rig.hit(page));
    }
    // The first four were used. What comes drives out what was not.
    for page in 8..12 {
        assert!(rig.put_one(page));
    }
    assert_eq!(rig.pages_used(), 8);
    let kept = (0..4).filter(|page| rig.hit(*page)).count();
    assert_eq!(kept, 4);
}

// scenario 128
#[test]
fn a_read_of_which_a_part_is_missing_uses_nothing() {
    let mut rig = Rig::new(8);
    rig.put(0..2, Origin::Ahead { edge: false }).unwrap();
    let read = |rig: &Rig, pages: usize| rig.table.read(&rig.id, 0, pages * PAGE).is_some();
    // Were the first two counted here, the second pass would be a reason to keep them.
    assert!(!read(&rig, 3) && !read(&rig, 3));
    assert!(read(&rig, 2));
    for page in 8..15 {
        assert!(rig.put_one(page));
    }
    assert!(!read(&rig, 2), "passed once, they are the first to go");
    assert!((8..15).all(|page| rig.hit(page)));
}

// scenario 128
#[test]
fn a_scan_does_not_drive_out_what_is_used() {
    let mut rig = Rig::new(64);
    for page in 0..32 {
        rig.put_one(page);
    }
    for scanned in 1000..1400 {
        rig.put_one(scanned);
        let _ = rig.hit(scanned % 32);
    }
    let kept = (0..32).filter(|page| rig.hit(*page)).count();
    assert_eq!(kept, 32);
    assert!(rig.pages_used() <= 64);
}

// scenario 128
#[test]
fn a_budget_of_nothing_and_frames_that_are_too_large_keep_nothing() {
    let mut rig = Rig::new(0);
    assert!(!rig.buffer.is_on());
    assert!(!rig.put_one(0) && !rig.hit(0));
    let mut rig = Rig::new(16);
    assert!(rig.put(0..5, Origin::Demand).is_none(), "above a quarter");
    assert!(rig.put(0..4, Origin::Demand).is_some());
    let mut rig = Rig::new(1);
    assert!(rig.put_one(3) && rig.hit(3), "one page always may");
}

#[test]
fn what_callers_pin_counts_until_they_let_go() {
    let mut rig = Rig::new(16);
    let pinned: Vec<Chunks> = (0..16)
        .map(|page| {
            assert!(rig.put_one(page));
            let hit = rig.table.read(&rig.id, page * PAGE as u64, PAGE);
            hit.map_or_else(Chunks::new, |hit| hit.chunks)
        })
        .collect();
    let before = rig.buffer.used();
    assert!((100..200).all(|page| {
        rig.put_one(page);
        rig.buffer.used() <= 16 * PAGE as u64
    }));
    assert!(before <= 16 * PAGE as u64);
    rig.buffer.clear();
    let held = pinned.iter().filter(|it| !it.is_empty()).count() as u64;
    assert!(held >= 12, "nearly all were hits");
    assert_eq!(rig.pages_used(), held, "evicted, and still there");
    for (page, chunks) in pinned.into_iter().enumerate() {
        let bytes = chunks.into_bytes();
        assert!(bytes.iter().all(|byte| usize::from(*byte) == page));
    }
    assert_eq!(rig.buffer.used(), 0);
    assert!(rig.put_one(5) && rig.hit(5), "there is room again");
}

// scenario 129
#[test]
fn what_is_wrong_leaves_and_nothing_else() {
    let mut rig = Rig::new(64);
    rig.put(0..8, Origin::Demand);
    rig.put(8..16, Origin::Demand);
    let other = PayloadId::new("b").unwrap();
    let mut room = rig.buffer.reserve(&[PAGE as u64]);
    let frame = room.put(vec![9; PAGE].into(), PAGE as u64).unwrap();
    let page = Page {
        number: 6,
        start: 0,
        len: PAGE as u16,
        last: true,
        at: None,
    };
    let key = (PayloadNo(8), &other);
    let pages = std::iter::once(page);
    rig.buffer.insert(key, &frame, pages, Origin::Demand);
    drop(frame);
    rig.buffer.invalidate(NO, 6..=9);
    for page in 0..16 {
        assert_eq!(rig.hit(page), !(6..=9).contains(&page), "page={page}");
        let found = rig.buffer.find(place(page)).is_some();
        assert_eq!(found, !(6..=9).contains(&page), "by its place: page={page}");
    }
    let theirs = rig.table.read(&other, 6 * PAGE as u64, PAGE).unwrap();
    assert_eq!(theirs.chunks.into_bytes(), vec![9; PAGE]);
    assert_eq!(rig.buffer.entries(), 13);
    rig.buffer.invalidate(NO, 0..=u64::MAX);
    rig.buffer.invalidate(PayloadNo(8), 0..=u64::MAX);
    assert_eq!((rig.buffer.entries(), rig.buffer.used()), (0, 0));
}

#[test]
fn a_short_last_page_says_where_the_payload_ends() {
    let mut rig = Rig::new(8);
    let bytes = Bytes::from_static(b"0123456789abcdef");
    let frame = rig
        .buffer
        .reserve(&[PAGE as u64])
        .put(bytes, PAGE as u64)
        .unwrap();
    let page = Page {
        number: 0,
        start: 0,
        len: 16,
        last: true,
        at: None,
    };
    let pages = std::iter::once(page);
    let id = rig.id.clone();
    rig.buffer.insert((NO, &id), &frame, pages, Origin::Demand);
    let read = |offset, len| {
        let hit = rig.table.read(&id, offset, len)?;
        Some(hit.chunks.into_bytes().to_vec())
    };
    assert_eq!(read(4, 8), Some(b"456789ab".to_vec()));
    assert_eq!(read(12, 100_000), Some(b"cdef".to_vec()));
    assert_eq!(read(16, 5), Some(Vec::new()));
    assert_eq!(read(4096, 5), None, "another page has to be asked for");
}

#[test]
fn one_frame_is_one_piece() {
    let mut rig = Rig::new(64);
    rig.put(0..8, Origin::Demand);
    rig.put(8..16, Origin::Demand);
    let hit = rig.table.read(&rig.id, 100, 12 * PAGE).unwrap();
    assert_eq!(hit.chunks.len(), 12 * PAGE);
    assert_eq!(hit.chunks.into_iter().count(), 2);
}

#[test]
fn what_was_read_ahead_and_used_once_is_not_spared() {
    let mut rig = Rig::new(16);
    rig.put(0..4, Origin::Ahead { edge: true });
    let edges: Vec<bool> = (0..4)
        .map(|page| {
            let hit = rig.table.read(&rig.id, page * PAGE as u64, 100);
            hit.unwrap().at_edge
        })
        .collect();
    assert_eq!(edges, [true, false, false, false], "told once");
    let _ = rig.table.read(&rig.id, 100, 100);
    assert_eq!(rig.table.hits.prefetched(), 4 * PAGE as u64);
    rig.put(4..8, Origin::Demand);
    assert!((4..8).all(|page| rig.hit(page)));
    for page in 8..20 {
        rig.put_one(page);
    }
    assert!((0..4).all(|page| !rig.hit(page)), "it has been passed");
    let kept = (4..8).filter(|page| rig.hit(*page)).count();
    assert!(kept >= 3, "used on demand: kept={kept}");
}

#[test]
fn a_dropped_buffer_is_closed() {
    let mut rig = Rig::new(8);
    rig.put_one(0);
    assert!(rig.hit(0));
    let Rig { table, buffer, id } = rig;
    drop(buffer);
    assert!(table.read(&id, 0, 1).is_none());
}
