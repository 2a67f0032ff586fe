//! Trying again: at opening, an error that passes must not be taken for damage.
//!
//! Deliberately not here: writes and syncs. One that failed is never tried again and believed.

use super::Driver;
use crate::marks::mark;
use std::io;
use std::time::Duration;

/// Times that reading is tried.
const TRIES_MAX: u32 = 4;

/// Pause before it is tried again, doubled each time: a sector that stays bad costs 7 ms.
const TRY_DELAY: Duration = Duration::from_millis(1);

/// What came of an attempt at reading, repeated while it fails in a way that may pass.
pub(crate) async fn retried<D: Driver, T, F: Future<Output = io::Result<T>>>(
    driver: &D,
    mut attempt: impl FnMut() -> F,
) -> io::Result<T> {
    let mut delay = TRY_DELAY;
    for _ in 1..TRIES_MAX {
        match attempt().await {
            Err(error) if is_passing(&error) => mark("reading tried again"),
            result => return result,
        }
        driver.sleep(delay).await;
        delay *= 2;
    }
    attempt().await
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, UnexpectedEof};
    let lasting = [NotADirectory, NotFound, PermissionDenied, UnexpectedEof];
    !lasting.contains(&error.kind()) && !is_exhausted(error)
}

/// Whether the process, or the machine, has no descriptors left.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
