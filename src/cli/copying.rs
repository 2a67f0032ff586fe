//! `put` and `get`: files in and out, in pieces, several in flight.
//!
//! Invariants:
//! 1. Memory is bounded by `IN_FLIGHT_MAX` pieces each way, whatever the file's size.
//! 2. Without `--offset`, `put` leaves the payload with exactly the file's bytes and size.
//! 3. `get` makes no file for a payload that does not exist, and takes one away again that did not
//!    become whole.

use super::args::{Get, Global, Put};
use super::outcome::Report;
use super::sparse::{data_runs, next_data};
use super::units::show_size;
use super::{clock, progress};
use anyhow::Context;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use indicatif::ProgressBar;
use ringstore::{ExtentKind, PayloadId, Store};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// One request to the store: large enough that the device, not the hand-off, sets the pace.
const PIECE_BYTES: u64 = 1 << 20;

/// Requests in flight. Eight of 1 MiB keep a fast NVMe drive busy.
const IN_FLIGHT_MAX: usize = 8;

/// How much of a payload is asked for its extents at once, so that their list stays short.
const WINDOW_BYTES: u64 = 256 << 20;

/// Something found in the source, at an offset of the payload.
enum Piece {
    Data(u64, Bytes),
    Hole(u64, u64),
}

/// Writes a file into a payload.
pub(crate) async fn put(store: &Store, put: &Put, global: &Global) -> anyhow::Result<Report> {
    let begun = clock::now();
    let source = Source::open(&put.file)?;
    let bar = progress::bytes(global, put.id.as_str(), source.len);
    let offset = put.offset.unwrap_or(0);
    if put.offset.is_none() {
        store.truncate(&put.id, 0).await?;
    }
    let (pieces, received) = mpsc::channel(IN_FLIGHT_MAX);
    let sparse = put.sparse;
    let reading = tokio::task::spawn_blocking(move || source.read(offset, sparse, &pieces));
    let written = write_pieces(store, put, received, &bar).await;
    let end = reading.await.context("the reader ended early")?;
    // A failed write closes the channel, which fails the reader, too: the write says why.
    let bytes_written = written?;
    let end = end.with_context(|| format!("cannot read: file={}", put.file.display()))?;
    let size = match store.size(&put.id).await {
        Ok(size) => size,
        Err(error) if error.kind() == ringstore::ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    if size < end || put.offset.is_none() {
        store.truncate(&put.id, end).await?;
    }
    store.flush(&put.id).await?;
    bar.finish_and_clear();
    let text = format!(
        "{}: {} from {}{}",
        put.id,
        show_size(end - offset),
        put.file.display(),
        pace(end - offset, begun.elapsed())
    );
    let fields = json!({
        "id": put.id.as_str(),
        "offset": offset,
        "bytes": end - offset,
        "bytes_written": bytes_written,
        "duration_ns": begun.elapsed().as_nanos() as u64,
    });
    Ok(Report::done(text, fields))
}

/// Writes what comes; returns the bytes that were not holes.
async fn write_pieces(
    store: &Store,
    put: &Put,
    mut received: mpsc::Receiver<Piece>,
    bar: &ProgressBar,
) -> anyhow::Result<u64> {
    let mut writing = FuturesUnordered::new();
    let mut bytes_written = 0;
    while let Some(piece) = received.recv().await {
        let (at, data) = match piece {
            Piece::Data(at, data) => (at, data),
            Piece::Hole(at, len) => {
                // What was there before shows through otherwise; a new payload has nothing.
                if put.offset.is_some() && store.exists(&put.id).await? {
                    store.punch_hole(&put.id, at, len).await?;
                }
                bar.inc(len);
                continue;
            }
        };
        bytes_written += data.len() as u64;
        writing.push(write_piece(store, &put.id, at, data));
        if writing.len() == IN_FLIGHT_MAX
            && let Some(result) = writing.next().await
        {
            bar.inc(result?);
        }
    }
    while let Some(result) = writing.next().await {
        bar.inc(result?);
    }
    Ok(bytes_written)
}

async fn write_piece(
    store: &Store,
    id: &PayloadId,
    at: u64,
    data: Bytes,
) -> ringstore::Result<u64> {
    let len = data.len() as u64;
    store.write_at(id, at, data).await.map(|()| len)
}

/// A file or standard input, read from its beginning.
struct Source {
    file: Option<File>,
    /// What the file says of its length; unknown for pipes.
    len: Option<u64>,
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Source> {
        if path == Path::new("-") {
            return Ok(Source {
                file: None,
                len: None,
            });
        }
        let open = || -> std::io::Result<Source> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            let len = metadata.is_file().then_some(metadata.len());
            Ok(Source {
                file: Some(file),
                len,
            })
        };
        open().with_context(|| format!("cannot open: file={}", path.display()))
    }

    /// Sends everything; returns the offset of its end in the payload.
    fn read(self, offset: u64, sparse: bool, to: &mpsc::Sender<Piece>) -> anyhow::Result<u64> {
        let Source { file, len } = self;
        match (file, len) {
            (Some(file), Some(len)) if sparse && len > 0 => read_sparse(&file, len, offset, to),
            (Some(file), _) => read_stream(file, offset, sparse, to),
            (None, _) => read_stream(std::io::stdin().lock(), offset, sparse, to),
        }
    }
}

fn read_stream(
    mut from: impl Read,
    offset: u64,
    sparse: bool,
    to: &mpsc::Sender<Piece>,
) -> anyhow::Result<u64> {
    let mut at = offset;
    loop {
        let piece = read_piece(&mut from, PIECE_BYTES)?;
        let len = piece.len() as u64;
        if len > 0 {
            send(to, at, piece, sparse)?;
        }
        at += len;
        if len < PIECE_BYTES {
            return Ok(at);
        }
    }
}

fn read_sparse(
    file: &File,
    len: u64,
    offset: u64,
    to: &mpsc::Sender<Piece>,
) -> anyhow::Result<u64> {
    let mut at = 0;
    let mut source = file;
    while let Some(range) = next_data(file, at, len)? {
        if range.start > at {
            to.blocking_send(Piece::Hole(offset + at, range.start - at))?;
        }
        at = range.start;
        source.seek(SeekFrom::Start(at))?;
        while at < range.end {
            let piece = read_piece(&mut source, PIECE_BYTES.min(range.end - at))?;
            anyhow::ensure!(
                !piece.is_empty(),
                "the file became shorter while it was read"
            );
            let piece_len = piece.len() as u64;
            send(to, offset + at, piece, true)?;
            at += piece_len;
        }
    }
    if at < len {
        to.blocking_send(Piece::Hole(offset + at, len - at))?;
    }
    Ok(offset + len)
}

/// Up to `len` bytes, fewer only at the end.
fn read_piece(from: &mut impl Read, len: u64) -> std::io::Result<Bytes> {
    let mut piece = Vec::with_capacity(len as usize);
    from.take(len).read_to_end(&mut piece)?;
    Ok(piece.into())
}

fn send(to: &mpsc::Sender<Piece>, at: u64, piece: Bytes, sparse: bool) -> anyhow::Result<()> {
    if !sparse {
        return Ok(to.blocking_send(Piece::Data(at, piece))?);
    }
    let hole = |from: usize, until: usize| match from < until {
        true => to.blocking_send(Piece::Hole(at + from as u64, (until - from) as u64)),
        false => Ok(()),
    };
    let mut done = 0;
    for run in data_runs(&piece, at) {
        hole(done, run.start)?;
        done = run.end;
        let start = at + run.start as u64;
        to.blocking_send(Piece::Data(start, piece.slice(run)))?;
    }
    Ok(hole(done, piece.len())?)
}

/// Writes a payload into a file.
pub(crate) async fn get(store: &Store, get: &Get, global: &Global) -> anyhow::Result<Report> {
    let begun = clock::now();
    let size = store.size(&get.id).await?;
    let (from, to) = get.range.unwrap_or((0, u64::MAX));
    let (from, to) = (from.min(size), to.min(size));
    let to_stdout = get.file == Path::new("-");
    let (mut target, made): (Box<dyn Target>, _) = match to_stdout {
        true => (Box::new(std::io::stdout()), None),
        false => {
            let made = create(&get.file);
            let shown = get.file.display();
            let (file, made) = made.with_context(|| format!("cannot create: file={shown}"))?;
            (Box::new(file), made)
        }
    };
    // Standard output cannot be sought, so its holes are written out as zeros.
    let sparse = get.sparse && !to_stdout;
    let bar = progress::bytes(global, get.id.as_str(), Some(to - from));
    let mut at = from;
    while at < to {
        let end = to.min(at + WINDOW_BYTES);
        let plan = plan(store, &get.id, at, end, sparse).await?;
        let mut reads = stream::iter(plan)
            .map(|(at, len)| async move { (at, len, store.read_at(&get.id, at, len).await) })
            .buffered(IN_FLIGHT_MAX);
        while let Some((at, len, bytes)) = reads.next().await {
            let mut bytes = bytes?;
            anyhow::ensure!(bytes.len() == len, "short read: offset={at} len={len}");
            target
                .put(at - from, &mut bytes)
                .with_context(|| format!("cannot write: file={}", get.file.display()))?;
            bar.set_position(at - from + len as u64);
        }
        at = end;
    }
    target
        .end(to - from)
        .with_context(|| format!("cannot write: file={}", get.file.display()))?;
    if let Some(made) = made {
        made.keep();
    }
    bar.finish_and_clear();
    let text = match to_stdout {
        true => String::new(),
        false => format!(
            "{}: {} from {}{}",
            get.file.display(),
            show_size(to - from),
            get.id,
            pace(to - from, begun.elapsed())
        ),
    };
    let fields = json!({
        "id": get.id.as_str(),
        "offset": from,
        "bytes": to - from,
        "duration_ns": begun.elapsed().as_nanos() as u64,
    });
    let report = Report::done(text, fields);
    Ok(if to_stdout { report.silent() } else { report })
}

/// A file that was not there before, and goes with this unless it is kept.
struct Made<'a>(&'a Path);

impl Made<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // What is in the way of it is no news beside what went wrong before.
        let _ = std::fs::remove_file(self.0);
    }
}

/// Opens a file to be written anew; says whether it was made.
fn create(path: &Path) -> std::io::Result<(File, Option<Made<'_>>)> {
    match File::create_new(path) {
        Ok(file) => Ok((file, Some(Made(path)))),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Ok((File::create(path)?, None))
        }
        Err(error) => Err(error),
    }
}

/// The reads that `[from, to)` takes: all of it, or only its data.
async fn plan(
    store: &Store,
    id: &PayloadId,
    from: u64,
    to: u64,
    sparse: bool,
) -> anyhow::Result<Vec<(u64, usize)>> {
    let mut ranges = Vec::new();
    match sparse {
        false => ranges.push((from, to)),
        true => {
            for extent in store.extents(id, from, to - from).await? {
                if extent.kind != ExtentKind::Hole {
                    ranges.push((extent.offset, extent.offset + extent.len));
                }
            }
        }
    }
    let mut reads = Vec::new();
    for (mut at, end) in ranges {
        while at < end {
            let len = PIECE_BYTES.min(end - at);
            reads.push((at, len as usize));
            at += len;
        }
    }
    Ok(reads)
}

/// Where a payload's bytes go, in ascending order.
trait Target: Send {
    fn put(&mut self, at: u64, bytes: &mut dyn Buf) -> std::io::Result<()>;
    fn end(&mut self, len: u64) -> std::io::Result<()>;
}

impl Target for std::io::Stdout {
    fn put(&mut self, _at: u64, bytes: &mut dyn Buf) -> std::io::Result<()> {
        write_chunks(self, bytes)
    }

    fn end(&mut self, _len: u64) -> std::io::Result<()> {
        self.flush()
    }
}

impl Target for File {
    fn put(&mut self, at: u64, bytes: &mut dyn Buf) -> std::io::Result<()> {
        // A device or a pipe need not be seekable, and is not sought if nothing was left out.
        if self.stream_position().ok() != Some(at) {
            match self.seek(SeekFrom::Start(at)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotSeekable => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        write_chunks(self, bytes)
    }

    fn end(&mut self, len: u64) -> std::io::Result<()> {
        match self.metadata()?.is_file() {
            true => self.set_len(len),
            false => Ok(()),
        }
    }
}

fn write_chunks(to: &mut impl Write, bytes: &mut dyn Buf) -> std::io::Result<()> {
    while bytes.has_remaining() {
        let chunk = bytes.chunk();
        to.write_all(chunk)?;
        let len = chunk.len();
        bytes.advance(len);
    }
    Ok(())
}

fn pace(bytes: u64, span: Duration) -> String {
    let per_second = bytes as f64 / span.as_secs_f64().max(1e-9);
    format!(", {}/s", show_size(per_second as u64))
}
