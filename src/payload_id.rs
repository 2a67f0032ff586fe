//! The name of a payload, with the hash that routes it.
//!
//! Invariants: 1 to 1,024 bytes of UTF-8 without NUL; the hash is a function of the bytes alone and
//! never changes between versions, because it decides on which shard a payload lives.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest id, in bytes.
pub(crate) const PAYLOAD_ID_BYTES_MAX: usize = 1024;

/// Name of a payload: 1 to 1,024 bytes of UTF-8 without NUL.
///
/// It is never used as a path, so `..` and `/` are ordinary bytes. Cloning is cheap.
///
/// # Example
///
/// ```
/// use ringstore::PayloadId;
/// let id: PayloadId = "volumes/disk-7".parse()?;
/// assert_eq!(id.as_str(), "volumes/disk-7");
/// assert!(PayloadId::new("").is_err());
/// # Ok::<(), ringstore::Error>(())
/// ```
#[derive(Clone)]
pub struct PayloadId {
    name: Arc<str>,
    hash: u64,
}

impl PayloadId {
    /// Checks a name and makes it an id.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is empty, longer than 1,024 bytes, or contains NUL.
    pub fn new(name: impl AsRef<str>) -> Result<PayloadId> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(Error::invalid("a payload id must have at least one byte"));
        }
        if name.len() > PAYLOAD_ID_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a payload id has at most {PAYLOAD_ID_BYTES_MAX} bytes: len={}",
                name.len()
            )));
        }
        if name.bytes().any(|byte| byte == 0) {
            return Err(Error::invalid("a payload id must not contain NUL"));
        }
        // CRC-64/NVME is a published constant of the format: a library's hash could change under
        // us.
        let hash = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, name.as_bytes());
        Ok(PayloadId {
            name: Arc::from(name),
            hash,
        })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// A hash of the name, in which every bit counts.
    pub(crate) fn hash_bits(&self) -> u64 {
        self.hash
    }

    /// Routes the payload: which of `shards` is its home.
    pub(crate) fn home(&self, shards: usize) -> usize {
        (self.hash % shards as u64) as usize
    }
}

impl PartialEq for PayloadId {
    fn eq(&self, other: &PayloadId) -> bool {
        self.hash == other.hash && self.name == other.name
    }
}

impl Eq for PayloadId {}

impl PartialOrd for PayloadId {
    fn partial_cmp(&self, other: &PayloadId) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PayloadId {
    fn cmp(&self, other: &PayloadId) -> std::cmp::Ordering {
        self.name.cmp(&other.name)
    }
}

impl std::hash::Hash for PayloadId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl FromStr for PayloadId {
    type Err = Error;

    fn from_str(name: &str) -> Result<PayloadId> {
        PayloadId::new(name)
    }
}

impl TryFrom<&str> for PayloadId {
    type Error = Error;

    fn try_from(name: &str) -> Result<PayloadId> {
        PayloadId::new(name)
    }
}

impl AsRef<str> for PayloadId {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PayloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for PayloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.name)
    }
}
