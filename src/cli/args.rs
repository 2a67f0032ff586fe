//! What may be typed. The names are fixed: outside scripts call them.
//!
//! Deliberately not here: what any of it does, and the options of `bench`, which has its own file.

use super::bench::args::BenchArgs;
use super::units::{parse_range, parse_size, parse_size_above_zero, parse_time};
use clap::{Args, Parser, Subcommand};
use ringstore::{DriverKind, PayloadId};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the address of the remote is, unless it is typed.
const REMOTE_VARIABLE: &str = "RINGSTORE_REMOTE";

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

impl Arguments {
    /// What was typed, or an error that says what is wrong with it.
    pub(crate) fn read<W: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> Result<Arguments, clap::Error> {
        let mut arguments = Arguments::try_parse_from(words)?;
        arguments.tell_payload_from_remote();
        Ok(arguments)
    }

    /// In `flush --remote ID` the word is a payload, although it stands where an address could.
    fn tell_payload_from_remote(&mut self) {
        let Command::Flush { id, all: false } = &mut self.command else {
            return;
        };
        let Some(word) = self.global.remote.as_deref().filter(|_| id.is_none()) else {
            return;
        };
        let is_from_environment = std::env::var(REMOTE_VARIABLE).as_deref() == Ok(word);
        if word.contains("://") || word.starts_with("memory:") || is_from_environment {
            return;
        }
        if let Ok(payload) = PayloadId::new(word) {
            *id = Some(payload);
            self.global.remote = Some(String::new());
        }
    }
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
        env = REMOTE_VARIABLE,
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
            true => std::env::var(REMOTE_VARIABLE).ok(),
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
    /// Serve payloads to other programs, and figures to Prometheus, until interrupted
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

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Socket for NBD clients; an export is a payload, by its id
    #[cfg(feature = "nbd")]
    #[arg(long, value_name = "unix:PATH", value_parser = parse_unix)]
    pub(crate) nbd: Option<PathBuf>,
    /// Where GET /metrics has the store's figures for Prometheus; only this machine is answered
    #[arg(long, value_name = "unix:PATH|127.0.0.1:PORT", value_parser = parse_door)]
    pub(crate) admin: Option<Door>,
    /// Make a payload of this size when a client opens one that is missing
    #[cfg(feature = "nbd")]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "nbd")]
    pub(crate) create: Option<u64>,
    /// Most clients at a time; each may take 32 MiB of memory
    #[cfg(feature = "nbd")]
    #[arg(long, value_name = "N", default_value_t = 64, requires = "nbd")]
    pub(crate) max_clients: usize,
}

/// Where somebody may knock.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    Unix(PathBuf),
    /// An address of this machine that no other one can reach.
    Loopback(SocketAddr),
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
fn parse_unix(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err("a socket is given as unix:PATH".to_owned()),
    }
}

/// Reads `unix:PATH` or an address of the loopback interface with a port.
fn parse_door(text: &str) -> Result<Door, String> {
    if text.starts_with("unix:") {
        return parse_unix(text).map(Door::Unix);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Door::Loopback(address)),
        Ok(_) => Err("other machines are not answered: use 127.0.0.1 or [::1]".to_owned()),
        Err(_) => Err("give unix:PATH or 127.0.0.1:PORT".to_owned()),
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

    #[test]
    fn a_payload_behind_remote_is_no_address() {
        let read = |words: &str| {
            let words = ["ringstore", "flush"].into_iter().chain(words.split(' '));
            let arguments = Arguments::read(words).unwrap();
            let Command::Flush { id, .. } = arguments.command else {
                unreachable!("it was typed");
            };
            let id = id.map(|id| id.as_str().to_owned());
            (id, arguments.global.remote)
        };
        let waits = Some(String::new());
        let url = Some("file:///x".to_owned());
        assert_eq!(
            read("--remote disk"),
            (Some("disk".to_owned()), waits.clone())
        );
        assert_eq!(
            read("disk --remote"),
            (Some("disk".to_owned()), waits.clone())
        );
        assert_eq!(
            read("--remote file:///x disk"),
            (Some("disk".to_owned()), url.clone())
        );
        assert_eq!(read("--remote file:///x"), (None, url));
        assert_eq!(read("--remote --all"), (None, waits));
    }

    #[test]
    fn only_this_machine_is_let_in() {
        assert!(matches!(parse_door("unix:/x"), Ok(Door::Unix(_))));
        for text in ["127.0.0.1:80", "127.9.9.9:0", "[::1]:80"] {
            assert!(matches!(parse_door(text), Ok(Door::Loopback(_))), "{text}");
        }
        for text in [
            "0.0.0.0:80",
            "[::]:80",
            "10.0.0.1:80",
            "127.0.0.1",
            "localhost:80",
            "unix:",
        ] {
            assert!(parse_door(text).is_err(), "{text}");
        }
    }
}
