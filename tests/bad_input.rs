//! What a store makes of bad directories, bad files and a mean environment: a clear error or an
//! announced fallback, nothing lost, never a panic. Contract clauses 20, 22, 30 and 33.

mod common;

use bytes::Bytes;
use common::loop_fs::LoopFs;
use common::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringstore::{Config, DriverKind, ErrorKind, Store};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const CHILD: &str = "RINGSTORE_BAD_INPUT_CHILD";

async fn write(store: &Store, name: &str, data: &[u8]) {
    let data = Bytes::copy_from_slice(data);
    store.write_at(&id(name), 0, data).await.unwrap();
}

/// A closed store of one shard that holds payload `a`.
async fn make(bench: &Bench) {
    let store = bench.open().await;
    write(&store, "a", &pattern(1, 50_000)).await;
    store.close().await.unwrap();
}

/// The store holds what `make` put there, and works.
async fn assert_well(bench: &Bench) {
    let store = bench.open().await;
    assert_payload(&store, &id("a"), &pattern(1, 50_000)).await;
    store.close().await.unwrap();
}

// S-20, S-33
#[test]
fn configurations_that_cannot_work_are_refused() {
    run(async {
        type Change = fn(&mut Config);
        let changes: [(&str, Change); 7] = [
            ("no shards", |c| c.shards = Some(0)),
            ("too many shards", |c| c.shards = Some(100_000)),
            ("tiny segments", |c| c.segment_bytes = 4096),
            ("odd segments", |c| c.segment_bytes = (1 << 20) + 1),
            ("huge segments", |c| c.segment_bytes = 1 << 40),
            ("no blocks", |c| c.block_bytes = 0),
            ("no segments", |c| c.segment_bytes = 0),
        ];
        for (what, change) in changes {
            let bench = Bench::small();
            let mut config = bench.config();
            change(&mut config);
            println!("{what}");
            assert_kind(Store::open(config).await, ErrorKind::InvalidInput);
            assert!(!bench.dir().exists(), "{what} left something behind");
        }
    });
}

// S-29
#[test]
fn budgets_of_nothing_still_work() {
    for shards in [1, 3] {
        let bench = Bench::new(Setup::tiny(best_driver(), shards));
        run(async {
            let mut config = bench.config();
            config.dirty_bytes_max = 0;
            config.read_buffer_bytes = 0;
            config.prefetch_bytes_max = 0;
            config.flush_after = Duration::ZERO;
            let store = open(config).await.unwrap();
            write(&store, "a", &pattern(1, 300_000)).await;
            store.flush(&id("a")).await.unwrap();
            assert_payload(&store, &id("a"), &pattern(1, 300_000)).await;
            store.close().await.unwrap();
        });
    }
}

// S-33
#[test]
fn a_directory_that_is_no_store_is_refused_and_left_alone() {
    run(async {
        let temp = tempfile::tempdir().unwrap();
        let refuse = async |dir: &Path| {
            let setup = Setup::tiny(best_driver(), 1);
            let result = Store::open(setup.config(dir)).await;
            assert_kind(result, ErrorKind::InvalidInput);
        };
        let dir = temp.path().join("full");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("holiday.jpg"), "picture").unwrap();
        refuse(&dir).await;
        assert_eq!(std::fs::read(dir.join("holiday.jpg")).unwrap(), b"picture");
        assert!(!dir.join("STORE").exists());
        // A file, a path through a file, and a file that only has the right name.
        refuse(&dir.join("holiday.jpg")).await;
        refuse(&dir.join("holiday.jpg/store")).await;
        refuse(Path::new("/proc/none/store")).await;
        let dir = temp.path().join("named");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("STORE"), vec![b'x'; 5000]).unwrap();
        refuse(&dir).await;
        assert_eq!(std::fs::read(dir.join("STORE")).unwrap(), vec![b'x'; 5000]);
    });
}

// S-33
#[test]
fn files_are_private_and_links_are_not_followed() {
    let bench = Bench::small();
    run(async {
        make(&bench).await;
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&bench.dir()), 0o700);
        for (path, is_dir) in files(&bench.dir()) {
            assert_eq!(mode(&path), if is_dir { 0o700 } else { 0o600 }, "{path:?}");
        }
        // Segments that were moved away and linked to are not believed.
        let parent = bench.dir().parent().unwrap().to_owned();
        let mut before = Vec::new();
        for (index, (seg, _)) in segment_files(&bench).into_iter().enumerate() {
            let elsewhere = parent.join(format!("elsewhere-{index}"));
            std::fs::rename(&seg, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &seg).unwrap();
            before.push((std::fs::read(&elsewhere).unwrap(), elsewhere));
        }
        let store = bench.open().await;
        let read = store.read_at(&id("a"), 0, 50_000).await;
        assert_kind(read, ErrorKind::Corrupt);
        let report = store.verify().await.unwrap();
        assert_eq!(report.corrupt[0].0, id("a"), "{report:?}");
        store.close().await.unwrap();
        for (bytes, elsewhere) in before {
            assert_eq!(std::fs::read(&elsewhere).unwrap(), bytes);
        }
    });
}

/// Everything beneath a directory, and whether it is a directory.
fn files(dir: &Path) -> Vec<(PathBuf, bool)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_dir = path.is_dir();
        if is_dir {
            all.extend(files(&path));
        }
        all.push((path, is_dir));
    }
    all.sort();
    all
}

/// Segment files of the first shard, with their length.
fn segment_files(bench: &Bench) -> Vec<(PathBuf, u64)> {
    let shard = bench.dir().join("shard-0000");
    let is_segment = |path: &Path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("seg-")
    };
    let files = files(&shard).into_iter().map(|(path, _)| path);
    let segments = files.filter(|path| is_segment(path));
    segments
        .map(|path| (path.clone(), path.metadata().unwrap().len()))
        .collect()
}

// S-33
#[test]
fn another_number_of_shards_is_refused_and_the_own_one_found() {
    for made in [1, 3] {
        let bench = Bench::new(Setup::tiny(best_driver(), made));
        run(async {
            make(&bench).await;
            for other in [1, 2, 3, 4].into_iter().filter(|other| *other != made) {
                let mut config = bench.config();
                config.shards = Some(other);
                let error = Store::open(config).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let says = format!("made_with={made} shards={other}");
                assert!(error.to_string().contains(&says), "{error}");
            }
            let mut config = bench.config();
            config.shards = None;
            let store = open(config).await.unwrap();
            assert_eq!(store.stats().await.unwrap().shards, made as u64);
            store.close().await.unwrap();
            assert_well(&bench).await;
        });
    }
}

// S-33
#[test]
fn another_size_of_segments_is_not_believed() {
    let bench = Bench::small();
    run(async {
        make(&bench).await;
        let mut config = bench.config();
        config.segment_bytes = 16 << 20;
        let store = open(config).await.unwrap();
        assert_payload(&store, &id("a"), &pattern(1, 50_000)).await;
        write(&store, "b", &pattern(2, 100_000)).await;
        store.close().await.unwrap();
        assert_well(&bench).await;
    });
}

/// Bytes of a superblock that its checksum covers; the sum stands at 12.
const SUPERBLOCK: usize = 72;

// S-33
#[test]
fn stores_of_another_version_are_refused() {
    let bench = Bench::small();
    run(async {
        make(&bench).await;
        let names = ["STORE", "STORE.copy"].map(|name| bench.dir().join(name));
        let good = names.each_ref().map(|name| std::fs::read(name).unwrap());
        for (name, bytes) in names.iter().zip(&good) {
            let mut other = bytes.clone();
            other[8..12].copy_from_slice(&99u32.to_le_bytes());
            other[12..16].fill(0);
            let sum = crc32c(&other[..SUPERBLOCK]);
            other[12..16].copy_from_slice(&sum.to_le_bytes());
            std::fs::write(name, other).unwrap();
        }
        let error = Store::open(bench.config()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("format=99"), "{error}");
        for (name, bytes) in names.iter().zip(&good) {
            std::fs::write(name, bytes).unwrap();
        }
        assert_well(&bench).await;
    });
}

// S-33
#[test]
fn damaged_superblocks_are_mended_from_each_other_or_reported() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("missing", |path| std::fs::remove_file(path).unwrap()),
        ("empty", |path| std::fs::write(path, b"").unwrap()),
        ("zeroed", |path| std::fs::write(path, [0; 4096]).unwrap()),
        ("cut short", |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(40).unwrap();
        }),
        ("flipped", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[33] ^= 4;
            std::fs::write(path, bytes).unwrap();
        }),
    ];
    let bench = Bench::small();
    run(async {
        make(&bench).await;
        for (what, damage) in damages {
            for name in ["STORE", "STORE.copy"] {
                println!("{what} {name}");
                damage(&bench.dir().join(name));
                assert_well(&bench).await;
                assert_well(&bench).await;
            }
        }
        for (what, damage) in damages {
            println!("both {what}");
            let names = ["STORE", "STORE.copy"].map(|name| bench.dir().join(name));
            let good = names.each_ref().map(|name| std::fs::read(name).unwrap());
            names.iter().for_each(|name| damage(name));
            let error = Store::open(bench.config()).await.unwrap_err();
            let kinds = [ErrorKind::Corrupt, ErrorKind::InvalidInput];
            assert!(kinds.contains(&error.kind()), "{what}: {error}");
            for (name, bytes) in names.iter().zip(&good) {
                std::fs::write(name, bytes).unwrap();
            }
            assert_well(&bench).await;
        }
    });
}

// S-33
#[test]
fn every_flip_in_a_superblock_is_noticed() {
    let bench = Bench::small();
    run(async {
        make(&bench).await;
        let names = ["STORE", "STORE.copy"].map(|name| bench.dir().join(name));
        let good = names.each_ref().map(|name| std::fs::read(name).unwrap());
        for bit in 0..SUPERBLOCK * 8 {
            for (name, bytes) in names.iter().zip(&good) {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(name, bytes).unwrap();
            }
            let error = open(bench.config()).await.unwrap_err();
            let kinds = [ErrorKind::Corrupt, ErrorKind::InvalidInput];
            assert!(kinds.contains(&error.kind()), "bit {bit}: {error}");
        }
        for (name, bytes) in names.iter().zip(&good) {
            std::fs::write(name, bytes).unwrap();
        }
        assert_well(&bench).await;
    });
}

// S-33
#[test]
fn a_read_only_file_system_is_said_to_be_one() {
    let Some(fs) = LoopFs::make("ext4", 32) else {
        return;
    };
    let setup = Setup::tiny(best_driver(), 1);
    let dir = fs.dir().join("store");
    run(async {
        let store = open(setup.config(&dir)).await.unwrap();
        write(&store, "a", &pattern(1, 50_000)).await;
        store.close().await.unwrap();
        fs.remount("ro");
        let error = Store::open(setup.config(&dir)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("Read-only"), "{error}");
        let error = Store::open(setup.config(&fs.dir().join("new"))).await;
        assert_kind(error, ErrorKind::InvalidInput);
        fs.remount("rw");
        let store = open(setup.config(&dir)).await.unwrap();
        assert_payload(&store, &id("a"), &pattern(1, 50_000)).await;
        store.close().await.unwrap();
    });
}

/// Starts this binary again, to do one of `child`'s tasks, through `wrapper` if there is one.
fn start_child(wrapper: &[&str], task: &str, dir: &Path) -> Output {
    let exe = std::env::current_exe().unwrap();
    let args = ["child", "--exact", "--ignored", "--nocapture"];
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, options @ ..] => {
            let mut command = Command::new(program);
            command.args(options).arg(exe);
            command
        }
    };
    let env = format!("{task} {}", dir.display());
    command.args(args).env(CHILD, env).output().unwrap()
}

/// Starts a child and shows what it said if it failed.
fn child_succeeds(wrapper: &[&str], task: &str, dir: &Path) -> String {
    let output = start_child(wrapper, task, dir);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{task}: {text}\n{errors}");
    assert!(text.contains("child done"), "{task} did not run: {text}");
    text
}

#[test]
#[ignore = "is started by the other tests of this file"]
fn child() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let (task, dir) = text.split_once(' ').unwrap();
    let dir = Path::new(dir);
    run(async {
        match task {
            "locked" => child_is_refused(dir).await,
            "memlock" => {
                setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0).unwrap();
                child_works(dir).await;
            }
            "nofile" => child_with_few_descriptors(dir).await,
            "no-uring" => child_falls_back(dir).await,
            "fsize" => child_with_short_writes(dir).await,
            other => panic!("no such task: {other}"),
        }
    });
    println!("child done");
}

async fn child_is_refused(dir: &Path) {
    let setup = Setup::tiny(best_driver(), 1);
    let error = Store::open(setup.config(dir)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    println!("refused: {error}");
}

/// With too few descriptors a store is not opened, and says what to raise; with enough it works,
/// however many segments it has.
async fn child_with_few_descriptors(dir: &Path) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let mut flushed = 0;
    let mut enough = [false; 2];
    for limit in (8..=64).step_by(4) {
        setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
        for (index, driver) in [DriverKind::Auto, DriverKind::Threads]
            .into_iter()
            .enumerate()
        {
            let store = match open(Setup::tiny(driver, 2).config(dir)).await {
                Ok(store) => store,
                Err(error) => {
                    assert!(
                        !enough[index],
                        "{limit}, {driver}: less was enough: {error}"
                    );
                    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
                    assert!(error.to_string().contains("ulimit -n"), "{error:?}");
                    println!("{limit} descriptors, {driver}: {error}");
                    continue;
                }
            };
            enough[index] = true;
            for _ in 0..20 {
                let name = id(&format!("p{flushed}"));
                store
                    .write_at(&name, 0, pattern(flushed, 30_000))
                    .await
                    .unwrap();
                store.flush(&name).await.unwrap();
                flushed += 1;
            }
            // All at once, from more segments than there are descriptors.
            let reads = (0..flushed).map(async |n| {
                assert_payload(&store, &id(&format!("p{n}")), &pattern(n, 30_000)).await;
            });
            futures_util::future::join_all(reads).await;
            assert_eq!(store.stats().await.unwrap().shards_poisoned, 0);
            store.close().await.unwrap();
        }
    }
    assert_eq!(
        enough, [true; 2],
        "64 descriptors are enough for two shards"
    );
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let store = open(Setup::tiny(best_driver(), 2).config(dir))
        .await
        .unwrap();
    for n in 0..flushed {
        let name = id(&format!("p{n}"));
        assert_payload(&store, &name, &pattern(n, 30_000)).await;
    }
    assert!(store.segments().await.unwrap().len() > 64);
    store.close().await.unwrap();
}

/// Does a bit of everything; whatever fails says so clearly, and what was flushed is there.
async fn child_works(dir: &Path) {
    for driver in [DriverKind::Auto, DriverKind::Threads, DriverKind::Uring] {
        let config = Setup::tiny(driver, 2).config(dir);
        let store = match open(config.clone()).await {
            Ok(store) => store,
            Err(error) => {
                // Only who insists on io_uring may be refused.
                assert_eq!(driver, DriverKind::Uring, "{error}");
                println!("{driver}: {error}");
                continue;
            }
        };
        let driver = store.stats().await.unwrap().driver;
        for n in 0..20 {
            let name = id(&format!("{driver}/{n}"));
            store.write_at(&name, 0, pattern(n, 30_000)).await.unwrap();
            store.flush(&name).await.unwrap();
        }
        store.close().await.unwrap();
        let store = open(config).await.unwrap();
        for n in 0..20 {
            let name = id(&format!("{driver}/{n}"));
            assert_payload(&store, &name, &pattern(n, 30_000)).await;
        }
        store.close().await.unwrap();
    }
}

async fn child_falls_back(dir: &Path) {
    let error = Store::open(Setup::tiny(DriverKind::Uring, 1).config(dir)).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    println!("refused: {error}");
    let store = open(Setup::tiny(DriverKind::Auto, 1).config(dir))
        .await
        .unwrap();
    assert_eq!(store.stats().await.unwrap().driver, "threads");
    write(&store, "a", &pattern(1, 50_000)).await;
    store.close().await.unwrap();
}

/// Files cannot grow beyond a limit: writes are refused, and what was durable stays.
async fn child_with_short_writes(dir: &Path) {
    let mut config = Setup::tiny(best_driver(), 1).config(dir);
    config.stall_timeout = Duration::from_millis(300);
    let store = open(config.clone()).await.unwrap();
    write(&store, "a", &pattern(1, 50_000)).await;
    store.flush(&id("a")).await.unwrap();
    let limit = 40_000;
    setrlimit(Resource::RLIMIT_FSIZE, limit, limit).unwrap();
    let mut refused = 0;
    for n in 0..20 {
        let name = id(&format!("b{n}"));
        match store.write_at(&name, 0, pattern(n, 30_000)).await {
            Ok(()) => {}
            Err(error) => {
                let kinds = [ErrorKind::Full, ErrorKind::Poisoned];
                assert!(kinds.contains(&error.kind()), "{error}");
                println!("refused: {error}");
                refused += 1;
                break;
            }
        }
    }
    assert!(refused > 0, "the limit had no effect");
    assert_payload(&store, &id("a"), &pattern(1, 50_000)).await;
    let _ = store.close().await;
}

// scenario 120
// S-22
#[test]
fn another_process_is_told_who_holds_the_store() {
    let bench = Bench::small();
    run(async {
        let store = bench.open().await;
        write(&store, "a", &pattern(1, 50_000)).await;
        let text = child_succeeds(&[], "locked", &bench.dir());
        let holder = format!("pid={}", std::process::id());
        assert!(text.contains(&holder), "{text}");
        store.close().await.unwrap();
        assert_well(&bench).await;
    });
}

// scenario 120
// S-22
#[test]
fn a_process_that_is_started_meanwhile_has_nothing_of_the_store() {
    for driver in drivers() {
        let bench = Bench::new(Setup::tiny(*driver, 2));
        run(async {
            let store = bench.open().await;
            write(&store, "a", &pattern(1, 50_000)).await;
            store.flush_all().await.unwrap();
            let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
            let listing = listing.unwrap();
            assert!(listing.status.success());
            let listing = String::from_utf8_lossy(&listing.stdout);
            assert!(
                !listing.contains(bench.dir().to_str().unwrap()),
                "{listing}"
            );
            assert!(!listing.contains("io_uring"), "{listing}");
            // One that outlives the store keeps nobody out.
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            store.close().await.unwrap();
            let store = Store::open(bench.config()).await.unwrap();
            store.close().await.unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        });
    }
}

// scenario 120
// S-22
#[test]
fn an_opening_that_fails_leaves_the_directory_to_the_next() {
    for driver in drivers() {
        let bench = Bench::new(Setup::tiny(*driver, 2));
        run(async {
            let store = bench.open().await;
            write(&store, "a", &pattern(1, 50_000)).await;
            store.close().await.unwrap();
            let (shard, aside) = (bench.dir().join("shard-0001"), bench.dir().join("aside"));
            for round in 0..10 {
                // Before there is a shard, and when one of two has been opened.
                let mut config = bench.config();
                config.shards = Some(3);
                assert_kind(Store::open(config).await, ErrorKind::InvalidInput);
                std::fs::rename(&shard, &aside).unwrap();
                std::fs::write(&shard, "no directory").unwrap();
                let refused = Store::open(bench.config()).await;
                assert!(refused.is_err(), "round {round}");
                std::fs::remove_file(&shard).unwrap();
                std::fs::rename(&aside, &shard).unwrap();
                let store = Store::open(bench.config()).await.unwrap();
                assert_payload(&store, &id("a"), &pattern(1, 50_000)).await;
                store.close().await.unwrap();
            }
        });
    }
}

// S-33
#[test]
fn small_limits_of_the_process_are_lived_with() {
    for task in ["memlock", "nofile"] {
        let temp = tempfile::tempdir().unwrap();
        print!("{}", child_succeeds(&[], task, &temp.path().join("store")));
    }
}

// S-30
#[test]
fn files_that_cannot_grow_harm_nothing() {
    // The signal that comes with the limit would end the process: it is ignored across exec.
    let ignoring = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"];
    let bench = Bench::small();
    print!("{}", child_succeeds(&ignoring, "fsize", &bench.dir()));
    run(assert_well(&bench));
}

/// Refuses io_uring_setup with EPERM, as container runtimes do, then runs the rest of its
/// arguments.
const SECCOMP: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def insn(code, jt, jf, k): return struct.pack('=HBBI', code, jt, jf, k)
prog = insn(0x20, 0, 0, 0) + insn(0x15, 0, 1, 425) + insn(6, 0, 0, 0x50001) + \
       insn(6, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(prog, len(prog))
class Fprog(ctypes.Structure):
    _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
fprog = Fprog(len(prog) // 8, ctypes.addressof(buf))
zero = ctypes.c_ulong(0)
if libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero): sys.exit('no_new_privs')
if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(fprog), zero, zero): sys.exit('seccomp')
os.execv(sys.argv[1], sys.argv[1:])
";

// S-33
#[test]
fn an_io_uring_refused_by_seccomp_is_fallen_back_from() {
    let works = Command::new("python3")
        .args(["-c", SECCOMP, "/bin/true"])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no python3 here that can install a seccomp filter");
        return;
    }
    let bench = Bench::small();
    let text = child_succeeds(&["python3", "-c", SECCOMP], "no-uring", &bench.dir());
    assert!(text.contains("seccomp"), "{text}");
    run(assert_well(&bench));
}
