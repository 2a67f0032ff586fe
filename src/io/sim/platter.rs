//! What the medium holds: bytes and names as programs see them, and as a crash would leave them.
//!
//! Invariants:
//! 1. A file has two images: `current`, which reads see, and `durable`, which survives. What has
//!    completed and is not durable stands in `pending`, in the order of completion; what has been
//!    submitted and not completed, in `in_flight`. `durable` plus all of `pending` is `current`.
//! 2. `pending` never holds a page that an older write could overwrite when applied after a newer,
//!    durable one: becoming durable removes the page from every earlier entry.
//! 3. A sync moves the entries before its cut, except the forsaken: what a failed sync left behind
//!    is made durable by no later one.
//! 4. Changes of names form a list with the same rules; a crash keeps a change only if it keeps
//!    every earlier one of the same names. A rename is one change.
//! 5. It is a plain value without handles to anything, so that a copy of it is a disk image; pages
//!    are shared between copies.
//!
//! Deliberately not here: time, faults, processes' buffers.

use super::faults::{Fate, Fates, Grain, SECTORS};
use super::image::{Image, Page, Write, charge, overlay, page_floor, page_or_zeros};
use super::names::{NameRequest, Names, Node};
use crate::types::PAGE;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub(super) type InodeId = u64;

/// A change to a file's content or length.
#[derive(Clone)]
pub(super) enum Change {
    Write(Write),
    Allocate(u64),
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match self {
            Change::Write(write) => image.store(write),
            Change::Allocate(len) => image.len = image.len.max(*len),
        }
    }

    fn end(&self) -> u64 {
        match self {
            Change::Write(write) => write.end(),
            Change::Allocate(len) => *len,
        }
    }

    /// How many decisions a crash makes about it.
    fn units(&self, grain: Grain) -> usize {
        let present = match self {
            Change::Write(write) => write.pages.iter().flatten().count(),
            Change::Allocate(_) => 1,
        };
        match (self, grain) {
            (Change::Write(_), Grain::Page) => present,
            (Change::Write(_), Grain::Sector) => present * SECTORS,
            _ => 1,
        }
    }

    /// What a crash leaves of it over `base`.
    fn befall(
        self,
        fates: &mut Fates<'_>,
        base: &Image,
        tally: &mut CrashReport,
    ) -> Option<Change> {
        let write = match self {
            Change::Write(write) => write,
            Change::Allocate(len) => return fates.keeps().then_some(Change::Allocate(len)),
        };
        let present: Vec<bool> = write.pages.iter().map(Option::is_some).collect();
        let fate = fates.write(&present);
        match fate {
            Fate::Kept => tally.writes_kept += 1,
            Fate::Dropped | Fate::LengthOnly => tally.writes_dropped += 1,
            Fate::Torn(_) => tally.writes_torn += 1,
            Fate::Garbled(..) => tally.writes_garbled += 1,
        }
        write.befall(&fate, base).map(Change::Write)
    }
}

/// How a completed change stands with durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Landing {
    Pending,
    /// Visible, and no sync will make it durable.
    Forsaken,
    Durable,
}

#[derive(Clone)]
struct Pending {
    seq: u64,
    change: Change,
    forsaken: bool,
}

/// A change that has been submitted and has not completed.
#[derive(Clone)]
pub(super) struct InFlight<T> {
    pub(super) op: u64,
    pub(super) process: u64,
    pub(super) change: T,
}

/// What became of unsynced and unfinished things when power or a process failed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct CrashReport {
    pub(crate) writes_kept: u64,
    pub(crate) writes_dropped: u64,
    pub(crate) writes_torn: u64,
    pub(crate) writes_garbled: u64,
    pub(crate) names_kept: u64,
    pub(crate) names_undone: u64,
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) current: Image,
    durable: Image,
    pending: Vec<Pending>,
    pub(super) in_flight: Vec<InFlight<Change>>,
    /// Pages that cannot be read until they are written.
    pub(super) unreadable: BTreeSet<u64>,
    /// Open handles; those of a past boot do not count.
    pub(super) opens: u32,
}

impl Inode {
    fn complete(&mut self, seq: u64, change: Change, landing: Landing) {
        change.apply(&mut self.current);
        if let Change::Write(write) = &change
            && !self.unreadable.is_empty()
        {
            let rewritten = write.first_page..write.first_page + write.pages.len() as u64;
            self.unreadable.retain(|page| !rewritten.contains(page));
        }
        if landing == Landing::Durable {
            supersede(&mut self.pending, &change);
            change.apply(&mut self.durable);
            return;
        }
        self.pending.push(Pending {
            seq,
            change,
            forsaken: landing == Landing::Forsaken,
        });
    }

    /// Makes durable what completed before `cut` and is not forsaken.
    pub(super) fn sync(&mut self, cut: u64) {
        let mut kept = Vec::new();
        for pending in self.pending.drain(..) {
            if pending.seq >= cut || pending.forsaken {
                kept.push(pending);
                continue;
            }
            supersede(&mut kept, &pending.change);
            pending.change.apply(&mut self.durable);
        }
        self.pending = kept;
    }

    /// A sync has failed: what it should have covered will be covered by none.
    pub(super) fn forsake(&mut self, cut: u64) {
        for pending in self.pending.iter_mut().filter(|pending| pending.seq < cut) {
            pending.forsaken = true;
        }
    }

    /// Makes everything durable as it stands, for tests that then put their hands on the bytes.
    pub(super) fn settle(&mut self) {
        self.pending.clear();
        self.durable = self.current.clone();
    }

    /// Changes both images alike.
    pub(super) fn alter(&mut self, alter: impl Fn(&mut Image)) {
        self.settle();
        alter(&mut self.current);
        alter(&mut self.durable);
    }

    /// Flips a bit for good, wherever the page's present content is kept.
    pub(super) fn rot(&mut self, bit: u64) {
        let no = bit / 8 / PAGE as u64;
        let old = self.current.pages.get(&no).cloned();
        let mut page = page_or_zeros(old.as_ref()).to_vec();
        page[(bit / 8) as usize % PAGE] ^= 1 << (bit % 8);
        let rotten: Page = page.into();
        let is_old = |page: &Page| old.as_ref().is_some_and(|old| Rc::ptr_eq(old, page));
        for pending in &mut self.pending {
            if let Change::Write(write) = &mut pending.change {
                for page in write.pages.iter_mut().flatten().filter(|page| is_old(page)) {
                    *page = Rc::clone(&rotten);
                }
            }
        }
        let durable = self.durable.pages.get(&no);
        if durable.map_or(old.is_none(), is_old) && no * (PAGE as u64) < self.durable.len {
            Rc::make_mut(&mut self.durable.pages).insert(no, Rc::clone(&rotten));
        }
        Rc::make_mut(&mut self.current.pages).insert(no, rotten);
    }

    /// The page that a read sees which began when the page was `before`: each sector old or new.
    ///
    /// Says whether there was a choice.
    pub(super) fn read_page(
        &self,
        no: u64,
        before: Option<&Page>,
        out: &mut [u8],
        mut mask: impl FnMut() -> u8,
    ) -> bool {
        let now = self.current.pages.get(&no);
        out.copy_from_slice(page_or_zeros(now));
        let mut raced = false;
        if before.map(Rc::as_ptr) != now.map(Rc::as_ptr) {
            overlay(out, page_or_zeros(before), mask());
            raced = true;
        }
        for flying in &self.in_flight {
            if let Change::Write(write) = &flying.change
                && let Some(new) = write.page(no)
            {
                overlay(out, new, mask());
                raced = true;
            }
        }
        raced
    }

    /// Whether a write of these pages is under way.
    pub(super) fn is_writing(&self, first_page: u64, pages: u64) -> bool {
        self.in_flight.iter().any(|flying| {
            matches!(&flying.change, Change::Write(write) if write.overlaps(first_page, pages))
        })
    }

    fn crash(&mut self, fates: &mut Fates<'_>, tally: &mut CrashReport) {
        let pending = self.pending.drain(..).map(|pending| pending.change);
        let flying = self.in_flight.drain(..).map(|flying| flying.change);
        for change in pending.chain(flying) {
            if let Some(change) = change.befall(fates, &self.durable, tally) {
                change.apply(&mut self.durable);
            }
        }
        self.current = self.durable.clone();
        self.opens = 0;
    }
}

/// Takes the pages of `newer` out of every entry of `older`.
fn supersede(older: &mut Vec<Pending>, newer: &Change) {
    let Change::Write(newer) = newer else { return };
    if older.is_empty() {
        return;
    }
    let is_replaced = |no: u64| newer.page(no).is_some();
    for pending in older.iter_mut() {
        if let Change::Write(write) = &mut pending.change {
            for (no, page) in (write.first_page..).zip(&mut write.pages) {
                if is_replaced(no) {
                    *page = None;
                }
            }
        }
    }
    let newer_end = newer.end();
    older.retain(|pending| match &pending.change {
        Change::Write(write) => write.end() > newer_end || write.pages.iter().any(Option::is_some),
        Change::Allocate(_) => true,
    });
}

/// Everything on one disk.
#[derive(Clone)]
pub(super) struct Platter {
    pub(super) names: Names,
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    pub(super) capacity: u64,
    /// Bytes charged for files that have a name or are open.
    used: u64,
    inode_next: InodeId,
    /// Number of the next completion; what has a lower one has completed.
    pub(super) seq_next: u64,
}

impl Platter {
    pub(super) fn new() -> Platter {
        Platter {
            names: Names::default(),
            inodes: BTreeMap::new(),
            capacity: u64::MAX,
            used: 0,
            inode_next: 1,
            seq_next: 1,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// A file's length was changed by hand.
    pub(super) fn recharge(&mut self, before: u64, after: u64) {
        self.used = self.used - charge(before) + charge(after);
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    fn take_seq(&mut self) -> u64 {
        self.seq_next += 1;
        self.seq_next - 1
    }

    pub(super) fn inode(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("open files have an inode")
    }

    /// Takes back the change that operation `op` had announced.
    pub(super) fn land_in_flight(&mut self, id: InodeId, op: u64) -> Change {
        let flying = &mut self.inode(id).in_flight;
        let index = flying.iter().position(|flying| flying.op == op);
        flying
            .remove(index.expect("announced at submission"))
            .change
    }

    /// Whether the change would make the file larger.
    pub(super) fn grows(&mut self, id: InodeId, change: &Change) -> bool {
        change.end() > self.inode(id).current.len
    }

    /// Applies a change. Without space, a growing write is cut to what fits.
    pub(super) fn complete(
        &mut self,
        id: InodeId,
        mut change: Change,
        landing: Landing,
    ) -> Result<(), Errno> {
        let seq = self.take_seq();
        let free = self.free();
        let inode = self.inode(id);
        let charged = charge(inode.current.len);
        let mut grown = charge(change.end()).saturating_sub(charged);
        let mut result = Ok(());
        if grown > free {
            result = Err(Errno::NOSPC);
            let fitting = charged + page_floor(free);
            match &mut change {
                Change::Write(write) if write.first_page * (PAGE as u64) < fitting => {
                    let pages = fitting / PAGE as u64 - write.first_page;
                    write.pages.truncate(pages as usize);
                    grown = charge(change.end()).saturating_sub(charged);
                }
                _ => return result,
            }
        }
        inode.complete(seq, change, landing);
        self.used += grown;
        result
    }

    /// Performs a change of names; a file that it creates is returned.
    pub(super) fn perform(&mut self, request: &NameRequest) -> Result<Option<InodeId>, Errno> {
        if matches!(request, NameRequest::Create(_)) && self.free() == 0 {
            return Err(Errno::NOSPC);
        }
        let seq = self.take_seq();
        let replaced = self
            .names
            .perform(seq, request, Node::File(self.inode_next))?;
        if let Some(Node::File(id)) = replaced {
            self.release(id);
        }
        if let NameRequest::Create(_) = request {
            let id = self.inode_next;
            self.inode_next += 1;
            self.inodes.insert(id, Inode::default());
            return Ok(Some(id));
        }
        Ok(None)
    }

    /// Makes the names in a directory durable, as far as they were changed before `cut`.
    pub(super) fn sync_dir(&mut self, dir: &str, cut: u64) {
        for node in self.names.sync_dir(dir, cut) {
            if let Node::File(id) = node {
                self.collect(id);
            }
        }
    }

    /// A handle has been closed.
    pub(super) fn close(&mut self, id: InodeId) {
        let Some(inode) = self.inodes.get_mut(&id) else {
            return;
        };
        inode.opens = inode.opens.saturating_sub(1);
        if inode.opens == 0 && !self.names.is_visible(id) {
            self.release(id);
            self.collect(id);
        }
    }

    /// Gives back the space of a file that nothing can reach any more.
    fn release(&mut self, id: InodeId) {
        let inode = self.inode(id);
        if inode.opens == 0 {
            let charged = charge(inode.current.len);
            self.used -= charged;
        }
    }

    /// Forgets a file that neither programs nor a crash can bring back.
    fn collect(&mut self, id: InodeId) {
        let open = self.inodes.get(&id).is_none_or(|inode| inode.opens > 0);
        if !open && !self.names.may_return(id) {
            self.inodes.remove(&id);
        }
    }

    /// How many decisions a crash would make.
    pub(super) fn units(&self, grain: Grain) -> usize {
        let inodes = self.inodes.values().map(|inode| {
            let pending = inode.pending.iter().map(|pending| &pending.change);
            let flying = inode.in_flight.iter().map(|flying| &flying.change);
            pending
                .chain(flying)
                .map(|change| change.units(grain))
                .sum::<usize>()
        });
        inodes.sum::<usize>() + self.names.units()
    }

    /// The power fails: what is not durable is as `fates` says, and what was open is closed.
    pub(super) fn crash(&mut self, fates: &mut Fates<'_>) -> CrashReport {
        let mut tally = CrashReport::default();
        for inode in self.inodes.values_mut() {
            inode.crash(fates, &mut tally);
        }
        for flying in std::mem::take(&mut self.names.in_flight) {
            // What cannot be done now would have failed then; its decision is drawn all the same.
            let kept = fates.keeps();
            let first = self.names.len_pending();
            let performed = kept && self.perform(&flying.change).is_ok();
            if performed {
                self.names.decide(first);
            }
            tally.names_kept += u64::from(performed);
            tally.names_undone += u64::from(!performed);
        }
        self.names.crash(fates, &mut tally);
        self.tidy();
        tally
    }

    /// Ends what a process had in flight, each change kept, dropped or torn; `None` means all.
    pub(super) fn kill(&mut self, process: Option<u64>, fates: &mut Fates<'_>) -> CrashReport {
        let mut tally = CrashReport::default();
        let is_mine = |owner: u64| process.is_none_or(|process| process == owner);
        let ids: Vec<InodeId> = self.inodes.keys().copied().collect();
        for id in ids {
            let flying = &mut self.inode(id).in_flight;
            let ended: Vec<_> = flying
                .extract_if(.., |flying| is_mine(flying.process))
                .collect();
            for flying in ended {
                let base = &self.inode(id).current;
                if let Some(change) = flying.change.befall(fates, base, &mut tally) {
                    // Without space it fails, and nobody is there to hear of it.
                    let _ = self.complete(id, change, Landing::Pending);
                }
            }
        }
        let flying = &mut self.names.in_flight;
        let ended: Vec<_> = flying
            .extract_if(.., |flying| is_mine(flying.process))
            .collect();
        for flying in ended {
            let kept = fates.keeps() && self.perform(&flying.change).is_ok();
            tally.names_kept += u64::from(kept);
            tally.names_undone += u64::from(!kept);
        }
        tally
    }

    /// Drops files that no name leads to, and counts the space anew, when nothing is open.
    pub(super) fn tidy(&mut self) {
        let names = &self.names;
        self.inodes.retain(|id, _| names.may_return(*id));
        let visible = self.inodes.iter().filter(|(id, _)| names.is_visible(**id));
        self.used = visible.map(|(_, inode)| charge(inode.current.len)).sum();
    }
}
