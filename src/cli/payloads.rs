//! The commands that touch payloads without moving their bytes.

use super::outcome::Report;
use super::units::show_size;
use ringstore::{ExtentKind, PayloadId, Store};
use serde_json::{Value, json};

/// How many ids are asked for at once: a page of them is a few hundred KiB at most.
const PAGE_IDS: usize = 1000;

/// How many sizes are asked for at once.
const SIZES_IN_FLIGHT: usize = 64;

/// How much of a payload is asked for its extents at once.
const WINDOW_BYTES: u64 = 1 << 40;

pub(crate) async fn copy(
    store: &Store,
    source: &PayloadId,
    target: &PayloadId,
) -> anyhow::Result<Report> {
    let blocks = store.copy(source, target).await?;
    let size = store.size(target).await?;
    store.flush(target).await?;
    let text = format!("{target}: {} shared with {source}", show_size(size));
    let fields = json!({
        "source": source.as_str(),
        "id": target.as_str(),
        "size": size,
        "blocks_shared": blocks,
    });
    Ok(Report::done(text, fields))
}

pub(crate) async fn remove(store: &Store, ids: &[PayloadId]) -> anyhow::Result<Report> {
    let mut removed = 0;
    for id in ids {
        removed += u64::from(store.exists(id).await?);
        store.delete(id).await?;
    }
    store.flush_all().await?;
    let text = format!("{removed} of {} removed", ids.len());
    Ok(Report::done(text, json!({ "removed": removed })))
}

pub(crate) async fn truncate(store: &Store, id: &PayloadId, size: u64) -> anyhow::Result<Report> {
    store.truncate(id, size).await?;
    store.flush(id).await?;
    let text = format!("{id}: {}", show_size(size));
    Ok(Report::done(
        text,
        json!({ "id": id.as_str(), "size": size }),
    ))
}

pub(crate) async fn punch(
    store: &Store,
    id: &PayloadId,
    offset: u64,
    len: u64,
) -> anyhow::Result<Report> {
    store.punch_hole(id, offset, len).await?;
    // A hole of no bytes is fine for a missing payload, which flushing is not.
    if len > 0 {
        store.flush(id).await?;
    }
    let text = format!("{id}: {} punched", show_size(len));
    let fields = json!({ "id": id.as_str(), "offset": offset, "bytes": len });
    Ok(Report::done(text, fields))
}

pub(crate) async fn flush(
    store: &Store,
    id: Option<&PayloadId>,
    wait_remote: bool,
) -> anyhow::Result<Report> {
    let Some(id) = id else {
        store.flush_all().await?;
        if wait_remote {
            store.drain_uploads().await?;
        }
        return Ok(Report::done("all flushed".to_owned(), json!({})));
    };
    if wait_remote {
        store.wait_remote(id).await?;
    }
    let flushed = store.flush(id).await?;
    let fields = json!({
        "id": id.as_str(),
        "lsn": flushed.lsn,
        "finalized": flushed.finalized,
    });
    Ok(Report::done(format!("{id}: flushed"), fields))
}

pub(crate) async fn list(
    store: &Store,
    prefix: Option<&str>,
    long: bool,
) -> anyhow::Result<Report> {
    let ids = ids(store, prefix.unwrap_or("")).await?;
    if !long {
        let names: Vec<&str> = ids.iter().map(PayloadId::as_str).collect();
        return Ok(Report::answer(
            names.join("\n"),
            json!({ "payloads": names }),
        ));
    }
    let mut lines = Vec::new();
    let mut entries = Vec::new();
    for page in ids.chunks(SIZES_IN_FLIGHT) {
        let sizes = page.iter().map(|id| store.size(id));
        for (id, size) in page.iter().zip(futures_util::future::join_all(sizes).await) {
            let size = size?;
            lines.push(format!("{size:>16}  {id}"));
            entries.push(json!({ "id": id.as_str(), "size": size }));
        }
    }
    Ok(Report::answer(
        lines.join("\n"),
        json!({ "payloads": entries }),
    ))
}

/// All ids that begin with `prefix`, in the order of their bytes.
pub(super) async fn ids(store: &Store, prefix: &str) -> anyhow::Result<Vec<PayloadId>> {
    let mut found = Vec::new();
    // The list begins behind the id that is given, so the prefix itself is looked up.
    let mut after = PayloadId::new(prefix).ok();
    if let Some(id) = &after
        && store.exists(id).await?
    {
        found.push(id.clone());
    }
    loop {
        let page = store.list(after.as_ref(), PAGE_IDS).await?;
        let is_last = page.len() < PAGE_IDS;
        for id in page {
            if !id.as_str().starts_with(prefix) {
                return Ok(found);
            }
            found.push(id);
        }
        if is_last {
            return Ok(found);
        }
        after = found.last().cloned();
    }
}

pub(crate) async fn stat(store: &Store, id: &PayloadId, extents: bool) -> anyhow::Result<Report> {
    let size = store.size(id).await?;
    let mut totals = [0u64; 3];
    let mut lines = Vec::new();
    let mut entries = Vec::new();
    let mut at = 0;
    while at < size {
        let len = WINDOW_BYTES.min(size - at);
        for extent in store.extents(id, at, len).await? {
            let kind = kind_name(extent.kind);
            match extent.kind {
                ExtentKind::Hole => totals[0] += extent.len,
                ExtentKind::Dirty | ExtentKind::Local => totals[1] += extent.len,
                _ => totals[2] += extent.len,
            }
            if extents {
                lines.push(format!("{:>16} {:>16}  {kind}", extent.offset, extent.len));
                entries.push(json!({ "offset": extent.offset, "len": extent.len, "kind": kind }));
            }
        }
        at += len;
    }
    let [holes, local, remote] = totals;
    let mut text = format!(
        "id      {id}\nsize    {size} ({})\ndata    {} local, {} remote\nholes   {}",
        show_size(size),
        show_size(local),
        show_size(remote),
        show_size(holes)
    );
    let mut fields = json!({
        "id": id.as_str(),
        "size": size,
        "hole_bytes": holes,
        "local_bytes": local,
        "remote_bytes": remote,
    });
    if extents {
        text = format!("{text}\n{:>16} {:>16}", "offset", "length");
        lines.iter().for_each(|line| text.extend(["\n", line]));
        fields["extents"] = Value::Array(entries);
    }
    Ok(Report::answer(text, fields))
}

fn kind_name(kind: ExtentKind) -> &'static str {
    match kind {
        ExtentKind::Hole => "hole",
        ExtentKind::Dirty => "dirty",
        ExtentKind::Local => "local",
        ExtentKind::Remote => "remote",
        _ => "other",
    }
}
