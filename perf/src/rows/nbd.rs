//! nbd: single pages over a Unix socket, 32 in flight, by fio's own client.
//!
//! Equalised: the export fits in the read buffer and was read before, for the reference has its
//! bytes in memory and nowhere else; both serve one connection. Writes are not flushed: ours are in
//! memory then, as the reference's are.

use crate::bench::{Bench, MIB, PAGE};
use crate::door::{Server, ringstore, shared};
use crate::fio::{self, End, Job, On};
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use std::os::unix::net::UnixStream;
use std::process::Command;

const ROW: &str = "nbd";
const STORE: &str = "nbd-store";
const OTHER: &str = "nbdkit memory";
const IN_FLIGHT: usize = 32;

/// A server and the address of its export.
struct Export {
    _server: Server,
    uri: String,
}

fn ours(bench: &Bench, bytes: u64) -> anyhow::Result<Export> {
    let mut command = ringstore(&bench.path(STORE))?;
    let socket = bench.path("nbd-ours.sock");
    command
        .arg("serve")
        .arg(format!("--nbd=unix:{}", socket.display()))
        .arg(format!("--create={bytes}"));
    export(command, &socket, "/disk", bench, bytes)
}

fn nbdkit(bench: &Bench, bytes: u64) -> anyhow::Result<Export> {
    let socket = bench.path("nbd-other.sock");
    let mut command = Command::new("nbdkit");
    command.arg("-f").arg("-U").arg(&socket);
    command.args(["memory", &bytes.to_string()]);
    export(command, &socket, "/", bench, bytes)
}

/// Starts a server, and writes and reads its export once.
fn export(
    mut command: Command,
    socket: &std::path::Path,
    name: &str,
    bench: &Bench,
    bytes: u64,
) -> anyhow::Result<Export> {
    let server = Server::start(&mut command, || UnixStream::connect(socket).is_ok())?;
    let export = Export {
        _server: server,
        uri: format!("nbd+unix://{name}?socket={}", socket.display()),
    };
    for rw in ["write", "read"] {
        let job = Job {
            rw,
            block_bytes: MIB,
            depth: 4,
            file_bytes: bytes,
            end: End::Bytes(bytes),
            options: &[],
        };
        fio::run_on(bench, On::Nbd(&export.uri), &job)?;
    }
    Ok(export)
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let bytes = bench.sized(32 * MIB, 8 * MIB);
    let (ours, other) = (ours(bench, bytes), nbdkit(bench, bytes));
    let measure = |export: &anyhow::Result<Export>, rw| -> anyhow::Result<Sample> {
        let job = Job {
            rw,
            block_bytes: PAGE,
            depth: IN_FLIGHT,
            file_bytes: bytes,
            end: End::After(bench.span),
            options: &[],
        };
        fio::run_on(bench, On::Nbd(&shared(export)?.uri), &job)
    };
    let mut cases = Vec::new();
    for rw in ["randread", "randwrite"] {
        let sides = vec![
            Side::new(OURS, || measure(&ours, rw)),
            Side::new(OTHER, || measure(&other, rw)),
        ];
        let mut case = alternate(ROW, format!("{rw}, 32 in flight"), bench.rounds, sides);
        let ratio = case.ratio(OURS, OTHER, Figure::PerSecond);
        case.at_least("requests per s, of nbdkit's", ratio, 0.5);
        cases.push(case);
    }
    drop((ours, other));
    bench.remove(STORE)?;
    Ok(cases)
}
