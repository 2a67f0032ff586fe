//! The simulator: a store in a universe that is decided by a seed.
//!
//! [`Simulation`] is for embedders: it runs their own code against a store whose disk tears, loses,
//! rots, fills up and fails, whose power can be cut and whose process can be killed at any I/O, in
//! virtual time. What happened once happens again from the same seed. [`Campaign`] runs the
//! library's own plans against a model.
//!
//! Invariants:
//! 1. The engine's real code runs here; only its driver is another one.
//! 2. Nothing depends on anything but the seed and what the caller does.
//!
//! Deliberately not here: the stage itself (virtual time, disks, faults); see `io::sim`.

mod bucket;
mod campaign;
mod client;
mod content;
mod damage;
mod exhaustive;
mod face;
mod generate;
mod history;
mod look;
mod loss;
mod observe;
mod plan;
mod run;
mod shrink;
#[cfg(test)]
mod tests;
mod world;

pub use campaign::{Campaign, Failure, SEEDS_FOR_MARKS};
pub use face::{Faults, Simulation, Stuck};
