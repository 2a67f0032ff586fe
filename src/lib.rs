//! Named, sparse byte payloads on local NVMe, crash-safe, with instant clones.

mod buf;
mod cache;
mod chunks;
mod config;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(all(test, not(fuzzing)))]
mod fuzzing;
mod io;
mod log;
mod map;
mod marks;
mod mutation;
mod payload_id;
mod remote;
mod residency;
mod retention;
mod shard;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
mod store;
mod superblock;
mod sync;
mod types;
mod upload;
mod world;

pub use chunks::Chunks;
pub use config::{Config, DriverKind, RemoteConfig, S3Config};
pub use error::{Error, ErrorKind, Result};
pub use payload_id::PayloadId;
pub use retention::RetentionPolicy;
pub use stats::{
    BatchDump, Extent, ExtentKind, Flushed, Health, HealthStatus, LatencySnapshot, Segment,
    SegmentDump, SegmentState, Stats, VerifyReport,
};
pub use store::Store;

/// The README's code has to run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
