//! Where a benchmark's store lives: in the directory that was given, or in one that goes away.

use crate::cli::args::Global;
use anyhow::Context;
use ringstore::Config;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and after how long each time, a directory that still changes is removed again: an
/// interrupted run leaves the store's threads at work for a moment.
const REMOVALS_MAX: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// The store's directory; one that was made for the purpose ends with this.
pub(crate) struct Place {
    dir: PathBuf,
    is_temporary: bool,
}

impl Place {
    /// The directory that was given.
    pub(crate) fn given(dir: &Path) -> Place {
        Place {
            dir: dir.to_owned(),
            is_temporary: false,
        }
    }

    /// A new directory: in `TMPDIR` if that is set, else under `target`, else here.
    ///
    /// Not in `/tmp` by itself, since that is memory on many machines.
    pub(crate) fn temporary() -> anyhow::Result<Place> {
        let parent = match std::env::var_os("TMPDIR") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ if Path::new("target").is_dir() => PathBuf::from("target"),
            _ => PathBuf::from("."),
        };
        let dir = tempfile::Builder::new()
            .prefix("ringstore-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("no store can be made: parent={}", parent.display()))?;
        Ok(Place {
            dir: dir.keep(),
            is_temporary: true,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration of a store here.
    pub(crate) fn config(&self, global: &Global) -> anyhow::Result<Config> {
        let here = Global {
            dir: Some(self.dir.clone()),
            ..global.clone()
        };
        crate::cli::settings::load(&here)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_temporary {
            return;
        }
        for _ in 0..REMOVALS_MAX {
            match std::fs::remove_dir_all(&self.dir) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
                Err(_) => {}
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
        tracing::warn!(dir = %self.dir.display(), "the directory could not be removed");
    }
}
