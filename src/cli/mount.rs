//! `mount`: the store's payloads as files, until interrupted or unmounted.
//!
//! Invariant: when it ends, nothing is mounted any more and everything is durable.

use super::args::{Global, Mount};
use super::holder::Holder;
use super::outcome::Report;
use crate::mount;
use anyhow::Context;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// How long those who still have files open may go on after an interruption.
const GRACE: Duration = Duration::from_secs(5);

/// Serves files until SIGINT, SIGTERM or `fusermount3 -u`.
pub(crate) async fn run(global: &Global, args: Mount) -> anyhow::Result<Report> {
    let mut holder = Holder::open(global).await?;
    let point = args.point;
    let store = holder.store.clone();
    let mounted = mount::mount(store, &holder.dir, &point, args.allow_other).await;
    let mut mounted = match mounted {
        Ok(mounted) => mounted,
        Err(error) => {
            holder.close().await?;
            let at = point.display();
            return Err(error).with_context(|| format!("cannot mount: dir={at}"));
        }
    };
    if !global.quiet {
        eprintln!("ringstore: mounted: dir={}", point.display());
    }
    let ended = tokio::select! {
        ended = &mut mounted.ended => Some(ended),
        () = holder.interrupted() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            if let Err(error) = mounted.unmount() {
                tracing::warn!("files are open, they go on for a while: error={error}");
                detach(&point);
            }
            match timeout(GRACE, &mut mounted.ended).await {
                Ok(ended) => ended,
                // Whoever still has a file gets errors from here on.
                Err(_) => Ok(Ok(())),
            }
        }
    };
    holder.close().await?;
    ended
        .context("the mount ended in a defect")?
        .context("the mount has failed")?;
    Ok(Report::done(String::new(), json!({ "closed": true })))
}

/// Takes the mount from its place, although somebody is in it.
fn detach(point: &Path) {
    if unmount(point, UnmountFlags::DETACH).is_err() {
        // For all but root a helper does it.
        let helper = std::process::Command::new("fusermount3");
        let _ = { helper }.args(["-u", "-z", "--"]).arg(point).status();
    }
}
