//! `serve`: the store's payloads for programs that speak NBD, until interrupted.
//!
//! Invariants:
//! 1. The socket appears when the store is open, and is removed after the store was closed: who
//!    waits for either may rely on it.
//! 2. An interruption is how it is meant to end: exit code 0, with everything durable.

use super::args::{Global, Serve};
use super::outcome::{Report, UsageError};
use super::{open, settings, socket};
use crate::nbd;
use anyhow::Context;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn run(global: &Global, serve: Serve) -> anyhow::Result<Report> {
    let Some(path) = &serve.nbd else {
        return Err(UsageError("say what to serve: --nbd unix:PATH").into());
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let store = open(settings::load(global)?, global).await?;
    let (listener, file) = match socket::listen(path) {
        Ok(made) => made,
        Err(error) => {
            store.close().await?;
            return Err(error);
        }
    };
    if !global.quiet {
        eprintln!("ringstore: serving NBD: socket={}", path.display());
    }
    let (stop, stopping) = watch::channel(false);
    let options = nbd::Options {
        create: serve.create,
        clients_max: serve.max_clients,
    };
    let serving = tokio::spawn(nbd::serve(listener, store.clone(), options, stopping));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    stop.send_replace(true);
    let served = serving.await;
    let closed = store.close().await;
    drop(file);
    closed.context("the store could not be closed")?;
    served.context("the server ended early")?;
    Ok(Report::done(String::new(), json!({ "closed": true })))
}
