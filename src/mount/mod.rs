//! Payloads as files: a FUSE file system, on top of the public API.
//!
//! ```text
//! driver     the kernel's requests in, each a task of its own; the answers out
//!   files    reading, writing, cutting, punching, cloning, and what a file looks like
//!   names    folders and names: finding, making, removing, moving
//!     nodes  what the kernel holds: numbers, names, open files
//! ```
//!
//! An id is a path: `a/b` is the file `b` in the folder `a`. A folder is there as long as something
//! is in it; one that was made or emptied is remembered until the end of the mount.
//!
//! Invariants:
//! 1. While a node's payload is moved or removed, nothing else is done to it: an operation sees it
//!    under its old name or under its new one, and a late write makes no removed payload anew.
//! 2. A file that is removed while it is open can be used until it is closed, under a name that is
//!    not shown. What is left of those by a crash is removed at the next mount.
//! 3. `REQUESTS_MAX` requests are under way at most; more are not read from the kernel.
//!
//! Not shown: ids that are no paths (`..`, `a//b`, `/a`, `a/`), and what lies below a payload, for
//! a file has nothing in it. Not kept: modes, owners and times, which a payload has not; they are
//! what they were set to while the kernel holds the file.

mod clock;
mod driver;
mod files;
mod names;
mod nodes;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use ringstore::Store;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Requests under way: as many as a shard takes at once from one client, and 128 MiB of writes.
const REQUESTS_MAX: usize = 128;

/// A mounted store.
pub(crate) struct Mounted {
    /// Ends when the file system is unmounted, by whomever.
    pub(crate) ended: JoinHandle<io::Result<()>>,
    unmounter: SessionUnmounter,
}

impl Mounted {
    /// Unmounts; fails if files are open.
    pub(crate) fn unmount(&mut self) -> io::Result<()> {
        self.unmounter.unmount()
    }
}

/// What all requests share.
struct Shared {
    store: Store,
    /// Where the store is, for what the file system below it says of its space.
    dir: std::path::PathBuf,
    nodes: nodes::Nodes,
    listings: driver::Listings,
    permits: Arc<Semaphore>,
    runtime: Handle,
}

/// Mounts the store, which lies in `dir`, at `point`.
pub(crate) async fn mount(
    store: Store,
    dir: &Path,
    point: &Path,
    allow_other: bool,
) -> io::Result<Mounted> {
    names::remove_leftovers(&store).await?;
    let shared = Shared {
        store,
        dir: dir.to_owned(),
        nodes: nodes::Nodes::new(),
        listings: driver::Listings::default(),
        permits: Arc::new(Semaphore::new(REQUESTS_MAX)),
        runtime: Handle::current(),
    };
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(dir.display().to_string()),
        MountOption::Subtype("ringstore".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    options.acl = match allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    let driver = driver::Driver(Arc::new(shared));
    let point = point.to_owned();
    let session = tokio::task::spawn_blocking(move || Session::new(driver, point, &options));
    let mut session = session.await.map_err(io::Error::other)??;
    let unmounter = session.unmount_callable();
    let ended = tokio::task::spawn_blocking(move || session.run());
    Ok(Mounted { ended, unmounter })
}
