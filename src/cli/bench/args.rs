//! The options of `bench`: fio's names with fio's meanings, and a few of our own.

use crate::cli::units::{parse_size_above_zero, parse_time};
use clap::{Args, ValueEnum};
use std::time::Duration;

/// Largest operation that is measured.
const BLOCK_BYTES_MAX: u64 = 256 << 20;

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// What to do; left out, a tour of everything is measured
    #[arg(long, visible_alias = "readwrite", value_enum)]
    pub(crate) rw: Option<Rw>,
    /// Bytes of one operation
    #[arg(
        long,
        requires = "rw",
        default_value = "4k",
        value_name = "SIZE",
        value_parser = parse_block
    )]
    pub(crate) bs: u64,
    /// Operations in flight, of each job
    #[arg(
        long,
        requires = "rw",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub(crate) iodepth: u32,
    /// Jobs, each with payloads of its own
    #[arg(
        long,
        requires = "rw",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub(crate) numjobs: u32,
    /// Bytes of each job's payloads, and bytes to move before it ends
    #[arg(
        long,
        requires = "rw",
        default_value = "256m",
        value_name = "SIZE",
        value_parser = parse_size_above_zero
    )]
    pub(crate) size: u64,
    /// End after this time, at the latest
    #[arg(long, requires = "rw", value_name = "TIME", value_parser = parse_time)]
    pub(crate) runtime: Option<Duration>,
    /// Go on until the runtime is over, again and again over the size
    #[arg(long = "time_based", requires_all = ["rw", "runtime"])]
    pub(crate) time_based: bool,
    /// Run this long before anything is counted
    #[arg(
        long = "ramp_time",
        requires = "rw",
        default_value = "0s",
        value_name = "TIME",
        value_parser = parse_time
    )]
    pub(crate) ramp_time: Duration,
    /// Reads among 100 operations of randrw
    #[arg(
        long,
        requires = "rw",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(0..=100)
    )]
    pub(crate) rwmixread: u32,
    /// random, or zipf:THETA
    #[arg(
        long = "random_distribution",
        requires = "rw",
        default_value = "random",
        value_parser = parse_spread
    )]
    pub(crate) random_distribution: Spread,
    /// Operations to begin each second, of each job, whether or not the earlier ones are done
    #[arg(
        long = "rate_iops",
        requires = "rw",
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    pub(crate) rate_iops: Option<u64>,
    /// How those are spread in time
    #[arg(
        long = "rate_process",
        requires = "rate_iops",
        value_enum,
        default_value_t = RateProcess::Linear
    )]
    pub(crate) rate_process: RateProcess,
    /// Flush after so many writes; 0: never
    #[arg(long, requires = "rw", default_value_t = 0)]
    pub(crate) fsync: u64,
    /// Payloads of each job
    #[arg(
        long,
        requires = "rw",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    pub(crate) payloads: u32,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Shape of the result
    #[arg(
        long = "output-format",
        requires = "rw",
        value_enum,
        default_value_t = OutputFormat::Normal
    )]
    pub(crate) output_format: OutputFormat,
    /// How long a shard looks for work before it sleeps
    #[arg(long = "idle-spin", value_name = "TIME", value_parser = parse_time)]
    pub(crate) idle_spin: Option<Duration>,
    /// Shards of a store that is made for this
    #[arg(long)]
    pub(crate) shards: Option<usize>,
}

#[expect(clippy::enum_variant_names, reason = "fio's names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Rw {
    Read,
    Write,
    RandRead,
    RandWrite,
    RandRw,
}

impl Rw {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::RandRead => "randread",
            Rw::RandWrite => "randwrite",
            Rw::RandRw => "randrw",
        }
    }

    /// Whether there must be something to read first.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Rw::Read | Rw::RandRead | Rw::RandRw)
    }

    pub(crate) fn is_random(self) -> bool {
        matches!(self, Rw::RandRead | Rw::RandWrite | Rw::RandRw)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum RateProcess {
    /// At even distances
    Linear,
    /// At exponential distances, as independent clients do
    Poisson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// A table
    #[value(name = "normal")]
    Normal,
    /// fio's json+, with every bin of the histograms
    #[value(name = "json+", alias = "json")]
    JsonPlus,
}

/// Where random operations go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Spread {
    Uniform,
    Zipf(f64),
}

/// Reads the size of one operation, which is held in memory, once for each that is in flight.
fn parse_block(text: &str) -> Result<u64, String> {
    match parse_size_above_zero(text)? {
        size if size > BLOCK_BYTES_MAX => Err("it must be at most 256m".to_owned()),
        size => Ok(size),
    }
}

fn parse_spread(text: &str) -> Result<Spread, String> {
    if text == "random" {
        return Ok(Spread::Uniform);
    }
    let theta = text
        .strip_prefix("zipf:")
        .and_then(|theta| theta.parse::<f64>().ok());
    match theta {
        Some(theta) if theta > 0.0 && theta.is_finite() => Ok(Spread::Zipf(theta)),
        _ => Err(format!(
            "use random or zipf:THETA with THETA above 0: distribution={text:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_read_as_in_fio() {
        assert_eq!(parse_spread("random"), Ok(Spread::Uniform));
        assert_eq!(parse_spread("zipf:1.1"), Ok(Spread::Zipf(1.1)));
        for text in [
            "", "zipf", "zipf:", "zipf:-1", "zipf:0", "zipf:nan", "pareto:1",
        ] {
            assert!(parse_spread(text).is_err(), "{text}");
        }
    }
}
