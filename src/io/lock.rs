//! One process, one engine per directory: the exclusive lock and who holds it.
//!
//! Invariants:
//! 1. The lock is the kernel's, on the open file: it ends with its process, however that ends, so
//!    the file's existence and its text mean nothing by themselves.
//! 2. It is given up by name, not by closing: a child that was forked meanwhile has the open file,
//!    too, and would keep the lock. One that has begun another program has not: the descriptor does
//!    not live through `exec`.
//! 3. The file is unlinked by its holder only, and who locks one that is no longer where it was
//!    begins anew: nobody has a lock that nobody else sees.
//!
//! Deliberately not here: waiting. Two engines on one directory are a mistake, not a queue.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{DirEntry, File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Name of the lock's file in the store's directory.
const FILE_NAME: &str = "LOCK";

/// What the text in the file begins with.
const SIGNATURE: &str = "pid=";

/// Longest text about the holder that is repeated in a message: a pid and a name.
const HOLDER_BYTES_MAX: u64 = 256;

/// The exclusive right to a store's directory, until it is dropped.
#[derive(Debug)]
pub(crate) struct DirLock {
    file: File,
}

impl DirLock {
    /// Takes the lock of `dir`, or says who has it.
    pub(crate) fn acquire(dir: &Path) -> Result<DirLock> {
        let mut file = open(dir)?;
        match file.try_lock() {
            Ok(()) if !is_at(&file, &dir.join(FILE_NAME)) => return DirLock::acquire(dir),
            Ok(()) => {}
            Err(refusal @ TryLockError::WouldBlock) => {
                let message = format!(
                    "the store is in use, close it there first: dir={} holder={}",
                    dir.display(),
                    holder(&mut file)
                );
                // By its source, a program tells this from other invalid input.
                return Err(Error::with_source(
                    ErrorKind::InvalidInput,
                    message,
                    refusal,
                ));
            }
            Err(TryLockError::Error(error)) => {
                let message = format!(
                    "the file system refuses to lock a file: dir={} cause={error}",
                    dir.display()
                );
                return Err(Error::with_source(ErrorKind::InvalidInput, message, error));
            }
        }
        // The lock is taken, not the file: another program's is left as it is.
        if !is_ours(&mut file) {
            return Err(Error::invalid(format!(
                "the directory has another program's lock file, give another one: dir={}",
                dir.display()
            )));
        }
        // The text only serves messages, so a full disk must not keep the store from opening.
        if let Err(error) = sign(&mut file) {
            tracing::debug!(%error, "the holder could not be noted in the lock's file");
        }
        Ok(DirLock { file })
    }

    /// Removes the lock's file from `dir`, the directory that it locks, if nothing else is there.
    /// Whether there is nothing any more.
    pub(crate) fn remove_alone(&self, dir: &Path) -> bool {
        let is_lock = |entry: std::io::Result<DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name() == FILE_NAME)
        };
        let is_alone = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.all(is_lock));
        is_alone && std::fs::remove_file(dir.join(FILE_NAME)).is_ok()
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // If that fails, closing does it, when nobody else has the open file.
        let _ = self.file.unlock();
    }
}

/// Whether an open file is the one that is found by its name.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |file: Metadata, found: Metadata| (file.dev(), file.ino()) == (found.dev(), found.ino());
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(file), Ok(found)) => same(file, found),
        _ => false,
    }
}

fn open(dir: &Path) -> Result<File> {
    let path = dir.join(FILE_NAME);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path);
    file.map_err(|error| {
        let message = format!(
            "the lock's file cannot be opened: path={} cause={error}",
            path.display()
        );
        Error::with_source(ErrorKind::InvalidInput, message, error)
    })
}

/// Writes who holds the lock into its file.
fn sign(file: &mut File) -> std::io::Result<()> {
    let exe = std::env::current_exe().ok();
    let name = exe.as_deref().and_then(Path::file_name);
    let name = name.map_or_else(|| "unknown".into(), |name| name.to_string_lossy());
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{SIGNATURE}{} exe={name}", std::process::id())
}

/// Whether the file is empty or was written by `sign`.
fn is_ours(file: &mut File) -> bool {
    let mut start = Vec::new();
    let read = file.take(SIGNATURE.len() as u64).read_to_end(&mut start);
    read.is_ok() && SIGNATURE.as_bytes().starts_with(&start)
}

/// What the lock's file says about its holder.
fn holder(file: &mut File) -> String {
    let mut text = Vec::new();
    match file.take(HOLDER_BYTES_MAX).read_to_end(&mut text) {
        Ok(0) | Err(_) => "unknown".to_owned(),
        Ok(_) => {
            let text = String::from_utf8_lossy(&text);
            text.trim().replace(char::is_control, "?")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn second_engine_is_told_who_has_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let pid = format!("pid={}", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        drop(lock);
        DirLock::acquire(dir.path()).unwrap();
    }

    // scenario 120
    // S-22
    #[test]
    fn whoever_else_has_the_open_file_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        // What a child has that was forked: the same open file.
        let forked = lock.file.try_clone().unwrap();
        assert!(DirLock::acquire(dir.path()).is_err());
        drop(lock);
        let second = DirLock::acquire(dir.path()).unwrap();
        drop(forked);
        assert!(DirLock::acquire(dir.path()).is_err());
        drop(second);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn it_takes_its_file_away_when_it_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::acquire(dir.path()).unwrap();
        let stale = open(dir.path()).unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        assert!(!lock.remove_alone(dir.path()));
        std::fs::remove_file(dir.path().join("other")).unwrap();
        assert!(lock.remove_alone(dir.path()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Who opened the file before locks nothing with it.
        assert!(!is_at(&stale, &dir.path().join(FILE_NAME)));
        let _second = DirLock::acquire(dir.path()).unwrap();
        assert!(DirLock::acquire(dir.path()).is_err());
    }

    #[test]
    fn file_is_private_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let _lock = DirLock::acquire(dir.path()).unwrap();
        let mode = dir.path().join(FILE_NAME).metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", other.path().join(FILE_NAME)).unwrap();
        assert!(DirLock::acquire(other.path()).is_err());
    }

    #[test]
    fn missing_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = DirLock::acquire(&dir.path().join("none")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
