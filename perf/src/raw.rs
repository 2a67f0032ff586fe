//! The reference for durable writes: a bare ring, `RWF_DSYNC` writes of one page each at random
//! places of a file that was written before, so many in flight.
//!
//! It does what no store can do without: no log, no map, no checksum, one thread. What it reaches
//! is what the device and the kernel allow.

use crate::bench::{Bench, PAGE, Pace};
use crate::measure::Sample;
use anyhow::{Context, bail, ensure};
use io_uring::{IoUring, opcode, types};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// `RWF_DSYNC` of `linux/fs.h`: the write is durable when it completes.
const RWF_DSYNC: i32 = 2;

/// `O_DIRECT`, which differs between architectures.
const O_DIRECT: i32 = nix::fcntl::OFlag::O_DIRECT.bits();

/// A page that the kernel may write from without a copy.
#[repr(align(4096))]
struct Page([u8; PAGE as usize]);

/// Overwrites pages of the file durably, `depth` at once, for as long as a side lasts.
pub fn durable_writes(
    bench: &Bench,
    file: &str,
    file_bytes: u64,
    depth: usize,
) -> anyhow::Result<Sample> {
    let file = open(bench, file, file_bytes)?;
    let mut rng = SmallRng::seed_from_u64(3);
    let mut page = Box::new(Page([0; PAGE as usize]));
    rng.fill_bytes(&mut page.0);
    let mut ring = IoUring::new(depth.next_power_of_two() as u32)?;
    let meter = bench.meter();
    let mut pace = Pace::time(bench.span);
    let mut began = vec![pace.now(); depth];
    let mut idle: Vec<usize> = (0..depth).collect();
    while idle.len() < depth || pace.goes_on() {
        while pace.goes_on()
            && let Some(slot) = idle.pop()
        {
            let at = rng.random_range(0..file_bytes / PAGE) * PAGE;
            began[slot] = pace.now();
            push(&mut ring, &file, &page, at, slot)?;
        }
        if idle.len() == depth {
            break;
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            let written = completion.result();
            if written < 0 {
                bail!(io::Error::from_raw_os_error(-written));
            }
            ensure!(written == PAGE as i32, "a short write: bytes={written}");
            let slot = completion.user_data() as usize;
            pace.done_since(began[slot]);
            idle.push(slot);
        }
    }
    Ok(meter.stop(pace.ops, pace.ops * PAGE, pace.latency))
}

fn open(bench: &Bench, name: &str, bytes: u64) -> anyhow::Result<File> {
    let path = bench.path(name);
    if !path.exists() {
        let mut left = bytes;
        let mut file = File::create(&path)?;
        while left > 0 {
            let piece = left.min(bench.noise.len() as u64);
            io::Write::write_all(&mut file, &bench.noise[..piece as usize])?;
            left -= piece;
        }
        file.sync_all()?;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(O_DIRECT)
        .open(&path)
        .with_context(|| format!("O_DIRECT is needed: path={}", path.display()))
}

fn push(ring: &mut IoUring, file: &File, page: &Page, at: u64, slot: usize) -> anyhow::Result<()> {
    let write = opcode::Write::new(types::Fd(file.as_raw_fd()), page.0.as_ptr(), PAGE as u32)
        .offset(at)
        .rw_flags(RWF_DSYNC)
        .build()
        .user_data(slot as u64);
    // SAFETY: the page and the file outlive the ring's last completion, as `durable_writes` only
    // returns early with an error, after which the kernel at most reads the page, and only reads.
    let pushed = unsafe { ring.submission().push(&write) };
    pushed.context("the ring has a place for each write in flight")
}
