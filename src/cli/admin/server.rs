//! The side of the process that has the store: runs what others have typed.
//!
//! Invariant: it ends `GRACE` after it is told to, whatever is under way.

use super::super::args::{Arguments, Command};
use super::super::on_store;
use super::super::outcome::{Report, code_of, message};
use super::{is_sent, receive, send};
use anyhow::Context;
use ringstore::Store;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Commands that are run at a time.
const CLIENTS_MAX: usize = 16;

/// How long a client may take to say what it wants, and to hear the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long commands may go on when the process is to end.
const GRACE: Duration = Duration::from_secs(3);

/// Answers commands until `stop` says so.
pub(crate) async fn serve(listener: UnixListener, store: Store, mut stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                Ok((stream, _)) => {
                    clients.spawn(client(stream, store.clone()));
                }
                Err(error) => {
                    tracing::warn!("a command could not be accepted: error={error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = clients.join_next() => report(ended),
            () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
        }
    }
    drop(listener);
    let all_ended = async {
        while let Some(ended) = clients.join_next().await {
            report(ended);
        }
    };
    if timeout(GRACE, all_ended).await.is_err() {
        clients.shutdown().await;
    }
}

fn report(ended: Result<io::Result<()>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a command went away: error={error}"),
        Err(panic) => tracing::error!("a command ended in a defect: error={panic}"),
    }
}

async fn client(mut stream: UnixStream, store: Store) -> io::Result<()> {
    let request = timeout(PATIENCE, receive(&mut stream)).await??;
    let reply = match answer(&store, &request).await {
        Ok(report) => json!({
            "text": report.text,
            "json": report.json,
            "code": report.code as u8,
            "asked_for": report.asked_for,
        }),
        Err(error) => json!({ "error": message(&error), "code": code_of(&error) as u8 }),
    };
    timeout(PATIENCE, send(&mut stream, &reply)).await?
}

/// Runs what was typed elsewhere.
async fn answer(store: &Store, request: &Value) -> anyhow::Result<Report> {
    let words = request["arguments"].as_array().context("no arguments")?;
    let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
    let words = words.context("an argument is not text")?;
    let parsed = Arguments::read(words);
    let Arguments {
        mut global,
        mut command,
    } = parsed.context("this server is of another version")?;
    anyhow::ensure!(is_sent(&command), "this is not done for others");
    if let Command::Stats { watch, .. } = &mut command {
        // Whoever watches asks again.
        *watch = None;
    }
    (global.quiet, global.no_progress) = (true, true);
    on_store(store, &global, command).await
}
