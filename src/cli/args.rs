//! What may be typed. The names are fixed: outside scripts call them.
//!
//! Deliberately not here: what any of it does, and the options of `bench`, which has its own file.

use super::bench::args::BenchArgs;
use super::units::{parse_range, parse_size, parse_size_above_zero, parse_time};
use clap::{Args, Parser, Subcommand};
use ringstore::{DriverKind, PayloadId};
use std::path::PathBuf;
use std::time::Duration;

const EXIT_CODES: &str = "\
Sizes take k, m, g, t and p, and k is 1024. Exit codes: 0 ok, 1 failed, 2 usage, 3 payload not \
found, 4 store locked by another process, 5 corruption found, 6 degraded but serving, 7 remote \
unavailable, 8 environment unsupported, 130 interrupted.";

/// Named, sparse byte payloads on local NVMe: crash-safe, cloned in no time.
#[derive(Debug, Parser)]
#[command(name = "ringstore", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Directory of the store; made on first use
    #[arg(short, long, global = true, env = "RINGSTORE_DIR", value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
    /// Remote tier of the store: s3://bucket/prefix, file:///path; `flush --remote` waits for it
    #[arg(
        long,
        global = true,
        env = "RINGSTORE_REMOTE",
        value_name = "URL",
        num_args = 0..=1,
        default_missing_value = ""
    )]
    pub(crate) remote: Option<String>,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print nothing but results that were asked for, and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log more to stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Show no progress bar
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
    /// How the kernel is spoken to: auto, uring or threads; if built: glommio, tokio-uring
    #[arg(long, global = true, default_value = "auto", value_name = "DRIVER")]
    pub(crate) driver: DriverKind,
}

impl Global {
    /// Whether `--remote` stands alone: the command is to wait for the remote.
    pub(crate) fn waits_for_remote(&self) -> bool {
        self.remote.as_deref() == Some("")
    }

    /// The remote's address, from the option or else from the environment.
    pub(crate) fn remote_url(&self) -> Option<String> {
        match self.waits_for_remote() {
            true => std::env::var("RINGSTORE_REMOTE").ok(),
            false => self.remote.clone(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a store, or check that there is one
    Init(Init),
    /// Say what this machine allows, and how to mend what it does not
    Doctor,
    /// Make a payload what a file is, or write a file into one
    Put(Put),
    /// Write a payload, or a range of it, to a file
    Get(Get),
    /// Clone a payload: atomic, and independent of its size
    Cp {
        /// Payload to clone
        source: PayloadId,
        /// What it is to be called; replaced if it is there
        target: PayloadId,
    },
    /// Remove payloads; removing a missing one succeeds
    Rm {
        /// Payloads to remove
        #[arg(required = true)]
        ids: Vec<PayloadId>,
    },
    /// Set the size of a payload; made if it is missing
    Truncate {
        /// Payload
        id: PayloadId,
        /// Its new size
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Make a range read zero and free its pages
    Punch {
        /// Payload
        id: PayloadId,
        /// First byte
        #[arg(value_parser = parse_size)]
        offset: u64,
        /// Bytes
        #[arg(value_parser = parse_size)]
        len: u64,
    },
    /// List payloads in the order of their bytes
    Ls {
        /// Only ids that begin with this
        prefix: Option<String>,
        /// With their sizes
        #[arg(short)]
        long: bool,
    },
    /// Show a payload
    Stat {
        /// Payload
        id: PayloadId,
        /// With its data and holes
        #[arg(long)]
        extents: bool,
    },
    /// Make what was written durable on this machine
    Flush {
        /// Payload; all of them if left out
        #[arg(conflicts_with = "all")]
        id: Option<PayloadId>,
        /// All payloads
        #[arg(long)]
        all: bool,
    },
    /// Free payloads' local bytes, once the remote has them
    Evict {
        /// Payload
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<PayloadId>,
        /// All payloads
        #[arg(long)]
        all: bool,
    },
    /// Wait until the remote has everything
    Drain,
    /// Bring the store up from its remote alone, in an empty directory
    Rebuild,
    /// Show the store's figures
    Stats {
        /// With those of each shard
        #[arg(long)]
        per_shard: bool,
        /// Again every so many seconds, until interrupted
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        watch: Option<Duration>,
    },
    /// Say how well the store can do its work; exit code 6 when degraded
    Health,
    /// Read and check every live byte; exit code 5 when some are bad
    Verify {
        /// Write anew what is bad in one tier and good in the other; always done
        #[arg(long)]
        repair: bool,
    },
    /// Look into the log: which segments there are, and what stands in them
    Segments {
        #[command(subcommand)]
        command: Segments,
    },
    /// Serve payloads to other programs, until interrupted
    #[cfg(feature = "nbd")]
    Serve(Serve),
    /// Show payloads as files in a directory, until interrupted or unmounted
    #[cfg(feature = "fuse")]
    Mount(Mount),
    /// Measure; without options: a tour that writes, clones, cuts, reads back and verifies
    Bench(Box<BenchArgs>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Segments {
    /// List the segments of all shards and their files
    Ls,
    /// Show the batches and records of a segment, as its file has them
    Dump {
        /// Number of the segment; shards number theirs apart
        number: u64,
        /// Only this shard's segment of that number
        #[arg(long)]
        shard: Option<u64>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Shards, a thread each; the available cores if left out
    #[arg(long)]
    pub(crate) shards: Option<usize>,
    /// Size of the log's segments
    #[arg(long, value_name = "SIZE", value_parser = parse_size_above_zero)]
    pub(crate) segment_size: Option<u64>,
    /// Most bytes that the store may take on the disk
    #[arg(long, value_name = "SIZE", value_parser = parse_size_above_zero)]
    pub(crate) capacity: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// File to read, or - for standard input
    pub(crate) file: PathBuf,
    /// Payload to write
    pub(crate) id: PayloadId,
    /// Write from here on and leave the rest; without it the payload becomes what the file is
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) offset: Option<u64>,
    /// Make holes of the file's holes and of pages of zeros
    #[arg(long)]
    pub(crate) sparse: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// Payload to read
    pub(crate) id: PayloadId,
    /// File to write, or - for standard output
    pub(crate) file: PathBuf,
    /// Only the bytes from A up to but not including B
    #[arg(long, value_name = "A-B", value_parser = parse_range)]
    pub(crate) range: Option<(u64, u64)>,
    /// Make holes of the payload's holes
    #[arg(long)]
    pub(crate) sparse: bool,
}

#[cfg(feature = "nbd")]
#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Socket for NBD clients; an export is a payload, by its id
    #[arg(long, value_name = "unix:PATH", value_parser = parse_unix)]
    pub(crate) nbd: Option<PathBuf>,
    /// Make a payload of this size when a client opens one that is missing
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "nbd")]
    pub(crate) create: Option<u64>,
    /// Most clients at a time; each may take 32 MiB of memory
    #[arg(long, value_name = "N", default_value_t = 64, requires = "nbd")]
    pub(crate) max_clients: usize,
}

#[cfg(feature = "fuse")]
#[derive(Args, Debug)]
pub(crate) struct Mount {
    /// Empty directory to mount at
    pub(crate) point: PathBuf,
    /// Let other users in; they still need the permissions
    #[arg(long)]
    pub(crate) allow_other: bool,
}

/// Reads `unix:PATH`.
#[cfg(feature = "nbd")]
fn parse_unix(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err("a socket is given as unix:PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_hold_together() {
        Arguments::command().debug_assert();
    }
}
