//! What the machine has done: processor time, memory, traffic of the disk.
//!
//! Invariant: nothing here fails. What cannot be found out is `None` or `unknown`, and its place in
//! the table stays empty.

use crate::host;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::stat::{major, minor};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Bytes of a sector in `/proc/diskstats`, whatever the device's own are.
const SECTOR: u64 = 512;

/// Kernel, processor and file system, in one line.
pub fn describe(dir: &Path) -> String {
    let (processor, kernel) = (host::processor(), host::kernel());
    format!("{processor}, Linux {kernel}, {}", host::file_system(dir))
}

/// Resident memory of this process.
pub fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Processor time of the engine's own threads until now, and of those that the kernel runs for its
/// rings; the caller's threads and this program's first are left out.
pub fn engine_time() -> Duration {
    let of_thread = |entry: fs::DirEntry| {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        let is_first = entry.file_name().to_str()?.parse() == Ok(std::process::id());
        if is_first || !(name.starts_with("ringstore") || name.starts_with("iou-")) {
            return None;
        }
        // Nanoseconds on a processor come first.
        let figures = fs::read_to_string(path.join("schedstat")).ok()?;
        let ns = figures.split(' ').next()?.parse().ok()?;
        Some(Duration::from_nanos(ns))
    };
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    threads.flatten().filter_map(of_thread).sum()
}

fn device_number(dir: &Path) -> Option<(u64, u64)> {
    let device = fs::metadata(dir).ok()?.dev();
    Some((major(device), minor(device)))
}

/// The device that a directory's file system is on.
pub struct Device(Option<(u64, u64)>);

/// Bytes that a device has read and written since the machine was started.
#[derive(Clone, Copy)]
pub struct Traffic {
    pub read: u64,
    pub written: u64,
}

impl Device {
    pub fn of(dir: &Path) -> Device {
        Device(device_number(dir))
    }

    /// Everybody's traffic; `None` where the file system has no device of its own.
    pub fn traffic(&self) -> Option<Traffic> {
        let (major, minor) = self.0?;
        let text = fs::read_to_string("/proc/diskstats").ok()?;
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_it = fields.first()?.parse() == Ok(major) && fields.get(1)?.parse() == Ok(minor);
            if !is_it {
                return None;
            }
            let sectors = |index: usize| fields.get(index)?.parse::<u64>().ok();
            Some(Traffic {
                read: sectors(5)? * SECTOR,
                written: sectors(9)? * SECTOR,
            })
        })
    }
}

/// Whose processor time is meant.
#[derive(Clone, Copy)]
pub enum Who {
    /// This process, all threads, those of its rings in the kernel included.
    Us,
    /// Programs that were started and have ended.
    Children,
}

/// Processor time and involuntary context switches until now.
pub fn usage(who: Who) -> (Duration, u64) {
    let who = match who {
        Who::Us => UsageWho::RUSAGE_SELF,
        Who::Children => UsageWho::RUSAGE_CHILDREN,
    };
    let Ok(usage) = getrusage(who) else {
        return (Duration::ZERO, 0);
    };
    (
        processor_time(&usage),
        usage.involuntary_context_switches() as u64,
    )
}

fn processor_time(usage: &Usage) -> Duration {
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
        })
        .sum()
}
