//! The vocabulary of change: everything that can happen to the map of a shard.
//!
//! Live operations, replay and checkpoints all speak it, and `map::Map::apply` is its only reader,
//! so that there is one meaning of each word. Deliberately not here: how it is encoded
//! (`log::record`) and what it does (`map`).

use crate::payload_id::PayloadId;
use crate::retention::RetentionPolicy;
use crate::types::{Generation, Location, PayloadNo};
use std::fmt;

/// One change of a shard's map. A batch of the log holds several and is atomic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    /// A payload of size 0 comes into being. `id: None` is a nameless one: the parts of a write
    /// that is too large for a batch, gathered until it is whole; recovery deletes what was never
    /// claimed.
    Create {
        payload: PayloadNo,
        generation: Generation,
        id: Option<PayloadId>,
    },
    /// `[offset, offset + len)` is found at `at`; the size grows to its end if it was less.
    Write {
        payload: PayloadNo,
        offset: u64,
        len: u32,
        at: Location,
    },
    /// `[offset, offset + len)` reads zero; the size stays.
    Punch {
        payload: PayloadNo,
        offset: u64,
        len: u64,
    },
    /// The size becomes `size`; what lay behind it is gone for good.
    Truncate { payload: PayloadNo, size: u64 },
    /// The payload is gone.
    Delete { payload: PayloadNo },
    /// `target` becomes what `source` is: extents, size and cut. It was just created.
    Copy {
        source: PayloadNo,
        target: PayloadNo,
    },
    /// `[offset, offset + len)` of `target` becomes that of `source`, which is nameless, and is
    /// gone.
    Splice {
        source: PayloadNo,
        target: PayloadNo,
        offset: u64,
        len: u64,
    },
    /// This decides what may be evicted of the payload.
    Retain {
        payload: PayloadNo,
        policy: RetentionPolicy,
    },
    /// The bytes at `from` are also at `to`, in every payload that refers to them.
    Relocate {
        from: Location,
        to: Location,
        len: u32,
    },
}

/// One line for people who look into a segment.
impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mutation::Create {
                payload,
                generation,
                id,
            } => {
                let (payload, generation) = (payload.0, generation.0);
                write!(f, "create payload={payload} generation={generation}")?;
                match id {
                    Some(id) => write!(f, " id={:?}", id.as_str()),
                    None => Ok(()),
                }
            }
            Mutation::Write {
                payload,
                offset,
                len,
                at,
            } => {
                let payload = payload.0;
                write!(
                    f,
                    "write payload={payload} offset={offset} len={len} at={at:?}"
                )
            }
            Mutation::Punch {
                payload,
                offset,
                len,
            } => write!(f, "punch payload={} offset={offset} len={len}", payload.0),
            Mutation::Truncate { payload, size } => {
                write!(f, "truncate payload={} size={size}", payload.0)
            }
            Mutation::Delete { payload } => write!(f, "delete payload={}", payload.0),
            Mutation::Copy { source, target } => {
                write!(f, "copy source={} target={}", source.0, target.0)
            }
            Mutation::Splice {
                source,
                target,
                offset,
                len,
            } => {
                let (source, target) = (source.0, target.0);
                write!(
                    f,
                    "splice source={source} target={target} offset={offset} len={len}"
                )
            }
            Mutation::Retain { payload, policy } => {
                write!(f, "retain payload={} policy={policy}", payload.0)
            }
            Mutation::Relocate { from, to, len } => {
                write!(f, "relocate from={from:?} to={to:?} len={len}")
            }
        }
    }
}
