//! Taking the bucket, and saying what counts in it.
//!
//! Invariants:
//! 1. The bucket is taken by making the manifest behind the newest one. Whoever had it before would
//!    have to make that very number next, and learns there that it is too late.
//! 2. One manifest is under way at a time; what shards bring meanwhile goes into the next.
//! 3. A shard's state is published only with what it needs of other shards: a payload that moved is
//!    in the bucket under its new shard before its deletion from the old one is. After an opening,
//!    the first manifest has all that was recovered of every shard, or nothing of any.
//! 4. A manifest is deleted only when the next multiple of `MANIFESTS_KEPT`, which stays, is there.
//!    Who was away for so long that its number is free again makes it, and finds that one.

use super::between::{Between, Needs};
use super::health::Way;
use super::manifest::parse_manifest_name;
use super::manifest::{MANIFEST_PREFIX, Manifest, ShardState, manifest_name};
use super::take::{does_not_fence, fences};
use super::{BACKOFF_MIN, Runtime, Service, TRY_TIMEOUT};
use crate::error::{Error, ErrorKind, Result};
use crate::log::checksum::StoreId;
use crate::marks::{mark, planted};
use crate::remote::{Created, Failure, FailureKind, Listed, Remote};
use crate::sync::signal::Signal;
use crate::sync::slot::Reply;
use crate::types::{Ancestors, Epoch, Lsn, NodeId, ShardId};
use bytes::Bytes;
use futures_util::future::join;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Manifests up to the newest that are kept. Of the older ones the first and the multiples of this
/// are; see [`newest`].
const MANIFESTS_KEPT: u64 = 64;

/// Longest manifest that is believed.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Tries to reach a bucket before the one who wants to take it over is told; and tries to read the
/// manifest before it counts as altered.
pub(super) const TAKE_OVER_TRIES: usize = 8;

/// Who takes the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) store: StoreId,
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) ancestors: Ancestors,
    pub(crate) segment_bytes: u64,
    pub(crate) shards: usize,
    /// Write also where objects cannot be created conditionally.
    pub(crate) unfenced: bool,
}

/// What a shard has after its opening.
#[derive(Clone, Copy)]
pub(crate) struct Recovered {
    /// The batch behind the last one.
    pub(crate) end: Lsn,
    /// It believes that something of it is in the bucket.
    pub(crate) any_uploaded: bool,
}

/// What a shard wants to have published.
pub(super) struct Update {
    pub(super) shard: ShardId,
    pub(super) state: ShardState,
    pub(super) needs: Vec<Needs>,
    pub(super) reply: Reply<Result<()>>,
}

/// A shard that waits for the bucket to be taken.
type Registration = (ShardId, Reply<Result<ShardState>>);

#[derive(Default)]
struct State {
    /// What counts now; `None` until the bucket is taken.
    current: Option<Manifest>,
    registered: Vec<Registration>,
    /// What each shard has recovered, until all of that is published.
    recovered: Option<Vec<Option<Recovered>>>,
    updates: Vec<Update>,
}

/// Takes the bucket and publishes.
pub(super) struct Publisher<R> {
    service: Service<R>,
    identity: Option<Identity>,
    between: Arc<Between>,
    /// Random for each opening.
    writer: u64,
    state: Rc<RefCell<State>>,
    due: Rc<Signal>,
}

impl<R: Runtime> Publisher<R> {
    pub(super) fn new(
        service: Service<R>,
        identity: Option<Identity>,
        between: Arc<Between>,
    ) -> Publisher<R> {
        let shards = identity.as_ref().map_or(0, |identity| identity.shards);
        let state = State {
            recovered: Some(vec![None; shards]),
            ..State::default()
        };
        Publisher {
            writer: service.0.runtime.random(),
            service,
            identity,
            between,
            state: Rc::new(RefCell::new(state)),
            due: Rc::new(Signal::default()),
        }
    }

    fn share(&self) -> Publisher<R> {
        Publisher {
            service: self.service.clone(),
            identity: self.identity.clone(),
            between: self.between.clone(),
            writer: self.writer,
            state: self.state.clone(),
            due: self.due.clone(),
        }
    }

    /// A shard asks for what the bucket has of it.
    pub(super) fn register(
        &self,
        shard: ShardId,
        recovered: Recovered,
        reply: Reply<Result<ShardState>>,
    ) {
        let mut state = self.state.borrow_mut();
        if let Some(all) = &mut state.recovered {
            all[usize::from(shard.0)] = Some(recovered);
        }
        state.registered.push((shard, reply));
        drop(state);
        self.answer_registered();
        self.due.notify();
    }

    pub(super) fn submit(&self, update: Update) {
        self.state.borrow_mut().updates.push(update);
        self.due.notify();
    }

    fn answer_registered(&self) {
        let mut state = self.state.borrow_mut();
        let fenced = self.service.0.fenced.borrow().clone();
        if state.current.is_none() && fenced.is_none() {
            return;
        }
        for (shard, reply) in std::mem::take(&mut state.registered) {
            reply.send(match (&fenced, &state.current) {
                (None, Some(current)) => Ok(current.shards[usize::from(shard.0)].clone()),
                (Some(error), _) => Err(error.clone()),
                (None, None) => unreachable!("one of them is there"),
            });
        }
    }

    /// Starts the task that takes the bucket, and then publishes.
    pub(super) fn start(&self) {
        let Some(identity) = self.identity.clone() else {
            return;
        };
        let publisher = self.share();
        self.service.0.runtime.spawn(async move {
            let taken = publisher.claim(&identity).await;
            match taken {
                Ok(manifest) => {
                    publisher.start_sweep(manifest.number);
                    publisher.state.borrow_mut().current = Some(manifest);
                }
                Err(error) => publisher.service.fence(error),
            }
            publisher.answer_registered();
            loop {
                let ready = || {
                    let fenced = publisher.service.0.fenced.borrow().is_some();
                    let state = publisher.state.borrow();
                    let some = !state.updates.is_empty();
                    (some && (fenced || publisher.choose(&state).is_some())).then_some(())
                };
                publisher.due.until(ready).await;
                publisher.publish().await;
            }
        });
    }

    /// Takes the bucket, trying until it is there.
    async fn claim(&self, identity: &Identity) -> Result<Manifest> {
        let (mut pause, mut altered) = (BACKOFF_MIN, 0);
        loop {
            match self.try_claim(identity).await {
                Ok(Ok(manifest)) => return Ok(manifest),
                Ok(Err(error)) => return Err(error),
                Err(failure) => {
                    altered += usize::from(failure.kind == FailureKind::Altered);
                    if altered == TAKE_OVER_TRIES {
                        return Err(Error::corrupt(failure.message));
                    }
                    tracing::debug!(%failure, "the remote cannot be taken yet");
                    pause = self.service.back_off(pause).await;
                }
            }
        }
    }

    /// One try: the claim, why it is refused for good, or what failed.
    async fn try_claim(
        &self,
        identity: &Identity,
    ) -> std::result::Result<Result<Manifest>, Failure> {
        let remote = &*self.service.0.remote;
        let newest = self
            .service
            .tried(Way::Reads, TRY_TIMEOUT, newest(remote))
            .await?;
        let may = match &newest {
            Some(newest) => may_follow(identity, self.writer, newest),
            None => self.may_begin().await,
        };
        if let Err(error) = may {
            return Ok(Err(error));
        }
        let fences = fences(&self.service);
        let fences = self.service.tried(Way::Writes, TRY_TIMEOUT, fences).await?;
        if !fences && !identity.unfenced {
            return Ok(Err(does_not_fence()));
        }
        let number = newest.as_ref().map_or(1, |newest| newest.number + 1);
        let shards = newest.map_or_else(
            || vec![ShardState::empty(); identity.shards],
            |newest| newest.shards,
        );
        let claim = Manifest {
            number,
            store: identity.store,
            node: identity.node,
            epoch: identity.epoch,
            writer: self.writer,
            claim: number,
            segment_bytes: identity.segment_bytes,
            shards,
        };
        let made = make(&*self.service.0.remote, &claim);
        match self.service.tried(Way::Writes, TRY_TIMEOUT, made).await? {
            true => Ok(Ok(claim)),
            // Somebody was faster: look again who.
            false => Err(Failure::new(FailureKind::Transient, "the claim was lost")),
        }
    }

    /// Whether the store may begin in an empty bucket: not if it has been in another one, or in
    /// this one before it was emptied.
    async fn may_begin(&self) -> Result<()> {
        let uploaded = || {
            let state = self.state.borrow();
            let all = state.recovered.iter().flatten();
            let uploaded = |all: &Option<Recovered>| Some((*all)?.any_uploaded);
            let uploaded: Option<Vec<bool>> = all.map(uploaded).collect();
            uploaded.map(|uploaded| uploaded.contains(&true))
        };
        match self.due.until(uploaded).await {
            false => Ok(()),
            true => Err(Error::invalid(
                "the remote holds nothing of this store, which has bytes in its remote: give the \
                 one that it had",
            )),
        }
    }

    /// The next manifest's states and the updates that are in it, if there is anything to publish.
    fn choose(&self, state: &State) -> Option<(Vec<ShardState>, Vec<usize>)> {
        let current = state.current.as_ref()?;
        let mut chosen: Vec<usize> = (0..state.updates.len()).collect();
        loop {
            let mut shards = current.shards.clone();
            for index in &chosen {
                let update = &state.updates[*index];
                let shard = &mut shards[usize::from(update.shard.0)];
                // What comes late is in what came before it.
                if goes_further(&update.state, shard) {
                    shard.clone_from(&update.state);
                }
            }
            if let Some(recovered) = &state.recovered {
                let complete = |(shard, all): (&ShardState, &Option<Recovered>)| {
                    all.is_some_and(|all| shard.next >= all.end)
                };
                if !shards.iter().zip(recovered).all(complete) {
                    return None;
                }
            }
            let met = |needs: &Needs| shards[usize::from(needs.shard.0)].next >= needs.before;
            let before = chosen.len();
            chosen.retain(|index| {
                let update = &state.updates[*index];
                update.needs.iter().all(met)
            });
            if chosen.is_empty() {
                return None;
            }
            if chosen.len() == before {
                return Some((shards, chosen));
            }
        }
    }

    async fn publish(&self) {
        let fenced_already = self.service.0.fenced.borrow().clone();
        if let Some(error) = fenced_already {
            for update in self.state.borrow_mut().updates.drain(..) {
                update.reply.send(Err(error.clone()));
            }
            return;
        }
        let (next, chosen) = {
            let state = self.state.borrow();
            let Some((shards, chosen)) = self.choose(&state) else {
                return;
            };
            let current = state.current.as_ref().expect("nothing is chosen before");
            let next = Manifest {
                number: current.number + 1,
                shards,
                ..current.clone()
            };
            (next, chosen)
        };
        let made = self
            .service
            .until_taken(Way::Writes, async || {
                make(&*self.service.0.remote, &next).await
            })
            .await;
        let result = match made {
            Ok(true) => Ok(()),
            Ok(false) => {
                mark("fenced by another engine");
                self.service.fence(fenced());
                Err(fenced())
            }
            Err(error) => Err(error),
        };
        let done = {
            let mut state = self.state.borrow_mut();
            if result.is_ok() {
                state.recovered = None;
                self.between.begin();
                state.current = Some(next.clone());
            }
            let updates = std::mem::take(&mut state.updates).into_iter().enumerate();
            let (done, waiting): (Vec<_>, Vec<_>) =
                updates.partition(|(index, _)| chosen.contains(index));
            state.updates = waiting.into_iter().map(|(_, update)| update).collect();
            done
        };
        for (_, update) in done {
            update.reply.send(result.clone());
        }
        if result.is_ok() {
            self.delete_old(&next);
        }
    }

    /// Deletes the manifest that has become too old.
    fn delete_old(&self, newest: &Manifest) {
        let old = newest.number.saturating_sub(MANIFESTS_KEPT);
        if is_dispensable(old, newest.number) {
            let service = self.service.clone();
            self.service.0.runtime.spawn(async move {
                // One that stays behind is swept at the next opening.
                let _ = service.delete(&[manifest_name(old)]).await;
            });
        }
    }

    /// Deletes the manifests that earlier openings have left behind.
    fn start_sweep(&self, newest: u64) {
        let service = self.service.clone();
        self.service.0.runtime.spawn(async move {
            let mut after = None;
            while let Ok(page) = service.list(MANIFEST_PREFIX, after.as_deref()).await {
                let Some(last) = page.last() else { break };
                after = Some(last.name.clone());
                let old = |listed: &Listed| {
                    let number = parse_manifest_name(&listed.name)?;
                    is_dispensable(number, newest).then(|| listed.name.clone())
                };
                let old: Vec<String> = page.iter().filter_map(old).collect();
                if service.delete(&old).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// Whether a state has more of the log than another one, or as much by a later checkpoint.
fn goes_further(state: &ShardState, than: &ShardState) -> bool {
    let reach = |state: &ShardState| (state.next, state.base.map(|base| base.sequence));
    reach(state) >= reach(than)
}

/// Whether a manifest is old, and none that a listing is checked by.
fn is_dispensable(number: u64, newest: u64) -> bool {
    let is_mark = number <= 1 || number.is_multiple_of(MANIFESTS_KEPT);
    number + MANIFESTS_KEPT <= newest && !is_mark
}

/// Makes a manifest. False: somebody else has made it, or later ones.
async fn make(remote: &dyn Remote, manifest: &Manifest) -> std::result::Result<bool, Failure> {
    if !create(remote, manifest).await? {
        return Ok(false);
    }
    is_newest(remote, manifest).await
}

/// Whether a manifest that was just made is the newest: its number may have been made, and deleted,
/// long ago.
pub(super) async fn is_newest(
    remote: &dyn Remote,
    manifest: &Manifest,
) -> std::result::Result<bool, Failure> {
    let later = (manifest.number + 1).next_multiple_of(MANIFESTS_KEPT);
    match remote.get(&manifest_name(later), 0, 1).await {
        Ok(_) => {
            mark("number of a deleted manifest made again");
            Ok(false)
        }
        Err(failure) if failure.kind == FailureKind::Missing => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Creates a manifest's object. False: somebody else has one of that number.
pub(super) async fn create(
    remote: &dyn Remote,
    manifest: &Manifest,
) -> std::result::Result<bool, Failure> {
    let (name, body) = (manifest_name(manifest.number), manifest.encode());
    match remote
        .create(&name, vec![Bytes::from(body.clone())])
        .await?
    {
        Created::New => Ok(true),
        // It may have been made at an earlier try that seemed to fail.
        Created::Exists => {
            let there = remote.get(&name, 0, MANIFEST_BYTES_MAX).await?;
            if there != body && !planted("zombie_not_fenced") {
                // Bytes that became wrong on their way are nobody's.
                let wrong = |why| Failure::new(FailureKind::Altered, why);
                Manifest::decode(&there).map_err(wrong)?;
                return Ok(false);
            }
            mark("manifest was made at an earlier try");
            Ok(true)
        }
    }
}

/// Whether an engine may go on where a manifest ends.
fn may_follow(identity: &Identity, writer: u64, newest: &Manifest) -> Result<()> {
    if newest.store != identity.store {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the remote holds another store, give each store a prefix of its own",
        ));
    }
    if newest.node != identity.node || newest.epoch > identity.epoch {
        return Err(fenced());
    }
    let is_own = newest.epoch == identity.epoch && newest.writer == writer;
    if !is_own && !identity.ancestors.may_have(newest.epoch) {
        mark("fenced by a copy of the directory");
        return Err(Error::new(
            ErrorKind::Poisoned,
            "another copy of this directory has had the remote since they parted: nothing that was \
             written here is uploaded; rebuild it from the remote",
        ));
    }
    let ours = (identity.shards, identity.segment_bytes);
    match (newest.shards.len(), newest.segment_bytes) == ours {
        true => Ok(()),
        false => Err(Error::corrupt(
            "the remote's manifest does not fit the store",
        )),
    }
}

fn fenced() -> Error {
    Error::new(
        ErrorKind::Poisoned,
        "another engine has taken the remote: nothing that was written since is uploaded",
    )
}

/// The newest manifest, if there is any.
///
/// A listing may be stale; a get of a name is not. Of the numbers up to the newest, the last
/// `MANIFESTS_KEPT` are all there, and before that the multiples of it. So wherever a listing says
/// that the newest is, the next number or the next multiple is there if it is wrong.
pub(super) async fn newest(remote: &dyn Remote) -> std::result::Result<Option<Manifest>, Failure> {
    let listed = remote.list(MANIFEST_PREFIX, None, 1).await?;
    let listed = listed
        .first()
        .and_then(|first| parse_manifest_name(&first.name));
    let listed = listed.unwrap_or(1);
    let (there, later) = join(read_manifest(remote, listed), beyond(remote, listed)).await;
    let mut newest = match (later?, there?) {
        (Some(later), _) => later,
        (None, Some(there)) => return Ok(Some(there)),
        (None, None) => {
            let kept = (listed - listed % MANIFESTS_KEPT).max(1);
            match read_manifest(remote, kept).await? {
                Some(there) => there,
                None => return Ok(None),
            }
        }
    };
    mark("listing was stale");
    while let Some(later) = beyond(remote, newest.number).await? {
        newest = later;
    }
    Ok(Some(newest))
}

/// A manifest behind that of a number, if there is any.
async fn beyond(
    remote: &dyn Remote,
    number: u64,
) -> std::result::Result<Option<Manifest>, Failure> {
    let next = number + 1;
    let jump = next.next_multiple_of(MANIFESTS_KEPT);
    let jump = async || match jump == next {
        true => Ok(None),
        false => read_manifest(remote, jump).await,
    };
    let (next, jump) = join(read_manifest(remote, next), jump()).await;
    Ok(next?.or(jump?))
}

async fn read_manifest(
    remote: &dyn Remote,
    number: u64,
) -> std::result::Result<Option<Manifest>, Failure> {
    match remote
        .get(&manifest_name(number), 0, MANIFEST_BYTES_MAX)
        .await
    {
        Ok(bytes) => {
            let manifest = Manifest::decode(&bytes).ok();
            let manifest = manifest.filter(|manifest| manifest.number == number);
            let bad = || Failure::new(FailureKind::Altered, format!("manifest {number} is bad"));
            manifest.ok_or_else(bad).map(Some)
        }
        Err(failure) if failure.kind == FailureKind::Missing => Ok(None),
        Err(failure) => Err(failure),
    }
}
