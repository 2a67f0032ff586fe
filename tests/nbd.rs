//! `ringstore serve --nbd` as real programs see it: libnbd, qemu, fio, and kernels above them.
//!
//! What a client of good manners never sends is in `nbd_bad_clients.rs`.

#![cfg(feature = "nbd")]

#[path = "common/door.rs"]
#[allow(dead_code, reason = "every test file uses a part of it")]
mod door;

use door::{Holder, Mounted, Place, assert_same, is_root, noise, refused, tool, wait_for};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Stdio};

/// A file with data at its beginning, in its middle and at its end, and holes between.
fn sparse_file(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(&noise(3 << 20, 1), 0).unwrap();
    file.write_all_at(&noise(100_000, 2), len / 2 + 12_345)
        .unwrap();
    file.write_all_at(&noise(5000, 3), len - 5000).unwrap();
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_server_shows_what_it_has() {
    let place = Place::new();
    place.run(&["init", "--shards", "2"]);
    place.run(&["truncate", "disk/ü 7", "1m"]);
    place.run(&["truncate", "other", "12345"]);
    let server = place.serve(&[]);
    let found = fs::symlink_metadata(place.path("nbd.sock")).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);

    let list = json(&tool("nbdinfo", &["--list", "--json", &place.uri("")]));
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<&str> = exports
        .iter()
        .filter_map(|x| x["export-name"].as_str())
        .collect();
    assert_eq!(names, ["disk/ü 7", "other"]);
    let info = &exports[1];
    assert_eq!(info["export-size"], 12345);
    assert_eq!(info["block_size_minimum"], 1);
    assert_eq!(info["block_size_preferred"], 4096);
    assert_eq!(info["block_size_maximum"], 32 << 20);
    for able in [
        "flush",
        "fua",
        "trim",
        "zero",
        "cache",
        "df",
        "multi_conn",
        "fast_zero",
    ] {
        assert_eq!(info[format!("can_{able}")], true, "{able}");
    }
    let contexts: Vec<&str> = info["contexts"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(contexts, ["base:allocation", "ringstore:residency"]);

    let said = refused("nbdinfo", &[&place.uri("missing")]);
    assert!(said.contains("No such file"), "{said}");
    server.stop("INT");
    assert!(
        !place.path("nbd.sock").exists(),
        "the socket goes with the server"
    );
}

// S-22
#[test]
fn a_store_that_is_served_is_not_served_twice() {
    let place = Place::new();
    let server = place.serve(&["--create", "1m"]);
    let output = place
        .ringstore(&["serve", "--nbd", "unix:other.sock"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("pid={}", server.0.id())), "{said}");
    assert!(!place.path("other.sock").exists());
    tool("nbdinfo", &[place.uri("still-here")]);
}

#[test]
fn a_missing_export_is_made_when_it_is_opened_and_not_before() {
    let place = Place::new();
    let server = place.serve(&["--create", "3m"]);
    let script = "
import os
h.set_opt_mode(True)
h.connect_uri(os.environ['URI'])
h.opt_info()
assert h.get_size() == 3 << 20
h.opt_abort()
";
    nbdsh(&place, "new", script);
    tool("nbdinfo", &["--size", &place.uri("opened")]);
    server.stop("TERM");
    assert_eq!(place.run(&["ls", "-l"]).trim(), "3145728  opened");
}

// S-4, S-5, S-15
#[test]
fn images_come_and_go() {
    let place = Place::new();
    let (image, back) = (place.path("in.img"), place.path("out.img"));
    let qcow = place.path("out.qcow2");
    let len = 64 << 20;
    sparse_file(&image, len);
    let server = place.serve(&["--create", "64m"]);
    let uri = place.uri("disk");
    tool("nbdcopy", &[image.to_str().unwrap(), &uri, "--flush"]);
    tool("nbdcopy", &[&uri, back.to_str().unwrap()]);
    assert_same(&image, &back);
    let one = ["--connections=1", "--requests=64", "--request-size=4096"];
    tool(
        "nbdcopy",
        &[&one[..], &[&uri, back.to_str().unwrap()]].concat(),
    );
    assert_same(&image, &back);

    let info = json(&tool("qemu-img", &["info", "--output=json", &uri]));
    assert_eq!(info["virtual-size"], len);
    tool(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            image.to_str().unwrap(),
            &uri,
        ],
    );
    let holes = |map: Value, key: &str, hole: Value| -> u64 {
        let entries = map.as_array().unwrap().iter();
        entries
            .filter(|x| x[key] == hole)
            .map(|x| x["length"].as_u64().unwrap())
            .sum()
    };
    let map = json(&tool("qemu-img", &["map", "--output=json", &uri]));
    let found = holes(map, "data", false.into());
    assert!(
        (len - (4 << 20)..len - (3 << 20)).contains(&found),
        "{found}"
    );
    let map = json(&tool(
        "nbdinfo",
        &["--map=ringstore:residency", "--json", &uri],
    ));
    assert_eq!(holes(map, "type", 3.into()), found);

    tool(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &uri,
            qcow.to_str().unwrap(),
        ],
    );
    tool(
        "qemu-img",
        &["compare", image.to_str().unwrap(), qcow.to_str().unwrap()],
    );
    let copy = place.uri("copy");
    let qcow = qcow.to_str().unwrap();
    tool(
        "qemu-img",
        &["convert", "-n", "-f", "qcow2", "-O", "raw", qcow, &copy],
    );
    tool(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            image.to_str().unwrap(),
            &copy,
        ],
    );

    server.stop("TERM");
    place.run(&["get", "disk", "out.img"]);
    assert_same(&image, &back);
    let stat = json(&place.run(&["stat", "disk", "--json"]));
    assert_eq!(stat["hole_bytes"], found);
}

#[test]
fn patterns_of_qemu_io() {
    let place = Place::new();
    let _server = place.serve(&["--create", "32m"]);
    let (uri, raw) = (place.uri("disk"), place.path("raw.img"));
    let commands = [
        "write -P 0xab 0 64k",
        "write -P 0xcd 3k 1000",
        "read -P 0xab 0 3k",
        "read -P 0xcd 3k 1000",
        "read -P 0xab 4072 60k",
        "write -f -P 0x11 1m 4k",
        "discard 1m 4k",
        "read -P 0 1m 4k",
        "write -z 4k 8k",
        "read -P 0 4k 8k",
        "write -z -u 16k 4k",
        "read -P 0 16k 4k",
        "flush",
        "aio_write -P 0x22 2m 1m",
        "aio_write -P 0x33 3m 1m",
        "aio_flush",
        "read -P 0x22 2m 1m",
        "read -P 0x33 3m 1m",
        "writev -P 0x44 8m 4k 8k 512",
        "readv -P 0x44 8m 4k 8k 512",
    ];
    let with_c = |commands: &[&str]| -> Vec<String> {
        let pairs = commands
            .iter()
            .flat_map(|text| ["-c".to_owned(), text.to_string()]);
        pairs.collect()
    };
    let mut args = vec!["-f".to_owned(), "raw".to_owned()];
    args.extend(with_c(&commands));
    args.push(uri.clone());
    let said = tool("qemu-io", &args);
    assert!(
        !said.contains("error") && !said.contains("failed"),
        "{said}"
    );

    // Every read is compared with what a plain file gives.
    File::create(&raw).unwrap().set_len(32 << 20).unwrap();
    tool(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            &uri,
            raw.to_str().unwrap(),
        ],
    );
    let socket = place.path("nbd.sock");
    let both = serde_json::json!({
        "driver": "blkverify",
        "raw": { "driver": "file", "filename": raw },
        "test": { "driver": "nbd", "export": "disk",
                  "server": { "type": "unix", "path": socket } },
    });
    // This driver knows no zeroing; qemu itself trips over it.
    let commands: Vec<&str> = commands
        .into_iter()
        .filter(|text| !text.contains("-z") && !text.contains("-P 0 "))
        .collect();
    let mut args = with_c(&commands);
    args.push(format!("json:{both}"));
    let said = tool("qemu-io", &args);
    assert!(
        !said.contains("mismatch") && !said.contains("error"),
        "{said}"
    );
}

/// Runs a script of Python with a handle `h`, and the export's address in `URI`.
#[track_caller]
fn nbdsh(place: &Place, export: &str, script: &str) {
    let mut command = door::program("nbdsh");
    // The module is one of the distribution's Python, wherever another one comes first.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:{path}"));
    command.args(["-c", script]).env("URI", place.uri(export));
    let output = command.output().unwrap();
    door::succeeded("nbdsh", &output);
}

#[test]
fn every_request_of_the_protocol() {
    let place = Place::new();
    let _server = place.serve(&["--create", "16m"]);
    let script = r#"
import os, errno
URI = os.environ['URI']
h.add_meta_context('base:allocation')
h.add_meta_context('ringstore:residency')
h.connect_uri(URI)
size = h.get_size()
assert size == 16 << 20 and h.get_structured_replies_negotiated()

def extents(context, n, off):
    found = []
    def got(metacontext, offset, entries, err):
        if metacontext == context: found.extend(entries)
    h.block_status(n, off, got)
    return list(zip(found[::2], found[1::2]))

h.pwrite(b'x' * 8192, 4096, nbd.CMD_FLAG_FUA)
assert extents('base:allocation', size, 0) == [(4096, 3), (8192, 0), (size - 12288, 3)]
assert extents('ringstore:residency', size, 0) == [(4096, 3), (8192, 0), (size - 12288, 3)]
h.pwrite(b'y' * 4096, 12288)
assert extents('ringstore:residency', 8192, 8192)[0] == (4096, 0)
h.flush()
assert extents('ringstore:residency', 8192, 8192) == [(8192, 0)]

# Holes of a read are told as holes, and not with DF.
chunks = []
def chunk(buf, offset, status, err): chunks.append((offset, len(buf), status))
buf = h.pread_structured(65536, 0, chunk)
assert bytes(buf) == bytes(4096) + b'x' * 8192 + b'y' * 4096 + bytes(49152)
assert chunks == [(0, 4096, nbd.READ_HOLE), (4096, 12288, nbd.READ_DATA),
                  (16384, 49152, nbd.READ_HOLE)], chunks
chunks.clear()
h.pread_structured(65536, 0, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(0, 65536, nbd.READ_DATA)], chunks

h.trim(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.zero(100, 8400, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(300, 8300) == b'x' * 100 + bytes(100) + b'x' * 100
h.zero(4096, 12288, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 12288) == bytes(4096)
h.cache(size, 0)

# What one connection has flushed or been told, another one sees.
other = nbd.NBD()
other.connect_uri(URI)
h.pwrite(b'seen', 777)
assert other.pread(4, 777) == b'seen'
other.flush()

h.set_strict_mode(0)
def fails(code, call, *args):
    try: call(*args)
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code, args)
    else: assert False, args
fails(errno.ENOSPC, h.pwrite, b'z' * 10, size - 5)
fails(errno.ENOSPC, h.zero, 10, size - 5)
fails(errno.EINVAL, h.pread, 10, size - 5)
fails(errno.EINVAL, h.trim, 10, size - 5)
fails(errno.EINVAL, h.pread, 4096, 1 << 63)
fails(errno.EINVAL, h.pread, (32 << 20) + 1, 0)
fails(errno.EINVAL, h.pwrite, b'z', 0, nbd.CMD_FLAG_DF)
assert h.pread(4, 777) == b'seen'
h.pwrite(b'end', size - 3)
assert h.pread(3, size - 3) == b'end'
h.shutdown()
other.shutdown()
"#;
    nbdsh(&place, "disk", script);
    // The old ways: no structured replies, then not even options.
    let script = r#"
import os
h.set_request_structured_replies(False)
h.connect_uri(os.environ['URI'])
assert not h.get_structured_replies_negotiated()
assert h.pread(5, (16 << 20) - 5) == b'\0\0end'
h.shutdown()
old = nbd.NBD()
old.set_handshake_flags(0)
try:
    old.connect_uri(os.environ['URI'])
    assert False, 'a client that is not of the fixed newstyle'
except nbd.Error: pass
"#;
    nbdsh(&place, "disk", script);
}

// S-6
#[test]
fn fio_verifies_what_it_wrote() {
    let place = Place::new();
    let _server = place.serve(&["--create", "64m"]);
    let uri = format!("--uri={}", place.uri("disk"));
    let shared = [
        "--name=x",
        "--ioengine=nbd",
        "--size=64m",
        "--iodepth=32",
        "--verify_state_save=0",
        "--output-format=json",
    ];
    for rest in [
        &["--rw=randrw", "--bs=4k", "--verify=crc32c"][..],
        &[
            "--rw=randwrite",
            "--bs=12k",
            "--verify=crc32c",
            "--fsync=50",
            "--io_size=32m",
        ],
        &["--rw=randtrimwrite", "--bs=16k", "--io_size=32m"],
    ] {
        let report = tool("fio", &[&shared[..], rest, &[&uri]].concat());
        // Some versions say a word before their object.
        let report = json(&report[report.find('{').unwrap()..]);
        assert_eq!(report["jobs"][0]["error"], 0);
        assert!(report["jobs"][0]["write"]["total_ios"].as_u64().unwrap() > 0);
    }
}

/// An export as a file of the kernel, for file systems over a loop device.
struct Fused {
    child: Child,
    dir: std::path::PathBuf,
}

impl Fused {
    fn new(place: &Place, export: &str) -> Fused {
        let dir = place.path("fused");
        fs::create_dir_all(&dir).unwrap();
        let mut command = door::program("nbdfuse");
        let child = command
            .arg(&dir)
            .arg(place.uri(export))
            .stderr(Stdio::null())
            .spawn();
        let fused = Fused {
            child: child.unwrap(),
            dir,
        };
        wait_for("the file of nbdfuse", || fused.file().exists());
        fused
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.join("nbd")
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        let _ = door::program("fusermount3")
            .arg("-uz")
            .arg(&self.dir)
            .output();
        let _ = self.child.wait();
    }
}

/// A loop device over a file.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Loop {
        let args = ["--find", "--show", file.to_str().unwrap()];
        Loop(tool("losetup", &args).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = door::program("losetup")
            .args(["--detach", &self.0])
            .output();
    }
}

fn fill(dir: &Path, count: usize) {
    for number in 0..count {
        let sub = dir.join(format!("d{}", number % 7));
        fs::create_dir_all(&sub).unwrap();
        let path = sub.join(format!("f{number}"));
        fs::write(path, noise(number * 977 % 60_000, number as u64)).unwrap();
        if number % 3 == 2 {
            fs::remove_file(dir.join(format!("d{}/f{}", (number - 1) % 7, number - 1))).unwrap();
        }
    }
}

#[track_caller]
fn assert_filled(dir: &Path, count: usize) {
    for number in 0..count {
        let path = dir.join(format!("d{}/f{number}", number % 7));
        let is_gone = number % 3 == 1 && number + 1 < count;
        match is_gone {
            true => assert!(!path.exists(), "{path:?}"),
            false => assert!(
                fs::read(&path).unwrap() == noise(number * 977 % 60_000, number as u64),
                "{path:?}"
            ),
        }
    }
}

/// A file system on an export: filled, checked, and checked again after the server was killed.
fn file_system(mkfs: &[&str], check: &[&str]) {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let server = place.serve(&["--create", "400m"]);
    let mount_point = place.path("mnt");
    fs::create_dir(&mount_point).unwrap();
    let mount = |device: &Loop| {
        tool("mount", &[&device.0, mount_point.to_str().unwrap()]);
        Mounted(mount_point.clone())
    };
    let is_clean = |device: &Loop| {
        tool(check[0], &[&check[1..], &[&device.0]].concat());
    };
    let fused = Fused::new(&place, "disk");
    let device = Loop::new(&fused.file());
    tool(mkfs[0], &[&mkfs[1..], &[&device.0]].concat());
    let mounted = mount(&device);
    fill(&mount_point, 400);
    mounted.unmount();
    is_clean(&device);
    let mounted = mount(&device);
    assert_filled(&mount_point, 400);

    // Half of what follows is made durable, then the server is gone in the middle of the rest.
    let (kept, lost) = (mount_point.join("kept"), mount_point.join("lost"));
    fill(&kept, 200);
    tool("sync", &["-f", mount_point.to_str().unwrap()]);
    std::thread::scope(|threads| {
        // It fails when the device does, or is written to memory that nobody will write back.
        threads.spawn(|| std::panic::catch_unwind(|| fill(&lost, 3000)));
        std::thread::sleep(std::time::Duration::from_millis(300));
        server.stop("KILL");
    });
    drop(mounted);
    drop(device);
    drop(fused);

    let _server: Holder = place.serve(&[]);
    let fused = Fused::new(&place, "disk");
    let device = Loop::new(&fused.file());
    // Mounting replays the journal.
    let mounted = mount(&device);
    assert_filled(&mount_point, 400);
    assert_filled(&kept, 200);
    mounted.unmount();
    is_clean(&device);
}

// S-15, S-17
#[test]
fn ext4_on_an_export_survives_a_kill() {
    file_system(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-fn"]);
}

// S-15, S-17
#[test]
fn xfs_on_an_export_survives_a_kill() {
    file_system(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"]);
}

// S-15, S-20
#[test]
fn what_was_flushed_survives_a_kill_of_the_server() {
    let place = Place::new();
    for round in 0..5u8 {
        let server = place.serve(&["--create", "8m"]);
        let uri = place.uri("disk");
        if round > 0 {
            let read = format!("read -P {round} {}k 4k", round * 4);
            let said = tool("qemu-io", &["-f", "raw", "-c", &read, &uri]);
            assert!(!said.contains("failed"), "{said}");
        }
        let next = round + 1;
        let write = format!("write -f -P {next} {}k 4k", next * 4);
        tool("qemu-io", &["-f", "raw", "-c", &write, &uri]);
        server.stop("KILL");
    }
}
