//! What a test does to a disk from outside: power, damage, images, inspection.
//!
//! Invariants:
//! 1. What is done by hand is done to what programs see and to what is durable alike: the file (or,
//!    for names, all names) is first made durable as it stands.
//! 2. A power cut ends every process that has a driver on the disk before it decides what is left.
//!
//! Deliberately not here: faults by chance; see `faults` and `disk`.

use super::disk::{Damage, Disk, State};
use super::faults::{DiskFaults, Fates, Grain, Latency};
use super::names::NameRequest;
use super::platter::{CrashReport, Inode, Platter};
use crate::types::PAGE;
use std::io;

/// A copy of a disk at one moment, with what was pending and in flight; cheap, as pages are shared.
#[derive(Clone)]
pub(crate) struct DiskImage(Platter);

impl Disk {
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Switches faults on and off, from the next completion on.
    pub(crate) fn set_faults(&self, faults: DiskFaults) {
        self.0.state.borrow_mut().faults = faults;
    }

    pub(crate) fn set_latency(&self, latency: Latency) {
        self.0.state.borrow_mut().latency = latency;
    }

    /// Sets how many bytes fit; fewer than are used is fine, and then nothing can grow.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.0.state.borrow_mut().platter.capacity = bytes;
    }

    /// Bytes charged for files that have a name or are open.
    pub(crate) fn used(&self) -> u64 {
        self.0.reap();
        self.0.state.borrow().platter.used()
    }

    /// Silent damage since the last call.
    pub(crate) fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut self.0.state.borrow_mut().damage)
    }

    /// Visible files with their lengths in bytes, sorted by name.
    pub(crate) fn files(&self) -> Vec<(String, u64)> {
        let state = self.0.state.borrow();
        let len = |id| {
            state
                .platter
                .inodes
                .get(&id)
                .map_or(0, |inode| inode.current.len)
        };
        let files = state.platter.names.files();
        files.map(|(name, id)| (name.to_owned(), len(id))).collect()
    }

    /// A file's visible bytes.
    pub(crate) fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.state.borrow();
        let id = state.platter.names.file(name)?;
        let image = &state.platter.inodes[&id].current;
        let mut bytes = vec![0; usize::try_from(image.len).expect("simulated files are small")];
        image.copy_to(0, &mut bytes);
        Ok(bytes)
    }

    fn alter(&self, name: &str, alter: impl FnOnce(&mut Inode)) -> io::Result<()> {
        self.0.reap();
        let mut state = self.0.state.borrow_mut();
        let id = state.platter.names.file(name)?;
        let before = state.platter.inode(id).current.len;
        let inode = state.platter.inode(id);
        alter(inode);
        let after = inode.current.len;
        state.platter.recharge(before, after);
        Ok(())
    }

    /// Makes a file, or replaces its content.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.names(|platter| match platter.names.file(name) {
            Ok(_) => Ok(()),
            Err(_) => Ok(platter
                .perform(&NameRequest::Create(name.to_owned()))
                .map(drop)?),
        })?;
        self.truncate_file(name, 0)?;
        self.overwrite(name, 0, bytes)
    }

    /// Overwrites bytes, growing the file if need be.
    pub(crate) fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.alter(name, |inode| {
            inode.alter(|image| image.patch(offset, bytes));
            let pages = offset / PAGE as u64..=(offset + bytes.len() as u64) / PAGE as u64;
            inode.unreadable.retain(|page| !pages.contains(page));
        })
    }

    /// Flips one bit, counted from the first byte's lowest.
    pub(crate) fn flip_bit(&self, name: &str, bit: u64) -> io::Result<()> {
        self.alter(name, |inode| {
            assert!(bit / 8 < inode.current.len, "a bit behind the end");
            inode.settle();
            inode.rot(bit);
        })
    }

    /// Makes a page unreadable until it is written.
    pub(crate) fn break_page(&self, name: &str, page: u64) -> io::Result<()> {
        self.alter(name, |inode| {
            inode.unreadable.insert(page);
        })
    }

    /// Cuts or grows a file.
    pub(crate) fn truncate_file(&self, name: &str, len: u64) -> io::Result<()> {
        self.alter(name, |inode| inode.alter(|image| image.resize(len)))
    }

    fn names(&self, change: impl FnOnce(&mut Platter) -> io::Result<()>) -> io::Result<()> {
        self.0.reap();
        let mut state = self.0.state.borrow_mut();
        let result = change(&mut state.platter);
        state.platter.names.settle();
        result
    }

    pub(crate) fn remove_file(&self, name: &str) -> io::Result<()> {
        let request = NameRequest::Unlink(name.to_owned());
        self.names(|platter| Ok(platter.perform(&request).map(drop)?))
    }

    /// Renames a file, replacing what had the name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let request = NameRequest::Rename(from.to_owned(), to.to_owned());
        self.names(|platter| Ok(platter.perform(&request).map(drop)?))
    }

    /// Loses everything, as a new disk in the old one's place; ends the processes on it.
    pub(crate) fn wipe(&self) {
        self.end_processes();
        let mut state = self.0.state.borrow_mut();
        state.platter.names.wipe();
        state.platter.tidy();
    }

    /// What is on the disk, pending and in flight.
    pub(crate) fn clone_image(&self) -> DiskImage {
        self.0.reap();
        DiskImage(self.0.state.borrow().platter.clone())
    }

    /// Puts an image on the disk; ends the processes on it. What the image has in flight awaits a
    /// power cut, or else ends as at a kill when the next process comes.
    pub(crate) fn restore(&self, image: &DiskImage) {
        self.end_processes();
        let mut state = self.0.state.borrow_mut();
        let capacity = state.platter.capacity;
        state.platter = image.0.clone();
        state.platter.capacity = capacity;
        for inode in state.platter.inodes.values_mut() {
            inode.opens = 0;
        }
        state.platter.tidy();
    }

    /// How many decisions a power cut would make, in this unit: first those about writes and
    /// allocations (by file, then in order of completion, then those in flight), then those about
    /// names in flight, then those about unsynced names.
    pub(crate) fn pending(&self, grain: Grain) -> usize {
        self.0.state.borrow().platter.units(grain)
    }

    /// The power fails, and chance decides what was not durable.
    pub(crate) fn power_cut(&self) -> CrashReport {
        self.cut(|disk, state| {
            let chance = disk.chance(state);
            state.platter.crash(&mut Fates::Chance(chance))
        })
    }

    /// The power fails, and `mask` says for each of `pending(grain)` decisions what is kept.
    pub(crate) fn power_cut_keeping(&self, grain: Grain, mask: &[bool]) -> CrashReport {
        assert_eq!(mask.len(), self.pending(grain), "one decision each");
        self.cut(|_, state| {
            let mut fates = Fates::Mask {
                grain,
                mask,
                used: 0,
            };
            let report = state.platter.crash(&mut fates);
            if let Fates::Mask { used, .. } = fates {
                assert_eq!(used, mask.len(), "every decision was asked for");
            }
            report
        })
    }

    fn cut(&self, crash: impl FnOnce(&Disk, &mut State) -> CrashReport) -> CrashReport {
        self.end_processes();
        let mut state = self.0.state.borrow_mut();
        let report = crash(self, &mut state);
        drop(state);
        self.tally(&report);
        let runtime = &self.0.runtime;
        runtime.counters.borrow_mut().crashes += 1;
        runtime.trace(report.writes_kept << 32 | report.writes_torn);
        report
    }

    /// Ends the processes on the disk, leaving what they had in flight in flight.
    fn end_processes(&self) {
        let doomed = self.0.state.borrow().attached.clone();
        for process in doomed {
            process.die();
            self.0.runtime.drop_group(&process);
        }
        self.cut_ops();
    }
}
