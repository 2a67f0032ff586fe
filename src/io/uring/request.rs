//! Operations and their entries: what the kernel is told, and what it may touch meanwhile.
//!
//! Invariants:
//! 1. A request owns everything that its entry points to, on the heap, so that it stays where it is
//!    when the request is moved.
//! 2. A fixed entry is made only for memory within the arena that this ring has registered.
//!
//! Deliberately not here: how long a request lives (`Ring`).

use super::driver::OpenFile;
use crate::buf::{AlignedBuf, Arena};
use crate::io::Durability;
use crate::io::disk::{DIR_MODE, Direction, Transfer};
use bytes::Bytes;
use io_uring::types::{Fd, Fixed, FsyncFlags, OpenHow};
use io_uring::{opcode, squeue};
use nix::libc::POLLIN;
use nix::sys::eventfd::EventFd;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// Index of the only registered buffer.
const ARENA_INDEX: u16 = 0;

/// An operation, with everything that the kernel reads or writes on its behalf.
pub(super) enum Request {
    Read {
        file: Rc<OpenFile>,
        offset: u64,
        buf: AlignedBuf,
    },
    Write {
        file: Rc<OpenFile>,
        offset: u64,
        bytes: Bytes,
        durability: Durability,
    },
    SyncFile {
        file: Rc<OpenFile>,
    },
    Allocate {
        file: Rc<OpenFile>,
        len: u64,
    },
    Open {
        dir: Rc<OwnedFd>,
        path: CString,
        how: Box<OpenHow>,
    },
    SyncDir {
        dir: Rc<OwnedFd>,
    },
    MakeDir {
        dir: Rc<OwnedFd>,
        name: CString,
    },
    Unlink {
        dir: Rc<OwnedFd>,
        name: CString,
    },
    Rename {
        from_dir: Rc<OwnedFd>,
        from: CString,
        to_dir: Rc<OwnedFd>,
        to: CString,
    },
    /// Tells of every kick from another thread. Nobody reads the event's counter: each write to it
    /// is news, and it would take more than a lifetime to fill.
    Kicks {
        event: Arc<EventFd>,
    },
}

/// How the kernel names a file.
#[derive(Clone, Copy)]
pub(super) enum FileName {
    Registered(u32),
    Plain(i32),
}

/// Builds an entry for a file under whichever name it has.
macro_rules! on_file {
    ($file:expr, |$fd:ident| $entry:expr) => {
        match $file.name() {
            FileName::Registered(slot) => {
                let $fd = Fixed(slot);
                $entry
            }
            FileName::Plain(fd) => {
                let $fd = Fd(fd);
                $entry
            }
        }
    };
}

impl Request {
    pub(super) fn transfer(&self) -> Transfer {
        match self {
            Request::Read { buf, .. } => Transfer::new(Direction::Read, buf.len()),
            Request::Write { bytes, .. } => Transfer::new(Direction::Write, bytes.len()),
            // Nothing to continue: of these only the tries are counted.
            _ => Transfer::new(Direction::Write, 0),
        }
    }

    /// The entry that goes on with it from where its transfer is; `arena` is registered.
    pub(super) fn entry(&mut self, transfer: &Transfer, arena: Option<&Arena>) -> squeue::Entry {
        let start = transfer.start();
        let piece = transfer.piece();
        match self {
            Request::Read { file, offset, buf } => {
                let memory = &mut buf[start..start + piece];
                let is_fixed = arena.is_some_and(|arena| arena.contains(memory));
                read_entry(file, *offset + start as u64, memory, is_fixed)
            }
            Request::Write {
                file,
                offset,
                bytes,
                durability,
            } => {
                let memory = &bytes[start..start + piece];
                let is_fixed = arena.is_some_and(|arena| arena.contains(memory));
                write_entry(file, *offset + start as u64, memory, *durability, is_fixed)
            }
            Request::SyncFile { file } => on_file!(file, |fd| opcode::Fsync::new(fd)
                .flags(FsyncFlags::DATASYNC)
                .build()),
            Request::Allocate { file, len } => {
                on_file!(file, |fd| opcode::Fallocate::new(fd, *len).build())
            }
            _ => self.name_entry(),
        }
    }

    /// The entry of an operation on names.
    fn name_entry(&mut self) -> squeue::Entry {
        let raw = |dir: &Rc<OwnedFd>| Fd(dir.as_raw_fd());
        match self {
            Request::Open { dir, path, how } => {
                opcode::OpenAt2::new(raw(dir), path.as_ptr(), &raw const **how).build()
            }
            Request::SyncDir { dir } => opcode::Fsync::new(raw(dir)).build(),
            Request::MakeDir { dir, name } => opcode::MkDirAt::new(raw(dir), name.as_ptr())
                .mode(DIR_MODE)
                .build(),
            Request::Unlink { dir, name } => opcode::UnlinkAt::new(raw(dir), name.as_ptr()).build(),
            Request::Rename {
                from_dir,
                from,
                to_dir,
                to,
            } => {
                let (from_dir, to_dir) = (raw(from_dir), raw(to_dir));
                opcode::RenameAt::new(from_dir, from.as_ptr(), to_dir, to.as_ptr()).build()
            }
            Request::Kicks { event } => {
                let fd = Fd(event.as_fd().as_raw_fd());
                opcode::PollAdd::new(fd, POLLIN as u32).multi(true).build()
            }
            Request::Read { .. }
            | Request::Write { .. }
            | Request::SyncFile { .. }
            | Request::Allocate { .. } => unreachable!("an operation on a file"),
        }
    }

    /// Notes in its file what it has done.
    pub(super) fn note_done(&self) {
        match self {
            Request::Write {
                file,
                offset,
                bytes,
                ..
            } => file.grow(offset + bytes.len() as u64),
            Request::Allocate { file, len } => file.grow(*len),
            _ => {}
        }
    }

    /// Whether a drain may stop it half-way: it changes nothing that outlives us.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(self, Request::Read { .. } | Request::Kicks { .. })
    }
}

fn read_entry(file: &OpenFile, offset: u64, memory: &mut [u8], is_fixed: bool) -> squeue::Entry {
    // No longer than a transfer's largest piece, which fits.
    let (start, len) = (memory.as_mut_ptr(), memory.len() as u32);
    match is_fixed {
        true => on_file!(file, |fd| opcode::ReadFixed::new(
            fd,
            start,
            len,
            ARENA_INDEX
        )
        .offset(offset)
        .build()),
        false => on_file!(file, |fd| opcode::Read::new(fd, start, len)
            .offset(offset)
            .build()),
    }
}

fn write_entry(
    file: &OpenFile,
    offset: u64,
    memory: &[u8],
    durability: Durability,
    is_fixed: bool,
) -> squeue::Entry {
    let (start, len) = (memory.as_ptr(), memory.len() as u32);
    let flags = match durability {
        Durability::Visible => 0,
        Durability::Synced => nix::libc::RWF_DSYNC,
    };
    match is_fixed {
        true => on_file!(file, |fd| opcode::WriteFixed::new(
            fd,
            start,
            len,
            ARENA_INDEX
        )
        .offset(offset)
        .rw_flags(flags)
        .build()),
        false => on_file!(file, |fd| opcode::Write::new(fd, start, len)
            .offset(offset)
            .rw_flags(flags)
            .build()),
    }
}
