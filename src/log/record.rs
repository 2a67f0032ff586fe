//! The record codec: one [`Mutation`] as bytes, and back.
//!
//! Invariants:
//! 1. `decode(encode(m)) == m`, and the bytes are the same on every machine (little-endian, fixed
//!    width; `docs/format.md` draws them).
//! 2. Decoding believes nothing: any bytes give a mutation or an error, never a panic, and nothing
//!    is allocated beyond the input's length.
//!
//! Deliberately not here: checksums. Records lie inside pages and footers that have them.

use crate::mutation::Mutation;
use crate::payload_id::{PAYLOAD_ID_BYTES_MAX, PayloadId};
use crate::retention::RetentionPolicy;
use crate::types::{
    Generation, Location, NUMBER_MAX, PAYLOAD_BYTES_MAX, PayloadNo, SEGMENT_BYTES_MAX,
};

/// Bytes before a record's body: its kind, a zero, and its whole length.
const HEAD: usize = 4;

/// The longest record: a creation with the longest id.
pub(crate) const RECORD_BYTES_MAX: usize = HEAD + 16 + PAYLOAD_ID_BYTES_MAX;

const CREATE: u8 = 1;
const WRITE: u8 = 2;
const PUNCH: u8 = 3;
const TRUNCATE: u8 = 4;
const DELETE: u8 = 5;
const COPY: u8 = 6;
const SPLICE: u8 = 7;
const RELOCATE: u8 = 8;
const RETAIN: u8 = 9;

/// Bytes that `encode` will append.
pub(crate) fn encoded_len(mutation: &Mutation) -> usize {
    HEAD + match mutation {
        Mutation::Create { id, .. } => 16 + id.as_ref().map_or(0, |id| id.as_str().len()),
        Mutation::Write { .. } => 28,
        Mutation::Punch { .. } => 24,
        Mutation::Truncate { .. } => 16,
        Mutation::Delete { .. } => 8,
        Mutation::Copy { .. } => 16,
        Mutation::Splice { .. } => 32,
        Mutation::Relocate { .. } | Mutation::Retain { .. } => 20,
    }
}

/// Appends the record of a mutation.
pub(crate) fn encode(mutation: &Mutation, out: &mut Vec<u8>) {
    let start = out.len();
    let kind = match mutation {
        Mutation::Create { .. } => CREATE,
        Mutation::Write { .. } => WRITE,
        Mutation::Punch { .. } => PUNCH,
        Mutation::Truncate { .. } => TRUNCATE,
        Mutation::Delete { .. } => DELETE,
        Mutation::Copy { .. } => COPY,
        Mutation::Splice { .. } => SPLICE,
        Mutation::Relocate { .. } => RELOCATE,
        Mutation::Retain { .. } => RETAIN,
    };
    let len = u16::try_from(encoded_len(mutation)).expect("ids are at most 1,024 bytes");
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&len.to_le_bytes());
    let mut words = |values: &[u64]| {
        values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    };
    match mutation {
        Mutation::Create {
            payload,
            generation,
            id,
        } => {
            words(&[payload.0, generation.0]);
            out.extend_from_slice(id.as_ref().map_or(&[], |id| id.as_str().as_bytes()));
        }
        Mutation::Write {
            payload,
            offset,
            len,
            at,
        } => {
            words(&[payload.0, *offset, at.to_bits()]);
            out.extend_from_slice(&len.to_le_bytes());
        }
        Mutation::Punch {
            payload,
            offset,
            len,
        } => words(&[payload.0, *offset, *len]),
        Mutation::Truncate { payload, size } => words(&[payload.0, *size]),
        Mutation::Delete { payload } => words(&[payload.0]),
        Mutation::Copy { source, target } => words(&[source.0, target.0]),
        Mutation::Splice {
            source,
            target,
            offset,
            len,
        } => {
            words(&[source.0, target.0, *offset, *len]);
        }
        Mutation::Retain { payload, policy } => {
            let (kind, span) = policy.to_numbers();
            words(&[payload.0, span]);
            out.extend_from_slice(&kind.to_le_bytes());
        }
        Mutation::Relocate { from, to, len } => {
            words(&[from.to_bits(), to.to_bits()]);
            out.extend_from_slice(&len.to_le_bytes());
        }
    }
    debug_assert_eq!(out.len() - start, usize::from(len));
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Reads the first record of `bytes`: the mutation and what comes after it.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Mutation, &[u8]), Malformed> {
    let [kind, 0, low, high, ..] = *bytes else {
        return Err(Malformed("a record's head is cut short or not a head"));
    };
    let len = usize::from(u16::from_le_bytes([low, high]));
    if len < HEAD || len > bytes.len() {
        return Err(Malformed("a record's length is impossible"));
    }
    let (record, rest) = bytes.split_at(len);
    Ok((decode_body(kind, Body(&record[HEAD..]))?, rest))
}

fn decode_body(kind: u8, mut body: Body<'_>) -> Result<Mutation, Malformed> {
    let mutation = match kind {
        CREATE => decode_create(&mut body)?,
        WRITE => {
            let (payload, offset) = (body.payload()?, body.word()?);
            let (at, len) = (body.location()?, body.half()?);
            check_range(offset, u64::from(len))?;
            check_located(at, len)?;
            Mutation::Write {
                payload,
                offset,
                len,
                at,
            }
        }
        PUNCH => {
            let (payload, offset, len) = (body.payload()?, body.word()?, body.word()?);
            check_range(offset, len)?;
            Mutation::Punch {
                payload,
                offset,
                len,
            }
        }
        TRUNCATE => {
            let (payload, size) = (body.payload()?, body.word()?);
            if size > PAYLOAD_BYTES_MAX {
                return Err(Malformed("a size is too large"));
            }
            Mutation::Truncate { payload, size }
        }
        DELETE => Mutation::Delete {
            payload: body.payload()?,
        },
        COPY => Mutation::Copy {
            source: body.payload()?,
            target: body.payload()?,
        },
        SPLICE => {
            let (source, target) = (body.payload()?, body.payload()?);
            let (offset, len) = (body.word()?, body.word()?);
            check_range(offset, len)?;
            Mutation::Splice {
                source,
                target,
                offset,
                len,
            }
        }
        RELOCATE => {
            let (from, to, len) = (body.location()?, body.location()?, body.half()?);
            check_located(from, len)?;
            check_located(to, len)?;
            Mutation::Relocate { from, to, len }
        }
        RETAIN => {
            let (payload, span) = (body.payload()?, body.word()?);
            let policy = RetentionPolicy::from_numbers(body.half()?, span);
            let policy = policy.ok_or(Malformed("a policy is unknown"))?;
            Mutation::Retain { payload, policy }
        }
        _ => return Err(Malformed("a record's kind is unknown")),
    };
    match body.0 {
        [] => Ok(mutation),
        _ => Err(Malformed("a record is longer than its kind")),
    }
}

fn decode_create(body: &mut Body<'_>) -> Result<Mutation, Malformed> {
    let (payload, generation) = (body.payload()?, Generation(body.word()?));
    // The next ones are numbered behind it.
    if payload.0 >= NUMBER_MAX || generation.0 >= NUMBER_MAX {
        return Err(Malformed("a creation holds an impossible number"));
    }
    let id = match body.take_rest() {
        [] => None,
        name => Some(decode_id(name)?),
    };
    Ok(Mutation::Create {
        payload,
        generation,
        id,
    })
}

/// What is left of a record's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn word(&mut self) -> Result<u64, Malformed> {
        let (word, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed("a record is cut short"))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    fn half(&mut self) -> Result<u32, Malformed> {
        let (half, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed("a record is cut short"))?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*half))
    }

    fn payload(&mut self) -> Result<PayloadNo, Malformed> {
        self.word().map(PayloadNo)
    }

    fn location(&mut self) -> Result<Location, Malformed> {
        self.word().map(Location::from_bits)
    }

    fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

fn decode_id(name: &[u8]) -> Result<PayloadId, Malformed> {
    let name = std::str::from_utf8(name).map_err(|_| Malformed("an id is not UTF-8"))?;
    PayloadId::new(name).map_err(|_| Malformed("an id is not valid"))
}

fn check_range(offset: u64, len: u64) -> Result<(), Malformed> {
    match offset.checked_add(len) {
        Some(end) if len > 0 && end <= PAYLOAD_BYTES_MAX => Ok(()),
        _ => Err(Malformed("a range is empty or too far out")),
    }
}

fn check_located(at: Location, len: u32) -> Result<(), Malformed> {
    match len > 0 && u64::from(at.offset()) + u64::from(len) <= SEGMENT_BYTES_MAX {
        true => Ok(()),
        false => Err(Malformed("a location reaches past its segment")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;

    fn samples() -> Vec<Mutation> {
        let payload = PayloadNo(7);
        let at = Location::new(SegmentId(3), 4096);
        let id = PayloadId::new("a/b").unwrap();
        vec![
            Mutation::Create {
                payload,
                generation: Generation(9),
                id: Some(id),
            },
            Mutation::Create {
                payload,
                generation: Generation(0),
                id: None,
            },
            Mutation::Write {
                payload,
                offset: 12,
                len: 34,
                at,
            },
            Mutation::Punch {
                payload,
                offset: 1,
                len: PAYLOAD_BYTES_MAX - 1,
            },
            Mutation::Truncate { payload, size: 99 },
            Mutation::Delete { payload },
            Mutation::Copy {
                source: payload,
                target: PayloadNo(8),
            },
            Mutation::Splice {
                source: payload,
                target: PayloadNo(8),
                offset: 5,
                len: 6,
            },
            Mutation::Relocate {
                from: at,
                to: Location::new(SegmentId(4), 0),
                len: 17,
            },
            Mutation::Retain {
                payload,
                policy: RetentionPolicy::Ttl(std::time::Duration::from_secs(3600)),
            },
            Mutation::Retain {
                payload,
                policy: RetentionPolicy::Pin,
            },
        ]
    }

    #[test]
    fn round_trip() {
        let mut bytes = Vec::new();
        for mutation in samples() {
            let before = bytes.len();
            encode(&mutation, &mut bytes);
            assert_eq!(bytes.len() - before, encoded_len(&mutation));
            assert!(bytes.len() - before <= RECORD_BYTES_MAX);
        }
        let mut rest = &bytes[..];
        for mutation in samples() {
            let (decoded, after) = decode(rest).unwrap();
            assert_eq!(decoded, mutation);
            rest = after;
        }
        assert!(rest.is_empty());
    }

    /// The bytes of the format, as `docs/format.md` has them.
    #[test]
    fn golden() {
        let mut bytes = Vec::new();
        encode(&samples()[0], &mut bytes);
        assert_eq!(
            bytes,
            b"\x01\0\x17\0\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0a/b"
        );
        bytes.clear();
        encode(&samples()[2], &mut bytes);
        let written =
            b"\x02\0\x20\0\x07\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0\0\x10\0\x30\0\0\0\0\x22\0\0\0";
        assert_eq!(bytes, written);
    }

    #[test]
    fn every_cut_and_every_flip_is_survived() {
        for mutation in samples() {
            let mut bytes = Vec::new();
            encode(&mutation, &mut bytes);
            for cut in 0..bytes.len() {
                assert!(decode(&bytes[..cut]).is_err());
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = decode(&flipped);
            }
        }
    }
}
