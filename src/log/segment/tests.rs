//! The bytes of a segment as `docs/format.md` draws them, and what becomes of damaged ones.

use super::*;
use crate::log::{cuts_and_flips, hex};
use crate::types::SEGMENT_NUMBER_MAX;

/// A footer of two batches.
const GOLDEN_FOOTER: &str = "\
    52494e47465452006d909ea276000000040000000200000008000000000000000000000000000000\
    00000000010000000200000003000000090000000000000001000000887766550700000000000000\
    7265636f7264730a00000000000000010000008877665507000000000000007265636f726473";

/// A batch's header, its record, and the sums of its data pages.
const GOLDEN_BATCH_HEAD: &str = "\
    52424154efe388b00900000000000000080000000000000044332211020000000c000000fd0f0000\
    0500000000000000070000000000000005000c000700000000000000aaaaaaaabbbbbbbb";

/// The head of a segment.
const GOLDEN_SEGMENT_HEAD: &str = "\
    52494e4753454700010000002135163b303132333435363738396162636465660300000010000000\
    050000000000000007000000000000000900000000000000443322110c000000";

fn identity() -> Identity {
    head().identity()
}

fn head() -> SegmentHead {
    SegmentHead {
        store: *b"0123456789abcdef",
        shard: ShardId(3),
        segment: SegmentId(5),
        epoch: Epoch(7),
        pages: 16,
        first_lsn: Lsn(9),
        chain: 0x1122_3344,
        previous_pages: 12,
    }
}

fn head_page() -> Vec<u8> {
    let mut page = vec![0xff; PAGE];
    head().write(&mut page);
    page
}

/// A batch with one record, two data pages and the bytes of one small write.
fn batch_page() -> (BatchHead, Vec<u8>, u32) {
    let records = b"\x05\0\x0c\0\x07\0\0\0\0\0\0\0";
    let batch = BatchHead {
        lsn: Lsn(9),
        committed_through: Lsn(8),
        chain: 0x1122_3344,
        data_pages: 2,
        records_len: records.len() as u32,
        inline_start: PAGE as u32 - 3,
        segment: head().segment,
        epoch: head().epoch,
    };
    let mut page = vec![0xff; PAGE];
    page[BATCH_HEAD..BATCH_HEAD + records.len()].copy_from_slice(records);
    page[PAGE - 3..].copy_from_slice(b"abc");
    let sum = batch.write(identity(), 1, &mut page, &[0xaaaa_aaaa, 0xbbbb_bbbb]);
    (batch, page, sum)
}

fn footer() -> Footer {
    let batch = FooterBatch {
        lsn: Lsn(9),
        page: 1,
        sum: 0x5566_7788,
        records: b"records".to_vec(),
    };
    Footer {
        sums: vec![0, 1, 2, 3],
        batches: vec![
            batch.clone(),
            FooterBatch {
                lsn: Lsn(10),
                ..batch
            },
        ],
        committed_through: Lsn(8),
    }
}

fn footer_page() -> Vec<u8> {
    let mut page = vec![0xff; PAGE];
    footer().write(identity(), &mut page);
    page
}

#[test]
fn golden_segment_head() {
    let page = head_page();
    assert_eq!(hex(&page[..72]), GOLDEN_SEGMENT_HEAD);
    assert!(page[72..].iter().all(|byte| *byte == 0));
    assert_eq!(SegmentHead::parse(&page), Ok(head()));
}

#[test]
fn golden_batch_head() {
    let (batch, page, sum) = batch_page();
    assert_eq!(hex(&page[..BATCH_HEAD + 12 + 8]), GOLDEN_BATCH_HEAD);
    assert!(
        page[BATCH_HEAD + 20..PAGE - 3]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(&page[PAGE - 3..], b"abc");
    assert_eq!(BatchHead::parse(identity(), 1, &page), Ok((batch, sum)));
    assert_eq!(batch.data_sums(&page), [0xaaaa_aaaa, 0xbbbb_bbbb]);
    let delete = Mutation::Delete {
        payload: crate::types::PayloadNo(7),
    };
    assert_eq!(mutations(batch.records(&page)), Ok(vec![delete]));
}

#[test]
fn golden_footer() {
    let page = footer_page();
    let len = Footer::encoded_len(4, 2, 14);
    assert_eq!(Footer::announced_len(&page), Some(len));
    assert_eq!(hex(&page[..len]), GOLDEN_FOOTER);
    assert!(page[len..].iter().all(|byte| *byte == 0));
    assert_eq!(Footer::parse(identity(), 4, &page), Ok(footer()));
}

#[test]
fn every_cut_and_every_flip_of_a_segment_head_is_survived() {
    cuts_and_flips(&head_page(), |page| SegmentHead::parse(page).ok());
}

#[test]
fn every_cut_and_every_flip_of_a_batch_head_is_refused() {
    let (_, page, _) = batch_page();
    let parse = |page: &[u8]| BatchHead::parse(identity(), 1, page).ok();
    assert_eq!(cuts_and_flips(&page, parse), 0, "the sum covers the page");
}

#[test]
fn every_cut_and_every_flip_of_a_footer_is_survived() {
    let page = footer_page();
    cuts_and_flips(&page, |page| Footer::parse(identity(), 4, page).ok());
    let len = Footer::encoded_len(4, 2, 14);
    let parse = |bytes: &[u8]| Footer::parse(identity(), 4, bytes).ok();
    assert_eq!(cuts_and_flips(&page[..len], parse), 0, "the sum covers it");
}

#[test]
fn what_is_elsewhere_is_refused() {
    let (_, page, _) = batch_page();
    let other = SegmentHead {
        epoch: Epoch(8),
        ..head()
    };
    assert!(BatchHead::parse(identity(), 2, &page).is_err());
    assert!(BatchHead::parse(other.identity(), 1, &page).is_err());
    assert!(Footer::parse(identity(), 5, &footer_page()).is_err());
    assert!(Footer::parse(other.identity(), 4, &footer_page()).is_err());
}

#[test]
fn numbers_that_leave_no_room_are_refused() {
    let heads = [
        SegmentHead {
            segment: SegmentId(SEGMENT_NUMBER_MAX),
            ..head()
        },
        SegmentHead {
            epoch: Epoch(NUMBER_MAX),
            ..head()
        },
        SegmentHead {
            first_lsn: Lsn(u64::MAX),
            ..head()
        },
        SegmentHead {
            first_lsn: Lsn(0),
            ..head()
        },
    ];
    for head in heads {
        let mut page = vec![0; PAGE];
        head.write(&mut page);
        assert!(SegmentHead::parse(&page).is_err(), "{head:?}");
    }
    let (batch, mut page, _) = batch_page();
    for (lsn, committed_through) in [(Lsn(9), Lsn(9)), (Lsn(u64::MAX), Lsn(8))] {
        let batch = BatchHead {
            lsn,
            committed_through,
            ..batch
        };
        batch.write(identity(), 1, &mut page, &[1, 2]);
        assert!(BatchHead::parse(identity(), 1, &page).is_err());
    }
}
