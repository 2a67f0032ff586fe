//! What a request means for the payload behind an export.
//!
//! Invariants:
//! 1. The export has the size that the payload had when the client connected. What the payload
//!    lost since reads zero, and is there again once it is written to.
//! 2. Nothing is asked of the store for a request that is wrong.
//!
//! A zeroed range is punched also where the client wants no hole: in a log nothing is written in
//! place, so a range that holds zeros is no surer of its room than one that holds nothing.

use super::proto::{self, Command, Context, DATA_BYTES_MAX, Request, RequestError};
use bytes::Bytes;
use ringstore::{Chunks, Error, ErrorKind, Extent, ExtentKind, PayloadId, Store};

/// What a `CACHE` asks of the store at once.
pub(crate) const CACHE_PIECE_BYTES: u32 = 1 << 20;

/// Extents in one reply. More are had by asking again from where the last one ends.
const EXTENTS_MAX: usize = 1024;

/// How much of a payload is first asked for its extents; twice as much each time after.
///
/// The store answers with as many extents as there are, so a large hole is crossed in a few steps
/// and a range in small pieces does not make a large answer.
const STATUS_WINDOW_BYTES: u64 = 64 << 20;

/// A payload that a client has chosen.
pub(crate) struct Export {
    pub(crate) store: Store,
    pub(crate) id: PayloadId,
    pub(crate) size: u64,
    pub(crate) contexts: Vec<Context>,
}

/// What came of a request that worked.
pub(crate) enum Outcome {
    Done,
    /// As many bytes as were asked for, from the offset on.
    Read(Chunks),
    /// Per context the lengths and flags of ranges, from the offset on.
    Status(Vec<(Context, Vec<(u32, u32)>)>),
}

/// What is wrong with a request, or went wrong with it.
pub(crate) struct Refusal {
    pub(crate) error: RequestError,
    pub(crate) message: String,
}

impl Refusal {
    fn new(error: RequestError, message: &str) -> Refusal {
        let message = message.to_owned();
        Refusal { error, message }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let code = match error.kind() {
            ErrorKind::InvalidInput => RequestError::Invalid,
            ErrorKind::Full => RequestError::NoSpace,
            ErrorKind::Closed => RequestError::Shutdown,
            _ => RequestError::Io,
        };
        Refusal::new(code, &error.to_string())
    }
}

/// Bytes that a request holds while it is under way.
pub(crate) fn cost(request: &Request) -> usize {
    let len = request.len.min(DATA_BYTES_MAX) as usize;
    match request.command {
        Command::Read | Command::Write => len,
        Command::Cache => len.min(CACHE_PIECE_BYTES as usize),
        Command::BlockStatus => EXTENTS_MAX * size_of::<Extent>(),
        _ => 0,
    }
}

impl Export {
    /// Does what is asked.
    pub(crate) async fn run(&self, request: &Request, data: Bytes) -> Result<Outcome, Refusal> {
        self.check(request)?;
        let (store, id) = (&self.store, &self.id);
        let (offset, len) = (request.offset, request.len);
        match request.command {
            Command::Read => {
                let chunks = store.read_at(id, offset, len as usize).await?;
                return Ok(Outcome::Read(chunks));
            }
            Command::BlockStatus => {
                let one = request.flags & proto::REQ_ONE != 0;
                return Ok(Outcome::Status(self.status(offset, len, one).await?));
            }
            Command::Write => store.write_at(id, offset, data).await?,
            Command::Trim | Command::WriteZeroes => {
                store.punch_hole(id, offset, u64::from(len)).await?;
            }
            Command::Cache => self.prefetch(offset, len).await?,
            Command::Flush => {
                store.flush(id).await?;
            }
            Command::Disconnect | Command::Other(_) => unreachable!("refused before"),
        }
        if request.flags & proto::FUA != 0 && request.command != Command::Cache {
            store.flush(id).await?;
        }
        Ok(Outcome::Done)
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let invalid = |message| Err(Refusal::new(RequestError::Invalid, message));
        let command = request.command;
        if let Command::Other(_) | Command::Disconnect = command {
            return Err(Refusal::new(RequestError::NotSupported, "unknown request"));
        }
        if request.flags & !command.flags() != 0 {
            return invalid("unknown flags");
        }
        if command == Command::Flush {
            return match (request.offset, request.len) {
                (0, 0) => Ok(()),
                _ => invalid("a flush has no range"),
            };
        }
        let end = request.offset.checked_add(u64::from(request.len));
        if end.is_none_or(|end| end > self.size) {
            let error = match command {
                Command::Write | Command::WriteZeroes => RequestError::NoSpace,
                _ => RequestError::Invalid,
            };
            return Err(Refusal::new(error, "the range ends behind the export"));
        }
        match command {
            Command::Read if request.len > DATA_BYTES_MAX => invalid("a read of more than 32 MiB"),
            Command::BlockStatus if self.contexts.is_empty() => invalid("no context was chosen"),
            Command::BlockStatus if request.len == 0 => invalid("no range"),
            _ => Ok(()),
        }
    }

    /// Reads, so that the bytes are near when they are asked for. It is advice: of a long range
    /// only the beginning is read.
    async fn prefetch(&self, offset: u64, len: u32) -> Result<(), Error> {
        let end = offset + u64::from(len.min(DATA_BYTES_MAX));
        let mut at = offset;
        while at < end {
            let piece = u64::from(CACHE_PIECE_BYTES).min(end - at);
            self.store.read_at(&self.id, at, piece as usize).await?;
            at += piece;
        }
        Ok(())
    }

    async fn status(
        &self,
        offset: u64,
        len: u32,
        one: bool,
    ) -> Result<Vec<(Context, Vec<(u32, u32)>)>, Error> {
        let end = offset + u64::from(len);
        let runs_max = if one { 1 } else { EXTENTS_MAX };
        let mut runs: Vec<(u64, ExtentKind)> = Vec::new();
        let mut push = |len: u64, kind| match runs.last_mut() {
            _ if len == 0 => runs.len(),
            Some(last) if last.1 == kind => {
                last.0 += len;
                runs.len()
            }
            _ => {
                runs.push((len, kind));
                runs.len()
            }
        };
        let (mut at, mut window) = (offset, STATUS_WINDOW_BYTES);
        while at < end {
            let until = end.min(at + window);
            let mut count = 0;
            for extent in self.store.extents(&self.id, at, until - at).await? {
                count = push(extent.len, extent.kind);
                at = extent.offset + extent.len;
            }
            // What lies behind the payload's end, if it is shorter now.
            count = count.max(push(until - at, ExtentKind::Hole));
            at = until;
            window *= 2;
            if count > runs_max {
                break;
            }
        }
        let contexts = self.contexts.iter();
        Ok(contexts
            .map(|context| (*context, ranges(*context, &runs, runs_max)))
            .collect())
    }
}

/// Lengths and flags of the first ranges, as a context has them.
fn ranges(context: Context, runs: &[(u64, ExtentKind)], ranges_max: usize) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for (len, kind) in runs {
        let flags = flags(context, *kind);
        // A request's length fits 32 bits, and so do the parts of its range.
        let count = ranges.len();
        match ranges.last_mut() {
            Some(last) if last.1 == flags => last.0 += *len as u32,
            _ if count == ranges_max => break,
            _ => ranges.push((*len as u32, flags)),
        }
    }
    ranges
}

fn flags(context: Context, kind: ExtentKind) -> u32 {
    /// `NBD_STATE_HOLE` and `NBD_STATE_ZERO`.
    const HOLE_AND_ZERO: u32 = 3;
    match (context, kind) {
        (Context::Allocation, ExtentKind::Hole) => HOLE_AND_ZERO,
        (Context::Allocation, _) => 0,
        (Context::Residency, ExtentKind::Local) => 0,
        (Context::Residency, ExtentKind::Dirty) => 1,
        (Context::Residency, ExtentKind::Remote) => 2,
        // Also whatever kind a later version adds: nothing is said of where it is.
        (Context::Residency, _) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_where_a_context_sees_no_difference() {
        let runs = [
            (10, ExtentKind::Local),
            (20, ExtentKind::Dirty),
            (30, ExtentKind::Hole),
            (40, ExtentKind::Remote),
        ];
        for (context, count, expected) in [
            (Context::Allocation, 9, &[(30, 0), (30, 3), (40, 0)][..]),
            (Context::Allocation, 1, &[(30, 0)]),
            (Context::Residency, 9, &[(10, 0), (20, 1), (30, 3), (40, 2)]),
            (Context::Residency, 2, &[(10, 0), (20, 1)]),
        ] {
            assert_eq!(ranges(context, &runs, count), expected);
        }
    }
}
