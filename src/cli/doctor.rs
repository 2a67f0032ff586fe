//! `doctor`: what the store needs of this machine, one line each, and the fix for what is missing.
//!
//! Invariant: io_uring is judged by opening a store with it, in a directory that is removed again,
//! so the verdict is the engine's own. Deliberately not here: repairing anything.

use super::args::Global;
use super::machine;
use super::outcome::{Code, Report};
use super::units::show_size;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use ringstore::{Config, DriverKind, RemoteConfig, Store};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The buffers of one shard that the kernel is asked to lock.
const LOCKED_BYTES_WANTED: u64 = 8 << 20;

struct Finding {
    name: &'static str,
    is_good: bool,
    what: String,
    fix: String,
}

pub(crate) async fn run(global: &Global) -> anyhow::Result<Report> {
    let parent = match &global.dir {
        Some(dir) if dir.is_dir() => dir.clone(),
        _ => std::env::temp_dir(),
    };
    // Inside of a store's directory, but under another name than the store's files have.
    let scratch = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempdir_in(&parent)?;
    let findings = [
        kernel(),
        io_uring(scratch.path()).await,
        direct(scratch.path()),
        locked_memory(),
        seccomp(),
        remote(global).await,
    ];
    let mut lines = Vec::new();
    let mut entries = Vec::new();
    for finding in &findings {
        let verdict = if finding.is_good { "ok  " } else { "FIX " };
        lines.push(format!("{verdict}{:<10} {}", finding.name, finding.what));
        if !finding.is_good {
            lines.push(format!("    {:<10} {}", "", finding.fix));
        }
        entries.push(json!({
            "name": finding.name,
            "ok": finding.is_good,
            "found": finding.what,
            "fix": finding.fix,
        }));
    }
    // Without a ring the store still works, through threads, unless somebody insists.
    let lacks_ring = !findings[1].is_good && super::insists_on_ring(global);
    let code = match (lacks_ring, findings[5].is_good) {
        (true, _) => Code::Unsupported,
        (false, true) => Code::Ok,
        (false, false) => Code::RemoteUnavailable,
    };
    let fields = json!({ "dir": parent.display().to_string(), "findings": entries });
    Ok(Report::answer(lines.join("\n"), fields).with_code(code))
}

fn kernel() -> Finding {
    let release = machine::kernel();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Finding {
        name: "kernel",
        is_good: version >= (6, 1),
        what: format!("Linux {release}"),
        fix: "use Linux 6.1 or newer: from 5.15 on it works, with more interruptions".to_owned(),
    }
}

/// Whether a store can be opened with io_uring on this machine.
pub(super) async fn has_ring() -> bool {
    match tempfile::tempdir() {
        Ok(scratch) => open_with_ring(scratch.path()).await.is_ok(),
        // Nothing was found out, so nothing is claimed.
        Err(_) => true,
    }
}

async fn open_with_ring(scratch: &Path) -> ringstore::Result<()> {
    let mut config = Config::new(scratch.join("ring"));
    config.driver = DriverKind::Uring;
    config.shards = Some(1);
    Store::open(config).await?.close().await
}

async fn io_uring(scratch: &Path) -> Finding {
    let (is_good, what, fix) = match open_with_ring(scratch).await {
        Ok(()) => (true, "works".to_owned(), String::new()),
        Err(error) => (
            false,
            "refused; the driver threads is used instead".to_owned(),
            error.to_string(),
        ),
    };
    Finding {
        name: "io_uring",
        is_good,
        what,
        fix,
    }
}

fn direct(scratch: &Path) -> Finding {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(scratch.join("direct"));
    let place = machine::file_system(scratch);
    Finding {
        name: "O_DIRECT",
        is_good: opened.is_ok(),
        what: match &opened {
            Ok(_) => format!("works on {place}"),
            Err(error) => format!("refused by {place}: {error}"),
        },
        fix: "put the store on ext4 or XFS: here it goes through the page cache".to_owned(),
    }
}

fn locked_memory() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let wanted = LOCKED_BYTES_WANTED * machine::cores() as u64;
    Finding {
        name: "memlock",
        is_good: limit >= wanted || may_lock_anything(),
        what: match limit {
            u64::MAX => "unlimited".to_owned(),
            limit => show_size(limit),
        },
        fix: format!(
            "raise it to {} (ulimit -l, LimitMEMLOCK=): buffers are not registered otherwise",
            show_size(wanted)
        ),
    }
}

/// Whether the limit does not hold for this process: CAP_IPC_LOCK, which is bit 14.
fn may_lock_anything() -> bool {
    let bits = u64::from_str_radix(&own_status("CapEff:"), 16).unwrap_or(0);
    bits >> 14 & 1 == 1
}

/// A line of this process's status.
fn own_status(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix(name));
    found.map_or("unknown", str::trim).to_owned()
}

fn seccomp() -> Finding {
    let mode = own_status("Seccomp:");
    let what = match mode.as_str() {
        "0" => "no filter".to_owned(),
        "2" => "a filter is on; what it forbids shows above".to_owned(),
        mode => format!("mode {mode}"),
    };
    Finding {
        name: "seccomp",
        is_good: matches!(mode.as_str(), "0" | "2" | "unknown"),
        what,
        fix: "run without strict seccomp".to_owned(),
    }
}

/// Whether the remote that was given answers.
async fn remote(global: &Global) -> Finding {
    let (is_good, what, fix) = match global.remote_url() {
        None => (true, "none is given".to_owned(), String::new()),
        Some(url) => {
            let probed = async { RemoteConfig::from_url(&url)?.probe().await };
            match probed.await {
                Ok(()) => (true, "answers".to_owned(), String::new()),
                Err(error) => (false, "does not answer".to_owned(), error.to_string()),
            }
        }
    };
    Finding {
        name: "remote",
        is_good,
        what,
        fix,
    }
}
