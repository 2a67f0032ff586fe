//! `serve`: the store's payloads for programs that speak NBD, and its figures, until interrupted.
//!
//! Invariant: a socket appears when the store is open, and is removed after the store was closed,
//! so who waits for either may rely on it.

use super::args::{Global, Serve};
use super::holder::Holder;
use super::outcome::{Report, UsageError};
use super::scrape;
use super::socket::SocketFile;
#[cfg(feature = "nbd")]
use crate::nbd;
use anyhow::Context;
use serde_json::json;
use tokio::task::JoinHandle;

/// A server that runs until it is told to stop, and the socket that it made.
struct Serving {
    task: JoinHandle<()>,
    file: Option<SocketFile>,
}

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn run(global: &Global, serve: Serve) -> anyhow::Result<Report> {
    check(&serve)?;
    let mut holder = Holder::open(global).await?;
    let servers = match start(global, &serve, &holder).await {
        Ok(servers) => servers,
        Err(error) => {
            holder.close().await?;
            return Err(error);
        }
    };
    holder.interrupted().await;
    holder.stop();
    let mut served = Ok(());
    let mut files = Vec::new();
    for server in servers {
        served = served.and(server.task.await);
        files.extend(server.file);
    }
    holder.close().await?;
    drop(files);
    served.context("a server ended early")?;
    Ok(Report::done(String::new(), json!({ "closed": true })))
}

fn check(serve: &Serve) -> anyhow::Result<()> {
    #[cfg(feature = "nbd")]
    if serve.nbd.is_some() {
        return Ok(());
    }
    match serve.admin {
        Some(_) => Ok(()),
        None if cfg!(feature = "nbd") => {
            Err(UsageError("say what to serve: --nbd unix:PATH, --admin unix:PATH").into())
        }
        None => Err(UsageError("say what to serve: --admin unix:PATH").into()),
    }
}

/// Starts what was asked for; what has been started ends with the error of another.
async fn start(global: &Global, serve: &Serve, holder: &Holder) -> anyhow::Result<Vec<Serving>> {
    let mut servers = Vec::new();
    if let Some(door) = &serve.admin {
        let (listener, file) = scrape::listen(door).await?;
        if !global.quiet {
            eprintln!("ringstore: serving figures: {}", listener.at());
        }
        let serving = scrape::serve(listener, holder.store.clone(), holder.stopping());
        servers.push(Serving {
            task: tokio::spawn(serving),
            file,
        });
    }
    #[cfg(feature = "nbd")]
    if let Some(path) = &serve.nbd {
        let (listener, file) = super::socket::listen(path)?;
        if !global.quiet {
            eprintln!("ringstore: serving NBD: socket={}", path.display());
        }
        let options = nbd::Options {
            create: serve.create,
            clients_max: serve.max_clients,
        };
        let serving = nbd::serve(listener, holder.store.clone(), options, holder.stopping());
        servers.push(Serving {
            task: tokio::spawn(serving),
            file: Some(file),
        });
    }
    Ok(servers)
}
