//! A directory that stands for a bucket: one file an object.
//!
//! Invariants:
//! 1. A file under an object's name is whole and never changes: its bytes are written and synced
//!    under a temporary name, and `link`, which never replaces, gives it its own.
//! 2. What a request has answered survives a crash: the directory is synced before.
//! 3. A missing file is a missing object only as long as the directory is there. Else it is a disk
//!    that is not mounted, which must not look like an empty bucket.
//!
//! Calls block, so they run on the runtime's pool of threads; a request that is given up goes on
//! there. A crash may leave temporaries behind: no listing shows them, and the next opening removes
//! them. Should somebody else be writing one, it is written again: its `link` fails.

use super::{Created, Failure, FailureKind, Listed, Remote, Request, is_name};
use crate::error::{Error, ErrorKind};
use bytes::Bytes;
use std::fs::{DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the names of unfinished files begin; no object's name does.
const TEMPORARY_PREFIX: &str = ".tmp-";

/// A bucket in a directory.
pub(crate) struct Dir(Arc<Path>);

impl Dir {
    /// The bucket in this directory. It is made only for a new store: to any other, a directory
    /// that is missing is a remote that is away, and not an empty one.
    pub(crate) async fn open(path: PathBuf, is_new: bool) -> Result<Dir, Error> {
        let make = move |path: &Path| match is_new && !path.is_dir() {
            true => make_dir(path),
            false => {
                remove_temporaries(path);
                Ok(())
            }
        };
        let opened = blocking(move || match make(&path) {
            Ok(()) => Ok(Ok(path)),
            Err(error) => {
                let message = format!("the remote's directory cannot be made: path={path:?}");
                Ok(Err(Error::with_source(
                    ErrorKind::InvalidInput,
                    message,
                    error,
                )))
            }
        });
        let opened = opened.await.map_err(|failure| {
            Error::internal(format!("the remote cannot be opened: cause={failure}"))
        })?;
        Ok(Dir(opened?.into()))
    }

    /// Runs a call on an object's file.
    fn on_file<'a, T: Send + 'static>(
        &'a self,
        name: &'a str,
        call: impl FnOnce(&Path, &Path) -> Result<T, Failure> + Send + 'static,
    ) -> Request<'a, T> {
        if !is_name(name) {
            return Box::pin(async move { Err(Failure::bad_name(name)) });
        }
        let (dir, path) = (self.0.clone(), self.0.join(name));
        Box::pin(blocking(move || call(&dir, &path)))
    }
}

impl Remote for Dir {
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created> {
        self.on_file(name, move |dir, path| {
            create(dir, path, &body).map_err(|error| failure(&error))
        })
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes> {
        self.on_file(name, move |dir, path| {
            read(path, offset, len).map_err(|error| file_failure(dir, &error))
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64> {
        self.on_file(name, move |dir, path| match path.metadata() {
            Ok(found) => Ok(found.len()),
            Err(error) => Err(file_failure(dir, &error)),
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let dir = self.0.clone();
        Box::pin(blocking(move || {
            list(&dir, &prefix, after.as_deref(), limit).map_err(|error| failure(&error))
        }))
    }

    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>> {
        let (dir, names) = (self.0.clone(), names.to_vec());
        Box::pin(blocking(move || {
            let refused = names
                .into_iter()
                .filter_map(|name| delete(&dir, &name).err().map(|failure| (name, failure)))
                .collect();
            sync_dir(&dir).map_err(|error| failure(&error))?;
            Ok(refused)
        }))
    }
}

/// Runs a call that blocks where it may.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(
            FailureKind::Transient,
            format!("a blocking call has not ended: cause={error}"),
        )),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent() {
        // A name alone stands in the working directory.
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Removes unfinished files. One that stays harms nobody.
fn remove_temporaries(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn create(dir: &Path, path: &Path, body: &[Bytes]) -> io::Result<Created> {
    // Every state of the hasher is seeded anew. `create_new` refuses the name that comes twice.
    let random = RandomState::new().hash_one(path);
    let temporary = dir.join(format!("{TEMPORARY_PREFIX}{random:016x}"));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let published = publish(file, body, &temporary, path);
    let unlinked = std::fs::remove_file(&temporary);
    let created = published?;
    unlinked?;
    // The file of another, too: it may have been linked and not yet synced.
    sync_dir(dir)?;
    Ok(created)
}

fn publish(mut file: File, body: &[Bytes], from: &Path, to: &Path) -> io::Result<Created> {
    for part in body {
        file.write_all(part)?;
    }
    file.sync_all()?;
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(Created::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, offset: u64, len: u64) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let len = offset.saturating_add(len).min(end).saturating_sub(offset);
    let mut bytes = vec![0; len as usize];
    // The file never changes: an end that comes sooner is an error.
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

fn list(dir: &Path, prefix: &str, after: Option<&str>, limit: usize) -> io::Result<Vec<Listed>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        let is_later = after.is_none_or(|after| name.as_str() > after);
        if is_name(&name) && name.starts_with(prefix) && is_later {
            names.push(name);
        }
    }
    names.sort_unstable();
    let mut listed = Vec::new();
    for name in names {
        if listed.len() == limit {
            break;
        }
        match dir.join(&name).symlink_metadata() {
            Ok(found) if found.is_file() => listed.push(Listed {
                name,
                len: found.len(),
            }),
            Ok(_) => {}
            // Deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(listed)
}

fn delete(dir: &Path, name: &str) -> Result<(), Failure> {
    if !is_name(name) {
        return Err(Failure::bad_name(name));
    }
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure(&error)),
        _ => Ok(()),
    }
}

/// Why a call on an object's file failed.
fn file_failure(dir: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound if dir.is_dir() => Failure::missing(),
        _ => failure(error),
    }
}

/// Why a call failed for which nothing may be missing.
fn failure(error: &io::Error) -> Failure {
    use io::ErrorKind as Kind;
    let kind = match error.kind() {
        Kind::NotFound
        | Kind::PermissionDenied
        | Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::ReadOnlyFilesystem
        | Kind::Unsupported => FailureKind::Refused,
        _ => FailureKind::Transient,
    };
    Failure::new(kind, format!("the remote's directory fails: cause={error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::suite::{self, blocks_on};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keeps_the_rules() {
        let parent = tempfile::tempdir().unwrap();
        // scenario 125: signs that mean something in a URL mean nothing in a path
        let path = parent.path().join("a b+c?d%e/\u{fc}%20#/bucket");
        blocks_on(async {
            let dir = Dir::open(path.clone(), true).await.unwrap();
            suite::run(&dir).await;
        });
        // Nothing is left of the racing creates.
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn is_the_owners_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("bucket");
        blocks_on(async {
            let dir = Dir::open(path.clone(), true).await.unwrap();
            dir.create("a", vec![Bytes::from_static(b"1")])
                .await
                .unwrap();
        });
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("a")), 0o600);
    }

    #[test]
    fn shows_no_temporaries_nor_what_is_not_its_own() {
        let path = tempfile::tempdir().unwrap();
        std::fs::write(path.path().join(".tmp-12"), "half").unwrap();
        std::fs::write(path.path().join("README.md"), "a person's").unwrap();
        std::fs::create_dir(path.path().join("lost-found")).unwrap();
        blocks_on(async {
            let dir = Dir::open(path.path().to_owned(), true).await.unwrap();
            assert_eq!(dir.list("", None, 10).await.unwrap(), Vec::new());
        });
    }

    #[test]
    fn opening_removes_what_a_crash_has_left() {
        let path = tempfile::tempdir().unwrap();
        std::fs::write(path.path().join(".tmp-0123456789abcdef"), "half").unwrap();
        std::fs::write(path.path().join("d-1"), "whole").unwrap();
        blocks_on(Dir::open(path.path().to_owned(), false)).unwrap();
        let left = std::fs::read_dir(path.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["d-1"]);
    }

    #[test]
    fn missing_directory_is_no_empty_bucket() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("bucket");
        blocks_on(async {
            let dir = Dir::open(path.clone(), true).await.unwrap();
            std::fs::remove_dir(&path).unwrap();
            let refused = |failure: Failure| assert_eq!(failure.kind, FailureKind::Refused);
            refused(dir.get("a", 0, 1).await.unwrap_err());
            refused(dir.head("a").await.unwrap_err());
            refused(dir.list("", None, 1).await.unwrap_err());
            refused(dir.create("a", Vec::new()).await.unwrap_err());
            refused(dir.delete(&["a".to_owned()]).await.unwrap_err());
            assert!(!path.exists());
        });
    }

    #[test]
    fn names_do_not_lead_out() {
        let path = tempfile::tempdir().unwrap();
        blocks_on(async {
            let dir = Dir::open(path.path().to_owned(), true).await.unwrap();
            for name in ["../a", "/etc/passwd", "", ".tmp-1", "A"] {
                let failure = dir.create(name, Vec::new()).await.unwrap_err();
                assert_eq!(failure.kind, FailureKind::Refused, "{name}");
                let refused = dir.delete(&[name.to_owned()]).await.unwrap();
                assert_eq!(refused.len(), 1, "{name}");
            }
        });
    }

    #[test]
    fn says_why_it_cannot_be_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let opened = blocks_on(Dir::open(path, true));
        assert_eq!(opened.err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}
