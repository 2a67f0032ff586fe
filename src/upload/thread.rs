//! The uploader's thread: a tokio runtime of its own, on which the SDK's requests run, too.
//!
//! Invariant: when the last shard has let go of its client, the thread ends, whatever is under way.

use super::{Runtime, Uploader};
use crate::config::RemoteConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::remote::connect;
use crate::types::Nanos;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::task::LocalSet;

/// Time that blocking calls of a remote get to end when the store is closed.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// The uploader's running thread.
pub(crate) struct UploaderThread(JoinHandle<()>);

impl UploaderThread {
    /// Waits for the thread to end. `Internal`, if it panicked.
    pub(crate) fn join(self) -> Result<()> {
        let panicked = |_| Error::internal("the uploader's thread has panicked");
        self.0.join().map_err(panicked)
    }
}

/// Starts the uploader on a thread of its own. That there is no such remote is told here.
pub(crate) fn start(config: RemoteConfig, uploader: Uploader) -> Result<UploaderThread> {
    let failed = |error: std::io::Error| {
        let message = format!("the uploader cannot be started: cause={error}");
        Error::with_source(ErrorKind::Full, message, error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (sender, connected) = std::sync::mpsc::channel();
    let is_new = uploader.is_of_new_store();
    let live = move || {
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            let remote = match connect(&config, is_new).await {
                Ok(remote) => remote,
                Err(error) => {
                    // Whoever waits for it is there as long as this thread has not answered.
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let _ = sender.send(Ok(()));
            uploader.run(Tokio, remote).await;
        });
        drop(local);
        runtime.shutdown_timeout(SHUTDOWN);
    };
    let thread = std::thread::Builder::new().name("ringstore-upload".to_owned());
    let thread = UploaderThread(thread.spawn(live).map_err(failed)?);
    match connected.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => thread.join().and(Err(error)),
        Err(_) => thread
            .join()
            .and(Err(Error::internal("the uploader has ended"))),
    }
}

/// Time and tasks of the thread's runtime.
#[derive(Clone)]
struct Tokio;

impl Runtime for Tokio {
    fn now(&self) -> Nanos {
        Clock::Real.now()
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(span)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    fn random(&self) -> u64 {
        // Only spreads retries out.
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(Clock::Real.now().0)
    }
}
