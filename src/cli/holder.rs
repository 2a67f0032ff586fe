//! A process that keeps a store open for others: `serve` and `mount`.
//!
//! Invariants:
//! 1. While it has the store, other commands reach it by the admin socket.
//! 2. It ends when it is interrupted, with everything durable, and exit code 0: that is how it is
//!    meant to end.

use super::admin;
use super::args::Global;
use super::{open, settings};
use anyhow::Context;
use ringstore::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// An open store, and the door for other commands.
pub(crate) struct Holder {
    pub(crate) store: Store,
    /// Where it is.
    #[cfg(feature = "fuse")]
    pub(crate) dir: std::path::PathBuf,
    stop: watch::Sender<bool>,
    admin: Option<(JoinHandle<()>, super::socket::SocketFile)>,
    interrupt: Signal,
    terminate: Signal,
}

impl Holder {
    /// Opens the store that the options name.
    pub(crate) async fn open(global: &Global) -> anyhow::Result<Holder> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let config = settings::load(global)?;
        let dir = config.dir.clone();
        let store = open(config, global).await?;
        let (stop, stopping) = watch::channel(false);
        let admin = match super::socket::listen(&dir.join(admin::SOCKET_NAME)) {
            Ok((listener, file)) => {
                let serving = admin::server::serve(listener, store.clone(), stopping);
                Some((tokio::spawn(serving), file))
            }
            Err(error) => {
                // What was asked for can be done without it.
                tracing::warn!("other commands cannot reach the store: error={error:#}");
                None
            }
        };
        Ok(Holder {
            store,
            #[cfg(feature = "fuse")]
            dir,
            stop,
            admin,
            interrupt,
            terminate,
        })
    }

    /// Becomes true when everything is to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Waits for SIGINT or SIGTERM.
    pub(crate) async fn interrupted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Tells everybody to stop, without waiting for it.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Ends the door for commands and closes the store.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.stop();
        let (served, file) = match self.admin {
            Some((serving, file)) => (serving.await, Some(file)),
            None => (Ok(()), None),
        };
        let closed = self.store.close().await;
        closed.context("the store could not be closed")?;
        drop(file);
        served.context("the admin socket ended early")
    }
}
