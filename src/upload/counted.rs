//! A bucket whose requests are counted and timed, whoever makes them and why.
//!
//! Invariant: a request goes to the bucket as it came, and is counted once: when it has ended, or
//! nobody waits for it any more.

use super::Runtime;
use crate::remote::{Created, Failure, Listed, Remote, Request};
use crate::stats::{Ended, Requests, Verb};
use crate::sync::Mutex;
use crate::types::Nanos;
use bytes::Bytes;
use std::rc::Rc;
use std::sync::Arc;

pub(super) struct Counted<R> {
    remote: Rc<dyn Remote>,
    runtime: R,
    requests: Arc<Mutex<Requests>>,
}

impl<R: Runtime> Counted<R> {
    pub(super) fn new(
        remote: Rc<dyn Remote>,
        runtime: R,
        requests: Arc<Mutex<Requests>>,
    ) -> Counted<R> {
        Counted {
            remote,
            runtime,
            requests,
        }
    }

    fn count<'a, T: 'a>(&'a self, verb: Verb, request: Request<'a, T>) -> Request<'a, T> {
        Box::pin(async move {
            let mut under_way = UnderWay {
                counted: self,
                verb,
                from: self.runtime.now(),
                ended: Ended::GivenUp,
            };
            let result = request.await;
            under_way.ended = match &result {
                Err(failure) if !failure.is_answer() => Ended::Failed,
                // That there is no such object is an answer, too.
                _ => Ended::Answered,
            };
            result
        })
    }
}

/// A request under way; it is counted when this goes.
struct UnderWay<'a, R: Runtime> {
    counted: &'a Counted<R>,
    verb: Verb,
    from: Nanos,
    ended: Ended,
}

impl<R: Runtime> Drop for UnderWay<'_, R> {
    fn drop(&mut self) {
        let now = self.counted.runtime.now();
        let mut requests = self.counted.requests.lock();
        requests.record(self.verb, self.from, now, self.ended);
    }
}

impl<R: Runtime> Remote for Counted<R> {
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created> {
        self.count(Verb::Create, self.remote.create(name, body))
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes> {
        self.count(Verb::Get, self.remote.get(name, offset, len))
    }

    /// Not counted: the engine never asks.
    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64> {
        self.remote.head(name)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>> {
        self.count(Verb::List, self.remote.list(prefix, after, limit))
    }

    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>> {
        self.count(Verb::Delete, self.remote.delete(names))
    }
}
