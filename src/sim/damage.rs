//! Damage: what is done to files by hand, and what the oracle demands after it.
//!
//! A disk that lies (lost and misdirected writes, rot, unreadable pages) and a file that is gone,
//! cut short, zeroed or in another's place take bytes away for good. What is demanded all the same:
//!
//! 1. A byte is an error or it is right: of one state that the payload may be in, and never zero
//!    where that state has data. What is an error is found out page by page, and only pages that
//!    hold data may be.
//! 2. The store opens, as long as one of its superblocks is whole.
//! 3. A payload is at one point of its order, at or after its last flush, wherever its bytes can be
//!    read.
//!
//! Two things excuse less than that, each as far as it goes:
//!
//! 4. Nothing stands behind the last batches of a log, so damage to them looks like a torn tail,
//!    and is one by clause 33. One event can take the batches of one commit, and two flushes of
//!    which the second began after the first had returned, with a change in between, are two
//!    commits: so a payload may be one whole state before its last flushes, at most as many of
//!    these as there were events. Never a mix of states: it is one point of its order still.
//!    A whole file that was harmed, or a checkpoint, may have held any number of commits.
//! 5. Where the store reports lost batches in its figures, changes are missing from the middle, and
//!    payloads may be mixed: each byte must come from some write to its offset, or be zero.
//!
//! With several shards, a copy onto a payload of another shard ends with the deletion of the old
//! one there. Damage that takes the copy's commit leaves neither: the payload may be gone.
//!
//! A file whose directory's sync failed counts as harmed: no later sync makes its name durable, and
//! an engine that is opened anew cannot know that one has failed.
//!
//! What cannot be told: whether a state is older because damage took its commit, or because the
//! store forgot it on an occasion that happened to have damage elsewhere.
//!
//! Deliberately not here: what silent faults do; see `io::sim::faults`.

use super::plan::Harm;
use crate::io::sim::{Damage, DamageKind, Disk};

/// Bytes that a page harm takes.
const PAGE: u64 = 4096;

/// What damage there has been, as far as the oracle excuses something with it.
#[derive(Default)]
pub(super) struct Injuries {
    /// Events since the last comparison, and between the two before: what was harmed during an
    /// opening may show at the next one only.
    fresh: usize,
    before: usize,
    /// A whole file was harmed, whatever number of commits it held.
    whole_file: bool,
    /// Events that befell superblocks; one copy of two is enough.
    superblocks: usize,
}

impl Injuries {
    /// Takes note of silent damage.
    pub(super) fn note(&mut self, damage: &[Damage], dir_sync_errors: u64) {
        self.fresh += damage.len();
        self.whole_file |= dir_sync_errors > 0;
        self.whole_file |= damage
            .iter()
            .any(|it| is_checkpoint(&it.file) || is_lost_head(it));
        let is_superblock = |it: &&Damage| it.file.starts_with("STORE");
        self.superblocks += damage.iter().filter(is_superblock).count();
    }

    pub(super) fn note_harm(&mut self, harm: Harm, file: &str) {
        self.fresh += 1;
        self.whole_file |= harm.is_whole_file() || is_checkpoint(file);
    }

    /// How many commits may be gone from the end of the log.
    pub(super) fn commits(&self) -> usize {
        match self.whole_file {
            true => usize::MAX,
            false => self.fresh + self.before,
        }
    }

    /// Whether a store may refuse to open for ever.
    pub(super) fn may_refuse(&self) -> bool {
        self.superblocks >= 2
    }

    /// Everything has been compared.
    pub(super) fn compared(&mut self) {
        (self.before, self.fresh) = (self.fresh, 0);
    }
}

/// A checkpoint counts only whole. One that is bad is not noticed while there is a newer one, and
/// when that is harmed, too, all that both held is gone.
fn is_checkpoint(file: &str) -> bool {
    file.contains("checkpoint-")
}

/// A segment's head that was never written leaves the file with the head of the segment before,
/// which hides whatever was written behind it.
fn is_lost_head(damage: &Damage) -> bool {
    damage.kind == DamageKind::Lost && damage.offset == 0 && damage.file.contains("/seg-")
}

/// Harms the `nth` segment or checkpoint. Says which; `None` if there was none to harm.
pub(super) fn inflict(disk: &Disk, harm: Harm, nth: u64, place: u64) -> Option<String> {
    let is_target = |name: &str| name.contains("/seg-") || is_checkpoint(name);
    let files: Vec<(String, u64)> = disk
        .files()
        .into_iter()
        .filter(|file| is_target(&file.0) && file.1 > 0)
        .collect();
    let index = nth.checked_rem(files.len() as u64)?;
    let (name, len) = &files[index as usize];
    let page = place % len.div_ceil(PAGE);
    let zeros = |from: u64, to: u64| disk.overwrite(name, from, &vec![0; (to - from) as usize]);
    let done = match harm {
        Harm::Remove => disk.remove_file(name),
        Harm::CutShort => disk.truncate_file(name, place % len),
        Harm::Zero => zeros(0, *len),
        Harm::ZeroPage => zeros(page * PAGE, (page * PAGE + PAGE).min(*len)),
        Harm::FlipBit => disk.flip_bit(name, (place % len) * 8),
        Harm::BreakPage => disk.break_page(name, page),
        Harm::Replace => {
            let other = &files[(index as usize + 1) % files.len()].0;
            let bytes = disk.read_file(other).expect("it was listed");
            disk.write_file(name, &bytes)
        }
    };
    done.expect("the file was listed");
    crate::marks::mark("file harmed by hand");
    Some(name.clone())
}
