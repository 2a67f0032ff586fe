//! Sockets for those who may use the store: its owner, and nobody else.
//!
//! Invariants:
//! 1. A socket has mode 0600 from the moment that it exists.
//! 2. A socket that somebody serves is never taken away from them; one that was left behind is.
//! 3. Who made it removes it.

use anyhow::Context;
use rustix::fs::{Mode, fchmod};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixSocket};

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 128;

/// The file of a socket; it goes with this.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whether it could be removed or not: the next one to serve takes its place.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a socket and listens on it.
pub(crate) fn listen(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    clear(path)?;
    let made = || {
        let socket = UnixSocket::new_stream()?;
        // The file that binding makes has the mode of the socket.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(path)?;
        let file = SocketFile(path.to_owned());
        Ok((socket.listen(BACKLOG)?, file))
    };
    let made: io::Result<_> = made();
    made.with_context(|| format!("cannot listen: socket={}", path.display()))
}

/// Removes a socket that a killed process left.
fn clear(path: &Path) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let shown = path.display();
    anyhow::ensure!(found.file_type().is_socket(), "not a socket: path={shown}");
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove: path={shown}"))
        }
        _ => anyhow::bail!("another process serves it: socket={shown}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_socket_is_private_and_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(&path).is_err(), "it is in use");
        drop(listener);
        std::mem::forget(file);
        let (listener, file) = listen(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
        std::fs::write(&path, "a file").unwrap();
        assert!(listen(&path).is_err(), "not a socket");
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
