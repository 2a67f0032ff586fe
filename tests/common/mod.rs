//! What the tests on real files share: setups to run over, a deterministic generator, comparisons.

#![allow(dead_code, reason = "every test file uses a part of it")]

pub(crate) mod loop_fs;

use bytes::Bytes;
use ringstore::{Config, DriverKind, Error, ErrorKind, PayloadId, Stats, Store};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// A test that takes longer hangs: far above what the slowest machine needs.
const HANGS_AFTER: Duration = Duration::from_secs(240);

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;

/// One row of the table that most tests run over.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) driver: DriverKind,
    pub(crate) shards: Option<usize>,
    /// Tiny segments and budgets, so that sealing, cleaning and waiting really happen.
    pub(crate) tiny: bool,
}

impl Setup {
    pub(crate) fn tiny(driver: DriverKind, shards: usize) -> Setup {
        Setup {
            driver,
            shards: Some(shards),
            tiny: true,
        }
    }

    pub(crate) fn config(&self, dir: &Path) -> Config {
        let mut config = Config::new(dir);
        config.driver = self.driver;
        config.shards = self.shards;
        config.pin_threads = false;
        if self.tiny {
            config.segment_bytes = 64 << 10;
            config.dirty_bytes_max = (1 << 20) * self.shards.unwrap_or(2) as u64;
            config.block_bytes = 16 << 10;
        }
        config
    }
}

/// The drivers that are built and work here. Says so when the kernel has no io_uring for us.
pub(crate) fn drivers() -> &'static [DriverKind] {
    static DRIVERS: OnceLock<Vec<DriverKind>> = OnceLock::new();
    DRIVERS.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        (config.driver, config.shards) = (DriverKind::Uring, Some(1));
        let probe = async { Store::open(config).await?.close().await };
        // On a thread of its own, because the asking one may be running another runtime.
        let probe = std::thread::scope(|scope| {
            let thread = scope.spawn(|| runtime().block_on(probe));
            thread.join().unwrap()
        });
        match probe {
            Ok(()) => {
                let mut drivers = vec![DriverKind::Uring, DriverKind::Threads];
                if cfg!(feature = "glommio") {
                    drivers.push(DriverKind::Glommio);
                }
                if cfg!(feature = "tokio-uring") {
                    drivers.push(DriverKind::TokioUring);
                }
                drivers
            }
            Err(error) => {
                println!("SKIPPED the io_uring driver: {error}");
                vec![DriverKind::Threads]
            }
        }
    })
}

/// The driver that `Auto` takes here.
pub(crate) fn best_driver() -> DriverKind {
    drivers()[0]
}

/// Every setup: all drivers, tiny stores of one and three shards, and the defaults.
pub(crate) fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for &driver in drivers() {
        setups.push(Setup::tiny(driver, 1));
        setups.push(Setup::tiny(driver, 3));
        setups.push(Setup {
            driver,
            shards: None,
            tiny: false,
        });
    }
    setups
}

/// The tiny setups of the best driver, for tests too long for the whole table.
pub(crate) fn few_setups() -> Vec<Setup> {
    vec![Setup::tiny(best_driver(), 1), Setup::tiny(best_driver(), 3)]
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

pub(crate) fn threaded_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap()
}

/// Runs a test, and fails it when it hangs.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    runtime().block_on(async { unhung(test).await })
}

/// Runs a test whose tasks run on several threads.
pub(crate) fn run_threaded<T>(test: impl Future<Output = T>) -> T {
    threaded_runtime().block_on(async { unhung(test).await })
}

async fn unhung<T>(test: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANGS_AFTER, test).await {
        Ok(value) => value,
        Err(_) => panic!("hangs: not done after {HANGS_AFTER:?}"),
    }
}

/// Runs a test once for every setup, each in a directory of its own.
pub(crate) fn each(setups: Vec<Setup>, test: impl AsyncFn(&Bench)) {
    for setup in setups {
        println!("with {setup:?}");
        let bench = Bench::new(setup);
        run(test(&bench));
    }
}

/// As [`each`], with several threads for the test's own tasks.
pub(crate) fn each_threaded(setups: Vec<Setup>, test: impl AsyncFn(&Bench)) {
    for setup in setups {
        println!("with {setup:?}");
        let bench = Bench::new(setup);
        run_threaded(test(&bench));
    }
}

/// A directory for one store, and how to open it.
pub(crate) struct Bench {
    pub(crate) setup: Setup,
    temp: TempDir,
}

impl Bench {
    pub(crate) fn new(setup: Setup) -> Bench {
        Bench {
            setup,
            temp: tempfile::tempdir().unwrap(),
        }
    }

    /// A bench of the smallest store: one shard, tiny segments.
    pub(crate) fn small() -> Bench {
        Bench::new(Setup::tiny(best_driver(), 1))
    }

    /// The store's directory; the directory above it is the test's.
    pub(crate) fn dir(&self) -> PathBuf {
        self.temp.path().join("store")
    }

    pub(crate) fn config(&self) -> Config {
        self.setup.config(&self.dir())
    }

    pub(crate) async fn open(&self) -> Store {
        open(self.config()).await.unwrap()
    }

    /// Closes the store, and opens it again.
    pub(crate) async fn reopen(&self, store: Store) -> Store {
        store.close().await.unwrap();
        self.open().await
    }

    /// Leaves the store as a crash of the process would, and opens it again.
    pub(crate) async fn crash(&self, store: Store) -> Store {
        drop(store);
        self.open().await
    }
}

/// Opens a store whose last handle may just have been dropped: its threads may take a moment to go.
pub(crate) async fn open(config: Config) -> Result<Store, Error> {
    loop {
        match Store::open(config.clone()).await {
            Err(error) if error.to_string().contains("is in use") => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

pub(crate) fn id(name: &str) -> PayloadId {
    PayloadId::new(name).unwrap()
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A number below `bound` that likes the edges of pages.
    pub(crate) fn edgy(&mut self, bound: u64) -> u64 {
        let value = self.below(bound);
        match self.below(4) {
            0 => value,
            1 => value / 4096 * 4096,
            2 => (value / 4096 * 4096 + 1).min(bound - 1),
            _ => (value / 4096 * 4096).saturating_sub(1),
        }
    }
}

/// Bytes that tell where they come from: none is zero, and neighbours differ.
pub(crate) fn pattern(tag: u64, len: usize) -> Bytes {
    let mut out = Vec::with_capacity(len + 8);
    let mut rng = Rng(tag.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    while out.len() < len {
        out.extend_from_slice(&(rng.next() | 0x0101_0101_0101_0101).to_le_bytes());
    }
    out.truncate(len);
    Bytes::from(out)
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_bytes(actual: &[u8], expected: &[u8], what: impl Debug) {
    let differs = actual.iter().zip(expected).position(|(a, b)| a != b);
    if let Some(at) = differs {
        let until = (at + 8).min(actual.len()).min(expected.len());
        panic!(
            "{what:?}: differs at {at}: {:x?} instead of {:x?}, lengths {} and {}",
            &actual[at..until],
            &expected[at..until],
            actual.len(),
            expected.len()
        );
    }
    assert_eq!(actual.len(), expected.len(), "{what:?}: length");
}

/// Figures of a moment in which no checkpoint was being written: one that is keeps what payloads
/// have ceased to refer to, and only without it `live_bytes` is exact.
pub(crate) async fn exact_stats(store: &Store) -> Stats {
    loop {
        let stats = store.stats().await.unwrap();
        if stats.checkpoints_running == 0 {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Everything that a payload holds, behind its end included.
pub(crate) async fn read_all(store: &Store, id: &PayloadId) -> Result<Bytes, Error> {
    let size = store.size(id).await?;
    Ok(store.read_at(id, 0, size as usize + 10).await?.into_bytes())
}

/// Checks a payload's size and bytes.
#[track_caller]
pub(crate) fn assert_payload<'a>(
    store: &'a Store,
    id: &'a PayloadId,
    expected: &'a [u8],
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let actual = read_all(store, id).await;
        let actual = actual.unwrap_or_else(|error| panic!("{caller}: {id}: {error}"));
        let size = store.size(id).await.unwrap();
        assert_eq!(size, expected.len() as u64, "{caller}: {id}: size");
        assert_bytes(&actual, expected, (caller.to_string(), id));
    }
}

/// Checks what kind of error a call ends in.
#[track_caller]
pub(crate) fn assert_kind<T: Debug>(result: Result<T, Error>, kind: ErrorKind) {
    match result {
        Ok(value) => panic!("succeeded with {value:?} instead of {kind:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error}"),
    }
}

/// Writes into a model as the store should: grows it with zeros.
pub(crate) fn model_write(model: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if model.len() < offset + data.len() {
        model.resize(offset + data.len(), 0);
    }
    model[offset..offset + data.len()].copy_from_slice(data);
}

/// Zeros a range of a model as far as it reaches.
pub(crate) fn model_punch(model: &mut [u8], offset: usize, len: usize) {
    let end = model.len().min(offset.saturating_add(len));
    if offset < end {
        model[offset..end].fill(0);
    }
}

/// Bytes of all files beneath a directory, as the file system counts them.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        // A file may go while it is looked at: then it does not count.
        let Ok(meta) = entry.metadata() else { continue };
        sum += match meta.is_dir() {
            true => disk_bytes(&entry.path()),
            false => meta.len(),
        };
    }
    sum
}

/// CRC-32C, to make headers that are right but for what a test changes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
