//! Damaged files of a store: torn ends, flipped bits, lost and foreign files. What is bad is
//! noticed and reported for exactly the bytes concerned; everything else is there. Contract clauses
//! 5, 17 and 33, scenarios 112 to 118.

mod common;

use bytes::Bytes;
use common::*;
use ringstore::{ErrorKind, PayloadId, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PAGE: usize = 4096;

/// The files of a store, to damage and to put back.
struct Image(BTreeMap<PathBuf, Vec<u8>>);

impl Image {
    fn take(dir: &Path) -> Image {
        let mut image = Image(BTreeMap::new());
        image.add(dir);
        image
    }

    fn add(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => self.add(&path),
                false => {
                    self.0.insert(path.clone(), std::fs::read(&path).unwrap());
                }
            }
        }
    }

    /// Puts everything back as it was.
    fn restore(&self, dir: &Path) {
        for path in Image::take(dir).0.keys() {
            if !self.0.contains_key(path) {
                std::fs::remove_file(path).unwrap();
            }
        }
        for (path, bytes) in &self.0 {
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn named(&self, part: &str) -> Vec<PathBuf> {
        let named = |path: &&PathBuf| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(part)
        };
        self.0.keys().filter(named).cloned().collect()
    }
}

async fn write(store: &Store, id: &PayloadId, offset: u64, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    store.write_at(id, offset, data).await.unwrap();
}

fn part(n: u64) -> PayloadId {
    id(&format!("part-{n:02}"))
}

/// A store that was left without a checkpoint of its payloads, `count` of them, each flushed.
async fn make_tail(bench: &Bench, count: u64, len: usize) {
    let store = bench.open().await;
    for n in 0..count {
        write(&store, &part(n), 0, &pattern(n, len)).await;
        store.flush(&part(n)).await.unwrap();
    }
    drop(store);
    // Its threads are gone when it can be opened by another.
    let lock = bench.dir().join("LOCK");
    let file = std::fs::File::open(lock).unwrap();
    while file.try_lock().is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Counts the leading payloads that are whole. What follows must be missing, cut or reported, never
/// wrong.
async fn whole_prefix(store: &Store, count: u64, len: usize) -> u64 {
    let mut whole = 0;
    for n in 0..count {
        match read_all(store, &part(n)).await {
            Ok(found) => {
                assert_bytes(&found, &pattern(n, len), part(n));
                assert_eq!(whole, n, "a payload behind a lost one");
                whole += 1;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        }
    }
    whole
}

/// The last page of a file that is not zero; 0 for a file without one.
fn last_page(bytes: &[u8]) -> usize {
    let last = bytes
        .chunks(PAGE)
        .rposition(|page| page.iter().any(|byte| *byte != 0));
    last.unwrap_or(0)
}

// scenario 112
// S-17, S-33
#[test]
fn a_torn_last_batch_is_cut_wherever_it_is_torn() {
    let bench = Bench::small();
    run(async {
        const COUNT: u64 = 4;
        const LEN: usize = 6000;
        make_tail(&bench, COUNT, LEN).await;
        let image = Image::take(&bench.dir());
        let segments = image.named("seg-");
        // A file in reserve holds nothing.
        let segment = segments
            .iter()
            .find(|name| last_page(&image.0[*name]) > 0)
            .unwrap();
        let bytes = &image.0[segment];
        let end = (last_page(bytes) + 1) * PAGE;
        // A batch of one such write has a head page and two pages of data.
        let start = end - 3 * PAGE;
        let mut kept = BTreeMap::new();
        for cut in (start..end).step_by(512) {
            let mut torn = bytes.clone();
            torn[cut..end].fill(0);
            std::fs::write(segment, torn).unwrap();
            let store = bench.open().await;
            let whole = whole_prefix(&store, COUNT, LEN).await;
            *kept.entry(whole).or_insert(0) += 1;
            assert!(
                whole >= COUNT - 1,
                "cut at {cut}: {whole} payloads are left"
            );
            // The log goes on behind the tear.
            write(&store, &id("new"), 0, b"goes on").await;
            let store = bench.reopen(store).await;
            assert_payload(&store, &id("new"), b"goes on").await;
            assert_eq!(whole_prefix(&store, COUNT, LEN).await, whole);
            store.close().await.unwrap();
            image.restore(&bench.dir());
        }
        assert!(kept[&(COUNT - 1)] > 10, "{kept:?}");
    });
}

// scenario 113, scenario 114, scenario 115
// S-5, S-33
#[test]
fn flipped_bits_are_never_data_and_harm_no_other_payload() {
    let bench = Bench::small();
    run(async {
        const COUNT: u64 = 12;
        const LEN: usize = 9000;
        make_tail(&bench, COUNT, LEN).await;
        // Half of it is in a checkpoint, half is replayed.
        let store = bench.reopen(bench.open().await).await;
        for n in COUNT..2 * COUNT {
            write(&store, &part(n), 0, &pattern(n, LEN)).await;
            store.flush(&part(n)).await.unwrap();
        }
        drop(store);
        let store = bench.open().await;
        drop(store);
        drop(bench.open().await);
        settle(&bench).await;
        let image = Image::take(&bench.dir());
        let mut rng = Rng(114);
        let mut noticed = 0;
        for segment in image.named("seg-") {
            let bytes = &image.0[&segment];
            for page in 0..=last_page(bytes) {
                // Heads of batches, records, sums and data of every page, one bit of each region.
                let regions = [(0, 8), (8, 16), (16, 64), (64, 512), (512, 4096)];
                let (from, to) = regions[(rng.next() % 5) as usize];
                let at = page * PAGE + from + rng.below((to - from) as u64) as usize;
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << rng.below(8);
                std::fs::write(&segment, flipped).unwrap();
                noticed += u64::from(check_damaged(&bench, 2 * COUNT, LEN, at).await);
                image.restore(&bench.dir());
            }
        }
        println!("{noticed} flips cost a payload");
        assert!(noticed > 0, "no flip hit anything");
    });
}

/// Waits until the threads of a dropped store are gone.
async fn settle(bench: &Bench) {
    let file = std::fs::File::open(bench.dir().join("LOCK")).unwrap();
    while file.try_lock().is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// A store with one damage opens; payloads are right, reported or gone with a report. Says if any
/// is not right.
async fn check_damaged(bench: &Bench, count: u64, len: usize, at: usize) -> bool {
    let store = match open(bench.config()).await {
        Ok(store) => store,
        Err(error) => panic!("flip at {at}: the store does not open: {error:?}"),
    };
    let mut bad = Vec::new();
    for n in 0..count {
        match read_all(&store, &part(n)).await {
            Ok(found) => assert_bytes(&found, &pattern(n, len), (part(n), at)),
            Err(error) => {
                let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "flip at {at}: {error:?}");
                bad.push((n, error.kind()));
            }
        }
    }
    let report = store.verify().await.unwrap();
    let corrupt = bad
        .iter()
        .filter(|(_, kind)| *kind == ErrorKind::Corrupt)
        .count();
    assert_eq!(
        report.corrupt.is_empty(),
        corrupt == 0,
        "flip at {at}: {report:?}"
    );
    let stats = store.stats().await.unwrap();
    let told = stats.checksum_failures + stats.batches_lost > 0;
    // What may have been torn is the very end; all else is told.
    let lost = bad
        .iter()
        .any(|(n, kind)| *kind == ErrorKind::NotFound && *n + 1 < count);
    assert!(!lost || told, "flip at {at}: silently lost {bad:?}");
    assert!(
        bad.len() <= 1,
        "flip at {at}: more than its own payload: {bad:?}"
    );
    write(&store, &id("new"), 0, b"goes on").await;
    store.flush(&id("new")).await.unwrap();
    store.close().await.unwrap();
    !bad.is_empty()
}

// scenario 118
// S-33
#[test]
fn lost_and_bad_checkpoints_change_nothing() {
    let bench = Bench::small();
    run(async {
        const COUNT: u64 = 8;
        const LEN: usize = 20_000;
        make_tail(&bench, COUNT, LEN).await;
        let store = bench.reopen(bench.open().await).await;
        store.close().await.unwrap();
        let image = Image::take(&bench.dir());
        let checkpoints = image.named("checkpoint-");
        assert!(!checkpoints.is_empty());
        let newest = checkpoints.last().unwrap();
        let bytes = &image.0[newest];
        let mut rng = Rng(118);
        for round in 0..40 {
            let mut bad = bytes.clone();
            match round {
                0 => std::fs::remove_file(newest).unwrap(),
                1 => std::fs::write(newest, b"").unwrap(),
                2 => std::fs::write(newest, &bytes[..bytes.len() / 2]).unwrap(),
                3 => std::fs::write(newest, vec![0; bytes.len()]).unwrap(),
                4 => {
                    // A good file under another number is not that checkpoint.
                    let name = newest.with_file_name(format!("checkpoint-{:016x}", 0xffff));
                    std::fs::rename(newest, name).unwrap();
                }
                _ => {
                    bad[rng.below(bytes.len() as u64) as usize] ^= 1 << rng.below(8);
                    std::fs::write(newest, bad).unwrap();
                }
            }
            let store = bench.open().await;
            assert_eq!(
                whole_prefix(&store, COUNT, LEN).await,
                COUNT,
                "round {round}"
            );
            assert!(store.verify().await.unwrap().corrupt.is_empty());
            store.close().await.unwrap();
            image.restore(&bench.dir());
        }
    });
}

// scenario 117
// S-33
#[test]
fn foreign_files_in_a_store_are_left_alone_and_half_made_ones_go() {
    let bench = Bench::small();
    run(async {
        make_tail(&bench, 3, 5000).await;
        let shard = bench.dir().join("shard-0000");
        std::fs::write(bench.dir().join("STORE.new"), b"half").unwrap();
        std::fs::write(bench.dir().join("notes.txt"), b"mine").unwrap();
        std::fs::write(shard.join("notes.txt"), b"mine").unwrap();
        std::fs::write(shard.join("checkpoint.new"), b"half").unwrap();
        std::fs::write(shard.join("seg-00000999"), b"").unwrap();
        std::fs::write(shard.join("seg-zz"), b"mine").unwrap();
        for _ in 0..2 {
            let store = bench.open().await;
            assert_eq!(whole_prefix(&store, 3, 5000).await, 3);
            store.close().await.unwrap();
        }
        assert_eq!(
            std::fs::read(bench.dir().join("notes.txt")).unwrap(),
            b"mine"
        );
        assert_eq!(std::fs::read(shard.join("notes.txt")).unwrap(), b"mine");
        assert_eq!(std::fs::read(shard.join("seg-zz")).unwrap(), b"mine");
        assert!(!shard.join("checkpoint.new").exists());
        assert!(!shard.join("seg-00000999").exists());
    });
}

/// Does something to one segment file of a store, and says which payloads suffered.
async fn damage_segment(
    bench: &Bench,
    image: &Image,
    damage: impl Fn(&Path),
    count: u64,
    len: usize,
) {
    for segment in image.named("seg-") {
        damage(&segment);
        let store = match open(bench.config()).await {
            Ok(store) => store,
            Err(error) => panic!("{segment:?}: the store does not open: {error:?}"),
        };
        let mut right = 0;
        let mut corrupt = 0;
        for n in 0..count {
            match read_all(&store, &part(n)).await {
                Ok(found) => {
                    assert_bytes(&found, &pattern(n, len), (part(n), &segment));
                    right += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{segment:?}: {error:?}");
                    corrupt += 1;
                }
            }
        }
        assert!(
            right >= count / 2,
            "{segment:?}: only {right} payloads are right"
        );
        let report = store.verify().await.unwrap();
        assert_eq!(report.corrupt.is_empty(), corrupt == 0, "{report:?}");
        write(&store, &id("new"), 0, b"goes on").await;
        store.close().await.unwrap();
        image.restore(&bench.dir());
    }
}

// scenario 114
// S-33
#[test]
fn damaged_segments_of_a_checkpointed_store_cost_only_their_own_bytes() {
    let (bench, other) = (Bench::small(), Bench::small());
    run(async {
        const COUNT: u64 = 20;
        const LEN: usize = 20_000;
        for bench in [&bench, &other] {
            make_tail(bench, COUNT, LEN).await;
            bench
                .reopen(bench.open().await)
                .await
                .close()
                .await
                .unwrap();
        }
        let image = Image::take(&bench.dir());
        let foreign = Image::take(&other.dir());
        let segments = image.named("seg-");
        assert!(segments.len() > 3, "{segments:?}");
        let check = async |damage: &dyn Fn(&Path)| {
            damage_segment(&bench, &image, damage, COUNT, LEN).await;
        };
        check(&|path| std::fs::remove_file(path).unwrap()).await;
        check(&|path| std::fs::write(path, b"").unwrap()).await;
        check(&|path| std::fs::write(path, &image.0[path][..10_000]).unwrap()).await;
        check(&|path| std::fs::write(path, vec![0; image.0[path].len()]).unwrap()).await;
        check(&|path| {
            // The same segment of another store, with good checksums of its own.
            let name = path.file_name().unwrap();
            let found = foreign
                .0
                .iter()
                .find(|(path, _)| path.file_name() == Some(name));
            std::fs::write(path, found.map_or(&[][..], |(_, bytes)| bytes)).unwrap();
        })
        .await;
        check(&|path| {
            // Another segment of this store under its name.
            let first = segments.iter().find(|segment| *segment != path).unwrap();
            std::fs::write(path, &image.0[first]).unwrap();
        })
        .await;
        check(&|path| {
            let name = path.with_file_name("seg-00000abc");
            std::fs::rename(path, name).unwrap();
        })
        .await;
    });
}
