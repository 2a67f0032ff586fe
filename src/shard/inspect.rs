//! What is asked about the log itself: which segments there are, and what stands in one.
//!
//! Invariant: a file is read as recovery reads it, checksum first; what fails is told, not shown.

use super::Shard;
use super::files::segment_name;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::log::segment::{BatchHead, mutations};
use crate::residency::Held;
use crate::stats::{BatchDump, Segment, SegmentDump, SegmentState};
use crate::types::SegmentId;
use std::rc::Rc;

impl<D: Driver> Shard<D> {
    /// The segments, oldest first, and the free files.
    pub(super) fn segments(&self) -> Vec<Segment> {
        let state = self.0.state.borrow();
        let held = state.segments.iter().map(|held| self.describe(held));
        let mut segments: Vec<Segment> = held.collect();
        let spare = state.space.spare;
        for file in state.segments.free_files().chain(spare) {
            segments.push(Segment {
                shard: u64::from(self.0.params.shard.0),
                number: None,
                file: self.0.params.path(&segment_name(file)),
                epoch: 0,
                state: SegmentState::Free,
                pages: 0,
                live_bytes: 0,
            });
        }
        segments
    }

    fn describe(&self, held: &Held) -> Segment {
        let state = self.0.state.borrow();
        let (kind, pages) = match held.is_sealed() {
            true => (SegmentState::Sealed, held.pages.get()),
            false => (SegmentState::Open, state.log.end().pages),
        };
        Segment {
            shard: u64::from(self.0.params.shard.0),
            number: Some(held.id.0),
            file: held.file().map_or(String::new(), |file| {
                self.0.params.path(&segment_name(file))
            }),
            epoch: held.epoch.0,
            state: kind,
            pages: u64::from(pages),
            live_bytes: state.map.live.bytes(held.id),
        }
    }

    /// The batches of a segment, as its file has them.
    pub(super) async fn dump_segment(&self, number: u64) -> Result<SegmentDump> {
        let held = self.held(SegmentId(number))?;
        let mut dump = SegmentDump {
            segment: self.describe(&held),
            batches: Vec::new(),
            unreadable: Vec::new(),
        };
        let mut at = 1;
        while u64::from(at) < dump.segment.pages {
            let page = self.read_pages(&held, at, 1).await?;
            let parsed = BatchHead::parse(held.identity, at, &page)
                .and_then(|(head, _)| Ok((head, mutations(head.records(&page))?)));
            match parsed {
                Ok((head, mutations)) => {
                    dump.batches.push(BatchDump {
                        lsn: head.lsn.0,
                        page: u64::from(at),
                        data_pages: u64::from(head.data_pages),
                        committed_through: head.committed_through.0,
                        records: mutations.iter().map(ToString::to_string).collect(),
                    });
                    at += 1 + head.data_pages;
                }
                // What is on its way to the file is no damage.
                Err(_) if dump.segment.state == SegmentState::Open => break,
                Err(malformed) => {
                    dump.unreadable
                        .push((u64::from(at), malformed.0.to_owned()));
                    at += 1;
                }
            }
        }
        Ok(dump)
    }

    fn held(&self, id: SegmentId) -> Result<Rc<Held>> {
        let state = self.0.state.borrow();
        let held = state.segments.find(id).cloned();
        held.ok_or_else(|| {
            let shard = self.0.params.shard.0;
            let message = format!("no such segment: shard={shard} segment={}", id.0);
            Error::new(ErrorKind::NotFound, message)
        })
    }
}
