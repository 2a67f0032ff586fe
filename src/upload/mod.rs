//! The uploader: the one that speaks to the bucket, for all shards of a store.
//!
//! Shards hand over bytes and names; the uploader knows how many requests the bucket takes at once,
//! when to try again, when to give up, and whether the bucket is well. It sees no disk and no map.
//!
//! Invariants:
//! 1. What is to be kept (create, publish, delete) is tried until the bucket has taken it, however
//!    long it is away, or nobody wants it any more; what somebody waits for (get) fails within
//!    `GET_TIMEOUT`.
//! 2. At most `WINDOW_MAX` requests of the first kind are under way, fewer while the bucket balks.
//! 3. `health::FAILURES` failures in a row turn the bucket bad for what reads, or for what writes,
//!    and one success turns it good. While it is bad for reads, gets fail at once; while it is bad,
//!    it is asked now and then whether it is back.
//! 4. Once another engine has taken the bucket, nothing is written to it or deleted from it.
//!
//! Deliberately not here: which segments to upload and when (`shard::tier`).

mod between;
mod budget;
mod client;
mod counted;
mod health;
pub(crate) mod manifest;
mod probe;
mod publish;
mod take;
pub(crate) mod thread;
mod wanted;

use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::marks::mark;
use crate::remote::{Created, Failure, FailureKind, Listed, Remote, probe_name};
use crate::stats::Requests;
use crate::sync::Mutex;
use crate::sync::mailbox::{Receiver, mailbox};
use crate::sync::signal::Signal;
use crate::types::{Epoch, Nanos};
use between::Between;
use bytes::Bytes;
use client::Request;
use counted::Counted;
use health::{Health, Way};
use publish::Publisher;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use between::{Cause, Needs};
pub(crate) use client::Client;
pub(crate) use publish::{Identity, Recovered};
pub(crate) use take::Taker;
pub(crate) use wanted::Wanted;

/// Requests that wait for the uploader at most; shards wait beyond that.
const REQUESTS_MAX: usize = 1024;

/// Uploads under way at first: what fills a 10 Gbit/s link at 80 MB/s a stream.
const WINDOW_START: usize = 16;
const WINDOW_MAX: usize = 64;

/// Time that a get may take, tries included.
const GET_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that one try of a get may take before another is begun beside it.
const HEDGE_AFTER: Duration = Duration::from_secs(1);

/// Gets for each of them that may have another one beside it; so many may at once. On a link that
/// is full all of them are late, and more of them would be later still.
const GETS_PER_HEDGE: u32 = 10;
const HEDGES_MAX: u32 = 10;

/// Tries of a get at most.
const GET_TRIES: u32 = 5;

/// Time that one try of anything else may take, and how many bytes of an object a second more is
/// for: what stalls is the remote's to notice, what is only slow goes on.
const TRY_TIMEOUT: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// Pause after a failure: the first, doubled up to the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// From when on a request is slow, so that the bucket is asked whether it is there.
const SLOW: Duration = Duration::from_secs(10);

/// Time and tasks of the thread that the uploader lives on.
pub(crate) trait Runtime: Clone + 'static {
    fn now(&self) -> Nanos;
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static;
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    fn random(&self) -> u64;
}

impl<D: Driver> Runtime for D {
    fn now(&self) -> Nanos {
        Driver::now(self)
    }

    fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        Driver::sleep(self, span)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        Driver::spawn(self, task);
    }

    fn random(&self) -> u64 {
        Driver::random(self)
    }
}

/// The uploader before it runs.
pub(crate) struct Uploader {
    requests: Receiver<Request>,
    health: Arc<Health>,
    between: Arc<Between>,
    requests_made: Arc<Mutex<Requests>>,
    /// Who takes the bucket at once; `None`: whoever asks for it.
    identity: Option<Identity>,
}

/// An uploader for one opening of a store, and how to speak to it.
pub(crate) fn uploader(identity: Option<Identity>) -> (Client, Uploader) {
    let (sender, receiver) = mailbox(REQUESTS_MAX);
    let (health, between) = (Arc::new(Health::new()), Arc::new(Between::new()));
    let requests_made = Arc::new(Mutex::new(Requests::new()));
    let client = Client {
        requests: sender,
        health: health.clone(),
        between: between.clone(),
        budget: Arc::default(),
        requests_made: requests_made.clone(),
    };
    let uploader = Uploader {
        requests: receiver,
        health,
        between,
        requests_made,
        identity,
    };
    (client, uploader)
}

struct Inner<R> {
    runtime: R,
    remote: Rc<dyn Remote>,
    health: Arc<Health>,
    /// Uploads under way, and how many may be.
    uploading: Cell<usize>,
    window: Cell<usize>,
    window_due: Signal,
    /// What gets have earned of second ones beside them.
    hedge_credit: Cell<u32>,
    /// Another engine has the bucket, or it cannot be written to: why.
    fenced: RefCell<Option<Error>>,
    /// Ways that are being probed, and the object that probes make.
    probing: RefCell<Vec<Way>>,
    probe: String,
}

struct Service<R>(Rc<Inner<R>>);

impl<R> Clone for Service<R> {
    fn clone(&self) -> Service<R> {
        Service(self.0.clone())
    }
}

impl Uploader {
    /// Whether the store is opened for the first time.
    fn is_of_new_store(&self) -> bool {
        let identity = self.identity.as_ref();
        identity.is_some_and(|identity| identity.epoch == Epoch(1))
    }

    /// Serves the shards until the last of them is gone.
    pub(crate) async fn run<R: Runtime>(mut self, runtime: R, remote: Rc<dyn Remote>) {
        let service = Service(Rc::new(Inner {
            runtime: runtime.clone(),
            remote: Rc::new(Counted::new(remote, runtime.clone(), self.requests_made)),
            health: self.health.clone(),
            uploading: Cell::new(0),
            window: Cell::new(WINDOW_START),
            window_due: Signal::default(),
            hedge_credit: Cell::new(GETS_PER_HEDGE * HEDGES_MAX),
            fenced: RefCell::new(None),
            probing: RefCell::default(),
            probe: probe_name(runtime.random()),
        }));
        let publisher = Publisher::new(service.clone(), self.identity, self.between);
        publisher.start();
        let mut batch = VecDeque::new();
        while self.requests.drain(&mut batch).await {
            for request in batch.drain(..) {
                service.start(request, &publisher);
            }
        }
    }
}

impl<R: Runtime> Service<R> {
    fn start(&self, request: Request, publisher: &Publisher<R>) {
        let service = self.clone();
        match request {
            Request::Claimed {
                shard,
                recovered,
                reply,
            } => publisher.register(shard, recovered, reply),
            Request::Probe(reply) => self.0.runtime.spawn(async move {
                reply.send(service.asked_once().await);
            }),
            Request::Look => self.look(),
            Request::Publish(update) => publisher.submit(update),
            Request::Successor { taker, reply } => self.0.runtime.spawn(async move {
                reply.send(take::successor(&service, taker).await);
            }),
            Request::Take { successor, reply } => self.0.runtime.spawn(async move {
                reply.send(take::take(&service, &successor).await);
            }),
            Request::Create {
                name,
                body,
                wanted,
                reply,
            } => self.0.runtime.spawn(async move {
                reply.send(service.create(&name, body, &wanted).await);
            }),
            Request::Get {
                name,
                offset,
                len,
                reply,
            } => self.0.runtime.spawn(async move {
                reply.send(service.get(&name, offset, len).await);
            }),
            Request::List {
                prefix,
                after,
                reply,
            } => self.0.runtime.spawn(async move {
                reply.send(service.list(&prefix, after.as_deref()).await);
            }),
            Request::Delete { names, reply } => self.0.runtime.spawn(async move {
                reply.send(service.delete(&names).await);
            }),
        }
    }

    /// Makes an object, trying until it is there, or is not wanted any more. Between tries others
    /// have its place: streams that are too many for a link would all fail again together.
    async fn create(&self, name: &str, body: Vec<Bytes>, wanted: &Wanted) -> Result<Created> {
        let bytes: u64 = body.iter().map(|part| part.len() as u64).sum();
        let timeout = TRY_TIMEOUT + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        let mut pause = BACKOFF_MIN;
        loop {
            let free = || (self.0.uploading.get() < self.0.window.get()).then_some(());
            self.0.window_due.until(free).await;
            self.check_wanted(wanted)?;
            self.0.uploading.set(self.0.uploading.get() + 1);
            let create = self.0.remote.create(name, body.clone());
            let tried = self.tried(Way::Writes, timeout, create).await;
            self.0.uploading.set(self.0.uploading.get() - 1);
            self.0.window_due.notify();
            match tried {
                Ok(created) => return Ok(created),
                Err(_) => pause = self.back_off(pause).await,
            }
        }
    }

    fn check_wanted(&self, wanted: &Wanted) -> Result<()> {
        if let Some(error) = &*self.0.fenced.borrow() {
            return Err(error.clone());
        }
        match wanted.is_set() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unavailable,
                "it is not wanted any more",
            )),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>> {
        let list = async || self.0.remote.list(prefix, after, 1000).await;
        self.until_taken(Way::Reads, list).await
    }

    async fn delete(&self, names: &[String]) -> Result<()> {
        let mut left = names.to_vec();
        while !left.is_empty() {
            let failed = self
                .until_taken(Way::Writes, async || self.0.remote.delete(&left).await)
                .await?;
            left = failed.into_iter().map(|(name, _)| name).collect();
            if !left.is_empty() {
                self.0.runtime.sleep(BACKOFF_MAX).await;
            }
        }
        Ok(())
    }

    /// Tries until the bucket has answered, or has been taken by another engine.
    async fn until_taken<T>(
        &self,
        way: Way,
        request: impl AsyncFn() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut pause = BACKOFF_MIN;
        loop {
            self.check_wanted(&Wanted::default())?;
            match self.tried(way, TRY_TIMEOUT, request()).await {
                Ok(value) => return Ok(value),
                Err(_) => pause = self.back_off(pause).await,
            }
        }
    }

    /// Pauses, for half to all of the span; gives the next one.
    async fn back_off(&self, pause: Duration) -> Duration {
        let half = pause / 2;
        let jitter = self.0.runtime.random() % half.as_nanos().max(1) as u64;
        let span = half + Duration::from_nanos(jitter);
        self.0.runtime.sleep(span).await;
        (pause * 2).min(BACKOFF_MAX)
    }

    /// One try, with a deadline; how it went goes into health and window.
    async fn tried<T>(
        &self,
        way: Way,
        timeout: Duration,
        request: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        let mut request = std::pin::pin!(request);
        let soon = SLOW.min(timeout);
        let result = match within(&self.0.runtime, soon, request.as_mut()).await {
            None if soon < timeout => {
                // It may be a large one, or nobody may be there.
                self.start_probing(way);
                within(&self.0.runtime, timeout - soon, request).await
            }
            result => result,
        };
        let result = result.unwrap_or_else(|| Err(no_answer(timeout)));
        match &result {
            Err(failure) if !failure.is_answer() => {
                self.0.window.set((self.0.window.get() / 2).max(1));
                self.note_failure(way, failure);
            }
            _ => {
                let window = self.0.window.get();
                self.0.window.set((window + 1).min(WINDOW_MAX));
                self.0.health.note_success(way, self.0.runtime.now());
            }
        }
        result
    }

    fn note_failure(&self, way: Way, failure: &Failure) {
        let now = self.0.runtime.now();
        if self.0.health.note_failure(way, failure, now) {
            self.start_probing(way);
        }
    }

    /// Bytes of an object, soon or not at all.
    async fn get(&self, name: &str, offset: u64, len: u64) -> Result<Bytes> {
        let tries = self.get_tries(name, offset, len);
        let result = within(&self.0.runtime, GET_TIMEOUT, tries).await;
        let result = result.unwrap_or_else(|| Err(no_answer(GET_TIMEOUT)));
        result.map_err(|failure| {
            let kind = match failure.kind {
                FailureKind::Missing | FailureKind::Altered => ErrorKind::Corrupt,
                FailureKind::Transient | FailureKind::Refused | FailureKind::Unsupported => {
                    ErrorKind::Unavailable
                }
            };
            Error::new(
                kind,
                format!("bytes cannot be had from the remote: {failure} name={name}"),
            )
        })
    }

    async fn get_tries(
        &self,
        name: &str,
        offset: u64,
        len: u64,
    ) -> std::result::Result<Bytes, Failure> {
        let mut pause = BACKOFF_MIN;
        let mut tries = 1;
        loop {
            let failure = match self.hedged_get(name, offset, len).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            if failure.kind == FailureKind::Missing || tries == GET_TRIES {
                return Err(failure);
            }
            tries += 1;
            pause = self.back_off(pause).await;
        }
    }

    /// One get, and a second one beside it when the first takes long.
    async fn hedged_get(
        &self,
        name: &str,
        offset: u64,
        len: u64,
    ) -> std::result::Result<Bytes, Failure> {
        let get = || {
            let request = self.0.remote.get(name, offset, len);
            self.tried(Way::Reads, GET_TIMEOUT, request)
        };
        let credit = &self.0.hedge_credit;
        credit.set((credit.get() + 1).min(GETS_PER_HEDGE * HEDGES_MAX));
        let mut first = std::pin::pin!(get());
        if let Some(result) = within(&self.0.runtime, HEDGE_AFTER, first.as_mut()).await {
            return result;
        }
        let Some(left) = credit.get().checked_sub(GETS_PER_HEDGE) else {
            mark("late get left alone");
            return first.await;
        };
        credit.set(left);
        let second = std::pin::pin!(get());
        futures_util::future::select(first, second)
            .await
            .factor_first()
            .0
    }

    fn fence(&self, error: Error) {
        tracing::error!(%error, "uploads have ended");
        self.0.fenced.borrow_mut().get_or_insert(error);
        self.0.window_due.notify();
    }
}

fn no_answer(span: Duration) -> Failure {
    Failure::new(FailureKind::Transient, format!("no answer in {span:?}"))
}

/// Resolves to `None` if `span` passes first.
pub(crate) async fn within<R: Runtime, T>(
    runtime: &R,
    span: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let future = std::pin::pin!(future);
    let timer = std::pin::pin!(runtime.sleep(span));
    match futures_util::future::select(future, timer).await {
        futures_util::future::Either::Left((value, _)) => Some(value),
        futures_util::future::Either::Right(_) => None,
    }
}
