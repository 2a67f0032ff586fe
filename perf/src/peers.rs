//! Other engines, used as their own documents say, with their defaults.
//!
//! They are no page stores, so a page is a value of 4 KiB under its number; what durability they
//! are asked for stands at each.

use crate::bench::{Bench, PAGE, Pace};
use crate::measure::{Sample, histogram};
use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use foyer_memory::{Cache, CacheBuilder};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redb::{Durability, TableDefinition};
use std::thread;

const FJALL: &str = "peer-fjall";
const REDB: &str = "peer-redb";

const PAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("pages");

/// Hits in foyer's in-memory cache of so many bytes, whose values are references to pages.
pub fn foyer_hits(bench: &Bench, bytes: u64, tasks: usize) -> anyhow::Result<Sample> {
    let pages = bytes / PAGE;
    let cache: Cache<u64, Bytes> = CacheBuilder::new(4 * pages as usize).build();
    for page in 0..pages {
        cache.insert(page, Bytes::from(bench.page_of_noise(page).to_vec()));
    }
    let span = bench.span;
    bench.tasks(tasks, PAGE, |task| {
        let cache = cache.clone();
        async move {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::time(span);
            while pace.goes_on() {
                let found = cache.get(&rng.random_range(0..pages));
                let bytes = found.map(|entry| entry.value().clone());
                anyhow::ensure!(bytes.is_some(), "foyer has dropped a page");
                pace.done();
            }
            Ok(pace)
        }
    })
}

/// Durable puts of single pages.
#[derive(Clone, Copy)]
pub struct Puts {
    pub keys: u64,
    pub writers: usize,
    /// Puts that become durable together.
    pub batch: u64,
}

impl Puts {
    /// Runs a thread for each writer; `put` makes so many pages durable.
    fn run(
        &self,
        bench: &Bench,
        put: impl Fn(&[u64], &[u8]) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<Sample> {
        let value = bench.page_of_noise(1);
        let write = |task: usize| {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::time(bench.span);
            while pace.goes_on() {
                let keys: Vec<u64> = (0..self.batch)
                    .map(|_| rng.random_range(0..self.keys))
                    .collect();
                put(&keys, &value)?;
                pace.done();
            }
            anyhow::Ok(pace)
        };
        let meter = bench.meter();
        let (mut ops, mut latency) = (0, histogram());
        thread::scope(|scope| {
            let write = &write;
            let writers: Vec<_> = (0..self.writers)
                .map(|task| scope.spawn(move || write(task)))
                .collect();
            for writer in writers {
                let pace = writer.join().expect("no writer panics")?;
                ops += pace.ops * self.batch;
                latency.add(&pace.latency)?;
            }
            anyhow::Ok(())
        })?;
        Ok(meter.stop(ops, ops * PAGE, latency))
    }
}

/// fjall: inserts, then `persist(SyncData)`, which its writers share.
pub fn fjall_puts(bench: &Bench, puts: &Puts) -> anyhow::Result<Sample> {
    bench.remove(FJALL)?;
    let database = Database::builder(bench.path(FJALL)).open()?;
    let pages = database.keyspace("pages", KeyspaceCreateOptions::default)?;
    let sample = puts.run(bench, |keys, value| {
        for key in keys {
            pages.insert(key.to_be_bytes(), value)?;
        }
        Ok(database.persist(PersistMode::SyncData)?)
    });
    drop((pages, database));
    bench.remove(FJALL)?;
    sample
}

/// redb: a transaction with `Durability::Immediate`; it has one writer at a time.
pub fn redb_puts(bench: &Bench, puts: &Puts) -> anyhow::Result<Sample> {
    bench.remove(REDB)?;
    let database = redb::Database::create(bench.path(REDB))?;
    let sample = puts.run(bench, |keys, value| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let mut table = transaction.open_table(PAGES)?;
        for key in keys {
            table.insert(key, value)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    });
    drop(database);
    bench.remove(REDB)?;
    sample
}
