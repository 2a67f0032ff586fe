//! The only place where the mount reads a clock: files have times.

use std::time::SystemTime;

#[expect(
    clippy::disallowed_methods,
    reason = "a front end shows the real world"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
