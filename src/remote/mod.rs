//! The one door to a bucket: a flat space of named objects that are written once and never change.
//!
//! Rules that every remote keeps, and the conformance suite (`remote::suite`) checks:
//! 1. `create` makes an object whole or not at all, and never replaces one: of several that race
//!    for a name, one wins. A remote that cannot promise that must be opened with `unfenced`.
//! 2. A failure says nothing about whether the request was applied, unless its kind does.
//! 3. `get` gives exactly the bytes asked for, cut off at the object's end.
//! 4. `list` gives names in byte order. It may be stale; `get` and `head` are not.
//! 5. Names are made of `[0-9a-z-]`, at most [`NAME_MAX`] bytes.
//!
//! Deliberately not here: retries, deadlines, health and order (`upload`).

mod dir;
pub(crate) mod memory;
#[cfg(feature = "s3")]
mod s3;
#[cfg(test)]
pub(crate) mod suite;

use crate::config::RemoteConfig;
use crate::error::Error;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::fmt;
use std::rc::Rc;

/// Longest name of an object: file systems that stand behind buckets take 255.
pub(crate) const NAME_MAX: usize = 200;

/// A request under way. It stays on the uploader's thread; dropping it gives it up.
pub(crate) type Request<'a, T> = LocalBoxFuture<'a, Result<T, Failure>>;

/// What came of a create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Created {
    New,
    /// The name is taken, maybe by this very request, retried.
    Exists,
}

/// One name of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) len: u64,
}

/// Why a request failed: what to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FailureKind {
    /// There is no object of this name. The bucket is there.
    Missing,
    /// The object is there, and its bytes are not what was made: in the bucket, or on their way.
    Altered,
    /// The server, the network or their patience gave out: try again.
    Transient,
    /// It will fail again: access denied, no such bucket, a request that makes no sense.
    Refused,
    /// The server does not know this kind of request, or its conditions.
    Unsupported,
}

/// A request that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl Failure {
    /// Whether the bucket has answered all the same.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self.kind, FailureKind::Missing | FailureKind::Altered)
    }

    pub(crate) fn missing() -> Failure {
        Failure::new(FailureKind::Missing, "no such object")
    }

    /// No remote is asked for a name that none has.
    fn bad_name(name: &str) -> Failure {
        let message = format!("this cannot be an object's name: name={name:?}");
        Failure::new(FailureKind::Refused, message)
    }

    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A bucket.
pub(crate) trait Remote {
    /// Makes an object of the parts, one after the other, unless the name is taken.
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created>;

    /// The bytes of `[offset, offset + len)`; at or past the end there are none.
    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes>;

    /// Length in bytes of an object.
    #[allow(
        dead_code,
        reason = "the engine knows how long its objects are; tests ask"
    )]
    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64>;

    /// Up to `limit` names that begin with `prefix` and come after `after`.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>>;

    /// Deletes objects; missing ones are fine. The names that could not be deleted, and why.
    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>>;
}

/// Whether an object can have this name.
fn is_name(name: &str) -> bool {
    let is_sign = |sign: u8| matches!(sign, b'0'..=b'9' | b'a'..=b'z' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_sign)
}

/// Name of an object that only tells whether objects can be made.
pub(crate) fn probe_name(nonce: u64) -> String {
    format!("probe-{nonce:016x}")
}

/// Whether `create` refuses a name that is taken, as it has to: some servers take the condition and
/// ignore it, others do not know it. The name is one that nobody else probes with, and may be taken
/// afterwards.
pub(crate) async fn creates_conditionally(
    remote: &dyn Remote,
    name: &str,
) -> Result<bool, Failure> {
    // What the first answers says nothing: it may be our own, retried. The second finds the name
    // taken in any case.
    for body in [&b"first"[..], b"second"] {
        match remote.create(name, vec![Bytes::from_static(body)]).await {
            Ok(Created::New) => {}
            Ok(Created::Exists) => return Ok(true),
            Err(failure) if failure.kind == FailureKind::Unsupported => return Ok(false),
            Err(failure) => return Err(failure),
        }
    }
    Ok(false)
}

/// The bucket that a configuration names, for a new store or for one that may have it already.
/// Nobody is asked yet whether it is there.
pub(crate) async fn connect(config: &RemoteConfig, is_new: bool) -> Result<Rc<dyn Remote>, Error> {
    match config {
        RemoteConfig::Memory(name) => Ok(Rc::new(memory::Memory::named(name))),
        RemoteConfig::Dir(path) => Ok(Rc::new(dir::Dir::open(path.clone(), is_new).await?)),
        #[cfg(feature = "s3")]
        RemoteConfig::S3(config) => Ok(Rc::new(s3::S3::open(config).await?)),
        #[cfg(not(feature = "s3"))]
        RemoteConfig::S3(config) => Err(Error::invalid(format!(
            "this build has no S3 remotes, build it with the feature s3: bucket={}",
            config.bucket
        ))),
    }
}
