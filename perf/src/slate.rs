//! SlateDB, which has its data in an object store as ours has, beside ours in cold-read.
//!
//! Equalised: the same bytes in the same server, through the same link. A page is a value of 4 KiB
//! under its offset, big-endian, and has a block of its own, as SlateDB's blocks are of 4 KiB. All
//! of them are in one table, as a complete compaction would leave them: a point read asks one
//! table, a scan merges nothing. Blocks get a cache as large as our read buffer, in memory and
//! empty at the beginning of each round; nothing is cached on disk.
//!
//! The offset, not the page's number: of the first key of a block the index has no more than tells
//! it from the key before. Where that is the whole key, as it is with numbers, a point read fetches
//! the block before, too, which might have another version of it. An offset's last byte is never in
//! the index.
//!
//! Ours knows from its map where a page is. So SlateDB's index and filter are in memory, too,
//! beside that cache, before the clock runs; `index-MiB` is what fetching them has brought over
//! the link.
//!
//! A scan reads ahead as ours does: eight requests of 1 MiB under way.
//!
//! Every value begins with its key, and is looked at: a page that is not the one that was asked for
//! fails the side.

use crate::bench::{Bench, MIB, PAGE, Pace};
use crate::link::Link;
use crate::measure::Sample;
use crate::s3_server::{BUCKET, KEY_ID, SECRET};
use anyhow::{Context, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use slatedb::config::{ScanOptions, Settings};
use slatedb::db_cache::foyer::{FoyerCache, FoyerCacheOptions};
use slatedb::db_cache::{CacheTarget, DbCache, SplitCache};
use slatedb::object_store::ObjectStore;
use slatedb::object_store::aws::AmazonS3Builder;
use slatedb::{Db, DbCacheManagerOps};
use std::sync::Arc;

/// The side's name, and the prefix of its objects.
pub const SLATE: &str = "slatedb";

const INDEX: &str = "index-MiB";

const KEY_BYTES: usize = size_of::<u64>();

/// How much a scan has under way: this many bytes a request, so many requests.
const AHEAD_BYTES: usize = MIB as usize;
const AHEAD_REQUESTS: usize = 8;

/// Retries before an operation fails; by default there is no end to them.
const RETRIES_MAX: u32 = 2;

/// A database that is in the object store and, between rounds, nowhere else.
pub struct Slate<'a> {
    bench: &'a Bench,
    link: &'a Link,
    objects: Arc<dyn ObjectStore>,
    pages: u64,
    cache_bytes: u64,
}

impl<'a> Slate<'a> {
    /// Writes it. `cache_bytes`: memory for blocks, when it is read.
    pub fn written(
        bench: &'a Bench,
        link: &'a Link,
        bytes: u64,
        cache_bytes: u64,
    ) -> anyhow::Result<Slate<'a>> {
        let objects = AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", link.port))
            .with_allow_http(true)
            .with_virtual_hosted_style_request(false)
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_access_key_id(KEY_ID)
            .with_secret_access_key(SECRET)
            .build()?;
        let slate = Slate {
            bench,
            link,
            objects: Arc::new(objects),
            pages: bytes / PAGE,
            cache_bytes,
        };
        bench.runtime.block_on(slate.write())?;
        Ok(slate)
    }

    async fn write(&self) -> anyhow::Result<()> {
        let mut settings = settings();
        // All of it is one memtable, and becomes one table when the database is closed.
        settings.l0_sst_size_bytes = 2 * (self.pages * PAGE) as usize;
        settings.max_unflushed_bytes = 2 * settings.l0_sst_size_bytes;
        let db = Db::builder(SLATE, self.objects.clone())
            .with_settings(settings)
            .build()
            .await?;
        for page in 0..self.pages {
            let noise = self.bench.page_of_noise(page).slice(KEY_BYTES..);
            db.put(key(page), [&key(page)[..], &noise].concat()).await?;
        }
        Ok(db.close().await?)
    }

    /// Opens it with empty caches.
    async fn open(&self) -> anyhow::Result<Db> {
        let cache = || {
            let options = FoyerCacheOptions {
                max_capacity: self.cache_bytes,
                ..FoyerCacheOptions::default()
            };
            Arc::new(FoyerCache::new_with_opts(options)) as Arc<dyn DbCache>
        };
        let caches = SplitCache::new()
            .with_block_cache(Some(cache()))
            .with_meta_cache(Some(cache()))
            .build();
        let database = Db::builder(SLATE, self.objects.clone())
            .with_settings(settings())
            .with_db_cache(Arc::new(caches), 0)
            .build();
        Ok(database.await?)
    }

    /// Fetches what says where the pages are.
    async fn learn(&self, db: &Db) -> anyhow::Result<()> {
        let manifest = db.manifest();
        let tables: Vec<_> = manifest.all_sst_views().map(|view| view.sst.id).collect();
        ensure!(tables.len() == 1, "not one table: tables={}", tables.len());
        let known = [CacheTarget::Index, CacheTarget::Filters];
        Ok(db.warm_sst(tables[0], &known).await?)
    }

    /// A round: opens it, counts what `work` does, and closes it.
    fn round(&self, work: impl FnOnce(&Db) -> anyhow::Result<Sample>) -> anyhow::Result<Sample> {
        let runtime = &self.bench.runtime;
        let db = runtime.block_on(self.open())?;
        let before = self.link.answered_bytes();
        runtime.block_on(self.learn(&db))?;
        let index = (self.link.answered_bytes() - before) as f64 / MIB as f64;
        let sample = self.link.counted(|| work(&db));
        runtime.block_on(db.close())?;
        Ok(sample?.with(INDEX, index))
    }

    /// So many readers read pages at random.
    pub fn random(&self, readers: usize) -> anyhow::Result<Sample> {
        let (span, pages) = (self.bench.span, self.pages);
        self.round(|db| {
            self.bench.tasks(readers, PAGE, |task| {
                let db = db.clone();
                async move {
                    let mut rng = SmallRng::seed_from_u64(task as u64);
                    let mut pace = Pace::time(span);
                    while pace.goes_on() {
                        let page = rng.random_range(0..pages);
                        let value = db.get(key(page)).await?;
                        check(page, &value.context("slatedb has lost a page")?)?;
                        pace.done();
                    }
                    Ok(pace)
                }
            })
        })
    }

    /// One reader reads pages in order; so many bytes of them are an operation.
    pub fn in_order(&self, piece: u64) -> anyhow::Result<Sample> {
        let (span, pages, each) = (self.bench.span, self.pages, piece / PAGE);
        let options = ScanOptions::default()
            .with_read_ahead_bytes(AHEAD_BYTES)
            .with_max_fetch_tasks(AHEAD_REQUESTS);
        self.round(|db| {
            self.bench.tasks(1, piece, |_| {
                let (db, options) = (db.clone(), options.clone());
                async move {
                    let mut pace = Pace::time(span);
                    let mut scan = db.scan_with_options(.., &options).await?;
                    while pace.goes_on() && pace.ops < pages / each {
                        for page in pace.ops * each..(pace.ops + 1) * each {
                            let found = scan.next().await?;
                            check(page, &found.context("slatedb has lost a page")?.value)?;
                        }
                        pace.done();
                    }
                    Ok(pace)
                }
            })
        })
    }
}

/// The defaults, less what would work in the background while we measure.
fn settings() -> Settings {
    Settings {
        wal_enabled: false,
        compactor_options: None,
        garbage_collector_options: None,
        object_store_max_retries: Some(RETRIES_MAX),
        ..Settings::default()
    }
}

fn key(page: u64) -> [u8; KEY_BYTES] {
    (page * PAGE).to_be_bytes()
}

fn check(page: u64, value: &[u8]) -> anyhow::Result<()> {
    let is_it = value.len() == PAGE as usize && value.starts_with(&key(page));
    ensure!(is_it, "slatedb gave another page: page={page}");
    Ok(())
}
