//! Taking the bucket from somebody else, for a node that has nothing of its own.
//!
//! Invariant: nothing is claimed before it is known that the remote lets only one of several make
//! an object, unless that does not matter.

use super::health::Way;
use super::manifest::Manifest;
use super::publish::{TAKE_OVER_TRIES, create, is_newest, newest};
use super::{BACKOFF_MIN, Runtime, Service, TRY_TIMEOUT};
use crate::error::{Error, ErrorKind, Result};
use crate::remote::{Failure, FailureKind, creates_conditionally, probe_name};
use crate::types::{Epoch, NodeId};
use futures_util::future::join;
use std::time::Duration;

/// A claim that took longer may have come too late: nobody publishes `MANIFESTS_KEPT` times before.
const LATE_AFTER: Duration = Duration::from_secs(2);

/// Who takes the bucket from somebody else, for a node that has nothing.
#[derive(Clone, Copy)]
pub(crate) struct Taker {
    pub(crate) node: NodeId,
    /// How far its epoch is ahead of theirs.
    pub(crate) ahead: u64,
    /// How many shards it wants; `None`: as many as there are.
    pub(crate) shards: Option<usize>,
    /// Take it also where objects cannot be created conditionally.
    pub(crate) unfenced: bool,
}

/// Whether the remote lets only one of several make an object.
pub(super) async fn fences<R: Runtime>(service: &Service<R>) -> std::result::Result<bool, Failure> {
    let name = probe_name(service.0.runtime.random());
    let fences = creates_conditionally(&*service.0.remote, &name).await;
    let deleting = service.clone();
    service.0.runtime.spawn(async move {
        // What stays is a few bytes that nobody reads.
        let _ = deleting.delete(&[name]).await;
    });
    fences
}

pub(super) fn does_not_fence() -> Error {
    Error::invalid(
        "the remote replaces objects that it should refuse to, or does not know how: two engines \
         could write to it; if there is only one, set S3Config::unfenced",
    )
}

/// The manifest by which a node that has nothing would take the bucket from whoever has it.
pub(super) async fn successor<R: Runtime>(service: &Service<R>, taker: Taker) -> Result<Manifest> {
    let newest = reached(service, Way::Reads, async || {
        newest(&*service.0.remote).await
    });
    let fences = async {
        match taker.unfenced {
            true => Ok(true),
            false => reached(service, Way::Writes, async || fences(service).await).await,
        }
    };
    let (newest, fences) = join(newest, fences).await;
    let Some(newest) = newest? else {
        return Err(Error::invalid("the remote holds no store"));
    };
    if !fences? {
        return Err(does_not_fence());
    }
    let made_with = newest.shards.len();
    if let Some(shards) = taker.shards.filter(|shards| *shards != made_with) {
        return Err(Error::invalid(format!(
            "the store was made with another number of shards, leave it out or give that: \
             made_with={made_with} shards={shards}"
        )));
    }
    let number = newest.number + 1;
    Ok(Manifest {
        number,
        node: taker.node,
        epoch: Epoch(newest.epoch.0 + 1 + taker.ahead),
        writer: service.0.runtime.random(),
        claim: number,
        ..newest
    })
}

/// Takes the bucket by a successor. False: somebody else was faster.
///
/// Whether its number had been made and deleted long ago, as whoever publishes does, this asks only
/// when there was time for that: otherwise it would be one more request to wait for. Who opens what
/// was restored takes the bucket once more, and would learn that he is fenced.
pub(super) async fn take<R: Runtime>(service: &Service<R>, successor: &Manifest) -> Result<bool> {
    let began = service.0.runtime.now();
    let create = async || create(&*service.0.remote, successor).await;
    let made = reached(service, Way::Writes, create).await?;
    if !made || service.0.runtime.now().since(began) <= LATE_AFTER {
        return Ok(made);
    }
    let is_newest = async || is_newest(&*service.0.remote, successor).await;
    reached(service, Way::Reads, is_newest).await
}

/// Tries until the bucket has answered, some times.
async fn reached<R: Runtime, T>(
    service: &Service<R>,
    way: Way,
    request: impl AsyncFn() -> std::result::Result<T, Failure>,
) -> Result<T> {
    let (mut pause, mut last) = (BACKOFF_MIN, None);
    for _ in 0..TAKE_OVER_TRIES {
        match service.tried(way, TRY_TIMEOUT, request()).await {
            Ok(value) => return Ok(value),
            Err(failure) => {
                tracing::debug!(%failure, "the remote cannot be taken yet");
                last = Some(failure);
                pause = service.back_off(pause).await;
            }
        }
    }
    let failure = last.expect("it was tried");
    let kind = match failure.kind {
        FailureKind::Altered => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    let message = format!("the remote cannot be taken: {failure}");
    Err(Error::new(kind, message))
}
