//! Accepts clients, up to a cap, and ends them when it is told to.
//!
//! Invariants:
//! 1. When `serve` returns, nothing of it uses the store any more.
//! 2. A client that fails takes nothing else with it.

use super::handshake::{Exports, negotiate};
use super::session::{self, stopped};
use ringstore::Store;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

/// How long clients may take to hear their last replies when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Pause after a client could not be accepted: what is short then, files, comes back in time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server is started with.
pub(crate) struct Options {
    /// Make exports of this size when a client asks for one that is missing.
    pub(crate) create: Option<u64>,
    /// Most clients at a time.
    pub(crate) clients_max: usize,
}

/// Serves the store's payloads until `stop` says so.
pub(crate) async fn serve(
    listener: UnixListener,
    store: Store,
    options: Options,
    mut stop: watch::Receiver<bool>,
) {
    let exports = Arc::new(Exports {
        store,
        create: options.create,
        creating: Mutex::new(()),
    });
    let mut clients = JoinSet::new();
    let stopping = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(_) if clients.len() >= options.clients_max => {
                    warn!("client refused, too many are there: max={}", options.clients_max);
                }
                Ok((stream, _)) => {
                    clients.spawn(client(stream, exports.clone(), stopping.clone()));
                }
                Err(error) => {
                    warn!("a client could not be accepted: error={error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = clients.join_next() => report(ended),
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let all_ended = async {
        while let Some(ended) = clients.join_next().await {
            report(ended);
        }
    };
    if timeout(GRACE, all_ended).await.is_err() {
        warn!(
            "clients did not take their replies: clients={}",
            clients.len()
        );
        clients.shutdown().await;
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(panic) = ended {
        error!("a client ended in a defect of the server: error={panic}");
    }
}

async fn client(mut stream: UnixStream, exports: Arc<Exports>, mut stop: watch::Receiver<bool>) {
    let agreed = tokio::select! {
        agreed = negotiate(&mut stream, &exports) => agreed,
        () = stopped(&mut stop) => return,
    };
    drop(exports);
    let served = match agreed {
        Ok(None) => return,
        Ok(Some(agreed)) => {
            info!("client connected: export={}", agreed.export.id);
            session::serve(stream, agreed, &mut stop).await
        }
        Err(error) => Err(error),
    };
    match served {
        Ok(()) => info!("client left"),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            warn!("client sent what is not NBD: error={error}");
        }
        Err(error) => debug!("client went away: error={error}"),
    }
}
