//! What is there under a name that was to be given: an earlier try may have made it, or somebody
//! else.
//!
//! Invariant: an object is taken for ours only when its bytes say so.

use super::super::Shard;
use super::RETRY_PAUSE;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::upload::Client;
use bytes::Bytes;

/// Times that an object is looked at again which is not what it should be: it may have become so on
/// its way.
const WRONG_MAX: u32 = 3;

impl<D: Driver> Shard<D> {
    /// Makes sure that an object consists of these parts.
    pub(super) async fn compare_whole(
        &self,
        client: &Client,
        name: &str,
        parts: &[Bytes],
    ) -> Result<()> {
        let mut offset = 0;
        for part in parts {
            self.compare_there(client, name, offset, part).await?;
            offset += part.len() as u64;
        }
        self.compare_there(client, name, offset, &[]).await
    }

    /// Makes sure that an object has these bytes there; none: that it ends there. Tries for as long
    /// as the remote does not say.
    pub(super) async fn compare_there(
        &self,
        client: &Client,
        name: &str,
        offset: u64,
        expected: &[u8],
    ) -> Result<()> {
        let len = expected.len().max(1) as u64;
        let mut wrong = 0;
        loop {
            match client.get(name.to_owned(), offset, len).await {
                Ok(there) if there == expected => return Ok(()),
                Err(error) if error.kind() != ErrorKind::Unavailable => return Err(error),
                Err(_) => self.0.driver.sleep(RETRY_PAUSE).await,
                Ok(_) if wrong < WRONG_MAX => wrong += 1,
                Ok(_) => {
                    let message = format!("the remote has another object of this name: {name}");
                    return Err(Error::corrupt(message));
                }
            }
        }
    }
}
