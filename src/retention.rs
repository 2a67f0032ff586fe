//! What may be evicted: the policy that a store has, and a payload of its own.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What may be evicted from the local disk once it is in the remote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum RetentionPolicy {
    /// Nothing.
    Pin,
    /// What has been neither read nor written for this long.
    Ttl(Duration),
    /// The coldest first, when space is needed.
    #[default]
    Lru,
}

impl fmt::Display for RetentionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetentionPolicy::Pin => f.write_str("pin"),
            // Whole seconds, never none of them.
            RetentionPolicy::Ttl(span) => {
                let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
                write!(f, "ttl:{}s", seconds.max(1))
            }
            RetentionPolicy::Lru => f.write_str("lru"),
        }
    }
}

impl FromStr for RetentionPolicy {
    type Err = Error;

    /// Reads `pin`, `lru` or `ttl:3600s`, in any case; blank is `lru`.
    fn from_str(text: &str) -> Result<RetentionPolicy> {
        let lower = text.trim().to_ascii_lowercase();
        match lower.as_str() {
            "" | "lru" => return Ok(RetentionPolicy::Lru),
            "pin" => return Ok(RetentionPolicy::Pin),
            _ => {}
        }
        let seconds = lower
            .strip_prefix("ttl:")
            .and_then(|span| span.strip_suffix('s'))
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
        match seconds.map(str::parse::<u64>) {
            Some(Ok(seconds)) if seconds > 0 => {
                Ok(RetentionPolicy::Ttl(Duration::from_secs(seconds)))
            }
            _ => Err(Error::invalid(format!(
                "unknown retention policy, use pin, lru or ttl:SECONDSs: policy={text:?}"
            ))),
        }
    }
}

impl RetentionPolicy {
    /// As two numbers, which stand in the log and in checkpoints: its kind, and a span in
    /// nanoseconds.
    pub(crate) fn to_numbers(self) -> (u32, u64) {
        match self {
            RetentionPolicy::Pin => (0, 0),
            RetentionPolicy::Ttl(span) => (1, u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
            RetentionPolicy::Lru => (2, 0),
        }
    }

    /// The inverse, for any numbers.
    pub(crate) fn from_numbers(kind: u32, span: u64) -> Option<RetentionPolicy> {
        match (kind, span) {
            (0, 0) => Some(RetentionPolicy::Pin),
            (1, _) => Some(RetentionPolicy::Ttl(Duration::from_nanos(span))),
            (2, 0) => Some(RetentionPolicy::Lru),
            _ => None,
        }
    }
}
