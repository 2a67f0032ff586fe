//! The only place where the command line reads a clock.
//!
//! The engine takes its time from the driver, so that a seed replays a run, and `clippy.toml` bans
//! the clock everywhere. A front end measures the real world, and says here, once, that it does.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
#[expect(
    clippy::disallowed_methods,
    reason = "a front end measures the real world"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "reports carry the date of their run"
)]
pub(crate) fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
