//! The command `ringstore` and other servers, as processes that a row speaks to.
//!
//! The command is the one that is built beside: what `RINGSTORE` names, else the release build of
//! the package around this one. Where there is none, a side says so and has no figures.
//!
//! Invariant: a process that was started here ends with its [`Server`], and what it mounted is
//! unmounted.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// How long a server may take to be there, in tenths of a second.
const PATIENCE: usize = 200;

/// A running server.
pub struct Server {
    child: Child,
    mounted: Option<PathBuf>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(point) = &self.mounted {
            // It ends by that; if it does not, it is killed all the same.
            let _ = Command::new("umount").arg(point).output();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, with its store in `dir`.
pub fn ringstore(dir: &Path) -> anyhow::Result<Command> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/ringstore");
    let path = std::env::var_os("RINGSTORE").map_or(beside, PathBuf::from);
    if !path.is_file() {
        bail!(
            "there is no ringstore: build it with --release --features fuse, or name it with \
             RINGSTORE; path={}",
            path.display()
        );
    }
    let mut command = Command::new(path);
    command.arg("-d").arg(dir).arg("-q");
    Ok(command)
}

impl Server {
    /// Starts a server and waits until it is there.
    pub fn start(command: &mut Command, is_there: impl Fn() -> bool) -> anyhow::Result<Server> {
        let program = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("it is not to be had: {}", program.display()))?;
        let mut server = Server {
            child,
            mounted: None,
        };
        for _ in 0..PATIENCE {
            if is_there() {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("it ended: {} {status}", program.display());
            }
            sleep(Duration::from_millis(100));
        }
        bail!("it does not come: {}", program.display())
    }

    /// The same for one that mounts something.
    pub fn mount(command: &mut Command, point: &Path) -> anyhow::Result<Server> {
        let is_mounted = || {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            mounts.contains(&point.display().to_string())
        };
        let mut server = Server::start(command, is_mounted)?;
        server.mounted = Some(point.to_owned());
        Ok(server)
    }
}

/// Something that failed once, for each who asks for it.
pub fn shared<T>(made: &anyhow::Result<T>) -> anyhow::Result<&T> {
    made.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}
