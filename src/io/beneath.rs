//! Names in the store's directory by blocking calls: for the drivers whose runtime has none that
//! resolve a path beneath a directory.
//!
//! Invariants:
//! 1. A path is checked, then resolved from the store's directory without following a link, as
//!    `disk` has it.
//!
//! Deliberately not here: threads. Whoever calls this may block.

use crate::io::disk::{self, DIR_FLAGS, DIR_MODE, FILE_MODE, RESOLVE, Root, TRIES_MAX};
use crate::io::{DirEntry, OpenMode};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

fn open_beneath(root: &Root, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let mode = match flags.contains(OFlags::CREATE) {
        true => Mode::from_raw_mode(FILE_MODE),
        false => Mode::empty(),
    };
    let opened = again(|| Ok(rustix::fs::openat2(root, path, flags, mode, RESOLVE)?));
    match opened {
        // Linux has it since 5.6, but gVisor, where io_uring is refused as well, has not.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => {
            walk(root, path, flags, mode)
        }
        opened => opened,
    }
}

/// Opens a checked path name by name, following no link, for want of `openat2`.
fn walk(root: &Root, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let (dir, name) = disk::split(path);
    let mut at = root.as_fd().try_clone_to_owned()?;
    for part in dir.split('/').filter(|part| !part.is_empty()) {
        let flags = DIR_FLAGS | OFlags::PATH | OFlags::NOFOLLOW;
        at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
    }
    let flags = flags | OFlags::NOFOLLOW;
    again(|| Ok(rustix::fs::openat(&at, name, flags, mode)?))
}

/// Opens a file; also its length.
pub(super) fn open(root: &Root, path: &str, mode: OpenMode) -> io::Result<(OwnedFd, u64)> {
    disk::check_path(path)?;
    let flags = root.flags(mode);
    let fd = match open_beneath(root, path, flags) {
        Ok(fd) => fd,
        Err(error) => match root.retry_mode(&error, flags) {
            Some(flags) => open_beneath(root, path, flags)?,
            None => return Err(error),
        },
    };
    let len = root.inspect(fd.as_fd())?.len;
    Ok((fd, len))
}

/// Opens a directory, the store's own for the empty path.
fn open_dir(root: &Root, path: &str) -> io::Result<OwnedFd> {
    match path {
        "" => root.as_fd().try_clone_to_owned(),
        _ => open_beneath(root, path, DIR_FLAGS),
    }
}

/// Opens the directory of a path; also the name in it.
fn open_parent<'a>(root: &Root, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    disk::check_path(path)?;
    let (dir, name) = disk::split(path);
    Ok((open_dir(root, dir)?, name))
}

pub(super) fn create_dir(root: &Root, path: &str) -> io::Result<()> {
    let (dir, name) = open_parent(root, path)?;
    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(DIR_MODE)) {
        // Fine for a directory, and only that can be opened as one.
        Err(rustix::io::Errno::EXIST) => open_dir(root, path).map(drop),
        made => Ok(made?),
    }
}

pub(super) fn list(root: &Root, path: &str) -> io::Result<Vec<DirEntry>> {
    disk::check_dir_path(path)?;
    disk::list(open_dir(root, path)?.as_fd())
}

pub(super) fn rename(root: &Root, from: &str, to: &str) -> io::Result<()> {
    let (from_dir, from) = open_parent(root, from)?;
    let (to_dir, to) = open_parent(root, to)?;
    Ok(rustix::fs::renameat(&from_dir, from, &to_dir, to)?)
}

pub(super) fn unlink(root: &Root, path: &str) -> io::Result<()> {
    let (dir, name) = open_parent(root, path)?;
    Ok(rustix::fs::unlinkat(&dir, name, AtFlags::empty())?)
}

pub(super) fn sync_dir(root: &Root, path: &str) -> io::Result<()> {
    disk::check_dir_path(path)?;
    let dir = open_dir(root, path)?;
    again(|| Ok(rustix::fs::fsync(&dir)?))
}

/// Makes a call that moves nothing until it is no longer interrupted; bounded.
pub(super) fn again<T>(call: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match call() {
            Err(error) if disk::is_passing(&error) && tries < TRIES_MAX => tries += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walking_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::write(path("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("a/b/file"), path("a/link")).unwrap();
        let root = Root::open(dir.path(), false).unwrap();
        let open = |path| walk(&root, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        assert!(open("a/b/file").is_ok());
        assert!(walk(&root, "a/b", DIR_FLAGS, Mode::empty()).is_ok());
        for path in ["link/b/file", "a/link", "a/none", "none/file"] {
            assert!(open(path).is_err(), "{path}");
        }
        assert!(walk(&root, "link", DIR_FLAGS, Mode::empty()).is_err());
    }
}
