//! What an operation does when it completes, and what goes wrong with it.
//!
//! Invariants:
//! 1. An operation takes its announcement out of flight before anything else, whatever its outcome.
//! 2. A fault that the caller is told of is an error here; one that it is not told of leaves an
//!    entry in the list of damage.
//!
//! Deliberately not here: when it completes, and who is told; see `disk`.

use super::disk::{Damage, DamageKind, Disk, DiskInner, Op, POISON, Reply, Request, State};
use super::driver::Handle;
use super::faults::{DiskFaults, Fate, Fault, SECTORS, WHOLE};
use super::image::Write;
use super::platter::{Change, InodeId, Landing, Platter};
use crate::buf::AlignedBuf;
use crate::io::{Durability, OpenMode};
use crate::types::{Nanos, PAGE};
use rustix::io::Errno;
use std::cell::Cell;
use std::hash::BuildHasher;
use std::io;
use std::rc::Rc;

impl DiskInner {
    pub(super) fn finish(
        self: &Rc<Self>,
        state: &mut State,
        id: u64,
        op: &mut Op,
    ) -> io::Result<Reply> {
        let request = std::mem::replace(&mut op.request, Request::Sync);
        self.trace_request(op, &request);
        let file = op.file.clone();
        match (request, file) {
            (Request::Read(mut buf), Some(file)) => {
                let result = self.read(state, op, &file, &mut buf);
                if result.is_err() {
                    buf.fill(POISON);
                }
                result?;
                if let Some(address) = op.stray {
                    state.land_astray(address, &buf);
                }
                let scribbled = op.scribble.len().min(buf.len());
                buf[..scribbled].copy_from_slice(&op.scribble[..scribbled]);
                self.runtime.trace(content_hash(&buf));
                Ok(Reply::Filled(buf))
            }
            (Request::Write(bytes, durability), Some(file)) => {
                let len = bytes.len() as u64;
                let result = self.write(state, id, op, &file, len, durability);
                op.request = Request::Write(bytes, durability);
                result?;
                file.len.set(file.len.get().max(op.offset + len));
                Ok(Reply::Done)
            }
            (Request::Sync, Some(file)) => Ok(self.sync(state, op, &file)?),
            (Request::Allocate(len), Some(file)) => Ok(self.allocate(state, id, op, &file, len)?),
            (request, _) => Ok(self.metadata(state, id, op, request)?),
        }
    }

    fn trace_request(&self, op: &Op, request: &Request) {
        let runtime = &self.runtime;
        let Nanos(now) = runtime.now();
        let words = [
            now,
            op.task,
            request.code(),
            op.name_hash,
            op.offset,
            request.len(),
        ];
        for word in words {
            runtime.trace(word);
        }
        let mut counters = runtime.counters.borrow_mut();
        match request {
            Request::Read(buf) => {
                counters.reads += 1;
                counters.read_bytes += buf.len() as u64;
            }
            Request::Write(bytes, _) => {
                runtime.trace(content_hash(bytes));
                counters.writes += 1;
                counters.written_bytes += bytes.len() as u64;
            }
            Request::Sync => counters.syncs += 1,
            _ => counters.metadata += 1,
        }
    }

    fn read(
        &self,
        state: &mut State,
        op: &Op,
        file: &Handle,
        buf: &mut AlignedBuf,
    ) -> io::Result<()> {
        let State {
            platter,
            faults,
            rng,
            damage,
            ..
        } = state;
        let mut counters = self.runtime.counters.borrow_mut();
        let inode = platter.inode(file.inode);
        let end = op.offset + buf.len() as u64;
        if op.draw.hit(Fault::ReadError, faults.read_error) {
            counters.read_errors += 1;
            return Err(Errno::IO.into());
        }
        if end > inode.current.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let pages = op.offset / PAGE as u64..end / PAGE as u64;
        if op.draw.hit(Fault::Unreadable, faults.unreadable) {
            let no = pages.start + op.draw.detail(Fault::Unreadable) % (pages.end - pages.start);
            inode.unreadable.insert(no);
            counters.unreadable_pages += 1;
            damage.push(file.damage(DamageKind::Unreadable, no * PAGE as u64, PAGE as u64));
        }
        if inode.unreadable.range(pages.clone()).next().is_some() {
            return Err(Errno::IO.into());
        }
        if op.draw.hit(Fault::BitRot, faults.bit_rot) {
            let bit = op.offset * 8 + op.draw.detail(Fault::BitRot) % (buf.len() as u64 * 8);
            inode.rot(bit);
            counters.rotten_bits += 1;
            damage.push(file.damage(DamageKind::Rotten, bit / 8, 1));
        }
        let mut raced = false;
        for ((no, before), out) in pages.zip(&op.before).zip(buf.chunks_exact_mut(PAGE)) {
            raced |= inode.read_page(no, before.as_ref(), out, || rng.u8(..));
        }
        counters.read_races += u64::from(raced);
        Ok(())
    }

    fn write(
        &self,
        state: &mut State,
        id: u64,
        op: &Op,
        file: &Handle,
        len: u64,
        durability: Durability,
    ) -> Result<(), Errno> {
        let State {
            platter,
            faults,
            damage,
            ..
        } = state;
        let mut counters = self.runtime.counters.borrow_mut();
        let change = platter.land_in_flight(file.inode, id);
        let grows = platter.grows(file.inode, &change);
        let Change::Write(write) = change else {
            unreachable!("a write announced a write");
        };
        if op.draw.hit(Fault::WriteError, faults.write_error) {
            counters.write_errors += 1;
            let fate = partly(op.draw.detail(Fault::WriteError), write.pages.len());
            let base = &platter.inode(file.inode).current;
            if let Some(write) = write.befall(&fate, base) {
                platter.complete(file.inode, Change::Write(write), Landing::Forsaken)?;
            }
            return Err(Errno::IO);
        }
        if grows && op.draw.hit(Fault::NoSpace, faults.no_space) {
            counters.out_of_space += 1;
            return Err(Errno::NOSPC);
        }
        if op.draw.hit(Fault::LostWrite, faults.lost_write) {
            counters.lost_writes += 1;
            damage.push(file.damage(DamageKind::Lost, op.offset, len));
            return Ok(());
        }
        let landing = match durability {
            Durability::Visible => Landing::Pending,
            Durability::Synced => Landing::Durable,
        };
        if op
            .draw
            .hit(Fault::MisdirectedWrite, faults.misdirected_write)
            && let Some(elsewhere) = misdirect(platter, op, file, &write)
        {
            counters.misdirected_writes += 1;
            damage.push(file.damage(DamageKind::Lost, op.offset, len));
            let (inode, write, victim) = elsewhere;
            let offset = write.first_page * PAGE as u64;
            damage.push(Damage {
                kind: DamageKind::Misdirected,
                file: victim,
                offset,
                len: write.end() - offset,
            });
            return platter.complete(inode, Change::Write(write), landing);
        }
        let result = platter.complete(file.inode, Change::Write(write), landing);
        counters.out_of_space += u64::from(result.is_err());
        result
    }

    fn sync(&self, state: &mut State, op: &Op, file: &Handle) -> Result<Reply, Errno> {
        let inode = state.platter.inode(file.inode);
        if op.draw.hit(Fault::SyncError, state.faults.sync_error) {
            self.runtime.counters.borrow_mut().sync_errors += 1;
            inode.forsake(op.cut);
            return Err(Errno::IO);
        }
        inode.sync(op.cut);
        Ok(Reply::Done)
    }

    fn allocate(
        &self,
        state: &mut State,
        id: u64,
        op: &Op,
        file: &Handle,
        len: u64,
    ) -> Result<Reply, Errno> {
        let platter = &mut state.platter;
        let mut counters = self.runtime.counters.borrow_mut();
        let change = platter.land_in_flight(file.inode, id);
        let error = self.metadata_error(op, &state.faults, &mut counters.metadata_errors);
        if error == Some(false) {
            return Err(Errno::IO);
        }
        if platter.grows(file.inode, &change) {
            let refused = op.draw.hit(Fault::NoSpace, state.faults.no_space);
            let result = match refused {
                true => Err(Errno::NOSPC),
                false => platter.complete(file.inode, change, Landing::Pending),
            };
            counters.out_of_space += u64::from(result.is_err());
            result?;
        }
        if error.is_some() {
            return Err(Errno::IO);
        }
        file.len.set(file.len.get().max(len));
        Ok(Reply::Done)
    }

    /// Whether the operation fails, and if so, whether it has an effect nevertheless.
    fn metadata_error(&self, op: &Op, faults: &DiskFaults, count: &mut u64) -> Option<bool> {
        if !op.draw.hit(Fault::MetadataError, faults.metadata_error) {
            return None;
        }
        *count += 1;
        Some(op.draw.detail(Fault::MetadataError) & 1 == 1)
    }

    fn metadata(
        self: &Rc<Self>,
        state: &mut State,
        id: u64,
        op: &Op,
        request: Request,
    ) -> Result<Reply, Errno> {
        let mut counters = self.runtime.counters.borrow_mut();
        let faults = &state.faults;
        let platter = &mut state.platter;
        platter.names.in_flight.retain(|flying| flying.op != id);
        let error = self.metadata_error(op, faults, &mut counters.metadata_errors);
        if let (Request::SyncDir(path), Some(_)) = (&request, error) {
            platter.names.forsake(path, op.cut);
            counters.dir_sync_errors += 1;
        }
        let reads_only = matches!(
            request,
            Request::List(_) | Request::SyncDir(_) | Request::Open(_, OpenMode::Existing)
        );
        if error == Some(false) || error.is_some() && reads_only {
            return Err(Errno::IO);
        }
        let is_create = matches!(request, Request::Open(_, OpenMode::CreateNew));
        if is_create && op.draw.hit(Fault::NoSpace, faults.no_space) {
            counters.out_of_space += 1;
            return Err(Errno::NOSPC);
        }
        let created = match request.names() {
            Some(change) => platter.perform(&change),
            None => Ok(None),
        };
        counters.out_of_space += u64::from(matches!(created, Err(Errno::NOSPC)));
        let created = created?;
        drop(counters);
        if error.is_some() {
            return Err(Errno::IO);
        }
        match request {
            Request::Open(path, OpenMode::Existing) => {
                let inode = platter.names.file(&path)?;
                Ok(Reply::Opened(self.open(state, path, inode)))
            }
            Request::Open(path, OpenMode::CreateNew) => {
                let inode = created.expect("a creation creates");
                Ok(Reply::Opened(self.open(state, path, inode)))
            }
            Request::List(path) => {
                let len = |id| platter.inodes.get(&id).map_or(0, |inode| inode.current.len);
                Ok(Reply::Entries(platter.names.list(&path, len)?))
            }
            Request::SyncDir(path) => {
                platter.names.check_sync_dir(&path)?;
                platter.sync_dir(&path, op.cut);
                Ok(Reply::Done)
            }
            _ => Ok(Reply::Done),
        }
    }

    fn open(self: &Rc<Self>, state: &mut State, path: String, inode: InodeId) -> Rc<Handle> {
        let stream = state.stream(&path);
        let boot = state.boot;
        let file = state.platter.inode(inode);
        file.opens += 1;
        let len = Cell::new(file.current.len);
        Rc::new(Handle {
            disk: Disk(Rc::clone(self)),
            boot,
            inode,
            path,
            stream,
            len,
        })
    }
}

/// What a failed write leaves: all, nothing, or some sectors.
fn partly(detail: u64, pages: usize) -> Fate {
    match detail % 3 {
        0 => Fate::Dropped,
        1 => Fate::Kept,
        _ => {
            let sectors = (detail >> 8) as usize % (pages * SECTORS);
            let mask = |page: usize| match sectors.saturating_sub(page * SECTORS) {
                count if count >= SECTORS => WHOLE,
                count => ((1u16 << count) - 1) as u8,
            };
            Fate::Torn((0..pages).map(mask).collect())
        }
    }
}

/// Where a misdirected write lands: in a file that has room for it, at pages that it is not for.
fn misdirect(
    platter: &mut Platter,
    op: &Op,
    file: &Handle,
    write: &Write,
) -> Option<(InodeId, Write, String)> {
    let detail = op.draw.detail(Fault::MisdirectedWrite);
    let files: Vec<(String, InodeId)> = {
        let files = platter.names.files();
        files.map(|(name, id)| (name.to_owned(), id)).collect()
    };
    let (name, inode) = match detail & 1 {
        0 => (file.path.clone(), file.inode),
        _ => files
            .get((detail >> 1) as usize % files.len().max(1))?
            .clone(),
    };
    let room = platter.inode(inode).current.len / PAGE as u64;
    let places = (room + 1).checked_sub(write.pages.len() as u64)?;
    let first_page = (detail >> 32).checked_rem(places)?;
    if inode == file.inode && first_page == write.first_page {
        return None;
    }
    let write = Write {
        first_page,
        pages: write.pages.clone(),
    };
    Some((inode, write, name))
}

fn content_hash(bytes: &[u8]) -> u64 {
    foldhash::fast::FixedState::with_seed(0).hash_one(bytes)
}
