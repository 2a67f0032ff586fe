//! scale: from one shard to two, reads at the speed of memory.
//!
//! A payload on each shard, in the read buffer, and a task for each payload. With two tasks for two
//! shards on two processors there is no third thread to pay, so it is the sharing that is measured:
//! locks, counters and cache lines that both would touch.

use crate::bench::{Bench, KIB, MIB, PAGE, id};
use crate::measure::{Case, Figure, Side, alternate};
use anyhow::{Context, ensure};
use ringstore::{PayloadId, Store};

const ROW: &str = "scale";
const ONE: &str = "1 shard";
const TWO: &str = "2 shards";

/// Names that are tried until each shard has a payload.
const NAMES_MAX: usize = 64;

fn store(bench: &Bench, shards: usize) -> anyhow::Result<Store> {
    let mut config = bench.config(&format!("scale-{shards}"), bench.driver())?;
    config.shards = Some(shards);
    bench.open(config)
}

/// A payload for each shard: where a name belongs is found out by looking.
fn payloads(bench: &Bench, store: &Store, shards: usize) -> anyhow::Result<Vec<PayloadId>> {
    let mut found: Vec<Option<PayloadId>> = vec![None; shards];
    for n in 0..NAMES_MAX {
        let before = bench.stats(store)?;
        let payload = id(&format!("hot/{n}"));
        bench.lay_out(store, &payload, PAGE)?;
        let after = bench.stats(store)?;
        let pairs = before.per_shard.iter().zip(&after.per_shard);
        let home = pairs
            .enumerate()
            .find_map(|(shard, (before, after))| {
                (after.file_count > before.file_count).then_some(shard)
            })
            .context("a payload is on some shard")?;
        found[home].get_or_insert(payload);
        if let Some(payloads) = found.iter().cloned().collect() {
            return Ok(payloads);
        }
    }
    ensure!(false, "{NAMES_MAX} names are all on one shard");
    Ok(Vec::new())
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(8 * MIB, 256 * KIB);
    let mut stores = Vec::new();
    for shards in [1, 2] {
        let store = store(bench, shards)?;
        let payloads = payloads(bench, &store, shards)?;
        for payload in &payloads {
            bench.lay_out(&store, payload, bytes)?;
            bench.warm(&store, payload, bytes)?;
        }
        stores.push((store, payloads));
    }
    let sides = [ONE, TWO]
        .into_iter()
        .zip(&stores)
        .map(|(name, (store, payloads))| Side {
            is_required: true,
            ..Side::new(name, move || {
                bench.read_pages(store, payloads, bytes, bench.span)
            })
        });
    let mut case = alternate(ROW, "hits", bench.rounds, sides.collect());
    let ratio = case.ratio(TWO, ONE, Figure::PerSecond);
    case.at_least("reads per s of two shards, of one's", ratio, 1.8);
    for (shards, (store, _)) in [1, 2].into_iter().zip(stores) {
        bench.close(store)?;
        bench.remove(&format!("scale-{shards}"))?;
    }
    Ok(vec![case])
}
