//! The `ringstore` command as scripts use it: what it prints, what it writes, how it exits.
//!
//! Every test has a directory of its own; nothing here looks into the engine.

#![cfg(feature = "cli")]

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// A store, and a place for files beside it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringstore"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("RINGSTORE_DIR", self.path("store"))
            .env("TMPDIR", self.dir.path())
            .env_remove("RINGSTORE_REMOTE")
            .stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{args:?}: {} {stderr}",
            output.status
        );
        assert_eq!(stderr, "", "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let value: Value = serde_json::from_str(&self.run(args)).unwrap();
        assert_eq!(value["schema"], "ringstore.stats/1");
        value
    }

    /// Runs a command that must fail; returns what it said.
    #[track_caller]
    fn fail(&self, args: &[&str], code: i32) -> String {
        let output = self.output(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(output.stdout, b"", "{args:?}");
        stderr
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        name.to_owned()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

/// Bytes without a pattern that storage could mistake for another place of itself.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

// S-4, S-15
#[test]
fn a_file_comes_back_as_it_went_in() {
    let bench = Bench::new();
    for len in [0, 1, 4096, 1 << 20, (3 << 20) + 17] {
        let bytes = noise(len);
        bench.file("in", &bytes);
        bench.run(&["put", "in", "payload"]);
        bench.run(&["get", "payload", "out"]);
        assert!(bench.read("out") == bytes, "len={len}");
        assert_eq!(
            bench.json(&["stat", "payload", "--json"])["size"],
            len as u64
        );
    }
}

#[test]
fn put_leaves_nothing_of_a_longer_payload() {
    let bench = Bench::new();
    bench.file("long", &noise(100_000));
    bench.file("short", b"short");
    bench.run(&["put", "long", "p"]);
    bench.run(&["put", "short", "p"]);
    assert_eq!(bench.run(&["get", "p", "-"]), "short");
}

#[test]
fn put_at_an_offset_leaves_the_rest() {
    let bench = Bench::new();
    bench.file("a", b"aaaaaaaa");
    bench.file("b", b"bb");
    bench.run(&["put", "a", "p"]);
    bench.run(&["put", "b", "p", "--offset", "3"]);
    assert_eq!(bench.run(&["get", "p", "-"]), "aaabbaaa");
    bench.run(&["put", "b", "p", "--offset", "1k"]);
    assert_eq!(bench.json(&["stat", "p", "--json"])["size"], 1026);
    // Zeros that are not written must hide what was there.
    bench.file("zeros", &[0; 4]);
    bench.run(&["put", "zeros", "p", "--offset", "2", "--sparse"]);
    assert_eq!(
        bench.run(&["get", "p", "-", "--range", "0-8"]),
        "aa\0\0\0\0aa"
    );
}

#[test]
fn pipes_carry_payloads() {
    let bench = Bench::new();
    let bytes = noise((2 << 20) + 5);
    let mut put = bench.command(&["put", "-", "p", "-q"]);
    let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(put.wait().unwrap().success());
    let output = bench.output(&["get", "p", "-"]);
    assert!(output.stdout == bytes);
    let output = bench.output(&["get", "p", "-", "--range", "1m-"]);
    assert!(output.stdout == bytes[1 << 20..]);
    let output = bench.output(&["get", "p", "-", "--range", "3m-4m"]);
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_reader_that_leaves_early_is_not_an_accident() {
    let bench = Bench::new();
    bench.file("in", &noise(4 << 20));
    bench.run(&["put", "in", "p"]);
    let mut get = bench.command(&["get", "p", "-"]);
    let get = get.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut get = get.spawn().unwrap();
    get.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let output = get.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn whoever_stops_reading_json_is_not_told_off() {
    let bench = Bench::new();
    // More than a pipe holds.
    bench.run(&["truncate", "p", "1"]);
    for n in 0..100 {
        bench.run(&["cp", "p", &format!("{n}-{}", "x".repeat(1000))]);
    }
    let mut list = bench.command(&["ls", "--json"]);
    let list = list.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut list = list.spawn().unwrap();
    list.stdout
        .take()
        .unwrap()
        .read_exact(&mut [0; 10])
        .unwrap();
    let output = list.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn holes_stay_holes_both_ways() {
    let bench = Bench::new();
    let file = std::fs::File::create(bench.path("in")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&noise(10_000), 5 << 20).unwrap();
    file.write_all_at(b"end", (40 << 20) - 3).unwrap();
    bench.run(&["put", "in", "p", "--sparse"]);
    let stat = bench.json(&["stat", "p", "--json", "--extents"]);
    assert_eq!(stat["size"], 64 << 20);
    assert!(stat["local_bytes"].as_u64().unwrap() <= 5 * 4096, "{stat}");
    let extents = stat["extents"].as_array().unwrap();
    assert_eq!(extents.first().unwrap()["kind"], "hole");
    assert_eq!(extents.last().unwrap()["kind"], "hole");
    bench.run(&["get", "p", "out", "--sparse"]);
    assert!(bench.read("out") == bench.read("in"));
    let blocks = std::fs::metadata(bench.path("out")).unwrap().blocks();
    assert!(blocks * 512 <= 1 << 20, "blocks={blocks}");
    bench.run(&["get", "p", "plain"]);
    assert!(bench.read("plain") == bench.read("in"));
}

#[test]
fn clones_are_cut_and_punched_alone() {
    let bench = Bench::new();
    let bytes = noise(20_000);
    bench.file("in", &bytes);
    bench.run(&["put", "in", "a"]);
    assert_eq!(bench.json(&["cp", "a", "b", "--json"])["size"], 20_000);
    bench.run(&["truncate", "b", "10000"]);
    bench.run(&["punch", "b", "4k", "100"]);
    let mut cut = bytes[..10_000].to_vec();
    cut[4096..4196].fill(0);
    assert!(bench.output(&["get", "b", "-"]).stdout == cut);
    assert!(bench.output(&["get", "a", "-"]).stdout == bytes);
    assert_eq!(
        bench.run(&["ls", "-l"]),
        format!("{:>16}  a\n{:>16}  b\n", 20_000, 10_000)
    );
    assert_eq!(bench.json(&["rm", "a", "missing", "--json"])["removed"], 1);
    assert_eq!(bench.run(&["ls"]), "b\n");
}

#[test]
fn lists_are_by_prefix() {
    let bench = Bench::new();
    for id in ["a", "ab", "ab/c", "b"] {
        bench.run(&["truncate", id, "1"]);
    }
    assert_eq!(bench.run(&["ls"]), "a\nab\nab/c\nb\n");
    assert_eq!(bench.run(&["ls", "ab"]), "ab\nab/c\n");
    assert_eq!(bench.run(&["ls", "x"]), "");
    assert_eq!(
        bench.json(&["ls", "b", "--json"])["payloads"],
        serde_json::json!(["b"])
    );
}

#[test]
fn missing_payloads_exit_with_3() {
    let bench = Bench::new();
    for args in [
        ["get", "nope", "out"].as_slice(),
        &["stat", "nope"],
        &["cp", "nope", "other"],
        &["flush", "nope"],
        &["punch", "nope", "0", "1"],
    ] {
        let said = bench.fail(args, 3);
        assert_eq!(said, "ringstore: not found: no such payload\n");
    }
    assert!(!bench.path("out").exists());
    assert_eq!(bench.run(&["ls"]), "");
}

#[test]
fn wrong_usage_exits_with_2() {
    let bench = Bench::new();
    let long = "x".repeat(1025);
    for args in [
        ["frobnicate"].as_slice(),
        &[],
        &["stat", ""],
        &["stat", &long],
        &["truncate", "p", "1.5g"],
        &["truncate", "p", "5000p"],
        &["init", "--shards", "0"],
        &["init", "--segment-size", "5k"],
        &["get", "p", "out", "--range", "5-4"],
        &["flush", "p", "--all"],
        &["--driver", "abacus", "ls"],
        &["--remote", "ftp://x", "ls"],
        &["--remote", "file://none", "ls"],
        &["stats", "--watch", "often"],
        &["bench", "--iodepth", "4"],
        &["bench", "--rw", "sideways"],
    ] {
        bench.fail(args, 2);
    }
    let output = bench.command(&["ls"]).env_remove("RINGSTORE_DIR").output();
    assert_eq!(output.unwrap().status.code(), Some(2));
    assert_eq!(bench.run(&["ls"]), "", "none of them has made anything");
}

#[test]
fn files_that_cannot_be_used_exit_with_1() {
    let bench = Bench::new();
    let said = bench.fail(&["put", "missing-file", "p"], 1);
    assert!(said.contains("file=missing-file"), "{said}");
    bench.fail(&["put", ".", "p"], 1);
    bench.run(&["truncate", "p", "1"]);
    bench.fail(&["get", "p", "no/such/dir"], 1);
}

/// A command that holds the store until its standard input ends.
fn holder(bench: &Bench) -> Child {
    let mut holder = bench.command(&["put", "-", "held"]);
    let mut holder = holder.stdin(Stdio::piped()).spawn().unwrap();
    // It has the store once more than a piece has been taken from the pipe.
    let mut pipe = holder.stdin.take().unwrap();
    pipe.write_all(&vec![1; 20 << 20]).unwrap();
    holder.stdin = Some(pipe);
    holder
}

// S-22
#[test]
fn a_locked_store_exits_with_4() {
    let bench = Bench::new();
    let mut holder = holder(&bench);
    let said = bench.fail(&["ls"], 4);
    assert!(said.contains(&format!("pid={}", holder.id())), "{said}");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    assert_eq!(bench.run(&["ls"]), "held\n");
}

#[test]
fn an_interrupted_command_exits_with_130() {
    let bench = Bench::new();
    let mut holder = holder(&bench);
    let killed = Command::new("kill")
        .args(["-INT", &holder.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    assert_eq!(holder.wait().unwrap().code(), Some(130));
    bench.run(&["verify"]);
}

// S-33
#[test]
fn bad_bytes_exit_with_5() {
    let bench = Bench::new();
    let bytes = noise(64 << 10);
    bench.file("in", &bytes);
    bench.run(&["init", "--shards", "1"]);
    bench.run(&["put", "in", "p"]);
    let flipped = flip(&bench.path("store"), &bytes[20_000..20_100]);
    assert!(flipped, "the payload's bytes are in no file of the store");
    let output = bench.output(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["corrupt"][0]["id"], "p");
    assert_eq!(bench.output(&["get", "p", "out"]).status.code(), Some(5));
    assert!(
        !bench.path("out").exists(),
        "half a file looks like a whole one"
    );
    bench.file("there", b"before");
    assert_eq!(bench.output(&["get", "p", "there"]).status.code(), Some(5));
    assert!(bench.path("there").exists());
}

/// Changes a byte of `needle` wherever it is found under a directory.
fn flip(dir: &std::path::Path, needle: &[u8]) -> bool {
    let mut is_found = false;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            is_found |= flip(&path, needle);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let places = bytes.windows(needle.len()).enumerate();
        for (at, _) in places.filter(|(_, window)| *window == needle) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[!bytes[at]], at as u64).unwrap();
            is_found = true;
        }
    }
    is_found
}

#[test]
fn another_directory_is_refused_and_left_alone() {
    let bench = Bench::new();
    bench.file("precious", b"data");
    let here = bench.dir.path().to_str().unwrap();
    bench.fail(&["-d", here, "ls"], 2);
    assert_eq!(bench.read("precious"), b"data");
}

#[test]
fn init_decides_for_good() {
    let bench = Bench::new();
    let fields = bench.json(&["init", "--shards", "3", "--capacity", "1g", "--json"]);
    assert_eq!(
        (&fields["shards"], &fields["local_disk_max"]),
        (&3.into(), &(1 << 30).into())
    );
    let stats = bench.json(&["stats", "--json"]);
    assert_eq!(stats["shards"], 3);
    assert_eq!(stats["local_disk_max"], 1 << 30);
    bench.run(&["init"]);
    bench.fail(&["init", "--shards", "2"], 2);
}

/// What ordinary files give for the same steps.
struct Model(std::fs::File, PathBuf);

impl Model {
    fn copy(bench: &Bench, from: &str, name: &str) -> Model {
        std::fs::copy(bench.path(from), bench.path(name)).unwrap();
        let path = bench.path(name);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        Model(file, path)
    }

    #[track_caller]
    fn assert_equals(&self, bench: &Bench, id: &str) {
        bench.run(&["get", id, "out", "-q"]);
        assert!(
            bench.read("out") == std::fs::read(&self.1).unwrap(),
            "{id} differs"
        );
    }
}

// S-7, S-8, S-11, S-13
#[test]
fn a_file_that_is_cloned_cut_and_overwritten_is_what_ordinary_files_are() {
    let bench = Bench::new();
    bench.file("image", &noise((20 << 20) + 123));
    let patch: Vec<u8> = noise(3 << 20).into_iter().map(|byte| !byte).collect();
    bench.file("patch", &patch);
    let (disk, trial) = (
        Model::copy(&bench, "image", "m1"),
        Model::copy(&bench, "image", "m2"),
    );

    bench.run(&["put", "image", "disk"]);
    bench.run(&["cp", "disk", "trial"]);
    bench.run(&["truncate", "trial", "9000001"]);
    trial.0.set_len(9_000_001).unwrap();
    bench.run(&["put", "patch", "trial", "--offset", "7000001"]);
    trial.0.write_all_at(&patch, 7_000_001).unwrap();
    bench.run(&["truncate", "trial", "16m"]);
    trial.0.set_len(16 << 20).unwrap();
    bench.run(&["punch", "trial", "1000003", "2000"]);
    trial.0.write_all_at(&[0; 2000], 1_000_003).unwrap();
    bench.run(&["put", "patch", "trial", "--offset", "15m"]);
    trial.0.write_all_at(&patch, 15 << 20).unwrap();
    disk.assert_equals(&bench, "disk");
    trial.assert_equals(&bench, "trial");

    bench.run(&["put", "patch", "disk", "--offset", "4097"]);
    disk.0.write_all_at(&patch, 4097).unwrap();
    disk.assert_equals(&bench, "disk");
    trial.assert_equals(&bench, "trial");
    bench.run(&["rm", "disk"]);
    trial.assert_equals(&bench, "trial");
    bench.run(&["verify"]);
}

// S-15, S-17, S-20
#[test]
fn a_command_that_is_killed_loses_nothing_that_another_has_reported() {
    const PIECE: usize = 1 << 20;
    let bench = Bench::new();
    let old = noise(12 * PIECE);
    bench.file("image", &old);
    bench.run(&["put", "image", "disk"]);
    bench.run(&["cp", "disk", "clone"]);
    let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
    let mut overwritten = 0;
    for round in 0..8 {
        let mut put = bench.command(&["put", "-", "disk", "--offset", "0"]);
        let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = put.stdin.take().unwrap();
        for piece in new.chunks(PIECE).take(2 + round) {
            pipe.write_all(piece).unwrap();
        }
        // It waits for more when this comes, or is at any point before.
        std::thread::sleep(std::time::Duration::from_millis(7 * round as u64));
        put.kill().unwrap();
        put.wait().unwrap();
        drop(pipe);
        // Each piece is there wholly or not at all, and the clone has never heard of it.
        let found = bench.output(&["get", "disk", "-"]).stdout;
        assert_eq!(found.len(), old.len());
        for (at, piece) in found.chunks(PIECE).enumerate() {
            let range = at * PIECE..(at + 1) * PIECE;
            let is_new = piece == &new[range.clone()];
            assert!(
                is_new || piece == &old[range],
                "round {round}: piece {at} is neither"
            );
            overwritten += usize::from(is_new);
        }
        assert!(bench.output(&["get", "clone", "-"]).stdout == old);
        bench.run(&["verify"]);
        bench.run(&["cp", "clone", "disk"]);
    }
    println!("{overwritten} pieces were there");
}

#[test]
fn segments_are_listed_and_shown() {
    let bench = Bench::new();
    bench.run(&["init", "--shards", "2", "--segment-size", "1m"]);
    bench.file("in", &noise(3_000_000));
    bench.run(&["put", "in", "p"]);
    bench.file("five", b"bytes");
    bench.run(&["put", "five", "a name"]);
    let listed = bench.json(&["segments", "ls", "--json"]);
    let segments = listed["segments"].as_array().unwrap();
    // Sealed ones without live bytes go at the next opening.
    let is_held = |it: &&Value| it["state"] == "sealed" && it["live_bytes"] != 0;
    let held: Vec<&Value> = segments.iter().filter(is_held).collect();
    let live: u64 = held
        .iter()
        .map(|it| it["live_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(live, 3_000_005);
    assert!(held.len() > 2, "{listed}");
    let mut records = Vec::new();
    for segment in &held {
        let file = bench.path("store").join(segment["file"].as_str().unwrap());
        assert_eq!(std::fs::metadata(file).unwrap().len(), 1 << 20);
        let number = segment["segment"].to_string();
        let shard = segment["shard"].to_string();
        let args = ["segments", "dump", &number, "--shard", &shard, "--json"];
        let dumped = bench.json(&args);
        let dumped = &dumped["segments"][0];
        assert_eq!(dumped["file"], segment["file"]);
        assert_eq!(dumped["unreadable"], serde_json::json!([]));
        let batches = dumped["batches"].as_array().unwrap();
        assert!(!batches.is_empty(), "{segment}");
        // Every page is in a batch, but for the segment's own head.
        let pages: u64 = batches
            .iter()
            .map(|it| 1 + it["data_pages"].as_u64().unwrap())
            .sum();
        assert_eq!(segment["pages"], pages + 1);
        for batch in batches {
            let lines = batch["records"].as_array().unwrap().iter();
            records.extend(lines.map(|line| line.as_str().unwrap().to_owned()));
        }
        let text = bench.run(&["segments", "dump", &number, "--shard", &shard]);
        assert!(
            text.starts_with(&format!("shard={shard} segment={number} ")),
            "{text}"
        );
        assert!(text.contains(" data_pages="), "{text}");
    }
    let has = |start: &str, end: &str| {
        let mut records = records.iter();
        records.any(|record| record.starts_with(start) && record.ends_with(end))
    };
    assert!(
        has("create ", " id=\"p\"") && has("create ", " id=\"a name\""),
        "{records:?}"
    );
    assert!(
        has("write ", "") && has("truncate ", " size=5"),
        "{records:?}"
    );
    // Free files come and go with every opening; what holds bytes stays.
    let text = bench.run(&["segments", "ls"]);
    assert!(text.trim_start().starts_with("shard "), "{text}");
    for segment in &held {
        let line = text
            .lines()
            .find(|line| line.ends_with(segment["file"].as_str().unwrap()));
        let mut words = line.unwrap().split_whitespace();
        assert_eq!(
            words.nth(1),
            Some(&*segment["segment"].to_string()),
            "{text}"
        );
    }
    bench.fail(&["segments", "dump", "999999"], 3);
    bench.fail(&["segments", "dump", "1", "--shard", "2"], 2);
    bench.fail(&["segments", "dump", "x"], 2);
    bench.fail(&["segments"], 2);
}

// S-33
#[test]
fn a_bad_batch_is_shown_as_one() {
    let bench = Bench::new();
    bench.run(&["init", "--shards", "1", "--segment-size", "64k"]);
    bench.file("in", &noise(300_000));
    bench.run(&["put", "in", "p"]);
    let listed = bench.json(&["segments", "ls", "--json"]);
    let segment = &listed["segments"][0];
    let path = bench.path("store").join(segment["file"].as_str().unwrap());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xFF], 4096 + 60).unwrap();
    let number = segment["segment"].to_string();
    let output = bench.output(&["segments", "dump", &number]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("page=1 unreadable: "), "{text}");
}

// S-34
#[test]
fn figures_are_shown_by_shard() {
    let bench = Bench::new();
    bench.run(&["init", "--shards", "3"]);
    for id in ["a", "b", "c", "d", "e"] {
        bench.run(&["truncate", id, "5"]);
    }
    let stats = bench.json(&["stats", "--per-shard", "--json"]);
    let shards = stats["per_shard"].as_array().unwrap();
    assert_eq!(shards.len(), 3);
    for name in ["file_count", "used_size", "segments", "batches"] {
        let sum: u64 = shards
            .iter()
            .map(|shard| shard[name].as_u64().unwrap())
            .sum();
        assert_eq!(stats[name], sum, "{name}");
    }
    let numbers: Vec<&Value> = shards.iter().map(|shard| &shard["shard"]).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let text = bench.run(&["stats", "--per-shard"]);
    let line = text
        .lines()
        .find(|line| line.starts_with("file_count"))
        .unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some("5"), "{text}");
    assert_eq!(line.split_whitespace().count(), 2 + 3, "{text}");
    assert!(bench.json(&["stats", "--json"])["per_shard"].is_null());
}

#[test]
fn figures_can_be_watched() {
    let bench = Bench::new();
    let mut watch = bench.command(&["stats", "--watch", "100ms", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = watch.stdout.take().unwrap();
    let mut objects = serde_json::Deserializer::from_reader(&mut out).into_iter::<Value>();
    for _ in 0..3 {
        assert!(objects.next().unwrap().unwrap()["file_count"].is_u64());
    }
    let pid = watch.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status();
    assert!(killed.unwrap().success());
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    bench.run(&["verify"]);
}

// S-34
#[test]
fn names_of_the_figures_are_fixed() {
    let bench = Bench::new();
    bench.run(&["truncate", "p", "5"]);
    let stats = bench.json(&["stats", "--json"]);
    // Added to, never taken from: scripts and dashboards read these.
    let names = include_str!("cli/stats-names.txt");
    for name in names.lines() {
        assert!(!stats[name].is_null(), "{name} is missing");
    }
    assert_eq!(stats["file_count"], 1);
    assert_eq!(stats["used_size"], 5);
    assert!(stats["latency"]["write"]["count"].is_u64());
    let known: Vec<&str> = names.lines().collect();
    let fields = stats.as_object().unwrap().keys();
    let new: Vec<_> = fields
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(new.is_empty(), "add to tests/cli/stats-names.txt: {new:?}");
}

#[test]
fn json_of_small_commands_is_fixed() {
    let bench = Bench::new();
    for (args, expected) in [
        (
            ["truncate", "p", "8192"].as_slice(),
            r#"{"id":"p","size":8192}"#,
        ),
        (
            &["punch", "p", "0", "10"],
            r#"{"id":"p","offset":0,"bytes":10}"#,
        ),
        (
            &["cp", "p", "q"],
            r#"{"source":"p","id":"q","size":8192,"blocks_shared":1}"#,
        ),
        (
            &["ls", "-l"],
            r#"{"payloads":[{"id":"p","size":8192},{"id":"q","size":8192}]}"#,
        ),
        (&["flush"], "{}"),
        (&["rm", "p", "q"], r#"{"removed":2}"#),
        (
            &["verify"],
            concat!(
                r#"{"payloads":0,"bytes_checked":0,"bytes_repaired":0,"#,
                r#""remote_bytes_checked":0,"remote_bytes_unreachable":0,"corrupt":[]}"#
            ),
        ),
        (
            &["health"],
            r#"{"status":"healthy","local":"healthy","remote":null,"reasons":[]}"#,
        ),
    ] {
        let mut all = vec!["--json"];
        all.extend(args);
        let mut found = bench.json(&all);
        found.as_object_mut().unwrap().remove("schema");
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(found, expected, "{args:?}");
    }
}

#[test]
fn drivers_read_what_the_others_wrote() {
    let bench = Bench::new();
    let bytes = noise(100_000);
    bench.file("in", &bytes);
    bench.run(&["put", "in", "auto"]);
    let has_ring = bench.json(&["stats", "--json"])["driver"] == "uring";
    let drivers = [
        ("threads", true),
        ("glommio", has_ring && cfg!(feature = "glommio")),
        ("tokio-uring", has_ring && cfg!(feature = "tokio-uring")),
    ];
    for (driver, _) in drivers.into_iter().filter(|(_, is_there)| *is_there) {
        let read = bench.output(&["--driver", driver, "get", "auto", "-"]);
        assert!(read.stdout == bytes, "{driver}");
        bench.run(&["--driver", driver, "put", "in", driver]);
        assert!(
            bench.output(&["get", driver, "-"]).stdout == bytes,
            "{driver}"
        );
        let stats = bench.json(&["--driver", driver, "stats", "--json"]);
        assert_eq!(stats["driver"], driver);
    }
}

#[test]
fn doctor_has_a_line_for_everything() {
    let bench = Bench::new();
    let report = bench.json(&["doctor", "--json"]);
    let findings = report["findings"].as_array().unwrap();
    let names: Vec<_> = findings
        .iter()
        .map(|finding| finding["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "kernel", "io_uring", "O_DIRECT", "memlock", "seccomp", "remote"
        ]
    );
    std::fs::create_dir(bench.path("bucket")).unwrap();
    let remote = |name: &str| format!("file://{}", bench.path(name).display());
    assert!(
        bench
            .run(&["doctor", "--remote", &remote("bucket")])
            .contains("answers")
    );
    let output = bench.output(&["doctor", "--remote", &remote("away")]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("FIX remote"), "{said}");
    assert_eq!(std::fs::read_dir(bench.path("bucket")).unwrap().count(), 0);
    assert!(!bench.path("away").exists() && !bench.path("store").exists());
}

#[test]
fn a_word_behind_remote_is_a_payload_unless_it_is_an_address() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("bucket")).unwrap();
    let url = format!("file://{}", bench.path("bucket").display());
    bench.run(&["truncate", "disk", "10", "--remote", &url]);
    let flush = |args: &[&str]| {
        let all = [&["flush", "--json"], args].concat();
        let mut command = bench.command(&all);
        let output = command.env("RINGSTORE_REMOTE", &url).output().unwrap();
        assert!(output.status.success(), "{args:?} {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["id"].clone(), report["finalized"].clone())
    };
    let waited = (Value::from("disk"), Value::from(true));
    assert_eq!(flush(&["--remote", "disk"]), waited);
    assert_eq!(flush(&["disk", "--remote"]), waited);
    assert_eq!(flush(&["--remote", &url, "disk"]).0, "disk");
    assert!(flush(&["--all", "--remote"]).0.is_null());
}

// S-18
#[test]
fn a_rebuild_that_fails_leaves_nothing_behind() {
    let bench = Bench::new();
    let url = format!("file://{}", bench.path("away").display());
    let new = bench.path("new");
    let new = new.to_str().unwrap();
    bench.fail(&["-d", new, "rebuild", "--remote", &url], 7);
    assert!(!bench.path("new").exists());
    std::fs::create_dir(new).unwrap();
    bench.fail(&["-d", new, "rebuild", "--remote", &url], 7);
    assert_eq!(std::fs::read_dir(new).unwrap().count(), 0);
}

#[test]
fn measurements_have_the_shape_of_fio() {
    let bench = Bench::new();
    let result = bench.json(&[
        "bench",
        "--rw",
        "randrw",
        "--size",
        "2m",
        "--bs",
        "4k",
        "--iodepth",
        "8",
        "--numjobs",
        "2",
        "--payloads",
        "3",
        "--fsync",
        "4",
        "--random_distribution",
        "zipf:1.1",
        "--json",
    ]);
    let job = &result["jobs"][0];
    let count = |side: &str| job[side]["total_ios"].as_u64().unwrap();
    assert_eq!(count("read") + count("write"), 2 * 512);
    assert!(count("sync") > 10);
    let latency = &job["read"]["clat_ns"];
    let bins = latency["bins"].as_object().unwrap();
    let in_bins: u64 = bins.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(in_bins, count("read"));
    assert!(latency["percentile"]["99.000000"].is_u64());
    assert!(
        latency["percentile"]["99.990000"].is_null(),
        "too few for it"
    );
    assert_eq!(bench.run(&["ls"]), "", "it takes its payloads away");
}

#[test]
fn a_rate_is_kept_and_shown_both_ways() {
    let bench = Bench::new();
    let args = [
        "bench",
        "--rw",
        "write",
        "--size",
        "1m",
        "--rate_iops",
        "500",
        "--rate_process",
        "poisson",
        "--iodepth",
        "4",
    ];
    let text = bench.run(&args);
    assert!(
        text.contains("write lat") && text.contains("write clat"),
        "{text}"
    );
    let mut all = args.to_vec();
    all.push("--json");
    let result = bench.json(&all);
    let write = &result["jobs"][0]["write"];
    assert_eq!(write["total_ios"], 256);
    // 256 beginnings at 500 a second take half a second, give or take chance.
    assert!(write["runtime"].as_u64().unwrap() >= 300, "{write}");
}

#[test]
fn time_ends_a_measurement() {
    let bench = Bench::new();
    let result = bench.json(&[
        "bench",
        "--rw",
        "randread",
        "--size",
        "1m",
        "--runtime",
        "1s",
        "--time_based",
        "--ramp_time",
        "100ms",
        "--output-format",
        "json+",
    ]);
    let read = &result["jobs"][0]["read"];
    let runtime = read["runtime"].as_u64().unwrap();
    assert!((900..10_000).contains(&runtime), "{runtime}");
    assert!(read["total_ios"].as_u64().unwrap() > 0);
}
