//! The rows: one kind of work each, with its references and what is to be reached.

mod cleaning;
mod copy;
mod idle;
mod index;
mod mount;
mod nbd;
pub mod open;
mod read_hit;
mod read_random;
mod read_seq;
#[cfg(feature = "s3")]
mod remote;
mod scale;
mod small_payloads;
mod truncate;
mod write_flush;
mod write_random;
mod write_seq;

use crate::bench::Bench;
use crate::measure::Case;
use clap::ValueEnum;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    ReadRandom,
    ReadHit,
    ReadSeq,
    WriteSeq,
    WriteFlush,
    WriteRandom,
    Cleaning,
    Copy,
    Truncate,
    SmallPayloads,
    Open,
    Index,
    Idle,
    Scale,
    Nbd,
    Mount,
    #[cfg(feature = "s3")]
    ColdRead,
    #[cfg(feature = "s3")]
    Upload,
    #[cfg(feature = "s3")]
    WriteCliff,
}

impl Row {
    pub fn name(self) -> &'static str {
        match self {
            Row::ReadRandom => "read-random",
            Row::ReadHit => "read-hit",
            Row::ReadSeq => "read-seq",
            Row::WriteSeq => "write-seq",
            Row::WriteFlush => "write-flush",
            Row::WriteRandom => "write-random",
            Row::Cleaning => "cleaning",
            Row::Copy => "copy",
            Row::Truncate => "truncate",
            Row::SmallPayloads => "small-payloads",
            Row::Open => "open",
            Row::Index => "index",
            Row::Idle => "idle",
            Row::Scale => "scale",
            Row::Nbd => "nbd",
            Row::Mount => "mount",
            #[cfg(feature = "s3")]
            Row::ColdRead => "cold-read",
            #[cfg(feature = "s3")]
            Row::Upload => "upload",
            #[cfg(feature = "s3")]
            Row::WriteCliff => "write-cliff",
        }
    }

    pub fn run(self, bench: &Bench) -> anyhow::Result<Vec<Case>> {
        match self {
            Row::ReadRandom => read_random::run(bench),
            Row::ReadHit => read_hit::run(bench),
            Row::ReadSeq => read_seq::run(bench),
            Row::WriteSeq => write_seq::run(bench),
            Row::WriteFlush => write_flush::run(bench),
            Row::WriteRandom => write_random::run(bench),
            Row::Cleaning => cleaning::run(bench),
            Row::Copy => copy::run(bench),
            Row::Truncate => truncate::run(bench),
            Row::SmallPayloads => small_payloads::run(bench),
            Row::Open => open::run(bench),
            Row::Index => index::run(bench),
            Row::Idle => idle::run(bench),
            Row::Scale => scale::run(bench),
            Row::Nbd => nbd::run(bench),
            Row::Mount => mount::run(bench),
            #[cfg(feature = "s3")]
            Row::ColdRead => remote::cold_read(bench),
            #[cfg(feature = "s3")]
            Row::Upload => remote::upload(bench),
            #[cfg(feature = "s3")]
            Row::WriteCliff => remote::write_cliff(bench),
        }
    }
}
