//! How shards speak to the uploader: requests, and the handle that makes them.
//!
//! Deliberately not here: how a request is met (the uploader), and which ones are made
//! (`shard::tier`).

use super::between::Between;
use super::budget::Budget;
use super::health::Health;
use super::manifest::{Manifest, ShardState};
use super::publish::{Recovered, Update};
use super::take::Taker;
use super::{Needs, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::remote::{Created, Listed};
use crate::stats::Requests;
use crate::sync::Mutex;
use crate::sync::mailbox::Sender;
use crate::sync::slot::{Reply, slot};
use crate::types::ShardId;
use bytes::Bytes;
use std::sync::Arc;

/// What a shard asks of the uploader.
pub(super) enum Request {
    Claimed {
        shard: ShardId,
        recovered: Recovered,
        reply: Reply<Result<ShardState>>,
    },
    Create {
        name: String,
        body: Vec<Bytes>,
        wanted: Wanted,
        reply: Reply<Result<Created>>,
    },
    Get {
        name: String,
        offset: u64,
        len: u64,
        reply: Reply<Result<Bytes>>,
    },
    List {
        prefix: String,
        after: Option<String>,
        reply: Reply<Result<Vec<Listed>>>,
    },
    Probe(Reply<Result<()>>),
    Look,
    Publish(Update),
    Successor {
        taker: Taker,
        reply: Reply<Result<Manifest>>,
    },
    Take {
        successor: Manifest,
        reply: Reply<Result<bool>>,
    },
    Delete {
        names: Vec<String>,
        reply: Reply<Result<()>>,
    },
}

/// How shards speak to the uploader; clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    pub(super) requests: Sender<Request>,
    pub(super) health: Arc<Health>,
    pub(super) between: Arc<Between>,
    pub(super) budget: Arc<Budget>,
    pub(super) requests_made: Arc<Mutex<Requests>>,
}

impl Client {
    async fn ask<T>(&self, request: impl FnOnce(Reply<Result<T>>) -> Request) -> Result<T> {
        let (reply, answer) = slot();
        let gone = || Error::new(ErrorKind::Unavailable, "the uploader has ended");
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.unwrap_or_else(|| Err(gone()))
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    pub(crate) fn between(&self) -> &Between {
        &self.between
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// What has been asked of the bucket so far.
    pub(crate) fn requests(&self) -> Requests {
        self.requests_made.lock().clone()
    }

    /// What the bucket has of a shard, when this opening has taken the bucket.
    pub(crate) async fn claimed(&self, shard: ShardId, recovered: Recovered) -> Result<ShardState> {
        self.ask(|reply| Request::Claimed {
            shard,
            recovered,
            reply,
        })
        .await
    }

    /// The manifest by which a node without anything of its own would take the bucket from whoever
    /// has it. `InvalidInput` if the bucket holds no store or one that was made with another number
    /// of shards, or would let two engines take it.
    pub(crate) async fn successor(&self, taker: Taker) -> Result<Manifest> {
        self.ask(|reply| Request::Successor { taker, reply }).await
    }

    /// Takes the bucket by a successor. False: another engine was faster, what it has published
    /// since counts.
    pub(crate) async fn take(&self, successor: Manifest) -> Result<bool> {
        self.ask(|reply| Request::Take { successor, reply }).await
    }

    /// Makes an object, however long it takes, as long as it is wanted. It may be there also if
    /// this fails.
    pub(crate) async fn create(
        &self,
        name: String,
        body: Vec<Bytes>,
        wanted: Wanted,
    ) -> Result<Created> {
        self.ask(|reply| Request::Create {
            name,
            body,
            wanted,
            reply,
        })
        .await
    }

    /// Bytes of an object, soon or not at all: `Unavailable`, or `Corrupt` if there is no such
    /// object.
    pub(crate) async fn get(&self, name: String, offset: u64, len: u64) -> Result<Bytes> {
        if let Some(why) = self.health.reads_bad() {
            let message = format!("the remote is away: {why}");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        self.ask(|reply| Request::Get {
            name,
            offset,
            len,
            reply,
        })
        .await
    }

    pub(crate) async fn list(&self, prefix: String, after: Option<String>) -> Result<Vec<Listed>> {
        self.ask(|reply| Request::List {
            prefix,
            after,
            reply,
        })
        .await
    }

    /// Asks the bucket for a name, once. `Unavailable` if it does not answer.
    pub(crate) async fn probe(&self) -> Result<()> {
        self.ask(Request::Probe).await
    }

    /// Sees to it that the health of a bucket that nobody has asked anything is known soon.
    pub(crate) async fn look(&self) {
        // An uploader that has ended has said what it knows.
        let _ = self.requests.send(Request::Look).await;
    }

    /// Makes a shard's state what counts in the bucket, once what it needs of other shards does.
    pub(crate) async fn publish(
        &self,
        shard: ShardId,
        state: ShardState,
        needs: Vec<Needs>,
    ) -> Result<()> {
        self.ask(|reply| {
            Request::Publish(Update {
                shard,
                state,
                needs,
                reply,
            })
        })
        .await
    }

    /// Deletes objects that nothing published refers to.
    pub(crate) async fn delete(&self, names: Vec<String>) -> Result<()> {
        self.ask(|reply| Request::Delete { names, reply }).await
    }
}
