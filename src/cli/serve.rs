//! `serve`: the store's payloads for programs that speak NBD, until interrupted.
//!
//! Invariant: the socket appears when the store is open, and is removed after the store was closed,
//! so who waits for either may rely on it.

use super::args::{Global, Serve};
use super::holder::Holder;
use super::outcome::{Report, UsageError};
use super::socket;
use crate::nbd;
use anyhow::Context;
use serde_json::json;

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn run(global: &Global, serve: Serve) -> anyhow::Result<Report> {
    let Some(path) = &serve.nbd else {
        return Err(UsageError("say what to serve: --nbd unix:PATH").into());
    };
    let mut holder = Holder::open(global).await?;
    let (listener, file) = match socket::listen(path) {
        Ok(made) => made,
        Err(error) => {
            holder.close().await?;
            return Err(error);
        }
    };
    if !global.quiet {
        eprintln!("ringstore: serving NBD: socket={}", path.display());
    }
    let options = nbd::Options {
        create: serve.create,
        clients_max: serve.max_clients,
    };
    let serving = nbd::serve(listener, holder.store.clone(), options, holder.stopping());
    let serving = tokio::spawn(serving);
    holder.interrupted().await;
    holder.stop();
    let served = serving.await;
    holder.close().await?;
    drop(file);
    served.context("the server ended early")?;
    Ok(Report::done(String::new(), json!({ "closed": true })))
}
