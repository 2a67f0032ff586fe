//! mount: a payload as a file, and a plain file, in order and at random.
//!
//! Equalised: the same jobs of fio with O_DIRECT, so that the kernel's pages are no part of it;
//! files written before; 1 MiB in order, 8 in flight, and single pages at random, 32 in flight;
//! writes end with a sync. The payload is far larger than the read buffer.

use crate::bench::{Bench, GIB, MIB, PAGE};
use crate::door::{Server, ringstore, shared};
use crate::fio::{self, End, Job, On};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use std::path::PathBuf;

const ROW: &str = "mount";
const STORE: &str = "mount-store";
const FILE: &str = "mount.dat";
const POINT: &str = "mount-point";
const PLAIN: &str = "plain file";

/// A mounted store and a file in it.
struct Mounted {
    _server: Server,
    file: PathBuf,
}

fn mounted(bench: &Bench) -> anyhow::Result<Mounted> {
    let point = bench.path(POINT);
    std::fs::create_dir_all(&point)?;
    let mut command = ringstore(&bench.path(STORE))?;
    let server = Server::mount(command.arg("mount").arg(&point), &point)?;
    Ok(Mounted {
        _server: server,
        file: point.join("file"),
    })
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(GIB, 32 * MIB);
    let ours = mounted(bench);
    let on_ours = |job: &Job| -> anyhow::Result<Sample> {
        fio::run_on(bench, On::File(&shared(&ours)?.file), job)
    };
    let mut cases = Vec::new();
    for (rw, block_bytes, depth) in [
        ("write", MIB, 8),
        ("read", MIB, 8),
        ("randread", PAGE, 32),
        ("randwrite", PAGE, 32),
    ] {
        let job = Job {
            rw,
            block_bytes,
            depth,
            file_bytes: bytes,
            // In order: all of it, which is also how the files come to be there.
            end: match block_bytes {
                PAGE => End::After(bench.span),
                _ => End::Bytes(bytes),
            },
            options: match rw {
                "write" | "randwrite" => &["--end_fsync=1"],
                _ => &[],
            },
        };
        let sides = vec![
            Side::new(OURS, || on_ours(&job)),
            Side::new(PLAIN, || fio::run(bench, FILE, &job)),
        ];
        let mut case = alternate(ROW, format!("{rw}, {depth} in flight"), bench.rounds, sides);
        let ratio = case.ratio(OURS, PLAIN, Figure::BytesPerSecond);
        case.at_least("bytes per s, of the plain file's", ratio, 0.5);
        cases.push(case);
    }
    drop(ours);
    bench.remove(STORE)?;
    bench.remove(POINT)?;
    bench.remove(FILE)?;
    Ok(cases)
}
