//! What fuzzing has found, run as ordinary tests, and the seeds that it begins with.

use super::*;
use std::fs;
use std::path::PathBuf;

/// Runs a target over its corpus, smallest inputs first, and over nothing at all.
fn run(name: &str, target: fn(&[u8])) {
    target(&[]);
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !fuzz.is_dir() {
        // The published package is without it.
        return;
    }
    let corpus = fs::read_dir(fuzz.join("corpus").join(name)).expect("a corpus for every target");
    let mut files: Vec<PathBuf> = corpus.map(|entry| entry.expect("a file").path()).collect();
    files.sort_unstable();
    assert!(!files.is_empty(), "a corpus has something in it");
    for file in files {
        let input = fs::read(&file).expect("a readable corpus");
        // Shown only when the test fails, and then it is what one wants to know.
        println!("{}", file.display());
        target(&input);
    }
}

#[test]
fn corpus_of_record() {
    run("record", record);
}

#[test]
fn corpus_of_segment() {
    run("segment", segment);
}

#[test]
fn corpus_of_checkpoint() {
    run("checkpoint", checkpoint);
}

#[test]
fn corpus_of_superblock() {
    run("superblock", superblock);
}

#[test]
fn corpus_of_manifest() {
    run("manifest", manifest);
}

#[test]
fn corpus_of_open_dir() {
    run("open_dir", open_dir);
}

#[cfg(feature = "sim")]
#[test]
fn corpus_of_plan() {
    run("plan", plan);
}

#[test]
fn corpus_of_map() {
    run("map", map);
}

/// A manifest of so many shards, each with more segments than the one before.
fn manifest_of(shards: u64) -> Vec<u8> {
    use crate::upload::manifest::{Base, Object, ShardState};
    let object = |number| Object {
        segment: SegmentId(number),
        epoch: Epoch(3),
        first: Lsn(40 + number),
        next: Lsn(41 + number),
        pages: 12,
    };
    let shard = |index: u64| ShardState {
        next: Lsn(41 + index),
        base: (index > 0).then_some(Base {
            sequence: index,
            epoch: Epoch(2),
            bytes: 4096,
        }),
        tail: (1..=index).map(object).collect(),
    };
    let manifest = Manifest {
        number: 5,
        store: STORE,
        node: STORE,
        epoch: Epoch(3),
        writer: 77,
        claim: 4,
        segment_bytes: 1 << 20,
        shards: (0..shards).map(shard).collect(),
    };
    manifest.encode()
}

/// Writes the seeds: the parts of a valid store, as each target wants them.
///
/// Run by hand, with `--ignored`, after the format has changed.
#[test]
#[ignore = "it writes into the source tree"]
fn write_seeds() {
    let [crashed, _, both] = plant::stores();
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let dir = fuzz.join("corpus").join(target);
        fs::create_dir_all(&dir).expect("a writable source tree");
        fs::write(dir.join(name), bytes).expect("a writable source tree");
    };
    let last = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    put("superblock", "seed-store", &crashed["STORE"][..56]);
    for (name, bytes) in both {
        if name.contains("checkpoint-") {
            put("checkpoint", "seed-closed", &bytes[..last(bytes)]);
        }
        if !name.contains("seg-") {
            continue;
        }
        let file = &name[name.len() - 2..];
        for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
            let seed = format!("seed-{file}-{index:02}");
            if page.starts_with(b"RBAT") {
                let records = BATCH_HEAD + u16::from_le_bytes([page[32], page[33]]) as usize;
                put("record", &seed, &page[BATCH_HEAD..records]);
            }
            if page.starts_with(b"R") && (index < 3 || page.starts_with(b"RINGFTR")) {
                put("segment", &seed, &page[..last(page)]);
            }
        }
    }
    for (name, shards) in [("none", 0), ("one", 1), ("many", 5)] {
        put("manifest", &format!("seed-{name}"), &manifest_of(shards));
    }
    for kind in 0..4u8 {
        put("open_dir", &format!("seed-{kind}"), &[kind]);
        for limit in 0..12u8 {
            let seed = format!("seed-{kind}-{limit:02}");
            put(
                "open_dir",
                &seed,
                &[kind, 0x08, 2 + kind, limit % 3, limit + 1, limit],
            );
        }
    }
    let steps: Vec<u8> = (0..600u32)
        .map(|step| (step.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    put("map", "seed-short", &steps[..60]);
    put("map", "seed-long", &steps);
}
