//! What the tests of the front ends share: `ringstore` as a process, and real programs as clients.
//!
//! A program that is missing fails a test, with what to install. So does one that hangs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Longer than any program here takes on the slowest machine.
const HANGS_AFTER_SECONDS: &str = "600";

/// What has to be installed for the programs that are run here.
const INSTALL: &str = "apt-get install -y --no-install-recommends fio libnbd-bin nbdfuse \
                       python3-libnbd qemu-utils e2fsprogs xfsprogs fuse3 mount util-linux rsync \
                       sqlite3 attr curl, and: cargo install fsx";

/// A directory for a store, its sockets and what clients write.
pub(crate) struct Place {
    pub(crate) temp: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place {
            temp: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// The name of an export for programs that read addresses.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.path("nbd.sock").display()
        )
    }

    pub(crate) fn ringstore(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringstore"));
        command
            .args(args)
            .current_dir(self.temp.path())
            .env("RINGSTORE_DIR", self.path("store"))
            .env_remove("RINGSTORE_REMOTE")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of `ringstore` that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.ringstore(args).output().unwrap();
        succeeded(&format!("ringstore {args:?}"), &output)
    }

    /// Starts a server with a store of small segments, and waits until it listens.
    pub(crate) fn serve(&self, args: &[&str]) -> Holder {
        if !self.path("store").exists() {
            self.run(&["init", "--shards", "2", "--segment-size", "1m"]);
        }
        let socket = format!("unix:{}", self.path("nbd.sock").display());
        let all = [&["serve", "-q", "--nbd", &socket][..], args].concat();
        let child = self.ringstore(&all).spawn().unwrap();
        let holder = Holder(child);
        wait_for("the server's socket", || {
            std::os::unix::net::UnixStream::connect(self.path("nbd.sock")).is_ok()
        });
        holder
    }
}

/// A process that has a store; killed when dropped.
pub(crate) struct Holder(pub(crate) Child);

impl Holder {
    /// Ends it in the manner that is asked for.
    #[track_caller]
    pub(crate) fn stop(mut self, signal: &str) {
        tool("kill", &["-s", signal, &self.0.id().to_string()]);
        let status = self.0.wait().unwrap();
        assert!(status.success() || signal == "KILL", "{status}");
    }

    /// Memory that it has in use now.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib << 10
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that is there, with a limit to its time.
#[track_caller]
pub(crate) fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    let Some(found) = found else {
        panic!("{name} is missing: {INSTALL}");
    };
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", HANGS_AFTER_SECONDS])
        .arg(found);
    command.stdin(Stdio::null());
    command
}

/// Runs a program that must succeed; returns what it printed.
#[track_caller]
pub(crate) fn tool(name: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = program(name).args(args).output().unwrap();
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    succeeded(&format!("{name} {args:?}"), &output)
}

/// Runs a program that must fail; returns all that it said.
#[track_caller]
pub(crate) fn refused(name: &str, args: &[&str]) -> String {
    let output = program(name).args(args).output().unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!output.status.success(), "{name} {args:?}: {said}");
    said
}

#[track_caller]
pub(crate) fn succeeded(what: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout
}

#[track_caller]
pub(crate) fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} has not come in 30 s");
}

/// Whether file systems may be mounted here; says so when they may not.
pub(crate) fn is_root() -> bool {
    let is_root = tool("id", &["-u"]).trim() == "0";
    if !is_root {
        println!("SKIPPED: mounting needs root");
    }
    is_root
}

/// Unmounts when dropped, in case that the test does not come to it.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    #[track_caller]
    pub(crate) fn unmount(self) {
        tool("umount", &[&self.0]);
        std::mem::forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Bytes without a pattern that storage could mistake for another place of itself.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether two files have the same bytes.
#[track_caller]
pub(crate) fn assert_same(left: &Path, right: &Path) {
    tool("cmp", &[left, right]);
}
