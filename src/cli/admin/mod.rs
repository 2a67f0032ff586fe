//! The other commands on a store that `serve` or `mount` has, through a socket in its directory.
//!
//! A command that finds the store in use sends what was typed to the process that has it, which
//! runs it as if it had been typed there and sends the report back. So there is one vocabulary, and
//! a script does not notice. What moves bytes (`put`, `get`, `bench`) is not sent: it is told who
//! has the store.
//!
//! ```text
//! request   length, 4 bytes, little-endian; {"arguments": ["ringstore", "stat", "disk"]}
//! reply     length; {"text": .., "json": {..}, "code": 0, "asked_for": true}
//!           or      {"error": "not found: no such payload", "code": 3}
//! ```
//!
//! Invariants:
//! 1. One request a connection, and no more of it in memory than `MESSAGE_BYTES_MAX`.
//! 2. Nothing that is sent here reads or writes a file, or prints.

pub(crate) mod server;

use super::args::{Command, Global};
use super::outcome::{Code, Relayed, Report, code_of};
use anyhow::Context;
use serde_json::{Value, json};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::sleep;

/// Name of the socket in the store's directory.
pub(crate) const SOCKET_NAME: &str = "admin.sock";

/// Longest request or reply: the list of half a million payloads.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Whether a command can be run by the process that has the store.
fn is_sent(command: &Command) -> bool {
    matches!(
        command,
        Command::Cp { .. }
            | Command::Rm { .. }
            | Command::Truncate { .. }
            | Command::Punch { .. }
            | Command::Ls { .. }
            | Command::Stat { .. }
            | Command::Flush { .. }
            | Command::Evict { .. }
            | Command::Drain
            | Command::Stats { .. }
            | Command::Health
            | Command::Verify { .. }
            | Command::Segments { .. }
    )
}

/// Has a command run by the process that has the store, if that is why it could not be opened.
pub(crate) async fn instead(
    global: &Global,
    command: &Command,
    error: anyhow::Error,
) -> anyhow::Result<Report> {
    let words: Option<Vec<String>> = std::env::args_os()
        .map(|word| word.into_string().ok())
        .collect();
    let (Some(dir), Some(words)) = (&global.dir, words) else {
        return Err(error);
    };
    if code_of(&error) != Code::Locked || !is_sent(command) {
        return Err(error);
    }
    loop {
        let Ok(mut stream) = UnixStream::connect(dir.join(SOCKET_NAME)).await else {
            // It has no such socket: then it is the one to be told.
            return Err(error);
        };
        let asked = json!({ "arguments": words });
        send(&mut stream, &asked)
            .await
            .context("cannot ask the process that has the store")?;
        let reply = receive(&mut stream).await;
        let reply = reply.context("no answer from the process that has the store")?;
        let report = relayed(reply)?;
        let Command::Stats {
            watch: Some(every), ..
        } = command
        else {
            return Ok(report);
        };
        report.print(global.json, false)?;
        sleep(*every).await;
    }
}

fn relayed(mut reply: Value) -> anyhow::Result<Report> {
    let code = reply["code"].as_u64().and_then(Code::from_number);
    let code = code.unwrap_or(Code::Failed);
    if let Some(message) = reply["error"].as_str() {
        let message = message.to_owned();
        return Err(Relayed { code, message }.into());
    }
    let text = reply["text"].as_str().unwrap_or_default().to_owned();
    let fields = reply["json"].take();
    anyhow::ensure!(fields.is_object(), "the answer is not a report");
    let report = match reply["asked_for"].as_bool() {
        Some(true) => Report::answer(text, fields),
        _ => Report::done(text, fields),
    };
    Ok(report.with_code(code))
}

async fn receive(stream: &mut UnixStream) -> io::Result<Value> {
    let len = stream.read_u32_le().await? as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of more than 64 MiB",
        ));
    }
    // Grown by what comes, not by what was announced.
    let mut text = Vec::new();
    stream.take(len as u64).read_to_end(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

async fn send(stream: &mut UnixStream, message: &Value) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is too long",
        ));
    }
    stream.write_u32_le(text.len() as u32).await?;
    stream.write_all(&text).await
}
