//! How a store comes to life: its superblock is read, its shards are started, and these agree on
//! who owns what.
//!
//! Invariants:
//! 1. When an opening has failed, whatever it had started has ended, and the directory is free.
//!
//! Deliberately not here: what a shard does to open; see `shard::recover`.

use super::{Mailboxes, Shared, Store, gone, remote};
use crate::cache::table::Table;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::Driver;
use crate::io::clock::Clock;
use crate::io::launch::ShardMain;
use crate::payload_id::PayloadId;
use crate::shard::request::Request;
use crate::shard::{Claim, Control, Outcome, Params, REQUESTS_MAX, Routes, Shard};
use crate::superblock::{Superblock, begin_epoch};
use crate::sync::mailbox::{Receiver, Sender, mailbox};
use crate::sync::slot::{Pending, Reply, slot};
use crate::sync::{self, Mutex};
use crate::types::ShardId;
use crate::upload::Client;
use crate::world::{Machine, Resident, World};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;

/// [`Store::open`]. Boxed, as [`rebuild`] is: a program that awaits it compiles a call, and not the
/// whole engine once more.
pub(super) fn open(config: Config) -> BoxFuture<'static, Result<Store>> {
    Box::pin(async {
        config.check()?;
        let machine = Machine::take(&config)?;
        Store::open_in(&machine, config, Machine::cores()).await
    })
}

/// [`Store::rebuild`].
pub(super) fn rebuild(config: Config) -> BoxFuture<'static, Result<Store>> {
    Box::pin(async {
        config.check()?;
        let machine = Machine::take(&config)?;
        let dir = config.dir.clone();
        let rebuilt = Store::rebuild_in(&machine, config, Machine::cores()).await;
        if rebuilt.is_err() {
            machine.give_back(&dir);
        }
        rebuilt
    })
}

impl Store {
    pub(crate) async fn open_in<W: World>(
        world: &W,
        mut config: Config,
        cores: usize,
    ) -> Result<Store> {
        let (reply, pending) = slot();
        let boot = Boot {
            config: config.clone(),
            cores,
            reply,
        };
        let booting = world.start(ShardId(0), &config, boot)?;
        let superblock = pending.await.unwrap_or_else(|| Err(gone()));
        // Also when it failed: it holds the directory's lock until it has ended.
        booting.join()?;
        let superblock = superblock?;
        config.segment_bytes = superblock.segment_bytes;
        config.shards = Some(superblock.shards as usize);
        let files_open_max = world.files_open_max(superblock.shards as usize)?;
        let (client, uploader) = remote::start(world, &config, &superblock)?.unzip();
        let (store, lives, ready) =
            Store::prepare(world.clock(), config, &superblock, client, files_open_max);
        if let Err(error) = store.begin(world, lives, uploader) {
            store.give_up();
            return Err(error);
        }
        let mut claims = Vec::new();
        for pending in ready {
            claims.push(pending.await.unwrap_or_else(|| Err(gone())));
        }
        let claims: Result<Vec<Vec<Claim>>> = claims.into_iter().collect();
        let settled = match claims {
            Ok(claims) => store.settle(claims).await,
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            store.give_up();
            return Err(error);
        }
        Ok(store.opened)
    }

    /// The store before its shards live.
    fn prepare(
        clock: Clock,
        config: Config,
        superblock: &Superblock,
        client: Option<Client>,
        files_open_max: usize,
    ) -> (Opening, Vec<Life>, Vec<Ready>) {
        let count = superblock.shards as usize;
        let routes = Arc::new(Routes::new(count));
        let mut shards = Vec::new();
        let (peers, controls): (Vec<_>, Vec<_>) = (0..count).map(|_| mailbox(REQUESTS_MAX)).unzip();
        let outcomes: Vec<Outcome> = (0..count).map(|_| Outcome::default()).collect();
        let share = config.read_buffer_bytes / count as u64;
        let tables: Vec<_> = (0..count)
            .map(|_| sync::Arc::new(Table::new(share)))
            .collect();
        let mut lives = Vec::new();
        let mut ready = Vec::new();
        for (index, control) in controls.into_iter().enumerate() {
            let (writes, write_requests) = mailbox(REQUESTS_MAX);
            let (others, requests) = mailbox(REQUESTS_MAX);
            shards.push(Mailboxes {
                writes,
                others,
                control: peers[index].clone(),
            });
            let shard = ShardId(index as u16);
            let params = Params {
                store: superblock.store,
                shard,
                shards: count,
                epoch: superblock.epoch,
                config: config.clone(),
                routes: routes.clone(),
                remote: client.clone(),
                table: tables[index].clone(),
                files_open_max,
            };
            let (reply, pending) = slot();
            lives.push(Life {
                params,
                requests,
                writes: write_requests,
                control,
                peers: peers.clone(),
                outcome: outcomes[index].clone(),
                ready: reply,
            });
            ready.push(pending);
        }
        let shared = Shared {
            config,
            clock,
            routes,
            shards,
            tables,
            outcomes,
            residents: Mutex::new(Vec::new()),
        };
        let opened = Store(Arc::new(shared));
        (Opening { opened, peers }, lives, ready)
    }
}

/// Says which payloads of other homes a shard found, when it has been opened.
type Ready = Pending<Result<Vec<Claim>>>;

/// A store whose shards have yet to agree on who owns what.
struct Opening {
    opened: Store,
    peers: Vec<Sender<Control>>,
}

impl Opening {
    /// Starts the shards. The uploader ends when they have, and is joined behind them.
    fn begin<W: World>(
        &self,
        world: &W,
        lives: Vec<Life>,
        uploader: Option<Resident>,
    ) -> Result<()> {
        let Shared {
            config, residents, ..
        } = &*self.opened.0;
        let mut residents = residents.lock();
        let begun = lives.into_iter().try_for_each(|life| {
            residents.push(world.start(life.params.shard, config, life)?);
            Ok(())
        });
        residents.extend(uploader);
        begun
    }

    /// Ends the shards that did open, so that the directory is free when the caller hears of it.
    fn give_up(self) {
        let residents = std::mem::take(&mut *self.opened.0.residents.lock());
        drop(self);
        for resident in residents {
            // Why the opening failed is known already.
            let _ = resident.join();
        }
    }

    /// Of several shards that claim a payload, the one with the highest generation gets it.
    async fn settle(&self, claims: Vec<Vec<Claim>>) -> Result<()> {
        let routes = &self.opened.0.routes;
        let mut best: BTreeMap<PayloadId, (Claim, ShardId)> = BTreeMap::new();
        let mut losers: BTreeMap<ShardId, Vec<PayloadId>> = BTreeMap::new();
        for (index, claims) in claims.into_iter().enumerate() {
            let shard = ShardId(index as u16);
            for claim in claims {
                let id = claim.id.clone();
                match best.get(&id) {
                    Some((other, _)) if other.generation > claim.generation => {
                        losers.entry(shard).or_default().push(id);
                    }
                    _ => {
                        if let Some((old, owner)) = best.insert(id, (claim, shard)) {
                            losers.entry(owner).or_default().push(old.id);
                        }
                    }
                }
            }
        }
        let mut by_home: BTreeMap<ShardId, Vec<(Claim, ShardId)>> = BTreeMap::new();
        for (id, claim) in best {
            by_home.entry(routes.home(&id)).or_default().push(claim);
        }
        for (home, claims) in by_home {
            let asked = claims.iter().map(|(claim, _)| claim.clone()).collect();
            let won = self
                .ask(home, |reply| Control::Settle {
                    claims: asked,
                    reply,
                })
                .await?;
            for ((claim, shard), won) in claims.into_iter().zip(won) {
                match won {
                    true => routes.set(&claim.id, shard),
                    false => losers.entry(shard).or_default().push(claim.id),
                }
            }
        }
        for (shard, ids) in losers {
            self.ask(shard, |reply| Control::Disown { ids, reply })
                .await?;
        }
        Ok(())
    }

    async fn ask<T>(
        &self,
        shard: ShardId,
        control: impl FnOnce(Reply<Result<T>>) -> Control,
    ) -> Result<T> {
        let (reply, answer) = slot();
        let peer = &self.peers[usize::from(shard.0)];
        peer.send(control(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|| Err(gone()))
    }
}

/// What runs before the shards: finds out what the directory holds.
struct Boot {
    config: Config,
    cores: usize,
    reply: Reply<Result<Superblock>>,
}

impl ShardMain for Boot {
    const MOVES_MUCH: bool = false;

    async fn run<D: Driver>(self, driver: D) {
        self.reply
            .send(begin_epoch(&driver, &self.config, self.cores).await);
    }

    fn refused(self, error: Error) {
        self.reply.send(Err(error));
    }
}

/// A shard's whole life.
struct Life {
    params: Params,
    requests: Receiver<Request>,
    writes: Receiver<Request>,
    control: Receiver<Control>,
    peers: Vec<Sender<Control>>,
    outcome: Outcome,
    ready: Reply<Result<Vec<Claim>>>,
}

impl ShardMain for Life {
    async fn run<D: Driver>(self, driver: D) {
        match Shard::open(driver, self.params, self.peers).await {
            Ok(shard) => {
                self.ready.send(Ok(shard.claims()));
                shard
                    .serve(self.requests, self.writes, self.control, self.outcome)
                    .await;
            }
            Err(error) => self.ready.send(Err(error)),
        }
    }

    fn refused(self, error: Error) {
        self.ready.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RemoteConfig;
    use crate::error::ErrorKind;
    use crate::upload::Uploader;

    /// A machine that has no thread for the last shard of three.
    struct Cramped(Machine);

    impl World for Cramped {
        fn clock(&self) -> Clock {
            self.0.clock()
        }

        fn files_open_max(&self, shards: usize) -> Result<usize> {
            self.0.files_open_max(shards)
        }

        fn start<M: ShardMain>(
            &self,
            shard: ShardId,
            config: &Config,
            main: M,
        ) -> Result<Resident> {
            match shard {
                ShardId(2) => Err(Error::new(ErrorKind::Full, "no thread can be started")),
                _ => self.0.start(shard, config, main),
            }
        }

        fn start_uploader(&self, config: &RemoteConfig, uploader: Uploader) -> Result<Resident> {
            self.0.start_uploader(config, uploader)
        }
    }

    // scenario 120
    // S-22
    #[test]
    fn an_opening_that_runs_out_of_threads_gives_the_directory_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        config.shards = Some(3);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            for _ in 0..5 {
                let cramped = Cramped(Machine::take(&config).unwrap());
                let error = Store::open_in(&cramped, config.clone(), 3)
                    .await
                    .unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                drop(cramped);
                let store = Store::open(config.clone()).await.unwrap();
                store.close().await.unwrap();
            }
        });
    }
}
