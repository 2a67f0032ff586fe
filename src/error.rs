//! What can go wrong, sorted by what the caller does about it.
//!
//! One opaque type. The kinds are the contract; messages are for people: lower case, variables last
//! as `key=value`. Deliberately not here: `From<io::Error>`, because the same I/O error means
//! different things in different places and each place has to say which.

use std::fmt;
use std::sync::Arc;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller should do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The payload does not exist; there is nothing to retry.
    NotFound,
    /// Fix the call or the configuration.
    InvalidInput,
    /// Free space, raise the limit, or retry later.
    Full,
    /// The remote is needed and cannot be reached now: retry later.
    Unavailable,
    /// Bytes failed their checksum in every tier that has them: restore, report.
    Corrupt,
    /// The store is closed: reopen it.
    Closed,
    /// A local write or sync failed: check the disk, reopen.
    Poisoned,
    /// A defect of this library: report it.
    Internal,
}

impl ErrorKind {
    fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not found",
            ErrorKind::InvalidInput => "invalid input",
            ErrorKind::Full => "full",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Closed => "closed",
            ErrorKind::Poisoned => "poisoned",
            ErrorKind::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The error of every operation; cheap to clone, since one failure may answer many callers.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Arc::new(Inner {
            kind,
            message: message.into(),
            source: None,
        }))
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error(Arc::new(Inner {
            kind,
            message: message.into(),
            source: Some(Arc::new(source)),
        }))
    }

    pub(crate) fn not_found() -> Error {
        Error::new(ErrorKind::NotFound, "no such payload")
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn closed() -> Error {
        Error::new(ErrorKind::Closed, "the store is closed: open it again")
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }

    /// The same error, with the messages of others that came with it.
    pub(crate) fn with_others(&self, others: &[Error]) -> Error {
        let mut message = self.0.message.clone();
        for other in others {
            message.push_str("; also ");
            message.push_str(&other.to_string());
        }
        Error(Arc::new(Inner {
            kind: self.0.kind,
            message,
            source: self.0.source.clone(),
        }))
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without anything being changed by the caller.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Full | ErrorKind::Unavailable)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind, self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind)
            .field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_ref()
            .map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            ErrorKind::NotFound => Io::NotFound,
            ErrorKind::InvalidInput => Io::InvalidInput,
            ErrorKind::Full => Io::StorageFull,
            ErrorKind::Unavailable => Io::NetworkUnreachable,
            ErrorKind::Corrupt => Io::InvalidData,
            ErrorKind::Closed => Io::NotConnected,
            ErrorKind::Poisoned | ErrorKind::Internal => Io::Other,
        };
        std::io::Error::new(kind, error)
    }
}
