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
        // One file holds the log; any other is in reserve, and every byte of it is zero.
        let is_used = |name: &&PathBuf| image.0[*name].iter().any(|byte| *byte != 0);
        let used: Vec<&PathBuf> = segments.iter().filter(is_used).collect();
        let [segment] = used[..] else {
            panic!("the log lies in {used:?}");
        };
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

// scenario 114
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

/// A header of the log, in the bytes of its segment's file: how its checksum is made, so that a
/// test can change a field and have the checksum right.
#[derive(Clone, Copy, Debug)]
enum Header {
    Segment,
    /// Of the batch, or the footer, at this page.
    Batch(usize),
    Footer(usize),
}

impl Header {
    /// Puts the right checksum on a header that was changed, over as many bytes as it announces if
    /// they are there.
    fn seal(self, file: &mut [u8]) {
        let identity = crc32c(&[&file[16..34], &file[40..56]].concat());
        let bound = |page: usize, bytes: &[u8]| {
            let place = (page as u64) << 32 | u64::from(identity);
            crc32c(bytes) ^ crc32c(&place.to_le_bytes())
        };
        let (at, sum_at, sum) = match self {
            Header::Segment => {
                file[12..16].fill(0);
                (0, 12, crc32c(&file[..72]))
            }
            Header::Batch(page) => {
                let at = page * PAGE;
                file[at + 4..at + 8].fill(0);
                (at, 4, bound(page, &file[at..at + PAGE]))
            }
            Header::Footer(page) => {
                let at = page * PAGE;
                file[at + 8..at + 12].fill(0);
                let len = u32::from_le_bytes(file[at + 12..at + 16].try_into().unwrap());
                let end = (at + len as usize).min(file.len());
                (at, 8, bound(page, &file[at..end]))
            }
        };
        file[at + sum_at..at + sum_at + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// Where its fields of 4 and of 8 bytes stand, from the start of its page.
    fn fields(self) -> (&'static [usize], &'static [usize]) {
        match self {
            Header::Segment => (&[36, 64, 68], &[40, 48, 56]),
            Header::Batch(_) => (&[24, 28, 32, 36], &[8, 16]),
            Header::Footer(_) => (&[12, 16, 20], &[24]),
        }
    }

    fn page(self) -> usize {
        match self {
            Header::Segment => 0,
            Header::Batch(page) | Header::Footer(page) => page,
        }
    }
}

/// The headers of a segment's file.
fn headers(file: &[u8]) -> Vec<Header> {
    let mut headers = vec![Header::Segment];
    for (index, page) in file.chunks(PAGE).enumerate() {
        match page {
            _ if page.starts_with(b"RBAT") => headers.push(Header::Batch(index)),
            _ if page.starts_with(b"RINGFTR\0") => headers.push(Header::Footer(index)),
            _ => {}
        }
    }
    headers
}

/// A store with a checkpoint of its payloads, all in sealed segments.
async fn make_sealed(bench: &Bench, count: u64, len: usize) {
    make_tail(bench, count, len).await;
    let store = bench.reopen(bench.open().await).await;
    store.close().await.unwrap();
}

// scenario 113
// S-33
#[test]
fn absurd_lengths_under_right_checksums_are_refused_within_bounds() {
    const COUNT: u64 = 6;
    const LEN: usize = 9000;
    for sealed in [true, false] {
        let bench = Bench::small();
        run(async {
            match sealed {
                true => make_sealed(&bench, COUNT, LEN).await,
                false => make_tail(&bench, COUNT, LEN).await,
            }
            let image = Image::take(&bench.dir());
            let mut changed = 0;
            for path in image.named("seg-") {
                let good = &image.0[&path];
                if last_page(good) == 0 {
                    continue;
                }
                for header in headers(good) {
                    let mut same = good.clone();
                    header.seal(&mut same);
                    assert!(
                        same == *good,
                        "{path:?} {header:?}: the test's checksum is wrong"
                    );
                    // A tail's own beginning and end cannot be told from a torn one.
                    if !sealed && !matches!(header, Header::Batch(_)) {
                        continue;
                    }
                    let (short, long) = header.fields();
                    let short = short.iter().map(|at| (*at, 4));
                    for (at, width) in short.chain(long.iter().map(|at| (*at, 8))) {
                        for value in [u64::MAX, 0xFFFF] {
                            let mut bad = good.clone();
                            let at = header.page() * PAGE + at;
                            bad[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                            header.seal(&mut bad);
                            std::fs::write(&path, bad).unwrap();
                            opens_within_bounds(&bench, COUNT, LEN, (header, at, value)).await;
                            image.restore(&bench.dir());
                            changed += 1;
                        }
                    }
                }
            }
            assert!(changed > 50, "{changed}");
        });
    }
}

/// A store with one header that lies opens: what it shows is right, and it goes on.
async fn opens_within_bounds(bench: &Bench, count: u64, len: usize, lie: (Header, usize, u64)) {
    let store = match open(bench.config()).await {
        Ok(store) => store,
        Err(error) => panic!("{lie:?}: the store does not open: {error:?}"),
    };
    let mut right = 0;
    for n in 0..count {
        match read_all(&store, &part(n)).await {
            Ok(found) => {
                assert_bytes(&found, &pattern(n, len), (part(n), lie));
                right += 1;
            }
            Err(error) => {
                let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{lie:?}: {error:?}");
            }
        }
    }
    // No lie costs more than the payload in its own batch.
    assert!(
        right + 1 >= count,
        "{lie:?}: only {right} of {count} are right"
    );
    write(&store, &id("new"), 0, b"goes on").await;
    let store = bench.reopen(store).await;
    assert_payload(&store, &id("new"), b"goes on").await;
    store.close().await.unwrap();
}

// scenario 115
// S-5, S-33
#[test]
fn flips_of_identities_and_moved_pages_are_noticed() {
    const COUNT: u64 = 12;
    const LEN: usize = 9000;
    let bench = Bench::small();
    run(async {
        make_sealed(&bench, COUNT, LEN).await;
        let image = Image::take(&bench.dir());
        let has_batch = |path: &PathBuf| {
            let mut pages = image.0[path].chunks(PAGE);
            pages.position(|page| page.starts_with(b"RBAT"))
        };
        let paths = image.named("seg-");
        let path = paths.iter().find(|path| has_batch(path).is_some()).unwrap();
        let good = &image.0[path];
        let batch = has_batch(path).unwrap() * PAGE;
        // Store, shard, segment, epoch and order of the segment; order and chain of a batch.
        for byte in (16..72).chain(batch + 8..batch + 28) {
            for bit in [0, 3, 7] {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                std::fs::write(path, bad).unwrap();
                check_damaged(&bench, COUNT, LEN, byte).await;
                image.restore(&bench.dir());
            }
        }
        // A good page in another's place, with the checksum that it was written with.
        let mut noticed = 0;
        for path in image.named("seg-") {
            let good = &image.0[&path];
            // Where the first page of a payload lies in this file, for the first two that do.
            let lies = (0..COUNT).filter_map(|n| {
                let bytes = &pattern(n, LEN)[..PAGE];
                Some((n, good.chunks(PAGE).position(|page| page == bytes)?))
            });
            let [one, other] = lies.take(2).collect::<Vec<_>>()[..] else {
                continue;
            };
            let mut swapped = good.clone();
            for (to, from) in [(one.1, other.1), (other.1, one.1)] {
                let page = &good[from * PAGE..][..PAGE];
                swapped[to * PAGE..][..PAGE].copy_from_slice(page);
            }
            std::fs::write(&path, swapped).unwrap();
            let store = bench.open().await;
            for n in 0..COUNT {
                match read_all(&store, &part(n)).await {
                    Ok(found) => assert_bytes(&found, &pattern(n, LEN), part(n)),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                        assert!([one.0, other.0].contains(&n), "{n}");
                        noticed += 1;
                    }
                }
            }
            store.close().await.unwrap();
            image.restore(&bench.dir());
        }
        assert!(noticed >= 2, "{noticed}");
    });
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
