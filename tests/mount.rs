//! `ringstore mount` as real programs see it: cp, tar, rsync, SQLite and fsx.

#![cfg(feature = "fuse")]

#[path = "common/door.rs"]
#[allow(dead_code, reason = "every test file uses a part of it")]
mod door;

use door::{Holder, Mounted, Place, assert_same, noise, refused, tool, wait_for};
use nix::unistd::{Whence, lseek};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

const MIB: usize = 1 << 20;

/// Local bytes of a store with a remote: less than a file of fsx may have.
const REMOTE_CAPACITY: &str = "3m";

/// A store of tiny segments, mounted.
struct Mount {
    place: Place,
    /// Options that it is mounted with.
    options: Vec<String>,
    holder: Option<Holder>,
    guard: Option<Mounted>,
}

impl Mount {
    fn new() -> Mount {
        let place = Place::new();
        place.run(&["init", "--shards", "2", "--segment-size", "64k"]);
        Mount::of(place, Vec::new())
    }

    /// One that has to leave nearly everything to a folder that stands for a bucket.
    fn before_a_remote() -> Mount {
        let place = Place::new();
        fs::create_dir(place.path("bucket")).unwrap();
        let remote = format!("--remote=file://{}", place.path("bucket").display());
        let limits = ["--segment-size", "64k", "--capacity", REMOTE_CAPACITY];
        place.run(&[&["init", "--shards", "1", &remote], &limits[..]].concat());
        let settings = place.path("store/ringstore.toml");
        let mut settings = OpenOptions::new().append(true).open(settings).unwrap();
        settings.write_all(b"read_buffer = 524288\n").unwrap();
        Mount::of(place, vec![remote])
    }

    fn of(place: Place, options: Vec<String>) -> Mount {
        fs::create_dir(place.path("mnt")).unwrap();
        let mut mount = Mount {
            place,
            options,
            holder: None,
            guard: None,
        };
        mount.begin();
        mount
    }

    fn begin(&mut self) {
        let before = fs::metadata(self.dir()).unwrap().dev();
        let mut command = self.place.ringstore(&["-q", "mount", "mnt"]);
        let child = command.args(&self.options).spawn().unwrap();
        self.holder = Some(Holder(child));
        wait_for("the mount", || {
            fs::metadata(self.dir()).unwrap().dev() != before
        });
        self.guard = Some(Mounted(self.dir()));
    }

    /// Ends the process with a signal, and the mount with it.
    fn end(&mut self, signal: &str) {
        let guard = self.guard.take().unwrap();
        self.holder.take().unwrap().stop(signal);
        match signal {
            "KILL" => drop(guard),
            _ => std::mem::forget(guard),
        }
        assert!(!self.is_mounted());
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(self.dir().to_str().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.place.path("mnt")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The mount goes first: a process that holds one cannot be waited for by its files.
        self.guard = None;
        self.holder = None;
    }
}

/// A tree of files of all sizes, some of them sparse.
fn make_tree(dir: &Path) {
    for number in 0..60usize {
        let folder = dir.join(format!("a{}/b{}", number % 3, number % 5));
        fs::create_dir_all(&folder).unwrap();
        let bytes = noise(number * number * 97, number as u64);
        fs::write(folder.join(format!("file {number}.ü")), bytes).unwrap();
    }
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&noise(MIB, 7), 10 << 20).unwrap();
    sparse.write_all_at(b"end", (50 << 20) + 17).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
}

#[track_caller]
fn assert_same_trees(left: &Path, right: &Path) {
    tool("diff", &[Path::new("-r"), left, right]);
}

// S-1, S-4, S-5
#[test]
fn trees_go_there_and_back() {
    let mut mount = Mount::new();
    let (source, back) = (mount.place.path("source"), mount.place.path("back"));
    fs::create_dir(&source).unwrap();
    make_tree(&source);
    let archive = mount.place.path("archive.tar");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let from = format!("{}/.", source.display());

    let copied = mount.path("copied");
    tool("cp", &["-r", "--sparse=always", &from, &text(&copied)]);
    assert_same_trees(&source, &copied);
    let sparse = fs::metadata(mount.path("copied/sparse")).unwrap();
    assert!(
        sparse.blocks() * 512 <= 2 << 20,
        "{} blocks",
        sparse.blocks()
    );
    tool("cp", &["-r", &text(&copied), &text(&back)]);
    assert_same_trees(&source, &back);
    assert!(fs::metadata(back.join("sparse")).unwrap().blocks() * 512 < 8 << 20);

    let (from, to) = (
        format!("{}/", source.display()),
        text(&mount.path("synced")),
    );
    tool("rsync", &["-a", "--sparse", &from, &to]);
    assert_same_trees(&source, &mount.path("synced"));
    // Nothing is different, times included, so nothing goes again.
    let again = tool("rsync", &["-ai", &from, &to]);
    assert!(!again.contains("file "), "{again}");

    let from = text(&mount.path("synced"));
    tool("tar", &["-C", &from, "-cSf", &text(&archive), "."]);
    fs::create_dir(mount.path("untarred")).unwrap();
    tool(
        "tar",
        &["-C", &text(&mount.path("untarred")), "-xf", &text(&archive)],
    );
    assert_same_trees(&source, &mount.path("untarred"));

    mount.end("INT");
    let listed = mount.place.run(&["ls", "copied/a0"]);
    assert_eq!(listed.lines().count(), 20);
    mount.begin();
    assert_same_trees(&source, &mount.path("copied"));
}

#[test]
fn folders_and_names() {
    let mut mount = Mount::new();
    mount.end("TERM");
    for id in [
        "x/y/z", "x/y", "a//b", "/lead", "trail/", "../up", "..", "top", "x-1", "x/w",
    ] {
        mount.place.run(&["truncate", id, "10"]);
    }
    mount.begin();
    // What is no path is not shown, nor what lies below a file.
    assert_eq!(mount.names(""), ["top", "x", "x-1"]);
    assert_eq!(mount.names("x"), ["w", "y"]);
    assert!(fs::metadata(mount.path("x/y")).unwrap().is_file());
    let error = |result: std::io::Result<()>| result.unwrap_err().kind();

    fs::create_dir(mount.path("new")).unwrap();
    assert_eq!(
        error(fs::create_dir(mount.path("new"))),
        ErrorKind::AlreadyExists
    );
    assert_eq!(mount.names("new"), [""; 0]);
    fs::write(mount.path("new/file"), b"bytes").unwrap();
    assert_eq!(
        error(fs::remove_dir(mount.path("new"))),
        ErrorKind::DirectoryNotEmpty
    );
    fs::rename(mount.path("new/file"), mount.path("top")).unwrap();
    assert_eq!(fs::read(mount.path("top")).unwrap(), b"bytes");
    fs::remove_dir(mount.path("new")).unwrap();
    assert_eq!(
        error(fs::remove_file(mount.path("new"))),
        ErrorKind::NotFound
    );
    assert_eq!(
        error(fs::rename(mount.path("top"), mount.path("x"))),
        ErrorKind::IsADirectory
    );
    // Folders move by their files, as between file systems.
    mount.place.run(&["rm", "x/y/z"]);
    tool("mv", &[mount.path("x"), mount.path("moved")]);
    assert_eq!(mount.names("moved"), ["w", "y"]);
    tool("rm", &[Path::new("-r"), &mount.path("moved")]);
    assert_eq!(mount.names(""), ["top", "x-1"].map(str::to_owned));
    let long = "n".repeat(300);
    assert!(fs::write(mount.path(&long), b"x").is_err());
    let new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.path("top"));
    assert_eq!(new.unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::set_permissions(mount.path("top"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(
        fs::metadata(mount.path("top")).unwrap().mode() & 0o777,
        0o640
    );
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    let mut mount = Mount::new();
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(mount.path(name)).unwrap()
    };
    let (removed, replaced) = (open("removed"), open("replaced"));
    removed.write_all_at(b"still here", 0).unwrap();
    replaced.write_all_at(b"the old one", 0).unwrap();
    fs::write(mount.path("new"), b"the new one").unwrap();
    fs::remove_file(mount.path("removed")).unwrap();
    fs::rename(mount.path("new"), mount.path("replaced")).unwrap();
    assert_eq!(mount.names(""), ["replaced"]);
    removed.write_all_at(b"!", 10).unwrap();
    let read = |file: &File| {
        let mut bytes = [0; 11];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(
        (&read(&removed), &read(&replaced)),
        (b"still here!", b"the old one")
    );
    assert_eq!(fs::read(mount.path("replaced")).unwrap(), b"the new one");
    // Made anew under the old name, it is another file.
    fs::write(mount.path("removed"), b"another").unwrap();
    assert_eq!(&read(&removed), b"still here!");
    drop((removed, replaced));
    wait_for("the removed files to go", || {
        mount.place.run(&["ls"]) == "removed\nreplaced\n"
    });

    let kept = File::create(mount.path("kept")).unwrap();
    kept.sync_all().unwrap();
    fs::remove_file(mount.path("kept")).unwrap();
    kept.write_all_at(b"left behind", 0).unwrap();
    kept.sync_all().unwrap();
    mount.end("KILL");
    drop(kept);
    mount.begin();
    assert_eq!(
        mount.place.run(&["ls"]),
        "removed\nreplaced\n",
        "leftovers go"
    );
}

// S-5, S-7, S-8
#[test]
fn holes_are_made_and_found() {
    let mount = Mount::new();
    let path = mount.path("file");
    let text = path.to_str().unwrap().to_owned();
    fs::write(&path, noise(MIB, 3)).unwrap();
    let allocate = |args: &[&str]| tool("fallocate", &[args, &[&text]].concat());
    allocate(&["-p", "-o", "64k", "-l", "128k"]);
    allocate(&["-z", "-o", "512k", "-l", "4k"]);
    allocate(&["-z", "-n", "-o", "1000k", "-l", "100k"]);
    let mut expected = noise(MIB, 3);
    expected[64 << 10..192 << 10].fill(0);
    expected[512 << 10..516 << 10].fill(0);
    expected[1000 << 10..].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
    allocate(&["-l", "3m"]);
    allocate(&["-n", "-l", "9m"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 20);
    refused("fallocate", &["-c", "-o", "0", "-l", "4k", &text]);

    let file = File::open(&path).unwrap();
    let seek = |from: i64, whence| lseek(&file, from, whence);
    let mut at = 0;
    let mut found = Vec::new();
    while let Ok(data) = seek(at, Whence::SeekData) {
        at = seek(data, Whence::SeekHole).unwrap();
        found.push((data >> 10, at >> 10));
    }
    assert_eq!(found, [(0, 64), (192, 512), (516, 1000)]);
    assert_eq!(
        seek(3 << 20, Whence::SeekData),
        Err(nix::errno::Errno::ENXIO)
    );
    assert_eq!(seek((3 << 20) - 1, Whence::SeekHole), Ok((3 << 20) - 1));
    let blocks = fs::metadata(&path).unwrap().blocks() * 512;
    assert_eq!(blocks as usize, (64 + 320 + 484) << 10);
}

// S-11
#[test]
fn a_copied_file_is_a_clone() {
    let mount = Mount::new();
    let (path, clone) = (mount.path("file"), mount.path("sub clone"));
    fs::write(&path, noise(20 * MIB, 5)).unwrap();
    let live = || -> u64 {
        let stats = mount.place.run(&["stats", "--json"]);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["live_bytes"].as_u64().unwrap()
    };
    let before = live();
    assert_eq!(fs::copy(&path, &clone).unwrap(), 20 << 20);
    assert!(live() < before + MIB as u64, "no bytes were copied");
    assert_same(&path, &clone);
    let attributes = tool(
        "getfattr",
        &["-d", "--absolute-names", clone.to_str().unwrap()],
    );
    assert!(
        attributes.contains(r#"user.ringstore.id="sub clone""#),
        "{attributes}"
    );
    assert!(
        attributes.contains(r#"user.ringstore.clone_source="file""#),
        "{attributes}"
    );
    assert!(attributes.contains("hole=0 dirty="), "{attributes}");
    // Each goes its own way.
    let file = OpenOptions::new().write(true).open(&clone).unwrap();
    file.write_all_at(b"changed", 1000).unwrap();
    let bytes = noise(20 * MIB, 5);
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(fs::read(&clone).unwrap()[1000..1007], *b"changed");
    // A part is copied byte by byte, also where the target is longer than the source.
    fs::write(mount.path("long"), noise(2 * MIB, 9)).unwrap();
    fs::write(mount.path("short"), b"short").unwrap();
    let script = "import os, sys\n\
                  s, t = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR)\n\
                  assert os.copy_file_range(s, t, 100, 0, 0) == 5";
    let args = ["-c", script, "short", "long"];
    let output = door::program("python3")
        .args(args)
        .current_dir(mount.dir())
        .output();
    door::succeeded("python3", &output.unwrap());
    let long = fs::read(mount.path("long")).unwrap();
    assert!(long[..5] == *b"short" && long[5..] == noise(2 * MIB, 9)[5..]);
}

// S-15
#[test]
fn direct_and_synced_writes() {
    let mut mount = Mount::new();
    let path = mount.path("file");
    let text = path.to_str().unwrap().to_owned();
    let image = mount.place.path("image");
    fs::write(&image, noise(4 * MIB, 11)).unwrap();
    let from = format!("if={}", image.display());
    tool(
        "dd",
        &[
            &from,
            &format!("of={text}"),
            "bs=64k",
            "oflag=direct",
            "status=none",
        ],
    );
    tool(
        "dd",
        &[
            &format!("if={text}"),
            "of=/dev/null",
            "bs=1M",
            "iflag=direct",
            "status=none",
        ],
    );
    assert_same(&image, &path);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(&path)
        .unwrap();
    let mut bytes = vec![0; 4096];
    direct.read_exact_at(&mut bytes, 8192).unwrap();
    assert!(bytes == noise(4 * MIB, 11)[8192..12288]);
    drop(direct);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    fs::write(mount.path("not synced"), b"it may be lost").unwrap();
    mount.end("KILL");
    drop(file);
    mount.begin();
    assert_same(&image, &path);
    let figures = tool(
        "stat",
        &["-f", "-c", "%T %b %a %l", mount.dir().to_str().unwrap()],
    );
    let figures: Vec<&str> = figures.split_whitespace().collect();
    assert!(
        figures[1].parse::<u64>().unwrap() > 0 && figures[3] == "255",
        "{figures:?}"
    );
}

// S-15, S-17
#[test]
fn sqlite_survives_a_kill() {
    let mut mount = Mount::new();
    let database = mount.path("data.db").to_str().unwrap().to_owned();
    tool(
        "sqlite3",
        &[
            &database,
            "pragma journal_mode=wal; create table t(n integer primary key, b)",
        ],
    );
    let mut first = 1;
    for round in 0..3 {
        let mut child = door::program("sqlite3")
            .arg(&database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut script = String::from("pragma synchronous=full; pragma wal_autocheckpoint=20;\n");
        for number in first..first + 20_000 {
            script +=
                &format!("insert into t values({number}, randomblob(700)); select {number};\n");
        }
        let mut stdin = child.stdin.take().unwrap();
        let told = std::thread::scope(|threads| {
            threads.spawn(move || {
                // It ends when the database does.
                let _ = stdin.write_all(script.as_bytes());
            });
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut told = 0;
            let mut read = |until: usize| {
                for _ in 0..until {
                    match lines.next() {
                        Some(Ok(line)) => told = line.parse().unwrap_or(told),
                        _ => return false,
                    }
                }
                true
            };
            assert!(read(300 + 200 * round), "it stopped by itself");
            mount.end("KILL");
            while read(1) {}
            let _ = child.kill();
            let _ = child.wait();
            told
        });
        mount.begin();
        assert_eq!(
            tool("sqlite3", &[&database, "pragma integrity_check"]).trim(),
            "ok"
        );
        let found = tool("sqlite3", &[&database, "select count(*), max(n) from t"]);
        let found: Vec<u64> = found
            .trim()
            .split('|')
            .map(|n| n.parse().unwrap())
            .collect();
        assert_eq!(found[0], found[1], "none is missing");
        assert!(
            found[1] >= told,
            "{told} were committed, {} are there",
            found[1]
        );
        first = found[1] + 1;
    }
}

/// Bytes of a file at most, and of one operation on it.
struct Sizes {
    file: usize,
    most: usize,
}

/// Operations of fsx, with everything that it knows, in a file that is larger than a few segments.
/// Returns the store's figures.
fn fsx(mount: &Mount, operations: u32, seed: u32, sizes: &Sizes) -> serde_json::Value {
    let settings = mount.place.path("fsx.toml");
    let Sizes { file, most } = sizes;
    let mut text = format!("nomsyncafterwrite = true\nflen = {file}\n");
    text += &format!("[opsize]\nmin = 1\nmax = {most}\nalign = 1\n[weights]\n");
    // A file that is cut all the time never fills.
    let cuts = (160 * most / file).max(1);
    for (name, weight) in [
        ("close_open", 10),
        ("invalidate", 10),
        ("truncate", cuts),
        ("fsync", 10),
        ("fdatasync", 10),
        ("posix_fallocate", 20),
        ("punch_hole", 40),
        ("sendfile", 20),
        ("posix_fadvise", 10),
        ("copy_file_range", 30),
        ("read", 100),
        ("write", 100),
        ("mapread", 50),
        ("mapwrite", 50),
    ] {
        text += &format!("{name} = {weight}.0\n");
    }
    fs::write(&settings, text).unwrap();
    let file = mount.path("file");
    let (operations, seed) = (operations.to_string(), seed.to_string());
    let artifacts = mount.place.temp.path().to_str().unwrap();
    let args = ["-q", "-N", &operations, "-S", &seed, "-P", artifacts, "-f"];
    let mut command = door::program("fsx");
    let output = command
        .args(args)
        .args([&settings, &file])
        .output()
        .unwrap();
    door::succeeded("fsx", &output);
    let stats = mount.place.run(&["stats", "--json"]);
    serde_json::from_str(&stats).unwrap()
}

#[track_caller]
fn assert_more(stats: &serde_json::Value, name: &str, than: u64) {
    let count = stats[name].as_u64().unwrap();
    assert!(count > than, "{name}={count}");
}

fn fsx_alone(operations: u32, seed: u32) {
    let sizes = Sizes {
        file: 512 << 10,
        most: 64 << 10,
    };
    let stats = fsx(&Mount::new(), operations, seed, &sizes);
    assert_more(&stats, "cleaned_segments", 10);
}

/// The same in a file that the local disk has no room for.
fn fsx_before_a_remote(operations: u32, seed: u32) {
    let mut mount = Mount::before_a_remote();
    let sizes = Sizes {
        file: 4 * MIB,
        most: 8 << 10,
    };
    let stats = fsx(&mount, operations, seed, &sizes);
    assert_more(&stats, "completed_syncs", 100);
    assert_more(&stats, "evicted_segments", 10);
    assert_more(&stats, "remote_read_bytes", MIB as u64);
    assert_more(&stats, "cleaned_segments", 10);
    mount.end("TERM");
    let verified = mount.place.run(&["verify", &mount.options[0]]);
    assert!(verified.contains(" 0 ranges corrupt"), "{verified}");
}

// S-5, S-6, S-7, S-8, S-32
#[test]
fn fsx_finds_nothing_in_25_000_operations() {
    fsx_alone(25_000, 42);
}

// S-5, S-6, S-7, S-8, S-32
#[test]
#[ignore = "it takes minutes; `.ci/run` runs it"]
fn fsx_finds_nothing_in_100_000_operations() {
    fsx_alone(100_000, 7);
}

// S-5, S-6, S-7, S-8, S-26, S-29, S-32
#[test]
fn fsx_finds_nothing_in_5_000_operations_before_a_remote() {
    fsx_before_a_remote(5_000, 42);
}

// S-5, S-6, S-7, S-8, S-26, S-29, S-32
#[test]
#[ignore = "it takes minutes; `.ci/run` runs it"]
fn fsx_finds_nothing_in_100_000_operations_before_a_remote() {
    fsx_before_a_remote(100_000, 7);
}

#[test]
fn it_is_unmounted_by_whomever() {
    let mut mount = Mount::new();
    fs::write(mount.path("file"), b"bytes").unwrap();
    tool("fusermount3", &["-u", mount.dir().to_str().unwrap()]);
    let mut holder = mount.holder.take().unwrap();
    std::mem::forget(mount.guard.take());
    assert!(holder.0.wait().unwrap().success());
    assert_eq!(mount.place.run(&["get", "file", "-"]), "bytes");

    mount.begin();
    // With an open file it is interrupted all the same, and what was written is there.
    let mut file = OpenOptions::new()
        .append(true)
        .open(mount.path("file"))
        .unwrap();
    file.write_all(b" and more").unwrap();
    mount.end("INT");
    assert!(file.write_all(b"too late").is_err());
    drop(file);
    assert_eq!(mount.place.run(&["get", "file", "-"]), "bytes and more");
    let said = mount
        .place
        .ringstore(&["mount", "nowhere"])
        .output()
        .unwrap();
    assert_eq!(said.status.code(), Some(1));
    assert_eq!(mount.place.run(&["ls"]), "file\n", "the store was closed");
    let mut text = String::new();
    mount.begin();
    let _ = File::open(mount.path("file"))
        .unwrap()
        .read_to_string(&mut text);
    assert_eq!(text, "bytes and more");
}
