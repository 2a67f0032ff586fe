//! What the machine is: kernel, processor, disk, load. Read from `/proc`, never measured.
//!
//! Invariant: whatever cannot be found out is `unknown`; nothing here fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Release of the running kernel.
pub(crate) fn kernel() -> String {
    line("/proc/sys/kernel/osrelease")
}

/// Model and number of the processors that may be used.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    format!("{model} x {}", cores())
}

/// Processors that may be used.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load average of the last minute.
pub(crate) fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Device and type of the file system that a directory is on, as `/dev/vda ext4`.
pub(crate) fn file_system(dir: &Path) -> String {
    let find = || {
        let device = fs::metadata(dir).ok()?.dev();
        let wanted = format!(
            "{}:{}",
            nix::sys::stat::major(device),
            nix::sys::stat::minor(device)
        );
        let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
        text.lines().find_map(|line| {
            // "36 35 98:0 /root /mountpoint options - ext4 /dev/sda1 options"
            let number = line.split(' ').nth(2)?;
            let (_, rest) = line.split_once(" - ")?;
            let mut fields = rest.split(' ');
            let (kind, source) = (fields.next()?, fields.next()?);
            (number == wanted).then(|| format!("{source} {kind}"))
        })
    };
    find().unwrap_or_else(|| "unknown".to_owned())
}

/// First line of a file.
pub(crate) fn line(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.lines().next().unwrap_or("").trim().to_owned(),
        Err(_) => "unknown".to_owned(),
    }
}
