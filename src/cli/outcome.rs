//! What a command says at its end: text or JSON, and an exit code.
//!
//! Invariant: a report is printed after the store was closed, so whoever reads `ok` may pull the
//! plug.

use anyhow::Context;
use ringstore::ErrorKind;
use serde_json::{Map, Value};
use std::io::Write;

/// Name and version of every JSON object that is printed; fields are only ever added.
pub(crate) const SCHEMA: &str = "ringstore.stats/1";

/// Exit codes that scripts rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Code {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Locked = 4,
    Corrupt = 5,
    Degraded = 6,
    RemoteUnavailable = 7,
    Unsupported = 8,
    Interrupted = 130,
}

impl Code {
    const ALL: [Code; 10] = [
        Code::Ok,
        Code::Failed,
        Code::Usage,
        Code::NotFound,
        Code::Locked,
        Code::Corrupt,
        Code::Degraded,
        Code::RemoteUnavailable,
        Code::Unsupported,
        Code::Interrupted,
    ];

    /// The code of this number, if there is one.
    pub(crate) fn from_number(number: u64) -> Option<Code> {
        Code::ALL.into_iter().find(|code| *code as u64 == number)
    }
}

/// An error that another process has met for us.
#[derive(Debug)]
pub(crate) struct Relayed {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl std::fmt::Display for Relayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Relayed {}

/// A usage error that the parser of the arguments cannot see.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) &'static str);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UsageError {}

/// The machine lacks something that was insisted on.
#[derive(Debug)]
pub(crate) struct Unsupported(pub(crate) ringstore::Error);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; `ringstore doctor` says more", self.0)
    }
}

impl std::error::Error for Unsupported {}

/// Ctrl-C or a polite kill.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The result of a command that worked.
pub(crate) struct Report {
    /// For people; without a last line feed. Nothing is printed for an empty one.
    pub(crate) text: String,
    /// For programs.
    pub(crate) json: Map<String, Value>,
    pub(crate) code: Code,
    /// Whether the text is what was asked for, so that `--quiet` does not suppress it.
    pub(crate) asked_for: bool,
    is_silent: bool,
    is_json: bool,
}

impl Report {
    /// A result that was asked for, such as a list.
    pub(crate) fn answer(text: String, json: Value) -> Report {
        Report {
            asked_for: true,
            ..Report::done(text, json)
        }
    }

    /// A remark that something was done.
    pub(crate) fn done(text: String, json: Value) -> Report {
        let Value::Object(fields) = json else {
            unreachable!("reports are objects");
        };
        Report {
            text,
            json: fields,
            code: Code::Ok,
            asked_for: false,
            is_silent: false,
            is_json: false,
        }
    }

    /// Prints nothing at all, since standard output already has something else.
    pub(crate) fn silent(self) -> Report {
        Report {
            is_silent: true,
            ..self
        }
    }

    /// Prints JSON, whatever the global options say.
    pub(crate) fn always_json(self) -> Report {
        Report {
            is_json: true,
            ..self
        }
    }

    pub(crate) fn with_code(self, code: Code) -> Report {
        Report { code, ..self }
    }

    /// Prints it in the form that was asked for.
    pub(crate) fn print(self, json: bool, quiet: bool) -> anyhow::Result<Code> {
        if self.is_silent {
            return Ok(self.code);
        }
        let mut out = std::io::stdout().lock();
        if json || self.is_json {
            let mut object = Map::new();
            object.insert("schema".to_owned(), SCHEMA.into());
            object.extend(self.json);
            serde_json::to_writer_pretty(&mut out, &object)?;
            writeln!(out)?;
        } else if !self.text.is_empty() && (self.asked_for || !quiet) {
            writeln!(out, "{}", self.text)?;
        }
        out.flush().context("standard output cannot be written")?;
        Ok(self.code)
    }
}

/// Which exit code an error has.
pub(crate) fn code_of(error: &anyhow::Error) -> Code {
    if error.is::<UsageError>() {
        return Code::Usage;
    }
    if let Some(relayed) = error.downcast_ref::<Relayed>() {
        return relayed.code;
    }
    if error.is::<Interrupted>() {
        return Code::Interrupted;
    }
    if error.is::<Unsupported>() {
        return Code::Unsupported;
    }
    let Some(cause) = error.downcast_ref::<ringstore::Error>() else {
        return Code::Failed;
    };
    match cause.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidInput if is_locked(cause) => Code::Locked,
        ErrorKind::InvalidInput => Code::Usage,
        ErrorKind::Corrupt => Code::Corrupt,
        ErrorKind::Unavailable => Code::RemoteUnavailable,
        _ => Code::Failed,
    }
}

/// Whether the store is in use: the lock's refusal is the error's source.
fn is_locked(error: &ringstore::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.is::<std::fs::TryLockError>())
}

/// What to tell about an error: what was being done, and why it failed.
///
/// The engine's errors say their cause themselves, so what lies below them is left out.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if cause.is::<ringstore::Error>() {
            break;
        }
    }
    parts.join(": ")
}

/// Whether somebody stopped reading what we print, which is their right.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        // What stopped the writing of JSON is hidden in the error of the writer.
        let json = cause.downcast_ref::<serde_json::Error>();
        let kind = io.map(std::io::Error::kind);
        let kind = kind.or_else(|| json.and_then(serde_json::Error::io_error_kind));
        kind == Some(std::io::ErrorKind::BrokenPipe)
    })
}
