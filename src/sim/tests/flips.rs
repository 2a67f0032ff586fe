//! Every bit of the records of a sealed segment, flipped in turn: none is believed, none costs more
//! than what its own batch holds, and none keeps the store from opening.

use super::super::world;
use crate::config::Config;
use crate::error::{ErrorKind, Result};
use crate::io::sim::{Disk, DiskImage, Process, Universe};
use crate::payload_id::PayloadId;
use crate::store::Store;
use crate::types::PAGE;
use bytes::Bytes;

/// Batches of the segment under test, each with payloads of its own.
const BATCHES: u8 = 5;

/// Where the records of a segment and what is said of them stand, from the start of its file.
struct Place {
    /// Bytes, and how many.
    from: usize,
    len: usize,
    /// Which batch it is part of, if it is.
    batch: Option<u8>,
}

struct Bench {
    universe: Universe,
    disk: Disk,
}

impl Bench {
    fn new() -> Bench {
        let universe = Universe::new(114);
        let disk = universe.disk("disk");
        Bench { universe, disk }
    }

    fn open(&self) -> (Process, Result<Store>) {
        let mut config = Config::new("disk");
        (config.shards, config.segment_bytes) = (Some(1), 64 << 10);
        let process = self.universe.process();
        let opening = world::open(&self.universe, &process, &self.disk, None, config);
        let store = self.run(opening);
        (process, store)
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.universe.run_until(future).expect("it comes to an end")
    }

    /// A sealed segment with records of every kind, that no checkpoint has, and one behind it.
    fn fill(&self) {
        let (process, store) = self.open();
        let store = store.expect("a new store");
        self.run(async {
            for batch in 0..BATCHES {
                change(&store, batch).await.expect("the disk is well");
                store.flush_all().await.expect("the disk is well");
            }
            // Of its own payload, to fill the segment, and to say that all of it was durable.
            let filling = id("filling");
            for round in 0..3u8 {
                // Nothing dies, so that there is nothing to write a checkpoint for.
                let at = u64::from(round) * 40_000;
                let written = store.write_at(&filling, at, vec![round; 40_000].into());
                written.await.expect("the disk is well");
                store.flush_all().await.expect("the disk is well");
            }
        });
        drop(store);
        process.kill();
    }
}

fn id(name: &str) -> PayloadId {
    PayloadId::new(name).expect("valid")
}

/// A batch's payload.
fn name(batch: u8) -> PayloadId {
    id(&batch.to_string())
}

/// Bytes of a batch's payload, never zero: a page in one of them, and less in the others.
fn data(batch: u8) -> Bytes {
    let len = if batch == 1 { PAGE as u32 } else { 700 };
    (0..len).map(|at| (at as u8 | 1) ^ (batch << 1)).collect()
}

/// What a batch records.
async fn change(store: &Store, batch: u8) -> Result<()> {
    let own = name(batch);
    store.write_at(&own, 0, data(batch)).await?;
    match batch {
        2 => {
            store.truncate(&own, 600).await?;
            store.punch_hole(&own, 100, 50).await
        }
        3 => store.copy(&own, &id("copy")).await.map(drop),
        4 => store.delete(&own).await,
        _ => Ok(()),
    }
}

/// What there should be of a batch's payloads.
fn expected(batch: u8) -> Vec<(PayloadId, Option<Vec<u8>>)> {
    let mut bytes = data(batch).to_vec();
    if batch == 2 {
        bytes.truncate(600);
        bytes[100..150].fill(0);
    }
    let own = (name(batch), (batch != 4).then_some(bytes));
    let copy = (batch == 3).then(|| (id("copy"), own.1.clone()));
    [own].into_iter().chain(copy).collect()
}

async fn read(store: &Store, id: &PayloadId) -> Result<Option<Vec<u8>>> {
    match store.read_at(id, 0, 10_000).await {
        Ok(chunks) => Ok(Some(chunks.into_bytes().to_vec())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// The segment under test: its file, where its records stand, and where its footer does.
fn places(disk: &Disk) -> (String, Vec<Place>, Place) {
    for (file, _) in disk.files() {
        let bytes = disk.read_file(&file).expect("it was listed");
        let pages = || bytes.chunks(PAGE).enumerate();
        let heads = pages().filter(|(_, page)| page.starts_with(b"RBAT"));
        let mut places: Vec<Place> = heads
            .zip(0u8..)
            .map(|((index, page), batch)| Place {
                from: index * PAGE,
                len: 56 + word(page, 32) + 4 * word(page, 28),
                batch: Some(batch).filter(|batch| *batch < BATCHES),
            })
            .collect();
        let footer = pages().find(|(_, page)| page.starts_with(b"RINGFTR\0"));
        let (Some((index, page)), true) = (footer, places.len() >= usize::from(BATCHES)) else {
            continue;
        };
        let footer = Place {
            from: index * PAGE,
            len: word(page, 12),
            batch: None,
        };
        places.push(Place {
            from: 0,
            len: 72,
            batch: None,
        });
        return (file, places, footer);
    }
    panic!("no segment is sealed");
}

/// What one flip has come to.
#[derive(Default)]
struct Tally {
    corrupt: u64,
    lost: u64,
}

/// Opens the store, and looks at everything in it; only what `batch` holds may have suffered.
fn look(bench: &Bench, what: &str, batch: Option<u8>, tally: &mut Tally) {
    let (process, store) = bench.open();
    let store = store.unwrap_or_else(|error| panic!("{what}: it does not open: {error}"));
    bench.run(async {
        let lost = store.stats().await.expect("it is open").batches_lost;
        assert!(lost <= 1, "{what}: {lost} batches are lost");
        let mut corrupt = 0;
        for other in 0..BATCHES {
            let is_own = batch == Some(other);
            for (id, expected) in expected(other) {
                match read(&store, &id).await {
                    Ok(found) if found == expected => {}
                    Ok(None) if is_own && lost > 0 => tally.lost += 1,
                    Err(error) if is_own && error.kind() == ErrorKind::Corrupt => corrupt += 1,
                    found => panic!("{what}: {id} is {found:?}"),
                }
            }
        }
        let report = store.verify().await.expect("all can be looked at");
        let told = !report.corrupt.is_empty();
        assert_eq!(told, corrupt > 0, "{what}: {report:?}");
        tally.corrupt += corrupt;
        let going_on = async {
            store.write_at(&id("new"), 0, "goes on".into()).await?;
            store.flush(&id("new")).await
        };
        if let Err(error) = going_on.await {
            panic!("{what}: it does not go on: {error}");
        }
    });
    drop(store);
    process.kill();
}

fn flip_each(bench: &Bench, image: &DiskImage, file: &str, place: &Place, tally: &mut Tally) {
    for bit in place.from * 8..(place.from + place.len) * 8 {
        bench.disk.restore(image);
        bench.disk.flip_bit(file, bit as u64).expect("it is there");
        look(bench, &format!("bit {bit} of {file}"), place.batch, tally);
    }
}

// scenario 114
// S-5, S-33
#[test]
fn each_bit_of_each_record_of_a_sealed_segment_costs_its_own_batch_at_most() {
    let bench = Bench::new();
    bench.fill();
    let (file, places, footer) = places(&bench.disk);
    let image = bench.disk.clone_image();
    let mut whole = Tally::default();
    look(&bench, "nothing flipped", None, &mut whole);
    // All records stand in the footer, too: with either of them good nothing is lost.
    for place in places.iter().chain([&footer]) {
        flip_each(&bench, &image, &file, place, &mut whole);
    }
    assert_eq!(whole.lost, 0);
    assert!(whole.corrupt > 0, "no flip hit the data beside the records");
    // Without it each record stands for itself.
    bench.disk.restore(&image);
    let zeros = vec![0; footer.len];
    bench
        .disk
        .overwrite(&file, footer.from as u64, &zeros)
        .expect("it is there");
    let bare = bench.disk.clone_image();
    let mut alone = Tally::default();
    for place in &places {
        flip_each(&bench, &bare, &file, place, &mut alone);
    }
    assert!(alone.lost > 0, "no flip cost a record");
}
