//! What has to do with the remote tier: waiting for it, leaving things to it, coming back from it.

use super::args::Global;
use super::outcome::{Report, UsageError};
use super::payloads::ids;
use super::progress;
use super::settings;
use super::units::show_size;
use ringstore::{Config, PayloadId, Store};
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How often progress is shown.
const PERIOD: Duration = Duration::from_millis(200);

/// Waits until the remote has everything, and shows how much is left.
pub(crate) async fn drain(store: &Store, global: &Global) -> anyhow::Result<Report> {
    if !store.has_remote() {
        return Err(UsageError("give the remote with --remote or RINGSTORE_REMOTE").into());
    }
    let first = store.stats().await?.pending_syncs;
    let bar = progress::segments(global, first);
    let mut draining = std::pin::pin!(store.drain_uploads());
    loop {
        tokio::select! {
            result = &mut draining => {
                bar.finish_and_clear();
                result?;
                break;
            }
            () = tokio::time::sleep(PERIOD) => {
                let left = store.stats().await?.pending_syncs;
                bar.set_position(first.saturating_sub(left));
            }
        }
    }
    let uploaded = store.stats().await?.completed_syncs;
    let text = format!("everything is in the remote: {uploaded} segments uploaded");
    Ok(Report::done(text, json!({ "segments_uploaded": uploaded })))
}

/// Frees local bytes of one payload, or of all.
pub(crate) async fn evict(store: &Store, id: Option<&PayloadId>) -> anyhow::Result<Report> {
    let ids = match id {
        Some(id) => vec![id.clone()],
        None => ids(store, "").await?,
    };
    let mut freed = 0;
    for id in &ids {
        freed += store.evict(id).await?;
    }
    let text = format!("{} freed", show_size(freed));
    Ok(Report::done(text, json!({ "freed_bytes": freed })))
}

/// Rebuilds, with a count of the bytes that have come: the remote does not say how many there are.
async fn rebuilt(config: Config, global: &Global) -> anyhow::Result<Store> {
    let dir = config.dir.clone();
    let bar = progress::bytes(global, "rebuild", None);
    let mut rebuilding = std::pin::pin!(Store::rebuild(config));
    let store = loop {
        tokio::select! {
            store = &mut rebuilding => break store?,
            () = tokio::time::sleep(PERIOD) => bar.set_position(bytes_below(&dir)),
        }
    };
    bar.finish_and_clear();
    Ok(store)
}

/// Bytes that files take in a directory and in those in it; what cannot be read counts nothing.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

/// Brings the store up from its remote, in an empty directory.
pub(crate) async fn rebuild(global: &Global) -> anyhow::Result<Report> {
    let config = settings::load(global)?;
    if config.remote.is_none() {
        return Err(UsageError("give the remote with --remote or RINGSTORE_REMOTE").into());
    }
    let store = rebuilt(config, global).await?;
    let stats = store.stats().await;
    store.close().await?;
    let stats = stats?;
    let text = format!(
        "rebuilt: {} payloads of {}",
        stats.file_count,
        show_size(stats.used_size)
    );
    let fields = json!({ "payloads": stats.file_count, "used_size": stats.used_size });
    Ok(Report::done(text, fields))
}
