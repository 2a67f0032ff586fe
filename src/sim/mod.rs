//! The simulator.

mod campaign;
mod client;
mod content;
mod generate;
mod history;
mod observe;
mod plan;
mod run;
mod shrink;
mod world;

pub use campaign::{Campaign, Failure, SEEDS_FOR_MARKS};
