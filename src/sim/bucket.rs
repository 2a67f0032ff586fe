//! A bucket in the simulated universe: stricter than S3, slower, and less dependable.
//!
//! Invariants:
//! 1. A create is whole or nothing, and never replaces. It may happen, and seem to have failed; it
//!    may happen after the one who asked is dead.
//! 2. A get of a name is never stale; a listing may be.
//! 3. What goes wrong, and when, is drawn from the bucket's own random numbers: they depend on the
//!    seed and on the requests before, and on nothing else.

use crate::io::sim::Universe;
use crate::remote::{Created, Failure, FailureKind, Listed, Remote, Request};
use crate::types::Nanos;
use bytes::Bytes;
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// How often requests go wrong, each in 1,000.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct BucketFaults {
    /// It fails, and nothing has happened.
    pub(super) fails_before: u16,
    /// It fails, and it has happened.
    pub(super) fails_after: u16,
    /// It happens seconds later.
    pub(super) late: u16,
    /// There is never an answer.
    pub(super) hangs: u16,
    /// There is never an answer to who wants an object made.
    pub(super) deaf: u16,
    /// A byte of what is got is wrong.
    pub(super) flips: u16,
    /// What is got is cut short.
    pub(super) cuts: u16,
    /// A listing is as it was some names ago.
    pub(super) stale: u16,
}

/// Names that a stale listing does not show at most.
const STALE_NAMES: usize = 12;

/// Objects that are smaller do not queue for the way up.
const FEW_BYTES: usize = 16 << 10;

struct Inner {
    objects: RefCell<BTreeMap<String, Bytes>>,
    /// Names in the order in which they were made.
    order: RefCell<Vec<String>>,
    faults: RefCell<BucketFaults>,
    rng: RefCell<Rng>,
    away: Cell<bool>,
    /// Requests under way that will fail, whatever happens meanwhile.
    failing: Cell<usize>,
    /// How long each request takes, instead of one this and the next one that.
    latency: Cell<Option<Duration>>,
    /// Bytes a second that go up, and from when on the way there is free.
    uplink: Cell<Option<u64>>,
    free_from: Cell<Nanos>,
    /// Bytes a second that all objects on their way up share, if that is limited.
    shared_uplink: Cell<Option<u64>>,
    going_up: Cell<u32>,
}

/// An object on its way up, until it is there or given up.
struct UnderWay(Rc<Inner>);

impl UnderWay {
    fn new(inner: &Rc<Inner>) -> UnderWay {
        inner.going_up.update(|count| count + 1);
        UnderWay(inner.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.going_up.update(|count| count - 1);
    }
}

/// A bucket; clones share it.
#[derive(Clone)]
pub(super) struct Bucket {
    inner: Rc<Inner>,
    universe: Universe,
}

impl Bucket {
    pub(super) fn new(universe: &Universe, seed: u64) -> Bucket {
        Bucket {
            inner: Rc::new(Inner {
                objects: RefCell::default(),
                order: RefCell::default(),
                faults: RefCell::default(),
                rng: RefCell::new(Rng::with_seed(seed)),
                away: Cell::new(false),
                failing: Cell::new(0),
                latency: Cell::new(None),
                uplink: Cell::new(None),
                free_from: Cell::default(),
                shared_uplink: Cell::default(),
                going_up: Cell::default(),
            }),
            universe: universe.clone(),
        }
    }

    pub(super) fn set_faults(&self, faults: BucketFaults) {
        *self.inner.faults.borrow_mut() = faults;
    }

    /// Whether every request fails.
    pub(super) fn set_away(&self, away: bool) {
        self.inner.away.set(away);
    }

    /// Whether requests of a time when something was wrong have still to fail.
    pub(super) fn is_failing(&self) -> bool {
        self.inner.failing.get() > 0
    }

    /// Lets every request take so long.
    #[cfg(test)]
    fn set_latency(&self, span: Duration) {
        self.inner.latency.set(Some(span));
    }

    /// How many bytes a second can be put there, if that is limited.
    #[cfg(test)]
    fn set_uplink(&self, bytes_a_second: Option<u64>) {
        self.inner.uplink.set(bytes_a_second);
    }

    /// The same, shared by all that is on its way, as streams do.
    #[cfg(test)]
    fn share_uplink(&self, bytes_a_second: u64) {
        self.inner.shared_uplink.set(Some(bytes_a_second));
    }

    /// Lets bytes go up beside others, a second after the other.
    async fn go_up_beside(&self, bytes: usize, rate: u64) {
        let under_way = UnderWay::new(&self.inner);
        let mut left = bytes as f64;
        while left > 0.0 {
            self.universe.sleep(Duration::from_secs(1)).await;
            left -= rate as f64 / f64::from(under_way.0.going_up.get());
        }
    }

    /// How long bytes take that go up now, behind those that are on their way. A few bytes have
    /// hardly to wait, for streams share the way.
    fn way_up(&self, bytes: usize) -> Duration {
        let Some(rate) = self.inner.uplink.get() else {
            return Duration::ZERO;
        };
        let now = self.universe.now();
        let span = Duration::from_secs_f64(bytes as f64 / rate as f64);
        if bytes < FEW_BYTES {
            return span;
        }
        let there = self.inner.free_from.get().max(now).after(span);
        self.inner.free_from.set(there);
        there.since(now)
    }

    /// Bytes of the objects that are segments.
    pub(super) fn data_bytes(&self) -> u64 {
        let objects = self.inner.objects.borrow();
        let segments = objects.iter().filter(|(name, _)| name.starts_with("d-"));
        segments.map(|(_, object)| object.len() as u64).sum()
    }

    /// The names of all objects.
    #[cfg(test)]
    fn names(&self) -> Vec<String> {
        self.inner.objects.borrow().keys().cloned().collect()
    }

    /// Turns a bit of an object.
    #[cfg(test)]
    fn flip(&self, name: &str, at: usize) {
        let mut objects = self.inner.objects.borrow_mut();
        let object = objects.get_mut(name).expect("it is there");
        let mut bytes = object.to_vec();
        bytes[at] ^= 4;
        *object = bytes.into();
    }

    /// Takes an object away.
    #[cfg(test)]
    fn lose(&self, name: &str) {
        let gone = self.inner.objects.borrow_mut().remove(name);
        gone.expect("it is there");
    }

    /// Puts an object there by hand.
    #[cfg(test)]
    fn plant(&self, name: String, body: &'static [u8]) {
        let mut objects = self.inner.objects.borrow_mut();
        objects.insert(name, Bytes::from_static(body));
    }

    fn draw(&self, per_mille: impl Fn(&BucketFaults) -> u16) -> bool {
        let chance = per_mille(&self.inner.faults.borrow());
        // Without the fault no number is drawn for it.
        chance > 0 && self.inner.rng.borrow_mut().u16(..1000) < chance
    }

    /// Performs a request on the objects, after some time, whoever still waits for it.
    fn perform<T: 'static>(
        &self,
        bytes_up: usize,
        act: impl FnOnce(&Inner) -> Result<T, Failure> + 'static,
    ) -> Request<'_, T> {
        let lost = || Failure::new(FailureKind::Transient, "the connection was lost");
        let before = self.inner.away.get() || self.draw(|faults| faults.fails_before);
        let after = self.draw(|faults| faults.fails_after);
        let late = self.draw(|faults| faults.late);
        let hangs = self.draw(|faults| faults.hangs);
        let span = match (self.inner.latency.get(), late) {
            (Some(span), _) => span,
            (None, true) => Duration::from_millis(self.inner.rng.borrow_mut().u64(1000..20_000)),
            (None, false) => Duration::from_micros(self.inner.rng.borrow_mut().u64(500..30_000)),
        };
        let (inner, universe) = (self.inner.clone(), self.universe.clone());
        let fails = usize::from(before || after);
        inner.failing.update(|failing| failing + fails);
        let sleep = universe.sleep(span + self.way_up(bytes_up));
        let task = universe.spawn(async move {
            sleep.await;
            inner.failing.update(|failing| failing - fails);
            let away = before || inner.away.get();
            if away {
                return Err(lost());
            }
            let result = act(&inner);
            match after {
                true => Err(lost()),
                false => result,
            }
        });
        Box::pin(async move {
            if hangs {
                return std::future::pending().await;
            }
            task.await.unwrap_or_else(|| Err(lost()))
        })
    }
}

impl Remote for Bucket {
    fn create<'a>(&'a self, name: &'a str, body: Vec<Bytes>) -> Request<'a, Created> {
        if self.draw(|faults| faults.deaf) {
            return Box::pin(std::future::pending());
        }
        let (name, body) = (name.to_owned(), Bytes::from(body.concat()));
        let bytes = body.len();
        let make = move |inner: &Inner| {
            let mut objects = inner.objects.borrow_mut();
            if objects.contains_key(&name) {
                return Ok(Created::Exists);
            }
            objects.insert(name.clone(), body);
            inner.order.borrow_mut().push(name);
            Ok(Created::New)
        };
        match self.inner.shared_uplink.get() {
            Some(rate) if bytes >= FEW_BYTES => Box::pin(async move {
                self.go_up_beside(bytes, rate).await;
                self.perform(bytes, make).await
            }),
            _ => self.perform(bytes, make),
        }
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u64) -> Request<'a, Bytes> {
        let name = name.to_owned();
        let flips = self.draw(|faults| faults.flips);
        let cuts = self.draw(|faults| faults.cuts);
        self.perform(0, move |inner| {
            let objects = inner.objects.borrow();
            let object = objects.get(&name).ok_or_else(Failure::missing)?;
            let end = object.len() as u64;
            let range = offset.min(end) as usize..offset.saturating_add(len).min(end) as usize;
            let mut bytes = object.slice(range);
            if cuts && !bytes.is_empty() {
                return Err(Failure::new(
                    FailureKind::Transient,
                    "the body was cut short",
                ));
            }
            if flips && !bytes.is_empty() {
                let at = inner.rng.borrow_mut().usize(..bytes.len());
                let mut wrong = bytes.to_vec();
                wrong[at] ^= 0x10;
                bytes = wrong.into();
            }
            Ok(bytes)
        })
    }

    fn head<'a>(&'a self, name: &'a str) -> Request<'a, u64> {
        let name = name.to_owned();
        self.perform(0, move |inner| {
            let objects = inner.objects.borrow();
            let object = objects.get(&name).ok_or_else(Failure::missing)?;
            Ok(object.len() as u64)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> Request<'a, Vec<Listed>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let stale = self.draw(|faults| faults.stale);
        self.perform(0, move |inner| {
            let order = inner.order.borrow();
            let unseen = match stale {
                true => inner.rng.borrow_mut().usize(..=STALE_NAMES),
                false => 0,
            };
            let unseen: BTreeSet<&String> = order.iter().rev().take(unseen).collect();
            let objects = inner.objects.borrow();
            let listed = objects
                .range(prefix.clone()..)
                .take_while(|(name, _)| name.starts_with(&prefix))
                .filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after))
                .filter(|(name, _)| !unseen.contains(name));
            let listed = listed.map(|(name, object)| Listed {
                name: name.clone(),
                len: object.len() as u64,
            });
            Ok(listed.take(limit).collect())
        })
    }

    fn delete<'a>(&'a self, names: &'a [String]) -> Request<'a, Vec<(String, Failure)>> {
        let names = names.to_vec();
        self.perform(0, move |inner| {
            for name in names {
                inner.objects.borrow_mut().remove(&name);
            }
            Ok(Vec::new())
        })
    }
}

#[cfg(test)]
mod tests;
