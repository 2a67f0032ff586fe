//! Kills a process that works on a store, at a random moment, and looks at what is left.
//!
//! The child (this same binary, started again) runs operations that a seed decides, so that the
//! parent knows every state that every payload went through. It reports each operation when it is
//! done. After the kill each payload has to be in one of the states from its last reported flush
//! on. Contract clauses 11, 15, 17 and 30, scenarios 32, 37, 40, 73 and 85.
//!
//! `RINGSTORE_CRASH_ROUNDS` sets the number of rounds, `RINGSTORE_CRASH_SEED` the seed.

mod common;

use bytes::Bytes;
use common::loop_fs::LoopFs;
use common::*;
use ringstore::{Config, DriverKind, Error, PayloadId, Store};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Callers of one child; each works on payloads of its own, one operation after the other.
const CLIENTS: u64 = 3;

/// Payloads of a caller.
const PAYLOADS: u64 = 4;

/// Payloads reach to here, about.
const BYTES: u64 = 150 << 10;

const CHILD: &str = "RINGSTORE_CRASH_CHILD";

#[derive(Clone, Copy, Debug)]
enum Op {
    Write {
        payload: u64,
        offset: u64,
        len: u64,
        tag: u64,
    },
    Punch {
        payload: u64,
        offset: u64,
        len: u64,
    },
    Truncate {
        payload: u64,
        size: u64,
    },
    Delete(u64),
    Copy(u64, u64),
    Flush(u64),
    FlushAll,
}

/// The operation that a caller does at some point of a round.
fn op(seed: u64, client: u64, index: u64) -> Op {
    let mut rng = Rng(seed ^ (client << 56) ^ (index << 24));
    let payload = rng.below(PAYLOADS);
    let (offset, tag) = (rng.edgy(BYTES), rng.next());
    // Some are larger than a batch, and are gathered from parts.
    let len = 1 + match rng.below(12) {
        0 => rng.edgy(300 << 10),
        1..=5 => rng.edgy(40 << 10),
        _ => rng.below(3000),
    };
    match rng.below(20) {
        0..=8 => Op::Write {
            payload,
            offset,
            len,
            tag,
        },
        9 => Op::Punch {
            payload,
            offset,
            len,
        },
        10 | 11 => Op::Truncate {
            payload,
            size: offset,
        },
        12 => Op::Delete(payload),
        13..=15 => Op::Copy(payload, rng.below(PAYLOADS)),
        16..=18 => Op::Flush(payload),
        _ => Op::FlushAll,
    }
}

fn name(client: u64, payload: u64) -> PayloadId {
    id(&format!("client-{client}/payload-{payload}"))
}

async fn run_op(store: &Store, client: u64, op: Op) -> Result<(), Error> {
    let name = |payload| name(client, payload);
    match op {
        Op::Write {
            payload,
            offset,
            len,
            tag,
        } => {
            let data = pattern(tag, len as usize);
            store.write_at(&name(payload), offset, data).await
        }
        Op::Punch {
            payload,
            offset,
            len,
        } => store.punch_hole(&name(payload), offset, len).await,
        Op::Truncate { payload, size } => store.truncate(&name(payload), size).await,
        Op::Delete(payload) => store.delete(&name(payload)).await,
        Op::Copy(from, to) => store.copy(&name(from), &name(to)).await.map(|_| ()),
        Op::Flush(payload) => store.flush(&name(payload)).await.map(|_| ()),
        Op::FlushAll => store.flush_all().await,
    }
}

/// How the stores of one test are opened, by parent and child alike.
#[derive(Clone, Debug)]
struct Rig {
    dir: PathBuf,
    driver: DriverKind,
    shards: usize,
    segment_bytes: u64,
    stall_ms: u64,
}

impl Rig {
    fn config(&self) -> Config {
        let mut config = Config::new(&self.dir);
        config.driver = self.driver;
        config.shards = Some(self.shards);
        config.pin_threads = false;
        config.segment_bytes = self.segment_bytes;
        config.dirty_bytes_max = (1 << 20) * self.shards as u64;
        config.flush_after = Duration::from_millis(10);
        config.stall_timeout = Duration::from_millis(self.stall_ms);
        config
    }

    fn to_env(&self, seed: u64) -> String {
        let Rig {
            dir,
            driver,
            shards,
            segment_bytes,
            stall_ms,
        } = self;
        let dir = dir.display();
        format!("{seed} {driver} {shards} {segment_bytes} {stall_ms} {dir}")
    }

    fn from_env(text: &str) -> (Rig, u64) {
        let parts: Vec<&str> = text.splitn(6, ' ').collect();
        let rig = Rig {
            driver: parts[1].parse().unwrap(),
            shards: parts[2].parse().unwrap(),
            segment_bytes: parts[3].parse().unwrap(),
            stall_ms: parts[4].parse().unwrap(),
            dir: PathBuf::from(parts[5]),
        };
        (rig, parts[0].parse().unwrap())
    }
}

/// What the parent starts and kills.
#[test]
#[ignore = "is started by the other tests of this file"]
fn child() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let (rig, seed) = Rig::from_env(&text);
    runtime().block_on(async {
        // The harness has begun a line.
        report("");
        let store = open(rig.config()).await.unwrap();
        let clients = (0..CLIENTS).map(|client| {
            let store = store.clone();
            async move {
                for index in 0.. {
                    let result = run_op(&store, client, op(seed, client, index)).await;
                    match result {
                        Ok(()) => report(&format!("@{client} {index} done")),
                        Err(error) => report(&format!("@{client} {index} {}", error.kind_name())),
                    }
                }
            }
        });
        futures_util::future::join_all(clients).await;
    });
}

fn report(line: &str) {
    // A parent that is gone has nothing to be told.
    let _ = writeln!(std::io::stdout(), "{line}");
}

trait KindName {
    fn kind_name(&self) -> String;
}

impl KindName for Error {
    /// One word.
    fn kind_name(&self) -> String {
        format!("{:?}", self.kind())
    }
}

/// When a child is killed.
#[derive(Clone, Copy)]
enum Kill {
    /// So long after it was started: it may be opening its store.
    AfterStart(Duration),
    /// So long after its first operation, however slow the machine is.
    AfterFirst(Duration),
}

/// How long a child's first operation is waited for; on a full file system it waits itself.
const FIRST_MAX: Duration = Duration::from_secs(5);

/// Lets a child work for a while, and kills it. Returns what it had reported.
fn run_and_kill(rig: &Rig, seed: u64, kill: Kill) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, rig.to_env(seed))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let lines = std::thread::scope(|scope| {
        let (done, first_done) = std::sync::mpsc::channel();
        let reader = scope.spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            let told = lines.inspect(|line| {
                if line.starts_with('@') {
                    let _ = done.send(());
                }
            });
            told.collect()
        });
        let after = match kill {
            Kill::AfterStart(after) => after,
            Kill::AfterFirst(after) => {
                let _ = first_done.recv_timeout(FIRST_MAX);
                after
            }
        };
        std::thread::sleep(after);
        child.kill().unwrap();
        reader.join().unwrap()
    });
    child.wait().unwrap();
    lines
}

type State = Option<Arc<Vec<u8>>>;

/// What the parent knows of one payload: the states that it may be in, the last one without a
/// crash.
#[derive(Clone, Default)]
struct Known(Vec<State>);

impl Known {
    fn last(&self) -> State {
        self.0.last().cloned().flatten()
    }

    fn flushed(&mut self) {
        self.0.drain(..self.0.len().saturating_sub(1));
    }
}

/// All payloads of one store.
#[derive(Default)]
struct Oracle {
    known: BTreeMap<(u64, u64), Known>,
    done: u64,
    full: u64,
}

impl Oracle {
    fn new() -> Oracle {
        let mut oracle = Oracle::default();
        for client in 0..CLIENTS {
            for payload in 0..PAYLOADS {
                oracle.known.insert((client, payload), Known(vec![None]));
            }
        }
        oracle
    }

    fn of(&mut self, client: u64, payload: u64) -> &mut Known {
        self.known.get_mut(&(client, payload)).unwrap()
    }

    /// Applies what a child has reported, and the operation that it may have been at.
    fn take(&mut self, seed: u64, lines: &[String], may_be_full: bool) {
        let mut next = [0; CLIENTS as usize];
        for line in lines.iter().filter_map(|line| line.strip_prefix('@')) {
            let words: Vec<&str> = line.split(' ').collect();
            // The last line may be cut short by the kill.
            let [
                client,
                index,
                result @ ("done" | "NotFound" | "Full" | "Poisoned"),
            ] = words[..]
            else {
                continue;
            };
            let (client, index): (u64, u64) = (client.parse().unwrap(), index.parse().unwrap());
            assert_eq!(next[client as usize], index, "reports in order");
            next[client as usize] = index + 1;
            match result {
                "Full" if may_be_full => self.full += 1,
                "done" | "NotFound" => self.apply(client, op(seed, client, index), result),
                other => panic!("seed {seed}, client {client}, operation {index}: {other}"),
            }
        }
        for (client, index) in (0..).zip(next) {
            match op(seed, client, index) {
                Op::Flush(_) | Op::FlushAll => {}
                op => self.change(client, op),
            }
        }
    }

    fn apply(&mut self, client: u64, op: Op, result: &str) {
        self.done += u64::from(result == "done");
        let needs = match op {
            Op::Punch { payload, .. } | Op::Flush(payload) | Op::Copy(payload, _) => Some(payload),
            _ => None,
        };
        let missing = needs.is_some_and(|payload| self.of(client, payload).last().is_none());
        assert_eq!(missing, result == "NotFound", "client {client}: {op:?}");
        match op {
            Op::Flush(payload) if !missing => self.of(client, payload).flushed(),
            Op::FlushAll => (0..PAYLOADS).for_each(|payload| self.of(client, payload).flushed()),
            _ => self.change(client, op),
        }
    }

    fn change(&mut self, client: u64, op: Op) {
        let (payload, state) = match op {
            Op::Write {
                payload,
                offset,
                len,
                tag,
            } => {
                let mut bytes = self.bytes(client, payload);
                model_write(&mut bytes, offset as usize, &pattern(tag, len as usize));
                (payload, Some(Arc::new(bytes)))
            }
            Op::Truncate { payload, size } => {
                let mut bytes = self.bytes(client, payload);
                bytes.resize(size as usize, 0);
                (payload, Some(Arc::new(bytes)))
            }
            Op::Punch {
                payload,
                offset,
                len,
            } if self.of(client, payload).last().is_some() => {
                let mut bytes = self.bytes(client, payload);
                model_punch(&mut bytes, offset as usize, len as usize);
                (payload, Some(Arc::new(bytes)))
            }
            Op::Delete(payload) => (payload, None),
            Op::Copy(from, to) if self.of(client, from).last().is_some() => {
                (to, self.of(client, from).last())
            }
            _ => return,
        };
        self.of(client, payload).0.push(state);
    }

    fn bytes(&mut self, client: u64, payload: u64) -> Vec<u8> {
        let last = self.of(client, payload).last();
        last.map_or_else(Vec::new, |bytes| bytes.to_vec())
    }

    /// Compares a store that was opened after a kill; what it holds is what is known from then on.
    async fn check(&mut self, store: &Store, seed: u64) {
        let mut names = Vec::new();
        for (&(client, payload), known) in &mut self.known {
            let name = name(client, payload);
            let found: State = match store.exists(&name).await.unwrap() {
                true => Some(Arc::new(read_all(store, &name).await.unwrap().to_vec())),
                false => None,
            };
            if !known.0.contains(&found) {
                let lens: Vec<_> = known
                    .0
                    .iter()
                    .map(|s| s.as_ref().map(|b| b.len()))
                    .collect();
                let len = found.as_ref().map(|bytes| bytes.len());
                let near = nearest(known, &found);
                panic!("seed {seed}: {name} is in no known state: {len:?} of {lens:?}; {near}");
            }
            names.extend(found.is_some().then_some(name));
            *known = Known(vec![found]);
        }
        assert_eq!(store.list(None, 1000).await.unwrap(), names);
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.batches_lost, stats.checksum_failures), (0, 0));
        assert!(store.verify().await.unwrap().corrupt.is_empty());
    }
}

/// Where a payload differs from the states that it may be in.
fn nearest(known: &Known, found: &State) -> String {
    let found = found.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    let differences = known.0.iter().flatten().map(|state| {
        let pairs = state.iter().zip(found).enumerate();
        let differing: Vec<usize> = pairs
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at)
            .collect();
        (
            differing.len(),
            differing.first().copied(),
            differing.last().copied(),
        )
    });
    format!(
        "differences (count, first, last): {:?}",
        differences.collect::<Vec<_>>()
    )
}

fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Kills children of these rigs in turn.
fn kill_rounds(rigs: &[Rig], rounds: u64, may_be_full: bool) -> u64 {
    let seed = env_number("RINGSTORE_CRASH_SEED", 1);
    let mut rng = Rng(seed);
    let mut oracles: Vec<Oracle> = rigs.iter().map(|_| Oracle::new()).collect();
    for round in 0..rounds {
        let index = (round % rigs.len() as u64) as usize;
        let (rig, oracle, seed) = (&rigs[index], &mut oracles[index], rng.next());
        let after = Duration::from_micros(rng.below(150_000));
        let kill = match rng.below(3) {
            0 => Kill::AfterStart(after),
            _ => Kill::AfterFirst(after),
        };
        let lines = run_and_kill(rig, seed, kill);
        oracle.take(seed, &lines, may_be_full);
        run(async {
            let mut store = open(rig.config()).await.unwrap();
            oracle.check(&store, seed).await;
            match rng.below(3) {
                // What was recovered once is recovered again.
                0 => {
                    drop(store);
                    store = open(rig.config()).await.unwrap();
                    oracle.check(&store, seed).await;
                    store.close().await.unwrap();
                }
                1 => drop(store),
                _ => store.close().await.unwrap(),
            }
        });
    }
    let done: u64 = oracles.iter().map(|oracle| oracle.done).sum();
    let full = oracles.iter().map(|oracle| oracle.full).sum();
    println!("{rounds} kills, {done} operations done, {full} refused as full");
    // On a full file system most of a round is spent waiting for room.
    let floor = if may_be_full { 3 } else { 10 };
    assert!(
        done > rounds * floor,
        "the children did hardly anything: {done}"
    );
    full
}

fn rigs(dir: &Path) -> Vec<Rig> {
    let mut rigs = Vec::new();
    for &driver in drivers() {
        for (shards, segment_bytes) in [(1, 64 << 10), (3, 64 << 10), (2, 1 << 20)] {
            rigs.push(Rig {
                dir: dir.join(format!("{driver}-{shards}")),
                driver,
                shards,
                segment_bytes,
                stall_ms: 30_000,
            });
        }
    }
    rigs
}

// scenario 32, scenario 37, scenario 40, scenario 73
// S-11, S-15, S-17
#[test]
fn killed_at_any_moment_every_payload_is_at_a_point_of_its_order() {
    let temp = tempfile::tempdir().unwrap();
    let rounds = env_number("RINGSTORE_CRASH_ROUNDS", 60);
    kill_rounds(&rigs(temp.path()), rounds, false);
}

// scenario 32
// S-17
#[test]
fn killed_on_ext4_and_xfs_every_payload_is_at_a_point_of_its_order() {
    for kind in ["ext4", "xfs"] {
        // The smallest XFS has 300 MiB.
        let Some(fs) = LoopFs::make(kind, 320) else {
            continue;
        };
        let rounds = env_number("RINGSTORE_CRASH_ROUNDS", 60) / 4;
        kill_rounds(&rigs(&fs.dir()), rounds, false);
    }
}

fn filler(n: u64) -> PayloadId {
    id(&format!("filler-{n}"))
}

/// Writes payloads until there is no room for one more; that one is not there. Returns how many.
async fn fill(store: &Store, piece: &Bytes) -> u64 {
    for n in 0.. {
        assert!(n < 100, "the file system is never full");
        if let Err(error) = store.write_at(&filler(n), 0, piece.clone()).await {
            assert_eq!(error.kind_name(), "Full");
            assert!(!store.exists(&filler(n)).await.unwrap());
            return n;
        }
    }
    unreachable!("it returns or panics")
}

// scenario 85
// S-17, S-30
#[test]
fn killed_on_a_file_system_that_runs_full_nothing_durable_is_harmed() {
    let Some(fs) = LoopFs::make("ext4", 64) else {
        return;
    };
    let mut rigs = rigs(&fs.dir());
    rigs.truncate(1);
    // So short that callers do not spend their lives waiting for room.
    rigs[0].stall_ms = 20;
    // What the stores may have is so little that they run into the end all the time.
    let ballast = fs.dir().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let piece = vec![0xBA; MIB];
    while file.write_all(&piece).is_ok() {}
    let len = file.metadata().unwrap().len();
    file.set_len(len - (512 << 10)).unwrap();
    file.sync_all().unwrap();
    // While it is open, removing it frees nothing.
    drop(file);
    let rounds = env_number("RINGSTORE_CRASH_ROUNDS", 60) / 4;
    kill_rounds(&rigs, rounds.max(10), true);
    run(async {
        // Whatever the rounds came to: in the end it is full, says so, and can be emptied.
        let mut config = rigs[0].config();
        config.stall_timeout = Duration::from_secs(2);
        let store = open(config).await.unwrap();
        let piece = Bytes::from(vec![9; 64 << 10]);
        let written = fill(&store, &piece).await;
        for n in 0..written {
            assert_payload(&store, &filler(n), &piece).await;
            store.delete(&filler(n)).await.unwrap();
        }
        store.close().await.unwrap();
    });
    std::fs::remove_file(&ballast).unwrap();
    run(async {
        // With room, service resumes; the file system may give room back only after a while.
        let mut config = rigs[0].config();
        config.stall_timeout = Config::new("").stall_timeout;
        let store = open(config).await.unwrap();
        let data = Bytes::from(vec![7; 4 << 20]);
        store.write_at(&id("after"), 0, data.clone()).await.unwrap();
        store.flush(&id("after")).await.unwrap();
        assert_payload(&store, &id("after"), &data).await;
        store.close().await.unwrap();
    });
}
