//! What a handle asks of a shard, and the table that says which shard to ask.

use super::Claim;
use crate::chunks::Chunks;
use crate::error::{ErrorKind, Result};
use crate::payload_id::PayloadId;
use crate::retention::RetentionPolicy;
use crate::stats::{
    Extent, Flushed, Health, LatencySnapshot, Segment, SegmentDump, Stats, VerifyReport,
};
use crate::sync::Mutex;
use crate::sync::slot::Reply;
use crate::types::{Generation, Lsn, Nanos, ShardId};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

/// The answer to an operation on one payload.
pub(crate) enum Answer<T> {
    Done(T),
    /// The payload lives on another shard now: look it up and ask there.
    Elsewhere,
}

/// Answers an operation on one payload.
pub(crate) type Answers<T> = Reply<Result<Answer<T>>>;

/// One layer of a copy-on-write read.
pub(crate) struct Layer {
    /// Size of the payload; `None`: it does not exist.
    pub(crate) size: Option<u64>,
    /// Below this, what the layer lacks may be looked up in the source.
    pub(crate) cut: u64,
    /// The range's parts in order: bytes, or how many this layer never held.
    pub(crate) parts: LayerParts,
}

/// Parts in order; most reads have one, which needs no allocation.
pub(crate) type LayerParts = SmallVec<[LayerPart; 1]>;

/// A part of a [`Layer`].
pub(crate) enum LayerPart {
    Bytes(Bytes),
    /// Never written here: offset and length.
    Absent(u64, u64),
}

/// A request, with the time at which its caller made it.
pub(crate) struct Request {
    pub(crate) at: Nanos,
    pub(crate) work: Work,
}

/// Everything that can be asked of a shard.
pub(crate) enum Work {
    Read {
        id: PayloadId,
        offset: u64,
        len: usize,
        reply: Answers<Chunks>,
    },
    ReadLayer {
        id: PayloadId,
        offset: u64,
        len: u64,
        reply: Answers<Layer>,
    },
    Write {
        id: PayloadId,
        offset: u64,
        data: Bytes,
        reply: Answers<()>,
    },
    Punch {
        id: PayloadId,
        offset: u64,
        len: u64,
        reply: Answers<()>,
    },
    Truncate {
        id: PayloadId,
        size: u64,
        reply: Answers<()>,
    },
    Delete {
        id: PayloadId,
        reply: Answers<()>,
    },
    Copy {
        source: PayloadId,
        target: PayloadId,
        reply: Answers<u64>,
    },
    Flush {
        id: PayloadId,
        reply: Answers<Flushed>,
    },
    FlushAll(Reply<Result<()>>),
    WaitRemote {
        id: PayloadId,
        reply: Answers<()>,
    },
    /// Waits until everything counts in the remote.
    Drain(Reply<Result<()>>),
    Evict {
        id: PayloadId,
        reply: Answers<u64>,
    },
    SetRetention {
        id: PayloadId,
        policy: RetentionPolicy,
        reply: Answers<()>,
    },
    SetDefaultRetention {
        policy: RetentionPolicy,
        reply: Reply<Result<()>>,
    },
    SetEviction {
        enabled: bool,
        reply: Reply<Result<()>>,
    },
    Size {
        id: PayloadId,
        reply: Answers<u64>,
    },
    Extents {
        id: PayloadId,
        offset: u64,
        len: u64,
        reply: Answers<Vec<Extent>>,
    },
    List {
        after: Option<PayloadId>,
        limit: usize,
        reply: Reply<Result<Vec<PayloadId>>>,
    },
    Stats(Reply<Result<Stats>>),
    Latency(Reply<Result<LatencySnapshot>>),
    /// A caller has come to the edge of what was read ahead. Nobody waits for an answer.
    AtEdge {
        id: PayloadId,
        offset: u64,
        len: u64,
    },
    EvictReadBuffer(Reply<Result<u64>>),
    Verify(Reply<Result<VerifyReport>>),
    Segments(Reply<Result<Vec<Segment>>>),
    DumpSegment {
        number: u64,
        reply: Reply<Result<SegmentDump>>,
    },
    Close(Reply<Result<()>>),
}

/// What shards ask of each other, and the opening asks of them. Nothing of it waits for another
/// shard, so it cannot deadlock; it has a mailbox of its own, so that it is never behind what does.
pub(crate) enum Control {
    /// First step of a move: from the answer on, operations on the payload wait. Says whether
    /// anything of it is on this shard's disk.
    Hold { id: PayloadId, reply: Answers<bool> },
    /// Last step: what became of the move.
    Release {
        id: PayloadId,
        end: Move,
        reply: Reply<Result<()>>,
    },
    /// How well the shard can do its work: by this way, for it has to be told at any time.
    Health(Reply<Health>),
    /// At opening: these payloads are claimed by other shards. Answers which of the claims win.
    Settle {
        claims: Vec<Claim>,
        reply: Reply<Result<Vec<bool>>>,
    },
    /// At opening: these payloads belong to other shards; they are deleted here.
    Disown {
        ids: Vec<PayloadId>,
        reply: Reply<Result<()>>,
    },
}

/// How a move between shards ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Move {
    /// The payload lives on this shard now.
    Done(ShardId, Lsn),
    /// It stays. `outrank`: a copy that failed may yet be found after a crash, and must not win.
    GivenUp { outrank: bool },
}

/// Guesses at exceptions. Two exceptions of one hash share a guess: reads of the older one miss the
/// read buffer. 8 KiB, and few collisions up to a few hundred exceptions.
const GUESSES: usize = 4096;

/// Which shard a payload lives on: its home by hash, with a table of exceptions (clones live where
/// their source does).
pub(crate) struct Routes {
    shards: usize,
    exceptions: RwLock<BTreeMap<PayloadId, ShardId>>,
    /// Length of `exceptions`: while it is 0, nobody needs the lock.
    count: AtomicUsize,
    /// For each hash of names, the shard that an exception of it was last given to, counted from
    /// 1; 0: none was.
    guesses: Box<[AtomicU16]>,
    /// Payloads that outrank older ones which are still on the disks of other shards.
    unsettled: Mutex<BTreeMap<PayloadId, ErrorKind>>,
    next_generation: AtomicU64,
}

impl Routes {
    pub(crate) fn new(shards: usize) -> Routes {
        Routes {
            shards,
            exceptions: RwLock::default(),
            count: AtomicUsize::new(0),
            guesses: (0..GUESSES).map(|_| AtomicU16::new(0)).collect(),
            unsettled: Mutex::new(BTreeMap::new()),
            next_generation: AtomicU64::new(1),
        }
    }

    pub(crate) fn home(&self, id: &PayloadId) -> ShardId {
        ShardId(id.home(self.shards) as u16)
    }

    pub(crate) fn shard_of(&self, id: &PayloadId) -> ShardId {
        if self.count.load(Ordering::Acquire) > 0 {
            let exceptions = self
                .exceptions
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(shard) = exceptions.get(id) {
                return *shard;
            }
        }
        self.home(id)
    }

    /// Where a payload probably lives, without a lock: its home, or the other.
    ///
    /// A wrong guess finds nothing: a shard has no payload in its read buffer that is not its own.
    pub(crate) fn guesses(&self, id: &PayloadId) -> (usize, Option<usize>) {
        let home = id.home(self.shards);
        if self.count.load(Ordering::Acquire) == 0 {
            return (home, None);
        }
        let other = self.guess(id).load(Ordering::Relaxed).checked_sub(1);
        (home, other.map(usize::from).filter(|other| *other != home))
    }

    fn guess(&self, id: &PayloadId) -> &AtomicU16 {
        // The lowest bits say the home.
        &self.guesses[(id.hash_bits() >> 32) as usize % GUESSES]
    }

    pub(crate) fn set(&self, id: &PayloadId, shard: ShardId) {
        if shard != self.home(id) {
            self.guess(id).store(shard.0 + 1, Ordering::Relaxed);
        }
        let mut exceptions = self
            .exceptions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match shard == self.home(id) {
            true => exceptions.remove(id),
            false => exceptions.insert(id.clone(), shard),
        };
        self.count.store(exceptions.len(), Ordering::Release);
    }

    /// An older payload of this name is still on some shard's disk, and why.
    pub(crate) fn unsettle(&self, id: &PayloadId, why: ErrorKind) {
        self.unsettled.lock().insert(id.clone(), why);
    }

    /// The older payload of this name is gone for good.
    pub(crate) fn settle(&self, id: &PayloadId) {
        self.unsettled.lock().remove(id);
    }

    /// Why an older payload of this name is still on some shard's disk, if there is one.
    pub(crate) fn unsettled(&self, id: &PayloadId) -> Option<ErrorKind> {
        self.unsettled.lock().get(id).copied()
    }

    /// A generation that no payload has yet.
    pub(crate) fn next_generation(&self) -> Generation {
        Generation(self.next_generation.fetch_add(1, Ordering::Relaxed))
    }

    /// Generations below this are taken.
    pub(crate) fn reserve_generations(&self, next: u64) {
        self.next_generation.fetch_max(next, Ordering::Relaxed);
    }
}

/// Zeros of any length, in pieces of shared memory.
pub(crate) fn zeros(len: u64) -> impl Iterator<Item = Bytes> {
    /// One piece: large enough that a big hole is few pieces.
    const PIECE: usize = 1 << 20;
    static ZEROS: OnceLock<Bytes> = OnceLock::new();
    let zeros = ZEROS.get_or_init(|| Bytes::from(vec![0; PIECE]));
    let mut left = len;
    std::iter::from_fn(move || {
        let piece = left.min(PIECE as u64);
        left -= piece;
        (piece > 0).then(|| zeros.slice(..piece as usize))
    })
}
