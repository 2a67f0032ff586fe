//! The store's remote: who takes it at an opening, a store that has nothing else, and whether it
//! answers at all.

use super::{Store, gone};
use crate::config::{Config, RemoteConfig};
use crate::error::{Error, Result};
use crate::io::Driver;
use crate::io::launch::ShardMain;
use crate::shard::restore::restore;
use crate::superblock::Superblock;
use crate::sync::slot::{Reply, slot};
use crate::types::ShardId;
use crate::upload::{self, Client, Identity, uploader};
use crate::world::{Resident, World};

/// Starts the uploader of a store that has a remote.
pub(super) fn start<W: World>(
    world: &W,
    config: &Config,
    superblock: &Superblock,
) -> Result<Option<(Client, Resident)>> {
    let Some(remote) = &config.remote else {
        return Ok(None);
    };
    let identity = Identity {
        store: superblock.store,
        node: superblock.node,
        epoch: superblock.epoch,
        ancestors: superblock.ancestors,
        segment_bytes: superblock.segment_bytes,
        shards: superblock.shards as usize,
        unfenced: remote.is_unfenced(),
    };
    let (client, uploader) = uploader(Some(identity));
    Ok(Some((client, world.start_uploader(remote, uploader)?)))
}

impl RemoteConfig {
    /// Asks the remote for the name of an object. Writes nothing, and needs no store.
    ///
    /// # Errors
    ///
    /// `Unavailable` if it does not answer within a few seconds, or refuses; `InvalidInput` for one
    /// that there cannot be.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn probe(&self) -> Result<()> {
        let (client, uploader) = uploader(None);
        let uploading = upload::thread::start(self.clone(), uploader)?;
        let probed = client.probe().await;
        drop(client);
        uploading.join().and(probed)
    }
}

impl Store {
    pub(crate) async fn rebuild_in<W: World>(
        world: &W,
        config: Config,
        cores: usize,
    ) -> Result<Store> {
        let Some(remote) = &config.remote else {
            return Err(Error::invalid(
                "a rebuild needs a remote: set Config::remote (--remote URL)",
            ));
        };
        let (client, uploader) = uploader(None);
        let uploading = world.start_uploader(remote, uploader)?;
        let (reply, pending) = slot();
        let main = RestoreMain {
            config: config.clone(),
            client,
            reply,
        };
        let restoring = world.start(ShardId(0), &config, main)?;
        let restored = pending.await.unwrap_or_else(|| Err(gone()));
        restoring.join()?;
        uploading.join()?;
        restored?;
        Store::open_in(world, config, cores).await
    }
}

/// What runs before a store is opened that is rebuilt.
struct RestoreMain {
    config: Config,
    client: Client,
    reply: Reply<Result<()>>,
}

impl ShardMain for RestoreMain {
    async fn run<D: Driver>(self, driver: D) {
        let RestoreMain {
            config,
            client,
            reply,
        } = self;
        let result = restore(&driver, &config, &client).await;
        drop(client);
        reply.send(result);
    }

    fn refused(self, error: Error) {
        self.reply.send(Err(error));
    }
}
